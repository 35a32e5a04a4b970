"""The terminal as a listener of events: notes, tables and progress bars, all on stderr so that stdout stays
machine-readable.

Here text is made harmless for a terminal, and nothing in it is markup. In a run over several processes only the first
one speaks. Only the command line, and scripts that are one of their own, listen with it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from rich.cells import cell_len
from rich.console import Console, JustifyMethod, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .events import RUNNING, STOPPED, Event
from .names import shown
from .processes import rank

SECONDS = 10.0  # between two lines about how far something is, where there is no terminal
GLANCE = 1.0  # seconds that a brief bar waits before it is drawn
QUIET, NORMAL, VERBOSE = -1, 0, 1
STYLE = {"highlight": False, "markup": False, "emoji": False, "soft_wrap": True}
_LINES = "\n\t"  # that the writer of a note means


class Terminal:
    """Show events on stderr: warnings and results if QUIET, notes, tables and progress if NORMAL, timings of stages
    and what came from where if VERBOSE.

    Errors are not shown: the command line says the one that ended it.
    """

    def __init__(self, level: int = NORMAL, console: Console | None = None) -> None:
        self.level = level
        self.console = console or Console(stderr=True, quiet=rank() != 0, **STYLE)  # type: ignore[arg-type]
        self._bars: dict[int, _Bar | _Lines] = {}
        self._waiting: dict[int, float] = {}  # since when, those that may be over before a bar is seen
        self._lines = _Clock()

    def __call__(self, event: Event) -> None:
        data = event.data
        if event.kind == "warning":
            self.console.print(f"warning: {shown(data['text'], keep=_LINES)}", style="yellow")
        elif event.kind == "table" and (self.level >= NORMAL or data["result"]):
            self._table(data)
        elif event.kind == "note" and self.level >= (VERBOSE if data.get("detail") else NORMAL):
            self._line(data["text"])
        elif event.kind == "progress" and self.level >= NORMAL:
            self._progress(data)
        elif event.kind == "result" and "text" in data:
            self._line(data["text"])
        elif event.kind == "stage" and self.level >= VERBOSE and data["state"] != RUNNING:
            self._line(f"{' > '.join(event.stage)}: {data['state']} after {data['seconds']:.1f} s")

    def _line(self, text: str) -> None:
        self.console.print(shown(text, keep=_LINES))

    def _table(self, data: Mapping[str, Any]) -> None:
        self.console.print(_drawn(data, data["title"]), soft_wrap=False)
        self.console.print()

    def _progress(self, data: Mapping[str, Any]) -> None:
        number, over = data["id"], data["state"] != RUNNING
        if number not in self._bars:
            if self.console.is_terminal and data["brief"]:
                since = self._waiting.setdefault(number, time.monotonic())
                if over or time.monotonic() - since < GLANCE:
                    if over:
                        del self._waiting[number]
                    return
            self._bars[number] = (
                _Bar(self.console, data) if self.console.is_terminal else _Lines(self.console, data, self._lines)
            )
        self._bars[number].show(data)
        if over:
            del self._bars[number]
            self._waiting.pop(number, None)


def _drawn(data: Mapping[str, Any], title: str | None = None) -> Table:
    """Lay out the columns and rows of a table."""
    drawn = Table(
        title=None if title is None else shown(title),
        title_justify="left",
        title_style="bold",
        header_style="bold",
        pad_edge=False,
        box=None,
    )
    cells = [[shown(cell, keep=_LINES) for cell in row] for row in data["rows"]]
    for index, column in enumerate(data["columns"]):
        whole = max((cell_len(row[index]) for row in cells), default=0) if column.startswith("=") else None
        justify: JustifyMethod = "right" if column.startswith(">") else "left"
        drawn.add_column(
            shown(column.lstrip(">=")), justify=justify, overflow="fold", no_wrap=whole is not None, min_width=whole
        )
    for row in cells:
        drawn.add_row(*row)
    return drawn


class _Count(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{int(task.completed)}" if task.total is None else f"{int(task.completed)}/{int(task.total)}")


class _Live(Progress):
    """A bar with a table beneath it."""

    beneath: Table | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.beneath is not None and self.beneath.row_count:
            yield self.beneath


class _Bar:
    """A bar that moves: count, elapsed time and, where the total is known, ETA; a table may stand beneath it."""

    def __init__(self, console: Console, data: Mapping[str, Any]) -> None:
        self._drawn = _Live(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            _Count(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
        )
        self._drawn.start()
        self._task = self._drawn.add_task(
            shown(data["description"]), total=data["total"], completed=data["done"], note=""
        )

    def show(self, data: Mapping[str, Any]) -> None:
        self._drawn.beneath = _drawn(data["table"]) if "table" in data else None
        self._drawn.update(self._task, completed=data["done"], note=shown(data["note"]))
        if data["state"] != RUNNING:
            if data["state"] != STOPPED:
                self._drawn.refresh()
            self._drawn.stop()


class _Clock:
    """When a line was last written of how far anything is; many short bars are one long wait."""

    told: float | None = None


class _Lines:
    """A bar for readers who cannot see one move: a line every `SECONDS` at most; silent if all is over before."""

    def __init__(self, console: Console, data: Mapping[str, Any], clock: _Clock) -> None:
        self._console, self._first, self._clock = console, data["done"], clock
        self._began, self._spoke = time.monotonic(), False
        clock.told = self._began if clock.told is None else clock.told

    def show(self, data: Mapping[str, Any]) -> None:
        due = time.monotonic() - (self._clock.told or 0) >= SECONDS if data["state"] == RUNNING else self._spoke
        if due and data["state"] != STOPPED:
            self._tell(data)

    def _tell(self, data: Mapping[str, Any]) -> None:
        now = self._clock.told = time.monotonic()
        self._spoke = True
        spent, made, total = now - self._began, data["done"] - self._first, data["total"]
        count, left = f"{int(data['done'])}", ""
        if total is not None:
            count += f" of {total}"
            left = f", eta {_clock(spent * (total - data['done']) / made)}" if made > 0 and data["done"] < total else ""
        note = f", {data['note']}" if data["note"] else ""
        rows = data["table"]["rows"] if "table" in data else ()
        note += "".join(f"; {first}: {' '.join(filter(None, others))}" for first, *others in rows)
        self._console.print(shown(f"{data['description']}: {count}, {_clock(spent)}{left}{note}", keep=_LINES))


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(max(0.0, seconds))))
