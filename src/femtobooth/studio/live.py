"""Events as they happen, over server-sent events: the lines of an events.jsonl, each with its number as its id.

A reader that comes back says the last number it has (`Last-Event-ID`) and gets what came after it.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable
from functools import lru_cache
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from .library import Stamp, stamp_of
from .refusals import Busy

LOOK = 0.4  # seconds between two looks at a file
STATE = 1.0  # seconds between two looks at whether more can come
BEAT = 15.0  # seconds of silence after which a comment says that the connection lives
PIECE = 2**18  # bytes that are read at a time
MOST_READERS = 200
_readers = 0
_states: dict[Path, tuple[float, str]] = {}
"""By file how its run or job stood, and when somebody looked."""


class Tail:
    """Reads the lines of a growing file, from after a line's number on."""

    def __init__(self, path: Path, after: int = 0) -> None:
        self.path, self.after = path, after
        self._place, self._line, self._number = 0, 0, 0
        self.moved = False
        """Whether the last piece held any lines, also such as nobody asked for."""

    def read(self) -> list[tuple[int, str]]:
        """Give the numbers and texts of the whole lines that came since, a piece's worth at most."""
        stamp = stamp_of(self.path)
        size, lines = _piece(self.path, self._place, stamp) if stamp and stamp[1] > self._place else (0, list[str]())
        self._number = stamp[2] if stamp else 0
        self._place += size
        self.moved = bool(size)
        first, self._line = self._line + 1, self._line + len(lines)
        return [(number, text) for number, text in enumerate(lines, first) if number > self.after and text]

    def grown(self) -> bool:
        """Tell whether the file holds more than was read."""
        stamp = stamp_of(self.path)
        return stamp is not None and stamp[1] > self._place

    def replaced(self) -> bool:
        """Tell whether the file is another one than was read, or lacks what was read."""
        stamp = stamp_of(self.path)
        return self._place > 0 and (stamp is None or stamp[2] != self._number or stamp[1] < self._place)


@lru_cache(maxsize=16)
def _piece(path: Path, place: int, stamp: Stamp) -> tuple[int, list[str]]:
    """Read the whole lines of a piece: its size, and the lines, "" for one that is no event.

    Those who read a file at the same `place` while it is the same share it: one reads, fifty get it.
    """
    try:
        with path.open("rb") as file:
            file.seek(place)
            piece = file.read(PIECE)
            if b"\n" not in piece:  # a longer line, or none yet
                piece += file.readline() if len(piece) == PIECE else b""
    except OSError:
        piece = b""
    whole = piece[: piece.rfind(b"\n") + 1]
    texts = (line.decode("utf-8", "replace") for line in whole.split(b"\n")[:-1])
    return len(whole), [text if _is_event(text) else "" for text in texts]


def _is_event(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def stream(request: Request, path: Path, status: Callable[[], str], going: tuple[str, ...]) -> Response:
    """Answer with the events in a file, and those to come while its run or job is in one of the states `going`.

    A last event `end` tells the state. A reader that has everything of what has ended gets 204, and does not come back.
    """
    given = request.headers.get("last-event-id", request.query_params.get("after", "0"))
    after = int(given) if given.isascii() and given.isdigit() and len(given) < 12 else 0
    if after and status() not in going and not newer(path, after):
        return Response(status_code=204)
    if _readers >= MOST_READERS:
        raise Busy(f"{MOST_READERS} readers are listening already", "close some pages", seconds=30)
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(_lines(path, after, status, going), media_type="text/event-stream", headers=headers)


def newer(path: Path, after: int) -> bool:
    """Tell whether a file holds lines after the one of this number."""
    tail = Tail(path, after)
    while True:
        if tail.read():
            return True
        if not tail.moved:
            return False


async def _lines(path: Path, after: int, status: Callable[[], str], going: tuple[str, ...]) -> AsyncIterator[str]:
    global _readers  # noqa: PLW0603
    _readers += 1
    tail, told = Tail(path, after), time.monotonic()
    began, known = told, going[0]
    try:
        yield "retry: 2000\n\n"
        while True:
            grown = tail.grown()
            found = await run_in_threadpool(tail.read) if grown else []
            if found:
                told = time.monotonic()
                yield "".join(f"id: {number}\ndata: {text}\n\n" for number, text in found)
            if grown and tail.moved:
                continue
            if known not in going:  # since before this look, which found nothing more
                yield f"event: end\ndata: {json.dumps({'status': known})}\n\n"
                return
            if time.monotonic() - told > BEAT:
                told = time.monotonic()
                yield ": here\n\n"
            looked, known = _states.get(path, (-math.inf, ""))
            if looked < began or time.monotonic() - looked > STATE:  # one looks, and what it saw is all readers'
                known = await run_in_threadpool(status)
                _states[path] = time.monotonic(), known
            if known in going:
                await asyncio.sleep(LOOK)
    finally:
        _readers -= 1
        if not _readers:
            _states.clear()
