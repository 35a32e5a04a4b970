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

from ..core import busy, metrics
from ..core.console import progress_bar
from ..core.figures import median_interval
from ..core.pages import Html, callout, code, markup, page, section, table, tiles
from .engines import Engine

LOGITS = {"fp32": 1e-3, "fp16": 5e-2, "int8": None}
"""Largest 99th percentile of logit errors, in standard deviations of the original's logits; int8 is judged by accuracy alone.

On EfficientNet-Lite0 float16 is off by 0.02 and bfloat16, which has 3 bits less, by 0.13: one passes as fp16, the other does not."""
BATCHES = (1, 8)
SECONDS = 3.0  # that timing one batch size takes, at least ROUNDS rounds
ROUNDS = 6  # an interval of the median needs as many
VERDICTS = {
    "within": ("good", "within tolerance"),
    "not shown": ("warn", "not shown to be within tolerance"),
    "exceeded": ("bad", "misses the tolerance"),
    "not compared": ("warn", "not compared"),
}
"""Verdict: mood of the page, and words."""
COLUMNS = ["", ">PyTorch fp32", ">exported", ">change"]
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
    before, after = ({name: np.concatenate([pair[side][name] for pair in outputs]) for name in outputs[0][side]} for side in (0, 1))
    return compare(before, after, np.array(truth), original.labels.main) | {"speed": _speed(original, exported, sample, batches)}


def compare(before: dict[str, Any], after: dict[str, Any], truth: NDArray[np.int64], main: slice) -> dict[str, Any]:
    """What changed between two sets of outputs on the same pictures; `truth` (N,) holds -1 where the class is not known."""
    first, second = (side["logits"][:, main].argmax(axis=1) for side in (before, after))
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
        "judged_by": lost(first, second, truth)[1],
        "logit_error": {
            "p50": float(p50),
            "p99": float(p99),
            "max": float(most),
            "spread": spread,
            "p99_of_spread": float(p99 / spread),
        },
        "cosine": {name: _cosine(before[name], after[name]) for name in ("logits", "embedding") if name in before and name in after},
    }


def judged(figures: dict[str, Any], precision: str, tolerance: float | None, max_drop: float) -> tuple[list[str], list[str]]:
    """In words what is worse than it may be, and what is not but by so few photos that it could be; both empty if all is within."""
    missed, unshown = [], []
    error = figures["logit_error"]
    limit = LOGITS[precision] if tolerance is None else tolerance
    if limit is not None and not error["p99_of_spread"] <= limit:
        missed.append(f"99 % of logit errors are within {error['p99_of_spread']:.2g} of the logits' spread, more than {limit:.2g}")
    lost, worst, what = lost_points(figures)
    if not lost <= max_drop:
        missed.append(f"{what} by {lost:.1f} points, more than {max_drop:g}")
    elif not worst <= max_drop:
        agrees = figures["agreement"][0] == 1 and max_drop > 0
        enough = f"; {_photos_to_show(max_drop)} photos with the same labels would show it" if agrees else "; more photos could show it"
        unshown.append(
            f"{what} by {lost:.1f} points on {figures['pictures']} photos, and by up to {worst:.1f} as far as so few can tell: more than"
            f" the {max_drop:g} that may be lost{enough}"
        )
    return missed, unshown


def _photos_to_show(max_drop: float) -> int:
    """How many photos it takes until the interval of an agreement on all of them is within `max_drop` points (Wilson's, 95 %)."""
    share = max_drop / 100
    return math.ceil(1.959964**2 * (1 - share) / share)


def lost_points(figures: dict[str, Any]) -> tuple[float, float, str]:
    """Points lost, the most that the 95 % interval allows, and of what, in words."""
    if figures["judged_by"] == "accuracy":
        value, low, _ = figures["accuracy"]["change"]
        return 0 - 100 * value, 0 - 100 * low, "top-1 accuracy falls"
    value, low, _ = figures["agreement"]
    return 100 * (1 - value), 100 * (1 - low), "top-1 labels differ from the original's"


