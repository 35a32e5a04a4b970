"""What a person sees: notes, tables and progress bars, all on stderr so that stdout stays machine-readable.

Text comes as it is, names of files included: here it is made harmless for a terminal, and nothing in it is markup.
In a run over several processes only the first one speaks (`RANK`/`LOCAL_RANK` are set by every launcher).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from .names import shown

Item = TypeVar("Item")


def rank() -> int:
    """0 in the first process of a run, else its rank as torchrun, Lightning or SLURM tell it.

    SLURM comes last: what Lightning starts inside an allocation inherits SLURM_PROCID=0 in every process. Started
    by hand on each machine (NODE_RANK), all processes of the machines after the first count as later ones.
    """
    given = {
        name: int(value) for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID") if (value := os.environ.get(name, "")).isdigit()
    }
    if "RANK" in given:
        return given["RANK"]
    if "LOCAL_RANK" in given or "NODE_RANK" in given:
        return given.get("LOCAL_RANK", 0) + given.get("NODE_RANK", 0)
    return given.get("SLURM_PROCID", 0)


STYLE = {"highlight": False, "markup": False, "emoji": False, "soft_wrap": True}
console = Console(stderr=True, quiet=rank() != 0, **STYLE)  # type: ignore[arg-type]
_LINES = "\n\t"  # that the writer of a note means


def note(text: str) -> None:
    """One plain line of information."""
    console.print(shown(text, keep=_LINES))


def warn(text: str) -> None:
    """One line that a user should act on or at least know."""
    console.print(f"warning: {shown(text, keep=_LINES)}", style="yellow")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table; columns whose name starts with ``>`` are right-aligned."""
    drawn = Table(title=shown(title), title_justify="left", title_style="bold", header_style="bold", pad_edge=False, box=None)
    for column in columns:
        drawn.add_column(shown(column.removeprefix(">")), justify="right" if column.startswith(">") else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(shown(cell, keep=_LINES) for cell in row))
    console.print(drawn, soft_wrap=False)
    console.print()


@contextmanager
def progress_bar(description: str, total: int, done: int = 0) -> Iterator[_Bar]:
    """A bar with count, elapsed time and ETA. ``bar.advance(n, note=...)`` moves it."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console) as drawn:
        task = drawn.add_task(shown(description), total=total, completed=done, note="")
        yield _Bar(drawn, task)
        drawn.refresh()


class _Bar:
    def __init__(self, drawn: Progress, task: object) -> None:
        self._drawn, self._task = drawn, task

    def advance(self, amount: int = 1, note: str | None = None) -> None:
        fields = {} if note is None else {"note": shown(note)}
        self._drawn.update(self._task, advance=amount, **fields)  # type: ignore[arg-type]


def progress(items: Sequence[Item], description: str) -> Iterator[Item]:
    """Iterate with a progress bar."""
    with progress_bar(description, len(items)) as bar:
        for item in items:
            yield item
            bar.advance()
