"""Write HTML pages from templates: self-contained files of text, tables, pictures and folds that need nothing else.

A page module gathers what a page shows in a dataclass, and `render` puts it into the template of that name:

    page = ExportPage(title="...", kind="export", tiles=[Tile("size", "3.4 MB", "...")], ...)
    write_text(folder / "parity.html", render("export.html", page))

Whatever a template prints is text and is escaped, but for markup of its macros and the charts of `charts.py`. No
script, no font, no picture comes from elsewhere; light and dark follow the reader's system; the page prints, and fits a
phone of 390 px: whatever is wider scrolls in its own box.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from io import BytesIO

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from ..core.names import shown


@dataclass(frozen=True, kw_only=True)
class Page:
    """Hold what every page has; `kind` stands in small letters above the title, `lead` (the answer) below it."""

    title: str
    kind: str
    lead: str = ""
    footer: str = ""


@dataclass(frozen=True)
class Tile:
    """Hold a figure that is shown large; `mood` (good, warn or bad) colours it."""

    name: str
    value: object
    detail: str
    mood: str = ""


@dataclass(frozen=True)
class Shot:
    """Hold a picture, PIL or uint8 (H, W, 3), with the text that stands for it, and how large it is shown [px]."""

    image: Image.Image | np.ndarray
    alt: str
    longest: int = 256
    """Side to which a larger picture is shrunk."""
    exact: int = 0
    """Side up to which pixels are kept exactly (PNG), as those of small bases; larger pictures become JPEG."""


@dataclass(frozen=True)
class Strip:
    """Hold pictures that stand side by side over one caption; a `remark` in it stands out."""

    shots: list[Shot]
    caption: str
    remark: str = ""


@dataclass(frozen=True)
class Chart:
    """Hold a drawing of `charts.py` with its caption, which a `title` may begin."""

    svg: Markup
    caption: str
    title: str = ""


@dataclass(frozen=True)
class Embedded:
    """Hold a picture as a data URI, with its size [px]."""

    uri: str
    width: int
    height: int


@dataclass
class Contents:
    """Collect the headings of a page while it is written."""

    headings: dict[str, str] = field(default_factory=dict)
    """Heading by anchor, in the order of the page."""

    def add(self, heading: str) -> str:
        """Take a heading in and return its anchor; of the same words, the second gets -2 behind it."""
        plain = anchor = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") or "part"
        count = 1
        while anchor in self.headings:
            count += 1
            anchor = f"{plain}-{count}"
        self.headings[anchor] = heading
        return anchor


def render(template: str, page: Page) -> str:
    """Write the page by one of `templates/`; control characters of any text in it are made visible."""
    made = _environment().get_template(template).render(page=page, contents=Contents())
    return visible(made)


def visible(markup: str) -> str:
    """Make control characters visible, but for line breaks and tabs."""
    return shown(markup, keep="\n\t")


def escaped(value: object) -> Markup:
    """Escape a text for elements and quoted attributes, control characters made visible; markup stays as it is."""
    return value if isinstance(value, Markup) else escape(visible(str(value)))


def embedded(shot: Shot) -> Embedded:
    """Encode a picture as a data URI."""
    image = shot.image if isinstance(shot.image, Image.Image) else Image.fromarray(np.asarray(shot.image))
    exact = max(image.size) <= shot.exact
    image = image.convert("RGB")
    image.thumbnail((shot.longest, shot.longest), Image.Resampling.LANCZOS)
    stored = BytesIO()
    image.save(stored, format="PNG" if exact else "JPEG", quality=85, optimize=True)
    data = base64.b64encode(stored.getvalue()).decode()
    return Embedded(f"data:image/{'png' if exact else 'jpeg'};base64,{data}", image.width, image.height)


def style() -> str:
    """Read the style sheet of all pages."""
    return (resources.files(__package__) / "templates" / "style.css").read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("femtobooth", "pages/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["embedded"] = embedded
    return environment


# Builders of pages that are not templates yet

Html = Markup
markup = escaped


def join(*parts: object) -> Html:
    """Pieces one after the other."""
    return Html("\n".join(markup(part) for part in parts))


def page(title: str, *content: object, lead: object = "", kind: str = "report", footer: object = "") -> Html:
    """A whole document. `kind` stands in small letters above the title, `lead` (the answer in a sentence or two) below
    it.

    The headings of all top sections become the table of contents.
    """
    body = _unique_anchors(join(*content))
    found = re.findall(r'<section id="([^"]*)"><h2>(.*?)</h2>', body)
    links = "".join(f'<a href="#{anchor}">{name}</a>' for anchor, name in found)
    contents = f'<nav aria-label="contents">{links}</nav>' if len(found) > 2 else ""
    return Html(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta '
        'name="color-scheme" content="light dark">\n'
        f'<meta name="generator" content="femtobooth: {markup(kind)}">\n'
        f"<title>{markup(title)}</title>\n<style>{style()}</style>\n</head>\n<body>\n"
        f'<header><p class="kind">{markup(kind)}</p>\n<h1>{markup(title)}</h1>\n'
        + (f'<p class="lead">{markup(lead)}</p>\n' if lead else "")
        + f"{contents}</header>\n<main>\n{body}\n</main>\n<footer>{markup(footer)}</footer>\n</body>\n</html>\n"
    )


def section(heading: str, *content: object) -> Html:
    """A part of the page under a heading, listed in the table of contents."""
    anchor = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") or "part"
    return Html(f'<section id="{anchor}"><h2>{markup(heading)}</h2>\n{join(*content)}\n</section>')


def text(*content: object) -> Html:
    """A paragraph."""
    return Html(f"<p>{Html(' ').join(markup(part) for part in content)}</p>")


def strong(content: object) -> Html:
    """Words that carry the sentence."""
    return Html(f"<strong>{markup(content)}</strong>")


def code(content: object) -> Html:
    """A name or a command as typed."""
    return Html(f"<code>{markup(content)}</code>")


def callout(content: object, mood: str = "info") -> Html:
    """A boxed remark; `mood` is info, good, warn or bad."""
    return Html(f'<aside class="callout {markup(mood)}">{markup(content)}</aside>')


def folded(summary: object, *content: object) -> Html:
    """Details that open on a click, and are open in print."""
    return Html(f"<details><summary>{markup(summary)}</summary>\n{join(*content)}\n</details>")


OldTile = tuple[object, object, object] | tuple[object, object, object, str]


def tiles(*facts: OldTile) -> Html:
    """The figures that matter most, large: (name, value, detail) each, and a mood (good, warn or bad) where it colours
    the value.
    """
    drawn = []
    for name, value, detail, *mood in facts:
        coloured = _class(f"tile {markup(mood[0])}") if mood else ""
        drawn.append(
            f"<div{coloured}><dt>{markup(name)}</dt><dd>{markup(value)}</dd><dd "
            f'class="detail">{markup(detail)}</dd></div>'
        )
    return Html(f'<dl class="tiles">{"".join(drawn)}</dl>')


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], caption: str, whole: bool = False) -> Html:
    """A table that scrolls in its own box; columns whose name starts with ``>`` are right-aligned.

    A long one scrolls downwards too, unless it is to be seen `whole`; its first column then stays where others scroll
    past.
    """
    sides = [' class="number"' if column.startswith(">") else "" for column in columns]
    head = "".join(
        f'<th scope="col"{side}>{markup(column.lstrip(">"))}</th>' for column, side in zip(columns, sides, strict=True)
    )
    body = "\n".join(
        "<tr>" + "".join(f"<td{side}>{markup(cell)}</td>" for cell, side in zip(row, sides, strict=True)) + "</tr>"
        for row in rows
    )
    return _scrolling(
        f"<table><caption>{markup(caption)}</caption><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>",
        caption,
        "scroll whole" if whole else "scroll",
    )


def noted(content: object, number: int, title: object = "") -> Html:
    """A figure that leads to footnote `number`; `title` shows when it is pointed at."""
    return Html(
        f'{markup(content)}<sup><a href="#note-{number}" title="{markup(title)}" '
        f'aria-label="note {number}">{number}</a></sup>'
    )


def footnotes(notes: Iterable[object]) -> Html:
    """The notes that `noted` leads to, numbered from 1."""
    items = "\n".join(f'<li id="note-{number}">{markup(note)}</li>' for number, note in enumerate(notes, 1))
    return Html(f'<ol class="notes">{items}</ol>')


def figure(content: Html, caption: object = "", wide: bool = False) -> Html:
    """A chart or picture with its caption; a `wide` one takes the whole row and scrolls if it must."""
    inside = _scrolling(content, "a wide figure") if wide else content
    below = f"<figcaption>{markup(caption)}</figcaption>" if caption else ""
    return Html(f"<figure{_class('wide' if wide else '')}>{inside}{below}</figure>")


def row(*figures: Html) -> Html:
    """Figures side by side where there is room."""
    return Html(f'<div class="row">{join(*figures)}</div>')


def grid(*figures: Html, cell: int = 160) -> Html:
    """Small figures in as many columns of at least `cell` px as fit."""
    return Html(f'<div class="grid" style="--cell:{int(cell)}px">{join(*figures)}</div>')


def picture(
    image: Image.Image | np.ndarray, alt: str, longest: int = 256, format: str = "JPEG", sharp: bool = False
) -> Html:
    """An <img> that holds its pixels itself, shrunk to at most `longest` px a side.

    `image`: PIL, or uint8 (H, W, 3). `format`: JPEG for photos, PNG for exact pixels. `sharp` keeps the edges of tiny
    pictures.
    """
    drawn = (image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))).convert("RGB")
    drawn.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    stored = BytesIO()
    drawn.save(stored, format=format, quality=85, optimize=True)
    data = base64.b64encode(stored.getvalue()).decode()
    return Html(
        f'<img src="data:image/{format.lower()};base64,{data}" width="{drawn.width}" height="{drawn.height}" '
        f'alt="{markup(alt)}"{_class("sharp" if sharp else "")}>'
    )


def meter(value: float, low: float | None = None, high: float | None = None, label: object | None = None) -> Html:
    """A share from 0 to 1 as a bar with its confidence interval, for a cell of a table; `label` stands beside it [per
    cent].
    """
    shown = f"{value:.0%}" if label is None else label
    range_ = ""
    if low is not None and high is not None:
        range_ = f'<i style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"></i>'
    return Html(
        f'<span class="meter"><span><b style="width:{100 * value:.1f}%"></b>{range_}</span>{markup(shown)}</span>'
    )


def _unique_anchors(body: str) -> str:
    """Sections of the same heading get -2, -3 ... behind their anchors."""
    seen: dict[str, int] = {}

    def numbered(match: re.Match[str]) -> str:
        seen[match[1]] = seen.get(match[1], 0) + 1
        return match[0] if seen[match[1]] == 1 else f'<section id="{match[1]}-{seen[match[1]]}"><h2>'

    return re.sub(r'<section id="([^"]*)"><h2>', numbered, body)


def _scrolling(content: str, name: str, kind: str = "scroll") -> Html:
    return Html(f'<div class="{kind}" role="region" tabindex="0" aria-label="{markup(name)}">{content}</div>')


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""
