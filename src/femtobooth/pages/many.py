"""Write the page of `train-many`: what came of every subject, its newest pictures, and what went wrong."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.metrics import Interval
from .html import Page, Shot, Tile, render


@dataclass(frozen=True)
class Row:
    """Hold what is shown of one subject, as texts."""

    name: str
    class_noun: str
    link: str
    """Its own page, relative to this one; "" where there is none."""
    shots: list[Shot]
    """A photo of it, and its newest pictures."""
    status: str
    mood: str
    share: Interval | None
    """Of the way from the untuned base to the photos, as far as that is between the two."""
    likeness: str
    """The same in words, wherever it is."""
    outcome: str
    fidelity: str
    prompt: str
    drift: str
    step: str
    """The step that became the model, of how many."""
    time: str
    said: str
    """What went wrong, or what its verdict says."""
    way_out: str


@dataclass(frozen=True, kw_only=True)
class ManyPage(Page):
    """Hold what the page shows."""

    tiles: list[Tile]
    wrong: list[Row]
    """Those that failed or were interrupted."""
    rows: list[Row]
    """All, in the order that they were given in."""
    rule: str
    command: str


def many_page(page: ManyPage) -> str:
    """Write the whole page."""
    return render("many.html", page)
