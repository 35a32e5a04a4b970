"""How busy a machine was with other things while something was timed: what all took, less what this process and its
children took.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from types import TracebackType

import psutil

BUSY = 0.15  # share of all cores that others take, from which on a timing is worth a warning


class Load:
    """`with Load() as load:` ... then `load.others`: cores that others took on average (None where it is not
    known).
    """

    others: float | None = None

    def __enter__(self) -> Load:
        self._start, self._before = time.perf_counter(), (_taken(), _own())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        taken, own, seconds = _taken(), _own(), time.perf_counter() - self._start
        if seconds > 0:
            self.others = max(0.0, ((taken - self._before[0]) - (own - self._before[1])) / seconds)


def remark(others: float | None) -> str | None:
    """Say what a reader of timings has to know of it, if anything."""
    cores = os.cpu_count() or 1
    if others is None or others < BUSY * cores:
        return None
    return (
        f"The machine was busy while this was timed: other processes took {others:.1f} "
        f"of its {cores} cores. Times are longer than on a"
        " quiet one, and ratios may be off by more than their intervals say."
    )


def _taken() -> float:
    """Sum the seconds that all cores have worked so far, for anyone; time stolen by a hypervisor counts as others'
    work.
    """
    told = psutil.cpu_times()._asdict()
    return sum(seconds for name, seconds in told.items() if name not in ("idle", "iowait", "guest", "guest_nice"))


def _own() -> float:
    """Sum the seconds that this process and its children have worked so far."""
    own = psutil.Process()
    total = 0.0
    for process in [own, *own.children(recursive=True)]:
        with suppress(psutil.Error):  # a child that has ended meanwhile
            took = process.cpu_times()
            total += took.user + took.system + took.children_user + took.children_system
    return total
