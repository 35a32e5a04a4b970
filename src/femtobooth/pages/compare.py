"""Write the page of `compare`: verdicts on top, tables, the same prompts and photos side by side, and how each figure
was obtained.
"""

from __future__ import annotations

from dataclasses import dataclass

from .html import Page, Shot, render

TASKS = {"generator": "Generators", "recognizer": "Classifiers"}


@dataclass(frozen=True)
class Against:
    """Hold what one model is against another."""

    heading: str
    told: list[str]
    mood: str


@dataclass(frozen=True)
class Cell:
    """Hold a figure with the number of the note that says how it was obtained."""

    text: str
    note: int
    title: str
    """Shown when the number is pointed at."""


@dataclass(frozen=True)
class TaskTable:
    """Hold the figures of all models of one task."""

    task: str
    models: list[str]
    rows: list[tuple[str, list[Cell]]]


@dataclass(frozen=True)
class SamplesTable:
    """Hold what several generators made of the same prompts and seeds."""

    models: list[str]
    rows: list[tuple[str, list[list[Shot]]]]
    """Prompt, and for each model its pictures."""
    caption: str


@dataclass(frozen=True)
class Disagreement:
    """Hold a picture that the models name differently."""

    shot: Shot
    label: str
    answers: list[str]


@dataclass(frozen=True)
class Disagreements:
    """Hold where classifiers disagree, or why they cannot."""

    said: str
    pictures: list[Disagreement]


@dataclass(frozen=True)
class Note:
    """Hold how a figure was obtained."""

    kind: str
    what: str
    command: str


@dataclass(frozen=True, kw_only=True)
class ComparisonPage(Page):
    """Hold what the page shows."""

    choices: list[str]
    """When to choose which, a sentence a verdict."""
    verdicts: list[Against]
    remarks: list[str]
    tables: list[TaskTable]
    samples: SamplesTable | None
    disagreements: Disagreements | None
    runs: list[str]
    """Names of the models whose settings differ."""
    settings: list[tuple[str, list[str]]]
    """A setting, and its value in each of `runs`."""
    rules: list[str]
    notes: list[Note]
    """Notes of cells, from number 1 on."""
    command: str
    versions: str


def comparison_page(page: ComparisonPage) -> str:
    """Write the whole page."""
    return render("compare.html", page)
