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
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from io import BytesIO
from typing import Any

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


def environment(package: str, folder: str, **more: Any) -> Environment:
    """Read templates from a folder of a package: whatever they print is escaped, and what is not there is an error."""
    return Environment(
        loader=PackageLoader(package, folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,  # they are part of the program: no look at their files each time one is asked for
        **more,
    )


@cache
def _environment() -> Environment:
    made = environment("femtobooth", "pages/templates")
    made.filters["embedded"] = embedded
    return made
