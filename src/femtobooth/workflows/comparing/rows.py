"""The rows of compare's tables: each figure with how it was obtained, or why it is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ...core import metrics
from ...core.metrics import Interval
from ...generator.prompts import called_in
from ...recognizer.model import artifact
from . import figures
from .candidates import GENERATOR
from .cards import cost, from_file, licence, missing, precision, trained_on
from .evaluations import Score, classifier_evaluation, scores
from .figures import Difference, Figure, How
from .pictures import Measured, Pictures

Maker = Callable[[Measured], Figure]

WITH_TORCH = ("torch", "torchscript", "pt2")
"""Engines that need PyTorch."""


@dataclass(frozen=True)
class Row:
    """One line of a table: a figure for each model."""

    name: str
    figures: Sequence[Figure]

    @property
    def kinds(self) -> list[str]:
        """How its figures were obtained, in a word each."""
        return list(dict.fromkeys(figure.how.kind for figure in self.figures if figure.how.kind != "not known"))


def table(task: str, models: Sequence[Measured], pictures: Pictures | None, evaluations: Sequence[str]) -> list[Row]:
    """Make the table of one task, the most asked-for rows first."""
    specific = _generators(models) if task == GENERATOR else _recognizers(models, pictures, evaluations)
    batches = sorted({batch for one in models for batch in one.seconds})
    lines: list[tuple[str, Maker]] = [
        (
            "stored as",
            lambda one: Figure(
                one.candidate.form, from_file(one.candidate.path, "its files and their sizes"), one.candidate.form
            ),
        ),
        ("runs in", lambda one: Figure(one.facts["engine"], one.counted, one.facts["engine"])),
        (
            "parameters",
            lambda one: Figure(f"{one.facts['parameters'] / 1e6:.2f} M", one.counted, one.facts["parameters"]),
        ),
        ("size on disk", _size),
        ("precision", precision),
        *((f"latency, batch {batch}", _latency(batch)) for batch in batches),
        *([("throughput", _throughput)] if batches else []),
        ("peak memory", _memory),
        ("licence", lambda one: licence(one, models)),
        ("trained on", trained_on),
        ("training cost", cost),
    ]
    return [*specific, *(Row(name, [make(one) for one in models]) for name, make in lines)]


def plain(tables: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """Make the tables as JSON values."""
    return {
        task: [{"name": row.name, "figures": [asdict(one) for one in row.figures]} for row in rows]
        for task, rows in tables.items()
    }


def remarks(models: Sequence[Measured], pictures: Pictures | None) -> list[str]:
    """Say what a reader has to know to read the tables rightly."""
    said = []
    recognizers = [one for one in models if one.candidate.task != GENERATOR]
    sets = {tuple(one.facts["names"]) for one in recognizers}
    if len(sets) > 1:
        sizes = ", ".join(f"{one.candidate.name} {len(one.facts['names'])}" for one in recognizers)
        said.append(
            f"The classifiers name different classes ({sizes}): accuracy is compared "
            "on the classes that both know, and fewer classes are"
            " easier to tell apart. Speed, size and memory compare as they are."
        )
    if pictures:
        for one in recognizers:
            provenance = one.facts["provenance"]
            if (provenance.get("export") or {}).get("precision") == "int8" and not artifact.ranges_from(provenance):
                said.append(
                    f"{one.candidate.name} does not list the photos that set its 8-bit "
                    "ranges: any of them in the data flatter it."
                )
            if one.candidate.hash not in pictures.logits:
                said.append(
                    f"{one.candidate.name} knows none of the classes of the data: its "
                    "accuracy and calibration cannot be measured there."
                )
    elif len(recognizers) > 1:
        said.append("Accuracy and calibration were not measured: that needs labelled pictures (data).")
    return said


def score_differences(first: Measured, second: Measured) -> list[Difference]:
    """Compare the scores of two generators whose scores were made by the same encoder on the same prompts, seeds and
    photos.
    """
    if first.candidate.task != GENERATOR:
        return []
    ours, theirs = ({score.name: score for score in scores(one, (first, second))} for one in (first, second))
    pairs = [(one, theirs[name]) for name, one in ours.items() if name in theirs and theirs[name].setup == one.setup]
    return [found for one, two in pairs if (found := _score_difference(one, two))]


def _score_difference(one: Score, two: Score) -> Difference | None:
    """Compare two scores; None where the rules allow no comparison."""
    if one.interval and two.interval:
        return figures.apart(one.name, (one.value, *one.interval), (two.value, *two.interval), one.higher)
    if one.floor == two.floor:
        return None
    sign, tuned, base = (1, two, one) if one.floor else (-1, one, two)
    change = tuned.gain or (tuned.interval and base.zero and (tuned.value, *tuned.interval))
    return figures.gain(one.name, [sign * part for part in change], one.higher) if change else None


# Rows of one task


def _generators(models: Sequence[Measured]) -> list[Row]:
    lines: list[tuple[str, Maker]] = [
        ("task", lambda one: Figure("text to picture", one.counted, "text to picture")),
        (
            "type",
            lambda one: Figure(
                f"Stable Diffusion, predicts {one.facts['prediction'].removesuffix('_prediction')}", one.counted
            ),
        ),
        ("picture", lambda one: Figure(f"{one.facts['size']}x{one.facts['size']} px", one.counted, one.facts["size"])),
        ("longest prompt", lambda one: Figure(f"{one.facts['tokens']} tokens", one.counted, one.facts["tokens"])),
        ("draws a subject", _subject),
        ("img2img, inpainting, negative prompts", lambda one: _can(True, one.counted)),
    ]
    found = {one.candidate.hash: {score.name: score for score in scores(one, models)} for one in models}
    names = list(dict.fromkeys(name for own in found.values() for name in own))
    why = How("not known", "no evaluation of exactly these weights was found: `femtobooth evaluate RUN` makes one")
    scored = [Row(name, [_scored(found[one.candidate.hash].get(name), why) for one in models]) for name in names]
    if not names:
        scored = [Row("fidelity, prompt, drift, diversity", [missing(why) for _ in models])]
    return (
        [Row(name, [make(one) for one in models]) for name, make in lines[:2]]
        + scored
        + [Row(name, [make(one) for one in models]) for name, make in lines[2:]]
    )


def _scored(score: Score | None, why: How) -> Figure:
    if score is None:
        return missing(why)
    text = f"{score.value:.3f}" + (f" ({score.interval[0]:.3f} to {score.interval[1]:.3f})" if score.interval else "")
    return Figure(text, score.how, score.value, score.interval)


def _subject(one: Measured) -> Figure:
    subject = one.facts["subject"]
    named = f"yes: {', '.join(known.phrase for known in called_in(subject).values())}" if subject else "no"
    return Figure(named, one.counted, bool(subject))


def _recognizers(models: Sequence[Measured], pictures: Pictures | None, evaluations: Sequence[str]) -> list[Row]:
    made: list[Row] = [
        Row("task", [Figure("classification, embedding", one.counted) for one in models]),
        Row("type", [Figure(str(one.facts["architecture"]), one.counted, one.facts["architecture"]) for one in models]),
    ]
    if pictures:
        made.append(Row("top-1 accuracy", [_accuracy(one, pictures) for one in models]))
        made.append(Row("calibration error (ECE)", [_calibration(one, pictures) for one in models]))
    earlier = [classifier_evaluation(one, evaluations) for one in models]
    if any(earlier):
        why = How(
            "not known", "no report of exactly these weights was found: `femtobooth evaluate-classifier` makes one"
        )
        made.append(
            Row("top-1 accuracy, evaluated earlier", [found[0] if found else missing(why) for found in earlier])
        )
        made.append(
            Row("calibration error, evaluated earlier", [found[1] if found else missing(why) for found in earlier])
        )
    lines: list[tuple[str, Maker]] = [
        ("classes", lambda one: Figure(_groups(one), one.counted, len(one.facts["names"]))),
        ("input", lambda one: Figure(_input(one.facts["preprocess"]), one.counted)),
        ("gives embeddings", lambda one: _can("embedding" in one.facts["outputs"], one.counted)),
        ("maps of stages, maps of evidence", lambda one: _can(one.facts["engine"] == "torch", one.counted)),
        ("can be fine-tuned, exported", lambda one: _can(one.facts["engine"] == "torch", one.counted)),
        ("rejects out-of-distribution pictures", lambda one: _can(bool(one.facts["rejects"]), one.counted)),
        ("calibrated (temperature)", _temperature),
        (
            "runs without PyTorch",
            lambda one: _can(one.facts["engine"] not in ("torch", "torchscript", "pt2"), one.counted),
        ),
    ]
    return made + [Row(name, [make(one) for one in models]) for name, make in lines]


def _temperature(one: Measured) -> Figure:
    value = one.facts["temperature"]
    return Figure("no" if value == 1 else f"yes: {value:.2f}", one.counted, value)


def _groups(one: Measured) -> str:
    others = ", ".join(f"{count} {name}s" for name, count in [*one.facts["groups"].items()][1:])
    return f"{len(one.facts['names'])}" + (f" ({others} besides)" if others else "")


def _input(preprocess: Mapping[str, Any]) -> str:
    height, width = preprocess["size"]
    return f"{width}x{height} px, {preprocess['interpolation']}, crop {preprocess['crop_pct']:g}"


def _accuracy(one: Measured, pictures: Pictures) -> Figure:
    own = one.candidate.hash
    if own not in pictures.logits:
        return missing(How("not known", "it knows none of the classes of the data"))
    value, count = pictures.accuracy(own)
    return _share(
        value, _of(pictures.how[own], f"share of {count} pictures whose class it knows; Wilson's 95 % interval")
    )


def _calibration(one: Measured, pictures: Pictures) -> Figure:
    own = one.candidate.hash
    if own not in pictures.logits:
        return missing(How("not known", "it knows none of the classes of the data"))
    what = "|accuracy - confidence| in 15 bins (Guo et al. 2017, eq. 3); bootstrap's 95 % interval"
    return _share(pictures.calibration(own), _of(pictures.how[own], what))


def _share(value: Interval, how: How) -> Figure:
    return Figure(
        f"{100 * value.value:.1f} % ({100 * value.low:.1f} to {100 * value.high:.1f})", how, *_interval(value)
    )


def _interval(value: Interval) -> tuple[float, tuple[float, float]]:
    return value.value, (value.low, value.high)


def _of(how: How, what: str) -> How:
    return How(how.kind, what, how.command, how.data, how.machine, how.when)


# Rows of both


def _size(one: Measured) -> Figure:
    size = one.candidate.size
    return Figure(f"{size / 1e6:.2f} MB", from_file(one.candidate.path, "its files and their sizes"), size)


def _latency(batch: int) -> Maker:
    def make(one: Measured) -> Figure:
        value = metrics.median_interval(one.seconds[batch])
        unit, scale = ("s", 1.0) if value.high >= 1 else ("ms", 1e3)
        text = f"{scale * value.value:.3g} {unit} ({scale * value.low:.3g} to {scale * value.high:.3g})"
        return Figure(text, one.timed, *_interval(value))

    return make


def _throughput(one: Measured) -> Figure:
    batch, taken = min(one.seconds.items(), key=lambda timed: float(np.median(timed[1])) / timed[0])
    value, low, high = metrics.median_interval(taken)
    what = "pictures a second at the better of the two batch sizes, from the same rounds; 95 % interval of the median"
    text = f"{batch / value:.3g} pictures/s ({batch / high:.3g} to {batch / low:.3g})"
    return Figure(text, _of(one.timed, what), batch / value, (batch / high, batch / low))


def _memory(one: Measured) -> Figure:
    if one.whole_memory is None:
        return missing(How("not known", "its runtime holds the model in another process"))
    text = f"{one.whole_memory / 2**20:.0f} MiB"
    if one.memory["device"]:
        text += f" + {one.memory['device'] / 2**20:.0f} MiB on the accelerator"
    return Figure(text, one.remembered, one.whole_memory)


def _can(able: bool, how: How) -> Figure:
    return Figure("yes" if able else "no", how, able)
