"""What a person sees: notes, tables and progress bars, all on stderr so that stdout stays machine-readable.

Text comes as it is, names of files included: here it is made harmless for a terminal, and nothing in it is markup.
In a run over several processes only the first one speaks (`RANK`/`LOCAL_RANK` are set by every launcher).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol, TypeVar

from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .names import shown

Item = TypeVar("Item")
SECONDS = 10.0  # between two lines about how far something is, where there is no terminal


def rank() -> int:
    """0 in the first process of a run, else its rank as torchrun, Lightning or SLURM tell it.

    SLURM comes last: what Lightning starts inside an allocation inherits SLURM_PROCID=0 in every process. Started
    by hand on each machine (NODE_RANK), all processes of the machines after the first count as later ones.
    """
    given = {
        name: int(value)
        for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
        if (value := os.environ.get(name, "")).isdigit()
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
    """A table; columns whose name starts with ``>`` are right-aligned, those that start with ``=`` are never broken."""
    drawn = Table(
        title=shown(title), title_justify="left", title_style="bold", header_style="bold", pad_edge=False, box=None
    )
    cells = [[shown(cell, keep=_LINES) for cell in row] for row in rows]
    for index, column in enumerate(columns):
        whole = max((cell_len(row[index]) for row in cells), default=0) if column.startswith("=") else None
        justify: JustifyMethod = "right" if column.startswith(">") else "left"
        drawn.add_column(
            shown(column.lstrip(">=")), justify=justify, overflow="fold", no_wrap=whole is not None, min_width=whole
        )
    for row in cells:
        drawn.add_row(*row)
    console.print(drawn, soft_wrap=False)
    console.print()


@contextmanager
def progress_bar(description: str, total: int | None, done: int = 0, parts: int = 1) -> Iterator[Bar]:
    """Show how far something is: count, elapsed time and, where the total is known, ETA. ``bar.advance(n, note=...)``
    moves it.

    `parts` moves make one of what is counted: a picture is made in many steps. A bar on a terminal; elsewhere, such as
    in a log, a line every `SECONDS` at most.
    """
    if not console.is_terminal:
        lines = _Lines(shown(description), total, done, parts)
        yield lines
        lines.close()
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        _Count(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console) as drawn:
        task = drawn.add_task(
            shown(description), total=total and total * parts, completed=done * parts, parts=parts, note=""
        )
        yield _Bar(drawn, task)
        drawn.refresh()


class Bar(Protocol):
    """What `progress_bar` gives."""

    def advance(self, amount: int = 1, note: str | None = None) -> None: ...


class _Count(ProgressColumn):
    def render(self, task: Task) -> Text:
        parts, total = task.fields["parts"], task.total
        return Text(
            f"{int(task.completed) // parts}"
            if total is None
            else f"{int(task.completed) // parts}/{int(total) // parts}"
        )


class _Bar:
    def __init__(self, drawn: Progress, task: object) -> None:
        self._drawn, self._task = drawn, task

    def advance(self, amount: int = 1, note: str | None = None) -> None:
        fields = {} if note is None else {"note": shown(note)}
        self._drawn.update(self._task, advance=amount, **fields)  # type: ignore[arg-type]


class _Lines:
    """A bar for readers who cannot see one move; silent if all is over within `SECONDS`."""

    def __init__(self, description: str, total: int | None, done: int, parts: int) -> None:
        self._description, self._total, self._parts, self._note = description, total, parts, ""
        self._first = self._done = done * parts
        self._began = self._told = time.monotonic()

    def advance(self, amount: int = 1, note: str | None = None) -> None:
        self._done += amount
        self._note = self._note if note is None else note
        if time.monotonic() - self._told >= SECONDS:
            self._tell()

    def close(self) -> None:
        if self._told > self._began:
            self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        spent, made = self._told - self._began, self._done - self._first
        count, left = f"{self._done // self._parts}", ""
        if self._total is not None:
            count += f" of {self._total}"
            left = f", eta {_clock(spent * (self._total * self._parts - self._done) / made)}" if made > 0 else ""
        note(f"{self._description}: {count}, {_clock(spent)}{left}{self._note and ', '}{self._note}")


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(max(0.0, seconds))))


def progress(items: Sequence[Item], description: str) -> Iterator[Item]:
    """Iterate with a progress bar."""
    with progress_bar(description, len(items)) as bar:
        for item in items:
            yield item
            bar.advance()
