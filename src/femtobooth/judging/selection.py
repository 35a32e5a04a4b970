"""Choose the checkpoint that becomes the model, and tell when training is done: pure functions of the validation during
training.

`fidelity` and `prompt` hold one value for each picture, in the same order at every step, as all steps sample the same
prompts from the same noise; so steps are compared picture by picture, which is far surer than comparing their means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

JOINT = (
    " Of several subjects the worst counts: fidelity is above the untuned base's and in parts of the way from there to "
    "that of the photos among each other, and of fidelity, prompt fidelity and gain that of the subject with the least "
    "is taken; drift is that of the class that drifted most. A step is within one standard error of another where it "
    "is for every subject."
)
"""What `RULE` means where there are several subjects."""
LEAST_ROOM = 0.05  # cosine: the least way from base to photos that is divided by
RULE = (
    "The untuned base is no candidate. On the Pareto front are the steps that "
    "no other beats in fidelity, prompt fidelity and drift "
    "together. A picture's gain is its subject fidelity above the untuned base's "
    "picture of the same prompt and seed, times its prompt "
    "fidelity. Of the steps on the front whose mean gain is within one standard "
    "error of the highest, that with the least drift is taken."
)


class Point(NamedTuple):
    """What was measured at one step."""

    step: int
    fidelity: tuple[float, ...]
    """Mean cosine of each picture of the subject with the photos; higher is better."""
    prompt: tuple[float, ...]
    """How far each of these pictures shows what its prompt asks for, from 0 or above; higher is better."""
    drift: float
    """How far pictures of the class have moved from the base's, from 0; lower is better."""
    moved: tuple[float, ...] = ()
    """The same of each of these pictures, for the spread."""
    outside: tuple[float, ...] = ()
    """How far each picture of things outside the class has moved; told, and no ground for the choice."""
    of: tuple[tuple[int, float, float], ...] = ()
    """Of several subjects, in order: how many of these pictures are of each, the fidelity of the untuned base's, and
    the way from there to that of the photos.
    """

    def split(self, values: Sequence[float]) -> list[np.ndarray]:
        """Give a value of each picture by subjects."""
        ends = np.cumsum([count for count, _, _ in self.of])[:-1]
        return np.split(np.array(values), ends) if self.of else [np.array(values)]

    @property
    def rooms(self) -> list[float]:
        """The way from the untuned base's fidelity to that of the photos, by subjects; 1 where there is one."""
        return [max(room, LEAST_ROOM) for _, _, room in self.of] or [1.0]

    @property
    def goods(self) -> tuple[float, float, float]:
        """Fidelity, prompt fidelity and what is left of the class: of one subject, or of the worst of several."""
        if not self.of:
            return float(np.mean(self.fidelity)), float(np.mean(self.prompt)), -self.drift
        floors = [floor for _, floor, _ in self.of]
        shares = [
            (part.mean() - floor) / room
            for part, floor, room in zip(self.split(self.fidelity), floors, self.rooms, strict=True)
        ]
        return float(min(shares)), float(min(part.mean() for part in self.split(self.prompt))), -self.drift

    def gains(self, base: Point) -> list[np.ndarray]:
        """Fidelity of each picture above that of the base's, times its prompt fidelity, in parts of the room; by
        subjects.
        """
        gains = (np.array(self.fidelity) - base.fidelity) * self.prompt
        return [part / room for part, room in zip(self.split(list(gains)), self.rooms, strict=True)]


def point_of(row: Mapping[str, Any]) -> Point:
    """Read a point from its plain values; those of older versions have no `moved`, no `outside` and no `of`."""
    of = tuple((int(count), float(floor), float(room)) for count, floor, room in row.get("of", ()))
    moved, outside = (tuple(row.get(name, ())) for name in ("moved", "outside"))
    return Point(row["step"], tuple(row["fidelity"]), tuple(row["prompt"]), row["drift"], moved, outside, of)


