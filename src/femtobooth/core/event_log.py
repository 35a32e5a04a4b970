"""Keep what happens to a run in RUN/events.jsonl, and read it while it grows.

One JSON object a line, numbered from 1 by its line (docs/events.md). A killed process leaves at most a torn last line,
which readers skip and the next process removes; it goes on with the numbers. Only the first process of a run writes.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from .errors import FemtoboothError, Interrupted
from .events import RUNNING, Event, emit, listeners, listening
from .names import stored
from .processes import rank

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

FILE = "events.jsonl"
APART = 0.2  # seconds between two lines about progress


class EventLog:
    """Append events to a file. Where the disk is full lines are left out: what must be written will tell."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.RLock()
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)
        self._told, self._begun = -math.inf, dict[int, int]()
        self._waiting, self._writing = list[Event](), False
        self._find_end()

    def _find_end(self) -> None:
        """Count the lines that are there, and remove the torn one that a process left behind."""
        held = self._path.read_bytes()
        self._size = held.rfind(b"\n") + 1
        self._lines = held.count(b"\n")
        os.ftruncate(self._handle, self._size)
        self._sure = True

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._waiting.append(event)
            if self._writing:  # the handler of a signal speaks in the middle of a line: its own comes after that
                return
            self._writing = True
            try:
                while self._waiting:
                    self._write(self._waiting.pop(0))
            finally:
                self._writing = False

    def _write(self, event: Event) -> None:
        if self._handle < 0 or event.data.get("detail"):
            return
        with suppress(OSError):
            if not self._sure:  # a handler raised in the middle of a line
                self._find_end()
        first = self._due(event) if event.kind == "progress" else None
        if first == 0:
            return
        line = {"seq": self._lines + 1, "time": round(event.time, 3), "kind": event.kind}
        line |= {"stage": list(event.stage)}
        line |= {name: self._plain(value) for name, value in event.data.items() if name != "brief"}
        if first:
            line["id"] = first
        text = json.dumps(line, ensure_ascii=False) + "\n"
        self._append(text.encode("utf-8", "backslashreplace"))  # as JSON's escapes, where a name is no UTF-8

    def _due(self, event: Event) -> int:
        """Give the first line of a progress of which this is to be told: a few times a second how far it is, and of
        what was told of also that it is over; 0 where it is not.
        """
        number, now = event.data["id"], time.monotonic()
        if event.data["state"] != RUNNING:
            return self._begun.pop(number, 0)
        if now - self._told < APART:
            return 0
        self._told = now
        return self._begun.setdefault(number, self._lines + 1)

    def _append(self, line: bytes) -> None:
        self._sure = False
        try:
            if os.write(self._handle, line) != len(line):
                raise OSError("cut")
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._handle, self._size)
        else:
            self._size += len(line)
            self._lines += 1
        self._sure = True

    def _plain(self, value: Any) -> Any:
        """Give the value as JSON has it: NaN is null, a file of the run is relative to it."""
        if callable(number := getattr(value, "item", None)):  # of numpy or torch
            value = number()
        if isinstance(value, float):
            return round(value, 9) if math.isfinite(value) else None
        if isinstance(value, Path):
            inside = value.is_relative_to(self._path.parent)
            return value.relative_to(self._path.parent).as_posix() if inside else stored(value)
        if isinstance(value, Mapping):
            return {str(name): self._plain(one) for name, one in value.items()}
        if isinstance(value, Sequence) and not isinstance(value, str):
            return [self._plain(one) for one in value]
        return value if isinstance(value, str | int | bool | None) else str(value)

    def close(self) -> None:
        """Close the file; nothing more is written."""
        with self._lock:
            os.close(self._handle)
            self._handle = -1


class _Early:
    """What happened before there was a folder to keep it in."""

    def __init__(self) -> None:
        self.events: list[Event] | None = []

    def __call__(self, event: Event) -> None:
        if self.events is not None and event.kind != "progress":
            self.events.append(event)


def remembering(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Make a function that keeps what happens in it until `logged` has a folder for it, in which it then stands."""

    @functools.wraps(function)
    def call(*arguments: Parameters.args, **named: Parameters.kwargs) -> Result:
        with listening(_Early()):
            return function(*arguments, **named)

    return call


@contextmanager
def logged(folder: Path) -> Iterator[None]:
    """Append what happens inside, and the error that ends it, to the events of the run in `folder`."""
    with ExitStack() as stack:
        if rank() == 0:
            with suppress(OSError):  # a disk that is full, or not ours
                log = EventLog(folder / FILE)
                stack.callback(log.close)
                for early in (one for one in listeners() if isinstance(one, _Early)):
                    for event in early.events or ():
                        log(event)
                    early.events = None
                stack.enter_context(listening(log))
        try:
            yield
        except BaseException as error:
            _tell(error)
            raise


def _tell(error: BaseException) -> None:
    stopped = isinstance(error, Interrupted | KeyboardInterrupt)
    known = error if isinstance(error, FemtoboothError | Interrupted) else None
    emit(
        "error",
        text=known.problem if known else f"{error}" or type(error).__name__,
        way_out=known.way_out if known else None,
        type=type(error).__name__,
        status="interrupted" if stopped else "failed",
    )


def read_events(path: Path, after: int = 0) -> list[dict[str, Any]]:
    """Read the events of an events.jsonl whose number is above `after`; a web page asks again with the last one's.

    A line that is still being written, or damaged, is left out. No file, no events.
    """
    found = []
    with suppress(FileNotFoundError), path.open("rb") as file:
        for line in itertools.islice(file, after, None):
            with suppress(ValueError):
                event = json.loads(line)
                if line.endswith(b"\n") and isinstance(event, dict):
                    found.append(event)
    return found
