"""Models that stay loaded between requests: the least recently used goes where there is no room.

Requests to one model take turns and are never put into one batch: what is beside a picture in a batch moves its last
bits, and a picture is to be the command line's, byte for byte.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ..core.events import RUNNING, Event, listening
from ..core.paths import existing
from .refusals import Busy, Refusal

MOST_WAITING = 16
GUESS = 128 * 2**20
"""Bytes of a recognizer that is known by its name alone."""

Loaded = TypeVar("Loaded")


@dataclass
class _Warm:
    """A model that is loaded."""

    model: Any
    size: int
    """Bytes."""
    turn: threading.Lock = field(default_factory=threading.Lock)


class Pool:
    """Keeps models loaded, up to `budget` bytes."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._models: OrderedDict[tuple[Any, ...], _Warm] = OrderedDict()
        self._lock, self._loading, self._waiting = threading.Lock(), threading.Lock(), 0

    @property
    def size(self) -> int:
        """Bytes of all that is loaded."""
        return sum(one.size for one in self._models.values())

    @property
    def waiting(self) -> int:
        """Requests that have a model, or wait for one."""
        return self._waiting

    @contextmanager
    def using(
        self, key: tuple[Any, ...], load: Callable[[], Loaded], size_of: Callable[[Loaded], int]
    ) -> Iterator[Loaded]:
        """Yield the model of a key, loaded now or before, when its turn has come. Raises Busy where many wait."""
        with self._lock:
            if self._waiting >= MOST_WAITING:
                raise Busy(f"{MOST_WAITING} requests wait for a model already", "try again later", 503, 15)
            self._waiting += 1
        try:
            warm = self._get(key, load, size_of)
            with warm.turn:
                yield warm.model
        finally:
            with self._lock:
                self._waiting -= 1

    def _get(self, key: tuple[Any, ...], load: Callable[[], Any], size_of: Callable[[Any], int]) -> _Warm:
        with self._loading:  # one at a time, so that two never load the same
            with self._lock:
                if key in self._models:
                    self._models.move_to_end(key)
                    return self._models[key]
            model = load()
            warm = _Warm(model, size_of(model))
            with self._lock:
                for other in [other for other in self._models if other[:2] == key[:2] and other != key]:
                    del self._models[other]  # the same files before they changed, or on another device
                while self._models and self.size + warm.size > self.budget:
                    self._models.popitem(last=False)
                if warm.size <= self.budget:
                    self._models[key] = warm
            return warm


class Turns:
    """One picture at a time on a device, how far it is, and stopping it."""

    def __init__(self) -> None:
        self._turn, self._lock = threading.Lock(), threading.Lock()
        self._stop, self._waiting = False, 0
        self.done, self.total, self.active = 0.0, 0, False

    @contextmanager
    def mine(self, notes: list[str]) -> Iterator[None]:
        """Wait for one's turn; collect what is warned of. Raises Busy where many wait, Refusal where it was stopped."""
        with self._lock:
            if self._waiting >= MOST_WAITING:
                raise Busy(f"{MOST_WAITING} requests wait for their turn already", "try again later", 503, 15)
            self._waiting += 1
        try:
            with self._turn:
                self._stop, self.done, self.total, self.active = False, 0.0, 0, True
                try:
                    with listening(lambda event: self._hear(event, notes)):
                        yield
                except _Stopped:
                    raise Refusal("it was stopped", "ask again", 409) from None
                finally:
                    self.done, self.total, self.active = 0.0, 0, False
        finally:
            with self._lock:
                self._waiting -= 1

    @property
    def waiting(self) -> int:
        """Requests whose turn has not come."""
        return max(self._waiting - self.active, 0)

    def stop(self) -> bool:
        """End what is being made after its current step; tells whether there was anything."""
        self._stop = self.active
        return self._stop

    def _hear(self, event: Event, notes: list[str]) -> None:
        if event.kind == "warning":
            notes.append(str(event.data["text"]))
        if event.kind == "progress" and event.data["state"] == RUNNING:
            self.done, self.total = float(event.data["done"]), int(event.data["total"] or 0)
            if self._stop:
                raise _Stopped


class _Stopped(BaseException):
    """Leaves a sampler in the middle; no Exception, so that nothing takes it for a fault of its own."""


def fingerprint(*references: str | None) -> tuple[Any, ...]:
    """Tell the files of models from what they are after a change: by their times and sizes."""
    found: list[Any] = []
    for reference in references:
        path = existing(reference) if reference else None
        files: Sequence[Path] = []
        if path is not None and path.is_file():
            files = [path]
        elif path is not None:
            model = path / "model" if (path / "model").is_dir() else path
            files = sorted(file for file in model.rglob("*") if file.is_file())
        for file in files:
            with contextlib.suppress(OSError):
                facts = file.stat()
                found.append((str(file), facts.st_mtime_ns, facts.st_size))
    return tuple(found)