class Choice(NamedTuple):
    """A step, why it was chosen, and the steps of the Pareto front."""

    step: int
    reason: str
    front: tuple[int, ...]


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Find the points that no other is at least as good as in mean fidelity, mean prompt fidelity and drift, and better
    in one.

    A point that has left the front never comes back to it, however many are added.
    """
    goods = {point.step: point.goods for point in points}

    def beaten(point: Point) -> bool:
        own = goods[point.step]
        return any(other != own and all(a >= b for a, b in zip(other, own, strict=True)) for other in goods.values())

    return [point for point in points if not beaten(point)]


def choose(points: Sequence[Point]) -> Choice:
    """Choose the step that `RULE` takes. `points` begin with the untuned base (step 0); raises ValueError where nothing
    follows it.

    Being content with one standard error less for the sake of the simpler model is Breiman et al. 1984, section 3.4.3
    (the 1 SE rule); fidelity times prompt fidelity is how DreamBench++ ranks methods (Peng et al. 2024, arXiv
    2406.16855).
    """
    base, *tuned = points
    if not tuned:
        raise ValueError("nothing to choose from: only the base was scored")
    front = pareto_front(tuned)
    gains = {point.step: point.gains(base) for point in front}
    best = max(front, key=lambda point: (min(part.mean() for part in gains[point.step]), -point.drift))
    close = [point for point in front if _all_within_one_error(gains[best.step], gains[point.step])]
    taken = min(close, key=lambda point: (point.drift, point.step))
    if len(front) == 1:
        return Choice(taken.step, f"step {taken.step} is alone on the Pareto front", (taken.step,))
    most = f"of the {len(front)} steps on the Pareto front, step {best.step} gains most"
    if taken is best:
        reason = f"{most}, and none with less drift is within one standard error of it"
    else:
        reason = f"{most}; of those within one standard error of it, step {taken.step} has the least drift"
    return Choice(taken.step, reason, tuple(point.step for point in front))


def within_one_error(best: np.ndarray, other: np.ndarray) -> bool:
    """Tell whether the mean of `other` falls short of that of `best` (both (N,), paired) by at most one standard error
    of the difference.
    """
    return float(np.mean(best - other)) <= _standard_error(best - other)


def _all_within_one_error(best: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> bool:
    return all(within_one_error(one, two) for one, two in zip(best, other, strict=True))


def finished(points: Sequence[Point], patience: int = 3) -> bool:
    """Tell whether training can end: fidelity is saturated and the class drifts on.

    Saturated: none of the last `patience` points has a fidelity more than one standard error (of the paired difference)
    above the last point that still had gained; of several subjects none may have. A dip counts as no gain, and a
    recovery within the patience is waited for; many small gains add up, since all are measured from the same point.
    Drifting on: the last `patience` points drift more than that one did.
    """
    if len(points) <= patience:
        return False
    gained = 0
    for index in range(1, len(points)):
        change = np.array(points[index].fidelity) - points[gained].fidelity
        if any(part.mean() > _standard_error(part) for part in points[index].split(list(change))):
            gained = index
    since = points[gained + 1 :]
    return (
        len(since) >= patience and float(np.mean([point.drift for point in since[-patience:]])) > points[gained].drift
    )


def variance_ratio(losses: Sequence[float], window: int) -> float:
    """Divide the variance of the last `window` deterministic losses by that of all; 1 while there are fewer.

    DVAR (Voronov et al. 2023, arXiv 2302.04841) calls training converged once this falls below a threshold.
    """
    values = np.asarray(losses, np.float64)
    whole = float(values.var()) if len(values) >= window else 0.0
    return float(values[-window:].var()) / whole if whole > 0 else 1.0


def converged(losses: Sequence[float], window: int, threshold: float = 0.15) -> int | None:
    """Count how many losses it took until DVAR's ratio fell below `threshold` (0.15 in its authors' code), or None."""
    return next(
        (count for count in range(window, len(losses) + 1) if variance_ratio(losses[:count], window) < threshold), None
    )


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
