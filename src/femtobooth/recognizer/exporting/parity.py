"""An exported model side by side with the PyTorch original: labels, logits, accuracy, size and speed, on real pictures.

One cosine over one picture proves little: it stays at 0.999 while labels change and numbers are computed in bf16.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core import busy, metrics
from ...core.events import progress_bar
from ...core.metrics import median_interval
from ..model.engine import Engine
from ..model.labels import Labels

LOGITS = {"fp32": 1e-3, "fp16": 5e-2, "int8": None}
"""Largest 99th percentile of logit errors, in standard deviations of the original's logits; int8 is judged by accuracy
alone.

On EfficientNet-Lite0 float16 is off by 0.02 and bfloat16, which has 3 bits less, by 0.13: one passes as fp16, the other
does not.
"""
BATCHES = (1, 8)
SECONDS = 3.0  # that timing one batch size takes, at least ROUNDS rounds
ROUNDS = 6  # an interval of the median needs as many
Pixels = NDArray[np.uint8]


def measure(
    original: Engine,
    exported: Engine,
    pictures: Iterable[tuple[Pixels, int | None]],
    count: int,
    batches: tuple[int, ...] = BATCHES,
) -> dict[str, Any]:
    """Compare two engines on pictures: pixels (H, W, 3) and true class (index within the first group, or None) each.

    All shares are 0 to 1 with their 95 % intervals as [value, low, high].
    """
    outputs: list[tuple[Any, Any]] = []
    truth: list[int] = []
    sample: list[Pixels] = []
    with progress_bar("side by side", count) as bar:
        for pixels, label in pictures:
            outputs.append((original.run(pixels[None]), exported.run(pixels[None])))
            truth.append(-1 if label is None else label)
            sample = [*sample, pixels][: max(batches)]
            bar.advance()
    before, after = (
        {name: np.concatenate([pair[side][name] for pair in outputs]) for name in outputs[0][side]} for side in (0, 1)
    )
    return compare(before, after, np.array(truth), original.labels) | {
        "speed": _speed(original, exported, sample, batches)
    }


def compare(before: dict[str, Any], after: dict[str, Any], truth: NDArray[np.int64], labels: Labels) -> dict[str, Any]:
    """Say what changed between two sets of outputs on the same pictures; `truth` (N,) holds -1 where the class is not
    known.
    """
    first, second = (labels.answers(side["logits"]) for side in (before, after))
    error = np.abs(after["logits"].astype(np.float64) - before["logits"])
    spread = float(before["logits"].std())
    finite = bool(np.isfinite(after["logits"]).all())
    known = truth >= 0
    accuracy = None
    if known.any():
        right = [labels[known] == truth[known] for labels in (first, second)]
        accuracy = {
            "pictures": int(known.sum()),
            "original": list(metrics.wilson(int(right[0].sum()), int(known.sum()))),
            "exported": list(metrics.wilson(int(right[1].sum()), int(known.sum()))),
            "change": list(metrics.paired_difference(right[0], right[1])),
        }
    p50, p99, most = np.quantile(error, [0.5, 0.99, 1.0]) if finite else [float("inf")] * 3
    return {
        "pictures": len(truth),
        "agreement": list(metrics.wilson(int((first == second).sum()), len(truth))),
        "accuracy": accuracy,
        "of": "all labels" if labels.free else "top-1 label",
        "judged_by": lost(first, second, truth)[1],
        "logit_error": {
            "p50": float(p50),
            "p99": float(p99),
            "max": float(most),
            "spread": spread,
            "p99_of_spread": float(p99 / spread),
        },
        "cosine": {
            name: _cosine(before[name], after[name])
            for name in ("logits", "embedding")
            if name in before and name in after
        },
    }


def judged(
    figures: dict[str, Any], precision: str, tolerance: float | None, max_drop: float
) -> tuple[list[str], list[str]]:
    """Say in words what is worse than it may be, and what is not but by so few photos that it could be; both empty if
    all is within.
    """
    missed, unshown = [], []
    error = figures["logit_error"]
    limit = LOGITS[precision] if tolerance is None else tolerance
    if limit is not None and not error["p99_of_spread"] <= limit:
        missed.append(
            f"99 % of logit errors are within {error['p99_of_spread']:.2g} of the logits' spread, more than {limit:.2g}"
        )
    lost, worst, what = lost_points(figures)
    if not lost <= max_drop:
        missed.append(f"{what} by {lost:.1f} points, more than {max_drop:g}")
    elif not worst <= max_drop:
        agrees = figures["agreement"][0] == 1 and max_drop > 0
        enough = (
            f"; {_photos_to_show(max_drop)} photos with the same labels would show it"
            if agrees
            else "; more photos could show it"
        )
        unshown.append(
            f"{what} by {lost:.1f} points on {figures['pictures']} photos, and by up "
            f"to {worst:.1f} as far as so few can tell: more than"
            f" the {max_drop:g} that may be lost{enough}"
        )
    return missed, unshown


def _photos_to_show(max_drop: float) -> int:
    """Say how many photos it takes until the interval of an agreement on all of them is within `max_drop` points
    (Wilson's, 95 %).
    """
    share = max_drop / 100
    return math.ceil(1.959964**2 * (1 - share) / share)


def lost_points(figures: dict[str, Any]) -> tuple[float, float, str]:
    """Compute the points lost, the most that the 95 % interval allows, and of what, in words."""
    if figures["judged_by"] == "accuracy":
        value, low, _ = figures["accuracy"]["change"]
        return 0 - 100 * value, 0 - 100 * low, "top-1 accuracy falls"
    value, low, _ = figures["agreement"]
    return (
        100 * (1 - value),
        100 * (1 - low),
        f"{'sets of' if figures.get('of') == 'all labels' else 'top-1'} labels differ from the original's",
    )


def lost(first: NDArray[np.int64], second: NDArray[np.int64], truth: NDArray[np.int64]) -> tuple[float, str]:
    """Compute the points of accuracy or of agreement that `second` labels (N,) lose against `first`, and by which of
    them it is judged.

    `truth` is -1 where the class is not known. Accuracy judges only where the original is right on most of all photos:
    one that is right on few has nothing to lose, and would pass whatever became of it.
    """
    known = truth >= 0
    right = [(labels == truth) & known for labels in (first, second)]
    if 2 * right[0].sum() > len(truth):
        return 100 * float((right[0].sum() - right[1].sum()) / known.sum()), "accuracy"
    return 100 * float((first != second).mean()), "agreement"


def _cosine(first: NDArray[Any], second: NDArray[Any]) -> dict[str, float]:
    a, b = first.astype(np.float64), second.astype(np.float64)
    values = (a * b).sum(axis=1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-30)
    return {"mean": float(values.mean()), "min": float(values.min())}


def _speed(original: Engine, exported: Engine, sample: list[Pixels], batches: tuple[int, ...]) -> dict[str, Any]:
    """Measure milliseconds a batch, from pixels to logits, the two engines taking turns, and how many times as fast
    that is.

    Medians with their 95 % intervals, [value, low, high]; and pictures a second at their best.
    """
    engines = {"original": original, "exported": exported}
    latency: dict[str, dict[str, list[float]]] = {name: {} for name in engines}
    ratio: dict[str, list[float]] = {}
    with busy.Load() as load, progress_bar("timing", len(batches)) as bar:
        for batch in batches:
            pixels = np.stack([sample[i % len(sample)] for i in range(batch)])
            taken: dict[str, list[float]] = {name: [] for name in engines}
            for engine in engines.values():
                engine.run(pixels)
            end = time.perf_counter() + SECONDS
            while time.perf_counter() < end or len(taken["original"]) < ROUNDS:
                for name, engine in engines.items():
                    start = time.perf_counter()
                    engine.run(pixels)
                    taken[name].append(1e3 * (time.perf_counter() - start))
            for name, times in taken.items():
                latency[name][str(batch)] = list(median_interval(times))
            ratio[str(batch)] = list(median_interval(np.divide(taken["original"], taken["exported"])))
            bar.advance()
    return {
        "latency_ms": latency,
        "ratio": ratio,
        "throughput": {
            name: max(1e3 * int(batch) / value[0] for batch, value in own.items()) for name, own in latency.items()
        },
        "others": load.others,
    }
