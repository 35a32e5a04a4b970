"""Write every page with hostile and with missing data: well-formed, escaped, self-contained, a word for every picture."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
import tomllib
import types
import typing
from collections.abc import Sequence
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markupsafe import Markup
from PIL import Image

from femtobooth.core.metrics import Interval
from femtobooth.judging.verdict import Evidence, Verdict, judge
from femtobooth.pages import charts
from femtobooth.pages.classifier import ClassifierPage
from femtobooth.pages.compare import ComparisonPage
from femtobooth.pages.export import ExportPage
from femtobooth.pages.finetune import FinetunePage
from femtobooth.pages.html import Contents, Shot, embedded, render
from femtobooth.pages.labels import MultiLabelPage
from femtobooth.pages.many import ManyPage
from femtobooth.pages.run import RunPage

HOSTILE = "<script>alert('1')</script> \"&amp;\" </svg></table> \x07\u202e"
VOID = {"meta", "img", "br", "hr", "link", "input"}
PAGES = {
    "classifier.html": ClassifierPage,
    "compare.html": ComparisonPage,
    "export.html": ExportPage,
    "finetune.html": FinetunePage,
    "many.html": ManyPage,
    "multi_label.html": MultiLabelPage,
    "run.html": RunPage,
}


class Reader(HTMLParser):
    """Checks that every element is closed in order, and collects what the tests ask about."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice: {names}"
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert not reader.open
    return reader


def made(kind: Any, text: str, whole: bool) -> Any:  # noqa: PLR0911
    """A value of a type with `text` wherever a text can be; where not `whole`, as little as the type allows."""
    arguments = typing.get_args(kind)
    origin = typing.get_origin(kind)
    if kind is Verdict:
        return judge(Evidence(text, 12, 0.5, 0.378, Interval(0.12, 0.1, 0.14), 0.629), bundled=False)
    if kind is Interval:
        return Interval(0.5, 0.3, 0.7)
    if kind is Markup:
        return charts.line_chart({text: ([0, 1], [0, 1]), "b": ([0], [0])}, text, text, text)
    if kind is Shot:
        return Shot(np.zeros((4, 6, 3), np.uint8), text or "picture")
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        names = [field.name for field in dataclasses.fields(kind)]
        beside = {"link": "data:#"} if "link" in names else {}  # a page in a folder beside it
        return kind(**{name: made(hints[name], text, whole) for name in names} | beside)  # type: ignore[operator]
    if origin in (typing.Union, types.UnionType):
        return made(arguments[0], text, whole) if whole else None
    if origin is tuple and arguments[-1] is not Ellipsis:
        return tuple(made(part, text, whole) for part in arguments)
    if origin is Sequence and arguments[0] is float:
        return [0.5, 0.3, 0.7]
    if origin in (list, Sequence, tuple):
        return [made(arguments[0], text, whole) for _ in range(2 if whole else 0)]
    if kind in (str, object):
        return text
    return {int: 3 * whole, float: 0.5, bool: whole}[kind]


def page(template: str, text: str, whole: bool = True) -> str:
    return render(template, made(PAGES[template], text, whole))


def test_there_is_no_page_without_its_test() -> None:
    templates = {path.name for path in (resources.files("femtobooth.pages") / "templates").iterdir()}
    assert templates == PAGES.keys() | {"base.html", "macros.html", "validation.html", "style.css"}


@pytest.mark.parametrize("template", PAGES)
def test_a_hostile_name_stays_text_everywhere(template: str) -> None:
    html = page(template, HOSTILE)
    reader = read(html)
    assert "script" not in {tag for tag, _ in reader.elements}
    assert not any(name.startswith("on") for _, attributes in reader.elements for name in attributes)
    shown = "".join(reader.words)
    assert shown.count("<script>alert('1')</script>") >= 20  # it is still there to be read
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", html)
    alike = [tag for tag, _ in read(page(template, "plain")).elements]
    assert [tag for tag, _ in reader.elements] == alike


