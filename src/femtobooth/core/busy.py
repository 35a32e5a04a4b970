"""How busy a machine was with other things while something was timed: what all took, less what this process and its
children took.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType

BUSY = 0.15  # share of all cores that others take, from which on a timing is worth a warning
_TICK = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


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
        if taken is not None and self._before[0] is not None and seconds > 0:
            self.others = max(0.0, ((taken - self._before[0]) - (own - self._before[1])) / seconds)


def remark(others: float | None) -> str | None:
    """What a reader of timings has to know of it, if anything."""
    cores = os.cpu_count() or 1
    if others is None or others < BUSY * cores:
        return None
    return (
        f"The machine was busy while this was timed: other processes took {others:.1f} "
        f"of its {cores} cores. Times are longer than on a"
        " quiet one, and ratios may be off by more than their intervals say."
    )


def _taken() -> float | None:
    """Seconds that all cores have worked so far, for anyone; time stolen by a hypervisor counts as others' work."""
    try:
        line = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
        user, nice, system, _, _, irq, softirq, steal = map(int, line.split()[1:9])
    except (OSError, ValueError, IndexError):
        return None
    return (user + nice + system + irq + softirq + steal) / _TICK


def _own() -> float:
    """Seconds that this process and its children have worked so far."""
    times = os.times()
    total = times.user + times.system + times.children_user + times.children_system
    for listed in Path("/proc/self/task").glob("*/children"):
        try:
            for child in listed.read_text(encoding="ascii").split():
                fields = (
                    Path("/proc", child, "stat")
                    .read_text(encoding="ascii", errors="replace")
                    .rpartition(")")[2]
                    .split()
                )
                total += sum(map(int, fields[11:15])) / _TICK
        except (OSError, ValueError):
            continue
    return total
