"""Figures of several models: how each was obtained, and what may be said of two of them, by the rules in `RULES`.

There is no overall score: what is better in one thing and worse in another is said so, and the reader weighs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ...core import metrics

LEAST = {"speed": 1.05, "size": 1.05, "memory": 1.10}  # ratios below which a difference is not worth a word
RULES = (
    "Every model is compared with the first one of its task.",
    "Speed: the ratio of the two times is taken in each round, in which all "
    "models take their turn one after the other. There is a"
    " difference where the 95 % interval of the median ratio lies on one side "
    "of 1 and the median is at least 5 % away from it.",
    "Accuracy: both models on the same pictures, those whose class both know. "
    "There is a difference where the 95 % interval of the"
    " change (paired, Newcombe 1998) leaves out 0.",
    "Scores that come with an interval each (calibration, fidelity, diversity, "
    "drift): there is a difference where the two intervals do"
    " not touch. A model against the base that it was made from: where the interval "
    "of the gain on the same prompts and seeds leaves out"
    " 0; drift is measured from the base, whose own is 0. Scores of other encoders, "
    "prompts, seeds or photos are shown, and not compared.",
    "Size is exact and counts from 5 % on; peak memory is one measurement and counts from 10 % on.",
    "Where nothing is known of how well two models do their task, no choice is named: cost alone does not make one.",
    "A generator that was never taught the subject of the other is no choice for drawing it, however little it drifts.",
    "Better in something and worse in nothing: choose it. Better here and "
    "worse there: choose by what counts for you. There is no"
    " overall score.",
)


@dataclass(frozen=True)
class How:
    """How a figure was obtained; the same for many figures, and one footnote for all of them."""

    kind: str
    """measured here, counted here, read from a file, or not known."""
    what: str
    command: str = ""
    data: str = ""
    machine: str = ""
    when: str = ""


@dataclass(frozen=True)
class Figure:
    """One cell of the comparison."""

    shown: str
    """For people."""
    how: How
    value: float | str | bool | None = None
    interval: tuple[float, float] | None = None
    """Ends of the 95 % interval, where there is one."""


@dataclass(frozen=True)
class Difference:
    """What one model is against another in one respect."""

    name: str
    text: str
    better: bool | None
    """None where no difference is shown."""
    quality: bool = True
    """Whether it is about how well the model does its task, not what that costs."""


def speed(name: str, first: ArrayLike, second: ArrayLike) -> Difference:
    """Compare seconds (rounds,) of the first model and of the second, round by round."""
    ratio = metrics.median_interval(np.asarray(first, np.float64) / np.asarray(second, np.float64))
    if ratio.value >= 1:
        text = f"{ratio.value:.1f}x as fast ({ratio.low:.1f} to {ratio.high:.1f})"
    else:
        text = f"takes {1 / ratio.value:.1f}x as long ({1 / ratio.high:.1f} to {1 / ratio.low:.1f})"
    if ratio.low > 1 and ratio.value >= LEAST["speed"]:
        return Difference(name, text, True, quality=False)
    if ratio.high < 1 and 1 / ratio.value >= LEAST["speed"]:
        return Difference(name, text, False, quality=False)
    return Difference(name, f"about as fast ({ratio.low:.2f}x to {ratio.high:.2f}x)", None, quality=False)


def accuracy(name: str, first: ArrayLike, second: ArrayLike) -> Difference:
    """Compare booleans (N,): whether each model is right on the same N pictures."""
    change = metrics.paired_difference(first, second)
    value, low, high = (100 * part for part in change)
    text = f"{value:+.1f} points ({low:+.1f} to {high:+.1f}; {len(np.asarray(first))} pictures)"
    return Difference(name, text, None if low <= 0 <= high else value > 0)


def apart(
    name: str, first: Sequence[float], second: Sequence[float], higher: bool, scale: float = 1, unit: str = ""
) -> Difference:
    """Compare two values with an interval each, as (value, low, high); `higher` says which side is better."""
    change = scale * (second[0] - first[0])
    text = f"{change:+.2f}{unit}" if unit else f"{change:+.3f}"
    if first[1] <= second[2] and second[1] <= first[2]:
        return Difference(name, text, None)
    return Difference(name, text, (change > 0) == higher)


def gain(name: str, change: Sequence[float], higher: bool) -> Difference:
    """Judge a change whose own interval is known, as (value, low, high) in any order of the ends; `higher` says which
    side is better.
    """
    value, (low, high) = change[0], sorted(change[1:])
    return Difference(
        name, f"{value:+.3f} ({low:+.3f} to {high:+.3f})", None if low <= 0 <= high else (value > 0) == higher
    )


def exact(name: str, kind: str, first: float, second: float) -> Difference:
    """Compare amounts of which less is better; `kind` (size or memory) says from where on they differ."""
    ratio = first / second
    text = f"{ratio:.1f}x smaller" if ratio >= 1 else f"{1 / ratio:.1f}x larger"
    if max(ratio, 1 / ratio) < LEAST[kind]:
        return Difference(name, "the same", None, quality=False)
    return Difference(name, text, ratio > 1, quality=False)


def verdict(model: str, against: str, differences: Sequence[Difference], unmeasured: str) -> dict[str, object]:
    """Put the differences as sentences, and when to choose which, by the last two rules.

    `unmeasured` says why nothing is known of quality, for the case that no difference is about it.
    """
    better = [one.name for one in differences if one.better]
    worse = [one.name for one in differences if one.better is False]
    same = [one.name for one in differences if one.better is None]
    quality = any(one.quality for one in differences)
    if not quality:
        cost = [f"{word} in {_listed(names)}" for word, names in (("cheaper", better), ("dearer", worse)) if names]
        choose = f"Which of {model} and {against} does its task better was not compared: {unmeasured}."
        choose += f" {model} is {' and '.join(cost)}." if cost else " They cost the same."
    elif better and worse:
        choose = (
            f"Choose {model} when {_listed(better)} count{_s(better)} for more than {_listed(worse)}; else {against}."
        )
    elif better:
        choose = f"Choose {model}: better in {_listed(better)}, and worse in nothing that was compared."
    elif worse:
        choose = f"Choose {against}: {model} is worse in {_listed(worse)}, and better in nothing that was compared."
    else:
        choose = f"No difference between {model} and {against} is shown: labels, licence and formats decide."
    told = [f"{one.name}: {one.text}{_doubt(one)}" for one in differences]
    return {
        "model": model,
        "against": against,
        "quality": quality,
        "better": better,
        "worse": worse,
        "no difference": same,
        "told": told,
        "choose": choose,
    }


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _s(names: Sequence[str]) -> str:
    return "s" if len(names) == 1 else ""


def _doubt(one: Difference) -> str:
    return " (no difference shown)" if one.better is None and one.text[0] in "+-" else ""