@pytest.mark.parametrize("template", PAGES)
@pytest.mark.parametrize("whole", [True, False])
def test_it_needs_nothing_from_elsewhere(template: str, whole: bool) -> None:
    html = page(template, "name" if whole else "", whole)
    written = re.sub(r"base64,[^\"]+", "", html)
    assert not re.search(r"(?i)https?:|//[a-z]|@import|<link|<iframe|<script|url\(", written)
    for _, attributes in read(html).elements:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:#").startswith(("data:image/", "#", "data:#"))


@pytest.mark.parametrize("template", PAGES)
def test_every_picture_and_chart_has_a_text(template: str) -> None:
    elements = read(page(template, "name")).elements
    pictures = [attributes for tag, attributes in elements if tag == "img"]
    drawn = [attributes for tag, attributes in elements if tag == "svg"]
    assert template == "export.html" or pictures or drawn
    assert all(attributes["alt"] for attributes in pictures)
    assert all(attributes.get("aria-label") or attributes.get("aria-hidden") for attributes in drawn)


@pytest.mark.parametrize("template", PAGES)
def test_wide_things_scroll_in_their_own_box(template: str) -> None:
    html = page(template, "name")
    tables = [*re.finditer(r"<table", html)]
    assert tables
    for table in tables:
        before = html[: table.start()]
        assert before.endswith(">") and 'class="scroll' in before[before.rindex("<div") :]
    wide = re.findall(r'<figure class="wide">(<div class="scroll" role="region" tabindex="0")?', html)
    assert all(wide)
    assert bool(wide) == (template in ("classifier.html", "finetune.html"))


@pytest.mark.parametrize("template", PAGES)
def test_anchors_are_unique_and_linked(template: str) -> None:
    reader = read(page(template, "name"))
    anchors = [str(attributes["id"]) for tag, attributes in reader.elements if tag == "section"]
    assert len(anchors) == len(set(anchors)) > 1
    listed = anchors if len(anchors) > 2 else []  # a short page has no table of contents
    links = [attributes["href"] for tag, attributes in reader.elements if tag == "a" and attributes["href"] != "data:#"]
    assert links[: len(listed)] == [f"#{anchor}" for anchor in listed]
    assert set(links[len(listed) :]) <= {f"#note-{number}" for number in range(10)}


def test_the_same_heading_twice_has_two_anchors() -> None:
    contents = Contents()
    assert [contents.add(heading) for heading in ("A & b", "a b", "?", "A  B")] == ["a-b", "a-b-2", "part", "a-b-3"]
    assert [*contents.headings.values()] == ["A & b", "a b", "?", "A  B"]


def test_figures_lead_to_their_footnotes() -> None:
    html = page("compare.html", 'read "there" <5>')
    assert 'read &#34;there&#34; &lt;5&gt;<sup><a href="#note-3" title="read &#34;there&#34; &lt;5&gt;"' in html
    assert '<li id="note-2"><strong>read &#34;there&#34; &lt;5&gt;:</strong>' in html


def test_a_picture_keeps_its_pixels_and_proportions() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)
    found = embedded(Shot(pixels, "noise", exact=40))
    data = base64.b64decode(found.uri.removeprefix("data:image/png;base64,"))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)
    small = embedded(Shot(Image.new("L", (600, 300)), "grey", longest=100))
    assert (small.width, small.height) == (100, 50)
    assert small.uri.startswith("data:image/jpeg;base64,")


def test_every_file_that_is_no_module_comes_with_the_package() -> None:
    """Templates and style lie in a wheel too: setuptools takes along what package-data names."""
    root = Path(str(resources.files("femtobooth")))
    assert {"base.html", "macros.html", "style.css"} <= {path.name for path in (root / "pages/templates").iterdir()}
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    globs = project["tool"]["setuptools"]["package-data"]["femtobooth"]
    taken = {path for glob in globs for path in root.glob(glob) if path.is_file()}
    others = {path for path in root.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert taken and others <= taken, others - taken
