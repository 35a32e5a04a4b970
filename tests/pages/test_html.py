"""The pages and their charts: well-formed, escaped, self-contained, with a word for every picture."""

import base64
import io
import re
import tomllib
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from femtobooth.core.metrics import Interval, reliability
from femtobooth.pages import charts
from femtobooth.pages import html as pages

HOSTILE = "<script>alert('1')</script> \"&amp;\" </svg></table> \x07\u202e"
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Reader(HTMLParser):
    """Checks that every element is closed in order, and collects what the tests ask about."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice: {names}"
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        self.words.append(data)


def read(html):
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert not reader.open
    return reader


def everything(name):
    """A page with each building block, `name` wherever a text can be."""
    shares = [(name, Interval(0.5, 0.3, 0.7)), ("other", 0.2)]
    line = charts.line_chart(
        {name: ([0, 1], [0, 1]), "b": ([0, 1], [1, 0])}, name, name, name, bands={name: ([0, 1], [0, 0.5], [0.5, 1])}
    )
    dots = charts.scatter_chart(
        {name: ([1], [2]), "b": ([2], [3])}, name, name, name, names={name: [name]}, labelled=True
    )
    return pages.page(
        name,
        pages.tiles((name, name, name)),
        pages.callout(name, "warn"),
        pages.section(
            name,
            pages.text(name, pages.strong(name), pages.code(name)),
            pages.row(pages.figure(line, name), pages.figure(dots)),
        ),
        pages.section(
            name,
            pages.figure(charts.bar_chart(shares, name, name)),
            pages.figure(charts.histogram({name: [1.0, 2.0]}, name, name)),
        ),
        pages.section(
            "more",
            pages.figure(charts.reliability_chart(reliability([0.9, 0.4], [1, 0]), name), name),
            pages.figure(
                charts.heat_map([[2, 1], [0, 3]], [name, "b"], [name, "b"], name, name, name), name, wide=True
            ),
            pages.table([name, ">n"], [(name, pages.meter(0.5, 0.2, 0.8))], name),
            pages.grid(pages.figure(pages.picture(np.zeros((4, 6, 3), np.uint8), name), name)),
            pages.folded(name, name),
        ),
        lead=name,
        kind=name,
        footer=name,
    )


def test_a_hostile_name_stays_text_everywhere():
    reader = read(everything(HOSTILE))
    assert "script" not in {tag for tag, _ in reader.elements}
    assert not any(name.startswith("on") for _, attributes in reader.elements for name in attributes)
    shown = "".join(reader.words)
    assert shown.count("<script>alert('1')</script>") >= 20  # it is still there to be read
    assert "\x07" not in shown and "\u202e" not in shown
    alike = [tag for tag, _ in read(everything("plain")).elements]
    assert [tag for tag, _ in reader.elements if tag != "title"] == [tag for tag in alike if tag != "title"]


def test_it_needs_nothing_from_elsewhere():
    html = everything("name")
    written = re.sub(r"base64,[^\"]+", "", html)
    assert not re.search(r"(?i)https?:|//[a-z]|@import|<link|<iframe|<script|url\(", written)
    for _, attributes in read(html).elements:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:#").startswith(("data:image/", "#", "data:#"))


def test_every_picture_and_chart_has_a_text():
    elements = read(everything("name")).elements
    told = [
        attributes.get("alt") or attributes.get("aria-label")
        for tag, attributes in elements
        if tag == "img" or attributes.get("role") == "img"
    ]
    assert len(told) == 7 and all(told)
    assert all(
        attributes.get("aria-label") or attributes.get("aria-hidden") for tag, attributes in elements if tag == "svg"
    )


def test_wide_things_scroll_in_their_own_box():
    html = everything("name")
    for wide in ("<table", '<svg class="map"'):
        before = html[: html.index(wide)]
        assert before.endswith(">") and 'class="scroll"' in before[before.rindex("<div") :]


def test_anchors_are_unique_and_linked():
    reader = read(everything("name"))
    anchors = [attributes["id"] for tag, attributes in reader.elements if tag == "section"]
    assert anchors == ["name", "name-2", "more"]
    assert [attributes["href"] for tag, attributes in reader.elements if tag == "a"] == [
        f"#{anchor}" for anchor in anchors
    ]


def test_a_picture_keeps_its_pixels_and_proportions():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)
    html = pages.picture(pixels, "noise", format="PNG")
    stored = base64.b64decode(re.search(r"base64,([^\"]+)", html)[1])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(stored))), pixels)
    small = pages.picture(Image.new("L", (600, 300)), "grey", longest=100)
    assert 'width="100" height="50"' in small


@pytest.mark.parametrize("values", [[], [np.nan], [1.0], [0.0, 0.0], [1e-30, 1e30], [-5, np.inf]])
def test_charts_take_any_numbers(values):
    places = np.arange(len(values))
    for chart in (
        charts.line_chart({"a": (places, values)}, "x", "y", "alt"),
        charts.scatter_chart({"a": (places, values)}, "x", "y", "alt"),
        charts.histogram({"a": values}, "x", "alt"),
        charts.bar_chart([("a", value) for value in values if np.isfinite(value)], "x", "alt"),
    ):
        assert "nan" not in chart and "inf" not in re.sub(r"<title>.*?</title>", "", chart)
        read(chart)


def test_places_in_a_line_chart():
    chart = charts.line_chart({"a": ([0, 1], [0, 10])}, "x", "y", "alt", x_range=(0, 1), y_range=(0, 10))
    found = re.search(r'class="l0" d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"', chart)
    left, bottom, right, top = map(float, found.groups())
    assert (left, right) == (charts.LEFT, charts.WIDTH - charts.RIGHT)
    assert (bottom, top) == (charts.HEIGHT - charts.BOTTOM, charts.TOP)


def test_ticks_are_round_and_inside():
    assert charts._ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert charts._ticks(3, 47) == [10, 20, 30, 40]
    assert all(-0.31 <= tick <= 0.07 for tick in charts._ticks(-0.31, 0.07))


def test_heat_map_shows_each_count_once():
    chart = charts.heat_map(
        np.array([[7, 0], [2, 9]]), ["cat", "dog"], ["cat", "dog"], "true", "predicted", "confusions"
    )
    assert re.findall(r"<title>(.*?)</title>", chart) == [
        "cat taken for cat: 7",
        "dog taken for cat: 2",
        "dog taken for dog: 9",
    ]
    assert len(re.findall('class="cell own"', chart)) == 2


def test_figures_lead_to_their_footnotes() -> None:
    made = pages.join(pages.noted("<5>", 2, 'read "there"'), pages.footnotes(["one", "<two>"]))
    assert '&lt;5&gt;<sup><a href="#note-2"' in made
    assert '<li id="note-2">&lt;two&gt;</li>' in made
    assert 'title="read &#34;there&#34;"' in made


def test_what_was_chosen_has_one_colour_in_every_chart_whatever_stands_before_it() -> None:
    lines = {"a": ([0, 1], [0, 1]), "b": ([0, 1], [1, 0]), "step 20": ([1, 1], [0, 1])}
    for drawn in (
        charts.line_chart(lines, "x", "y", "lines", chosen="step 20"),
        charts.line_chart(dict(reversed(lines.items())), "x", "y", "lines", chosen="step 20"),
        charts.scatter_chart({name: ([1], [2]) for name in lines}, "x", "y", "dots", chosen="step 20"),
    ):
        mark = "f" if "circle" in drawn else "l"
        assert drawn.count(f'class="{mark}c"') == 2  # in the chart and in its legend
        assert {f'class="{mark}{look}"' in drawn for look in (0, 1)} == {True}
        assert f'class="{mark}2"' not in drawn


def test_every_file_that_is_no_module_comes_with_the_package() -> None:
    """Templates and style lie in a wheel too: setuptools takes along what package-data names."""
    root = Path(str(resources.files("femtobooth")))
    assert {"base.html", "macros.html", "style.css"} <= {path.name for path in (root / "pages/templates").iterdir()}
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    globs = project["tool"]["setuptools"]["package-data"]["femtobooth"]
    taken = {path for glob in globs for path in root.glob(glob) if path.is_file()}
    others = {path for path in root.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert taken and others <= taken, others - taken
