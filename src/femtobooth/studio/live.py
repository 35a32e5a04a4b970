"""Events as they happen, over server-sent events: the lines of an events.jsonl, each with its number as its id.

A reader that comes back says the last number it has (`Last-Event-ID`) and gets what came after it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from .refusals import Busy

LOOK = 0.4  # seconds between two looks at a file
BEAT = 15.0  # seconds of silence after which a comment says that the connection lives
PIECE = 2**18  # bytes that are read at a time
MOST_READERS = 200
_readers = 0


class Tail:
    """Reads the lines of a growing file, from after a line's number on."""

    def __init__(self, path: Path, after: int = 0) -> None:
        self.path, self.after = path, after
        self._place, self._line = 0, 0
        self.moved = False
        """Whether the last piece held any lines, also such as nobody asked for."""

    def read(self) -> list[tuple[int, str]]:
        """Give the numbers and texts of the whole lines that came since, a piece's worth at most."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._place)
                piece = file.read(PIECE)
                if b"\n" not in piece:  # a longer line, or none yet
                    piece += file.readline() if len(piece) == PIECE else b""
        except OSError:
            piece = b""
        whole = piece[: piece.rfind(b"\n") + 1]
        self._place += len(whole)
        self.moved = bool(whole)
        found = []
        for line in whole.split(b"\n")[:-1]:
            self._line += 1
            text = line.decode("utf-8", "replace")
            if self._line > self.after and _is_event(text):
                found.append((self._line, text))
        return found


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
    try:
        yield "retry: 2000\n\n"
        while True:
            before = await run_in_threadpool(status)
            found = await run_in_threadpool(tail.read)
            if found:
                told = time.monotonic()
                yield "".join(f"id: {number}\ndata: {text}\n\n" for number, text in found)
                continue
            if tail.moved:
                continue
            if before not in going:
                yield f"event: end\ndata: {json.dumps({'status': before})}\n\n"
                return
            if time.monotonic() - told > BEAT:
                told = time.monotonic()
                yield ": here\n\n"
            await asyncio.sleep(LOOK)
    finally:
        _readers -= 1