def lost(first: NDArray[np.int64], second: NDArray[np.int64], truth: NDArray[np.int64]) -> tuple[float, str]:
    """Points of accuracy or of agreement that `second` labels (N,) lose against `first`, and by which of them it is judged.

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
    """Milliseconds a batch, from pixels to logits, the two engines taking turns, and how many times as fast that is.

    Medians with their 95 % intervals, [value, low, high]; and pictures a second at their best.
    """
    engines = {"original": original, "exported": exported}
    latency: dict[str, dict[str, list[float]]] = {name: {} for name in engines}
    ratio: dict[str, list[float]] = {}
    with busy.Watch() as watch, progress_bar("timing", len(batches)) as bar:
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
        "throughput": {name: max(1e3 * int(batch) / value[0] for batch, value in own.items()) for name, own in latency.items()},
        "others": watch.others,
    }


# For people


def rows(report: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """The comparison as lines of a table: what, original, exported, change."""
    lines = [
        ("size on disk", _megabytes(report["size"]["original"]), _megabytes(report["size"]["exported"]), _times(*report["size"].values()))
    ]
    figures = report.get("figures")
    if not figures:
        return lines
    accuracy, speed = figures["accuracy"], figures["speed"]
    if accuracy:
        change = [100 * value for value in accuracy["change"]]
        lines.append(
            (
                f"top-1 accuracy ({accuracy['pictures']} photos)",
                f"{100 * accuracy['original'][0]:.1f} %",
                f"{100 * accuracy['exported'][0]:.1f} %",
                f"{change[0]:+.1f} points ({change[1]:+.1f} to {change[2]:+.1f})",
            )
        )
    value, low, high = (100 * part for part in figures["agreement"])
    lines.append((f"top-1 agreement ({figures['pictures']} photos)", "", f"{value:.1f} %", f"{low:.1f} to {high:.1f} %"))
    error = figures["logit_error"]
    for name in ("p50", "p99", "max"):
        lines.append((f"logit error, {name}", "", f"{error[name]:.2g}", f"{error[name] / error['spread']:.1e} of their spread"))
    for name, cosine in figures["cosine"].items():
        lines.append((f"cosine of {name}, mean / least", "", f"{cosine['mean']:.6f} / {cosine['min']:.6f}", ""))
    for batch, (value, low, high) in speed["ratio"].items():
        first, second = (_milliseconds(speed["latency_ms"][side][batch]) for side in ("original", "exported"))
        lines.append((f"latency, batch {batch}", first, second, f"{value:.2f}x ({low:.2f} to {high:.2f})"))
    first, second = speed["throughput"].values()
    lines.append(("throughput", f"{first:.1f} /s", f"{second:.1f} /s", _times(second, first)))
    return lines


def draw(report: dict[str, Any]) -> Html:
    """The whole page."""
    figures, quantization = report.get("figures"), report.get("quantization")
    mood, verdict = VERDICTS[report["verdict"]]
    said = report["misses"] + report["unshown"]
    facts = [("status", report["status"], f"{report['runtime']}, {report['threads']} threads")]
    if figures:
        lost, worst, _ = lost_points(figures)
        judged = "change of top-1 accuracy" if figures["judged_by"] == "accuracy" else "top-1 agreement lost"
        speed = figures["speed"]
        batch, (times, low, high) = next(iter(speed["ratio"].items()))
        first, second = (speed["latency_ms"][side][batch] for side in ("original", "exported"))
        allowed = f"at worst {0 - worst:+.1f} on {figures['pictures']} photos; {-report['max_drop']:g} is allowed"
        facts += [
            (judged, f"{0 - lost:+.1f} points", allowed),
            ("one photo", f"{second[0]:.1f} ms", f"original: {first[0]:.1f} ms; {times:.2f}x as fast ({low:.2f} to {high:.2f})"),
        ]
    facts.append(("size", _megabytes(report["size"]["exported"]), f"original: {_megabytes(report['size']['original'])}"))
    parts = [
        tiles(*facts),
        callout(f"{verdict}{': ' + '; '.join(said) if said else ''}", mood),
        *(callout(remark, "warn") for remark in report["remarks"]),
        section(
            "Side by side", table(["", ">original (PyTorch fp32)", ">exported", ">change"], rows(report), "The same photos through both")
        ),
    ]
    if quantization:
        parts.append(_quantization(quantization))
    described = [(name, markup(value)) for name, value in {**report["environment"], "processor": report["processor"]}.items()]
    parts.append(section("How this was measured", table(["", ""], described, "Software and machine")))
    if report.get("command"):
        parts.append(section("Build it there", code(report["command"])))
    return page(
        f"{report['model']} as {report['format']}, {report['precision']}", *parts, lead=f"{report['status']}: {verdict}.", kind="export"
    )


def _quantization(report: dict[str, Any]) -> Html:
    chosen = f"{report['calibrator']} ranges{', bias correction' if report['bias_corrected'] else ''}"
    trials = [(one["name"], f"{one['snr']:.1f}", f"{one['lost']:.1f}", "taken" if one["taken"] else "") for one in report["trials"]]
    layers = [
        (layer["name"], layer["kind"], f"{layer['snr']:.1f}", f"{100 * layer['share']:.1f} %", "float" if layer["kept"] else "int8")
        for layer in report["layers"]
    ]
    return section(
        "How it was quantized",
        callout(f"{chosen}; {len(report['kept_in_float'])} of {len(layers)} layers in float; calibrated on {report['pictures']} photos"),
        table(["tried", ">signal to noise [dB]", ">points lost", ""], trials, "Variants, on the calibration photos"),
        table(["layer", "kind", ">signal to noise alone [dB]", ">of the work", "kept"], layers, "Layers, the most sensitive first"),
    )


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.2f} MB"


def _milliseconds(value: list[float]) -> str:
    return f"{value[0]:.1f} ms ({value[1]:.1f} to {value[2]:.1f})"


def _times(first: float, second: float) -> str:
    return f"{first / second:.2f}x"
