"""Is fine-tuning worth its time? Told before it by what was measured where most was alike, of each kind of data, and
after it by its own validation.

What was measured is a file, which `benchmarks/photos_per_class.py` writes: pictures a class, how good the probe was,
and what fine-tuning gained, with its interval.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

FILE = Path(str(resources.files("femtobooth") / "assets" / "finetuning.json"))
APART = 2.0
"""Factor by which pictures a class may differ from those of a measurement that still says something, and whose square
the odds of the probe's errors may."""
CLOSE = 10.0
"""Points within which the interval of a difference has to lie, for two models to be called as good."""


@dataclass(frozen=True)
class Measured:
    """One measurement."""

    about: str
    """What data, by what network."""
    pictures: int
    """Of each class."""
    probe: float
    """Share that the probe had right."""
    gain: tuple[float, float, float]
    """Of fine-tuning over the probe, in shares right, with its interval."""
    draws: int = 2
    """Of training pictures; an interval of one draw does not know what another would have brought."""


def measurements(file: Path = FILE) -> list[Measured]:
    """Read what was measured."""
    rows: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return [Measured(row["about"], row["pictures"], row["probe"][0], (*row["gain"],), row["seeds"]) for row in rows]


def nearest(known: Sequence[Measured], pictures: float, right: float) -> list[Measured]:
    """Find, of each kind of data, the measurement of most like a number of pictures a class and share `right` of the
    probe, the nearest first; those that are further than `APART` are left out.
    """

    def distance(one: Measured) -> float:
        return max(abs(math.log(one.pictures / pictures)), abs(_odds(one.probe) - _odds(right)) / 2)

    best: dict[str, Measured] = {}
    for one in sorted(known, key=distance):
        if distance(one) <= math.log(APART):
            best.setdefault(one.about, one)
    return list(best.values())


def _odds(share: float) -> float:
    """Compute the logarithm of the odds of a share, kept off 0 and 1."""
    kept = min(max(share, 0.02), 0.98)
    return math.log(kept / (1 - kept))


def before(known: Sequence[Measured], pictures: float, right: float, passes: float) -> str | None:
    """Say what fine-tuning may bring, by the nearest measurements; None where none is near. It takes `passes` over the
    pictures, each forwards and backwards, which is three times the work of the probe's one pass.
    """
    near = nearest(known, pictures, right)
    if not near:
        return None
    way_out = "" if any(one.gain[1] > 0 for one in near) else "; `probe_only=true` leaves it out"
    return (
        f"where pictures a class and the probe were about as here, fine-tuning brought {'; '.join(map(_brought, near))}"
        f"{way_out}. It computes about {3 * passes:.0f} x as much as the probe"
    )


def _brought(one: Measured) -> str:
    value, low, high = (100 * share for share in one.gain)
    shows = "" if low > 0 or high < 0 else "nothing that shows, "
    once = ", one training" if one.draws == 1 else ""
    seen = f"{one.about}, {one.pictures} pictures a class, probe {one.probe:.0%} right{once}"
    return f"{shows}{value:+.1f} points ({low:+.1f} to {high:+.1f}; {seen})"


def after(compared: Mapping[str, Any], costs: Mapping[str, Mapping[str, Any]], pictures: float) -> str | None:
    """Say whether it was worth its time, by the validation pictures; None where nothing was compared."""
    if "accuracy_difference" not in compared or not {"probe", "finetuned"} <= set(costs):
        return None
    value, low, high = (100 * share for share in compared["accuracy_difference"])
    times = costs["finetuned"]["seconds"] / max(costs["probe"]["seconds"], 0.1)
    quicker = f"{times:.0f} x quicker" if times >= 1.5 else "no slower"
    few = f"with {pictures:.0f} pictures a class "
    if low > 0:
        return f"{few}fine-tuning was worth it: {value:+.1f} points for {times:.0f} x the probe's time"
    if high < 0:
        return f"{few}the probe is better, and {quicker}: `probe_only=true`"
    sure = max(-low, high)
    if sure > CLOSE:
        return (
            f"{few}{sure:.0f} points more or less could hide in {compared['pictures']} validation pictures; "
            f"the probe was {quicker}"
        )
    return f"{few}the probe is as good to within {sure:.0f} points, and {quicker}: `probe_only=true`"
