"""Say what is happening now, to whoever listens: the terminal, a run's events.jsonl, a program that called us.

`emit` tells one event of a kind to all listeners; `note`, `warn`, `table`, `progress`... are its thin forms. Text comes
as it is, names of files included: listeners make it harmless for where they show it.

Listeners and stages belong to a context (contextvars), so that two runs in two threads of one program do not hear each
other. A thread that begins without a context, such as a library's, speaks to those who began to listen last; one of
our own is given its parent's by `carried`. Where nobody listens, warnings and notes go to Python's logging, by the name
of femtobooth.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

Item = TypeVar("Item")
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

KINDS = (
    *("stage", "progress", "metrics", "picture", "table"),
    *("note", "warning", "artifact", "result", "error"),
)
RUNNING, DONE, STOPPED = "running", "done", "stopped"  # what a stage or a progress is; stopped: by an exception


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened."""

    kind: str
    data: Mapping[str, Any]
    stage: tuple[str, ...] = ()
    """Names of the stages that it happened in, outermost first."""
    time: float = field(default_factory=time.time)
    """Seconds since 1970."""


Listener = Callable[[Event], None]

_listeners: ContextVar[tuple[Listener, ...] | None] = ContextVar("femtobooth.listeners", default=None)
_stages: ContextVar[tuple[str, ...]] = ContextVar("femtobooth.stages", default=())
_open: list[tuple[Listener, ...]] = []  # of the `listening` blocks that are entered now, in whatever thread
_numbers = itertools.count(1)  # of progress
_log = logging.getLogger("femtobooth")


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell `listener` what happens inside, besides those who listen already."""
    before = _listeners.get()
    everyone = (*(before or ()), listener)
    _listeners.set(everyone)
    _open.append(everyone)
    try:
        yield
    finally:
        _open.remove(everyone)
        _listeners.set(before)  # no token: a generator may be closed in another context than it was begun in


def carried(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Make a function that speaks, in whatever thread, to those who listen here, from the stage that is here."""
    everyone, names = listeners(), _stages.get()

    def call(*arguments: Parameters.args, **named: Parameters.kwargs) -> Result:
        _listeners.set(everyone)
        _stages.set(names)
        return function(*arguments, **named)

    return call


def emit(kind: str, **data: Any) -> None:
    """Tell an event of one of `KINDS` to everyone who listens. Raises ValueError for another kind."""
    if kind not in KINDS:
        raise ValueError(f"{kind}: no kind of event, which are {', '.join(KINDS)}")
    everyone = listeners()
    if not everyone:
        _to_log(kind, data)
        return
    event = Event(kind, data, _stages.get())
    for listener in everyone:
        listener(event)


def listeners() -> tuple[Listener, ...]:
    """Say who listens here."""
    own = _listeners.get()
    return own if own is not None else (_open[-1] if _open else ())


def _to_log(kind: str, data: Mapping[str, Any]) -> None:
    if kind == "warning":
        _log.warning("%s", data["text"])
    elif kind == "note":
        _log.log(logging.DEBUG if data.get("detail") else logging.INFO, "%s", data["text"])


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Say when a part of the work begins and ends, and name it in all that is told inside. Stages nest."""
    outside = _stages.get()
    began = time.perf_counter()
    _stages.set((*outside, name))
    emit("stage", state=RUNNING)
    state = STOPPED
    try:
        yield
        state = DONE
    finally:
        emit("stage", state=state, seconds=round(time.perf_counter() - began, 3))
        _stages.set(outside)


def note(text: str) -> None:
    """Tell one plain line of information."""
    emit("note", text=text)


def detail(text: str) -> None:
    """Tell a line that only those want who asked for more (`-v`)."""
    emit("note", text=text, detail=True)


def warn(text: str) -> None:
    """Tell one line that a user should act on or at least know."""
    emit("warning", text=text)


def picture(path: Path, **about: Any) -> None:
    """Tell of a picture file that people want to see; `about` says what it shows (step, tag, prompt, seed...)."""
    emit("picture", path=path, **about)


def artifact(path: Path, what: str) -> None:
    """Tell of a file or folder that is a command's product: `what` is model, page, pictures, rows..."""
    emit("artifact", path=path, what=what)


def conclude(text: str, **data: Any) -> None:
    """Tell what a command came to, in a line or a few, which `-q` shows too; `data` says it to programs."""
    emit("result", text=text, **data)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], result: bool = False) -> None:
    """Tell a table, of which columns whose name starts with ``>`` are right-aligned, and those with ``=`` never broken.

    `result` says that it is what was asked for, which `-q` shows too.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    emit("table", title=title, columns=list(columns), rows=cells, result=result)


class Progress:
    """How far something is; `progress_bar` makes one."""

    def __init__(self, description: str, total: int | None, done: int, parts: int, brief: bool = False) -> None:
        self._number, self._description, self._total, self._parts = next(_numbers), description, total, parts
        self._brief = brief
        self._moved, self._note = done * parts, ""
        self._table: Mapping[str, Any] = {}

    def advance(self, amount: int = 1, note: str | None = None) -> None:
        """Move the count on by `amount`; `note` stands beside the count until another one comes."""
        self._moved += amount
        self._note = self._note if note is None else note
        self.tell(RUNNING)

    def beneath(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Put a table beneath the bar, where one is drawn, from the next move on; columns are as those of `table`."""
        self._table = {"columns": [*columns], "rows": [[*row] for row in rows]}

    def tell(self, state: str) -> None:
        """Tell how far it is."""
        done = self._moved if self._parts == 1 else self._moved / self._parts
        emit(
            "progress",
            id=self._number,
            description=self._description,
            done=done,
            total=self._total,
            note=self._note,
            state=state,
            brief=self._brief,
            **({"table": self._table} if self._table else {}),
        )


@contextmanager
def progress_bar(
    description: str, total: int | None, done: int = 0, parts: int = 1, brief: bool = False
) -> Iterator[Progress]:
    """Tell how far something is; ``bar.advance(n, note=...)`` moves it. `total` is None where nobody knows.

    `parts` moves make one of what is counted: a picture is made in many steps. `brief` says that it may be over before
    anybody has seen a bar, so that none is worth drawing yet.
    """
    bar = Progress(description, total, done, parts, brief)
    bar.tell(RUNNING)
    state = STOPPED
    try:
        yield bar
        state = DONE
    finally:
        bar.tell(state)


def progress(items: Sequence[Item], description: str) -> Iterator[Item]:
    """Iterate over `items`, and tell how far it is."""
    with progress_bar(description, len(items)) as bar:
        for item in items:
            yield item
            bar.advance()
