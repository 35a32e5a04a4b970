"""Teach several subjects beside each other, and show meanwhile how far each is."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager

from ...core.errors import Interrupted
from ...core.events import Progress, note, progress_bar, warn
from . import executors
from .settings import ManySettings
from .standing import doing
from .work import Ended, Work

OFTEN = 1.0  # seconds between two looks at how far all are
SELDOM = 30.0  # seconds between two calls of `changed`, which may write a page of hundreds


def together(
    works: Sequence[Work],
    settings: ManySettings,
    accelerated: bool,
    changed: Callable[[Mapping[str, Ended]], None] = lambda ended: None,
) -> dict[str, Ended]:
    """Do all work that is not done yet, and say how it ended, by name.

    `accelerated` says whether processes of this machine are to have its GPUs; `changed` is told now and then how the
    work ended of which that is known. Stopped, the processes save and end. Raises Interrupted, and what the executor
    raises.
    """
    ended = {one.name: Ended("done") for one in works if one.following() is None}
    waiting = [one for one in works if one.name not in ended]
    if ended:
        note(f"done before: {', '.join(ended)}")
    looked, told = 0.0, time.monotonic()
    changed(ended)
    if not waiting:
        return ended
    with (
        _ended_gently(),
        progress_bar("subjects", len(works), done=len(ended)) as bar,
        closing(executors.run(waiting, settings, accelerated)) as working,
    ):
        try:
            for now in working:
                for name, one in now.items():
                    if one.status != "done":
                        warn(f"{name} {one.status}: {one.problem}" + (f"\n  -> {one.way_out}" if one.way_out else ""))
                ended |= now
                if now or time.monotonic() - looked > OFTEN:
                    _show(bar, len(now), waiting, ended)
                    looked = time.monotonic()
                if looked - told > SELDOM:
                    changed(ended)
                    told = time.monotonic()
        except KeyboardInterrupt:
            working.close()
            changed(ended)
            raise Interrupted("stopped", "the same command goes on from there") from None
    return ended


@contextmanager
def _ended_gently() -> Iterator[None]:
    """Take SIGTERM for Ctrl-C, where signals are this thread's."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:  # and not by SIGINT, which a shell has its background jobs ignore
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _show(bar: Progress, done: int, works: Sequence[Work], ended: Mapping[str, Ended]) -> None:
    """Say who is taught now, and how far that is."""
    found = doing([one for one in works if one.name not in ended])
    bar.beneath(("subject", "what", ">how far", ""), found)
    wrong = sum(one.status != "done" for one in ended.values())
    bar.advance(done, note=f"{wrong} not finished" if wrong else "")
