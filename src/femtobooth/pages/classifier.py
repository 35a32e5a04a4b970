"""Write the page of `evaluate-classifier`: the answer on top, then calibration, coverage, classes, worst mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core import metrics
from ..recognizer.evaluation import Predictions, busiest, ood_scores
from . import charts
from .html import Chart, Page, Shot, Tile, render

MOST_ROWS = 200  # longer tables are in report.json
Interval = Sequence[float]
"""A share with the ends of its 95 % interval."""


@dataclass(frozen=True)
class Mistake:
    """Hold a mistake with its pictures, uint8 (H, W, 3)."""

    told: Mapping[str, Any]
    """Its line of report.json."""
    pixels: np.ndarray
    for_predicted: np.ndarray | None
    """Grad-CAM over the picture, for the class it was taken for; None where the network has no such map."""
    for_true: np.ndarray | None


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Hold how far the confidence can be believed."""

    charts: list[Chart]
    rows: Sequence[tuple[str, ...]]
    """State, ECE, its interval, that of a perfect model, mean confidence, negative log-likelihood."""
    bins: int
    not_scaled: str
    """Why no temperature was fitted; empty where one was."""


@dataclass(frozen=True, kw_only=True)
class Selective:
    """Hold what answering only the surest pictures would leave."""

    chart: Chart
    rows: list[tuple[str, str, str]]


@dataclass(frozen=True, kw_only=True)
class OutOfDistribution:
    """Hold how well out-of-distribution pictures are told apart."""

    chart: Chart | None
    by_distance: bool
    pictures: str
    rows: list[tuple[str, str, str, Interval]]
    """Told by, AUROC, its interval, share that is rejected where 5 % of the known ones are."""
    at_threshold: str


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Hold what is taken for what."""

    chart: Chart
    count: int
    rows: list[tuple[str, str, int]]


@dataclass(frozen=True)
class ClassRow:
    """Hold one class of the table."""

    name: str
    pictures: int
    accuracy: Interval
    top5: str
    confidence: str
    taken_for: str


@dataclass(frozen=True)
class Card:
    """Hold one mistake as it is shown."""

    shots: list[Shot]
    predicted: str
    confidence: str
    true: str
    rank: str
    file: str


@dataclass(frozen=True, kw_only=True)
class ClassifierPage(Page):
    """Hold what the page shows."""

    right: str
    """How many are named right, in words."""
    verdict: str
    tiles: list[Tile]
    remarks: list[str]
    calibration: Calibration
    selective: Selective
    out_of_distribution: OutOfDistribution | None
    confusion: Confusion | None
    top5: str
    """The name of top-5 accuracy; empty where it says nothing."""
    classes: list[ClassRow]
    classes_left: int
    mean_accuracy: str
    mistakes: list[Card]
    wrong: int
    maps: bool
    """Whether there are maps of evidence."""
    no_maps: str
    facts: list[tuple[str, str]]
    skipped: list[tuple[str, str]]
    skipped_count: int


def percent(share: float) -> str:
    """Say a share with one digit behind the point."""
    return f"{100 * share:.1f} %"


def between(interval: Interval) -> str:
    """Say the ends of an interval."""
    return f"{percent(interval[1])} to {percent(interval[2])}"


def says_top5(report: Mapping[str, Any]) -> bool:
    """Tell whether the top-5 accuracy says anything: of few classes, five are nearly all."""
    return int(report["model_classes"]) >= 2 * int(report["top5_is_top"])


def classifier_page(
    report: Mapping[str, Any],
    predictions: Predictions,
    rejection: Mapping[str, Any] | None,
    mistakes: Sequence[Mistake],
) -> str:
    """Write the whole page, from `evaluation.measure`'s report and what the workflow added: model, data, engine ...

    `rejection` holds the centroids that distances are measured to, as `measure` had them.
    """
    top1, pictures = report["top1"], report["pictures"]
    wrong = pictures - round(top1[0] * pictures)
    facts = [(name, str(report[name])) for name in ("model", "data", "engine", "hash", "preprocess")]
    facts += [
        ("left out: trained on", str(report["left_out_training"])),
        ("left out: set ranges", str(report["left_out_ranges"])),
    ]
    page = ClassifierPage(
        title=f"{report['model']} on {report['data']}",
        kind="classifier evaluation",
        footer=f"femtobooth {report['environment'].get('femtobooth', '')} · engine {report['engine']} · "
        f"weights {report['hash'][:12]}",
        right=f"{pictures - wrong} of {pictures} pictures are named right",
        lead=f"({percent(top1[0])}; with new pictures of this kind, {between(top1)}).",
        verdict=" ".join(filter(None, (_rejecting(report), _believed(report)))),
        tiles=_tiles(report, predictions),
        remarks=report["remarks"],
        calibration=_calibration(report, predictions),
        selective=_selective(report, predictions),
        out_of_distribution=_out_of_distribution(report, predictions, rejection)
        if report["out_of_distribution"] is not None
        else None,
        confusion=_confusion(report, predictions) if report["confusions"] else None,
        top5=f"top-{report['top5_is_top']}" if says_top5(report) else "",
        classes=[_class(entry) for entry in report["per_class"][:MOST_ROWS]],
        classes_left=len(report["per_class"][MOST_ROWS:]),
        mean_accuracy=f"{percent(report['mean_class_accuracy'][0])} "
        f"(95 % interval {between(report['mean_class_accuracy'])})",
        mistakes=[_card(one) for one in mistakes],
        wrong=wrong,
        maps=bool(mistakes) and mistakes[0].for_predicted is not None,
        no_maps=report["no_maps"],
        facts=[*facts, *report["environment"].items()],
        skipped=[(entry["path"], entry["reason"]) for entry in report["skipped"][:MOST_ROWS]],
        skipped_count=len(report["skipped"]),
    )
    return render("classifier.html", page)


def _tiles(report: Mapping[str, Any], predictions: Predictions) -> list[Tile]:
    calibration, ood, rejection = report["calibration"], report["out_of_distribution"], report["rejection"]
    before, after = calibration["before"]["ece"], calibration["after"]
    top1, top5 = report["top1"], report["top5"]
    tiles = [Tile("top-1 accuracy", percent(top1[0]), f"95 % interval {between(top1)}")]
    if rejection:
        kept = rejection["right_and_kept"]
        said = f"what classify says; 95 % interval {between(kept)}"
        tiles.append(Tile("right and not rejected", percent(kept[0]), said))
    if says_top5(report):
        tiles.append(Tile(f"top-{report['top5_is_top']} accuracy", percent(top5[0]), between(top5)))
    scaled = f"{percent(after['ece'][0])} after temperature scaling" if after else ""
    tiles.append(Tile("calibration error (ECE)", percent(before[0]), scaled))
    best = "0 is best; lower than the error rate is useful"
    tiles.append(Tile("area under risk-coverage", f"{report['selective']['aurc'][0]:.3f}", best))
    if ood and ood["by_distance"]:
        area = ood["by_distance"]["auroc"]
        chance = f"AUROC, {area[1]:.3f} to {area[2]:.3f}; 0.5 is chance"
        tiles.append(Tile("out-of-distribution told apart", f"{area[0]:.3f}", chance))
    known = f"{report['classes']} classes of the model's {len(predictions.names):,}"
    return [*tiles, Tile("pictures", f"{report['pictures']:,}", known)]


def _rejecting(report: Mapping[str, Any]) -> str:
    """Say what becomes of the right ones in `classify`."""
    rejection = report["rejection"]
    if not rejection:
        return ""
    away, kept = (round(rejection[name][0] * report["pictures"]) for name in ("rejected", "right_and_kept"))
    if not away:
        return "Classify would reject none of them as out-of-distribution."
    return f"Classify would reject {away} of them as out-of-distribution, which leaves {kept} right."


def _believed(report: Mapping[str, Any]) -> str:
    """Say how far the confidence can be believed."""
    before, after = report["calibration"]["before"], report["calibration"]["after"]
    if before["ece"][0] <= before["ece_of_a_perfect_model"][2]:
        return "Its confidence can be taken at face value, as far as so many pictures can tell."
    off = before["mean_confidence"] - report["top1"][0]
    how = "wrong about how sure it is"
    if abs(off) > 0.02:
        how = "too sure of itself" if off > 0 else "less sure than it could be"
    mended = ""
    if after and after["ece"][0] < before["ece"][0]:
        mended = f", {percent(after['ece'][0])} after temperature scaling"
    return (
        f"It is {how}: it claims {percent(before['mean_confidence'])} on average;"
        f" its confidence is off by {percent(before['ece'][0])}{mended}."
    )


def _calibration(report: Mapping[str, Any], predictions: Predictions) -> Calibration:
    calibration = report["calibration"]
    bins, before, after = calibration["bins"], calibration["before"], calibration["after"]
    right = metrics.top_k(predictions.logits, predictions.labels, 1)
    states = [(f"as it is (temperature {calibration['temperature_before']:.2f})", before, predictions.probabilities)]
    if after:
        fitted, _ = metrics.cross_fitted_temperature(predictions.logits, predictions.labels, seed=report["seed"])
        temperatures = " and ".join(f"{value:.2f}" for value in calibration["temperatures_after"])
        scaled = metrics.softmax(predictions.logits, fitted)
        states.append((f"after scaling (temperatures {temperatures})", after, scaled))
    drawn, rows = [], []
    for name, state, probabilities in states:
        error, perfect = state["ece"], state["ece_of_a_perfect_model"]
        alt = f"Reliability diagram {name}: expected calibration error {percent(error[0])}"
        chart = charts.reliability_chart(metrics.reliability(probabilities.max(axis=1), right, bins), alt)
        drawn.append(Chart(chart, f"ECE {percent(error[0])}, 95 % interval {between(error)}", f"{name}:"))
        row = (
            name,
            percent(error[0]),
            between(error),
            f"{percent(perfect[0])}, up to {percent(perfect[2])}",
            percent(state["mean_confidence"]),
            f"{state['negative_log_likelihood']:.3f}",
        )
        rows.append(row)
    return Calibration(charts=drawn, rows=rows, bins=bins, not_scaled="" if after else calibration["not_scaled"])


def _selective(report: Mapping[str, Any], predictions: Predictions) -> Selective:
    selective, right = report["selective"], metrics.top_k(predictions.logits, predictions.labels, 1)
    curve = metrics.risk_coverage(predictions.probabilities.max(axis=1), right)
    best = metrics.risk_coverage(right.astype(float), right)
    top = max(0.05, min(1.0, float(np.max(curve.risk[len(curve.risk) // 20 :])) * 1.15))
    area = selective["aurc"]
    drawn = charts.line_chart(
        {"this model": (curve.coverage, curve.risk), "perfect order of the same mistakes": (best.coverage, best.risk)},
        "answered (coverage)",
        "wrong among the answered (risk)",
        f"Risk-coverage curve: area {area[0]:.3f}, error at full coverage {percent(1 - report['top1'][0])}",
        x_range=(0, 1),
        y_range=(0, top),
        x_format=".0%",
        y_format=".0%",
    )
    interval = f"(95 % interval {area[1]:.3f} to {area[2]:.3f})"
    return Selective(
        chart=Chart(drawn, f"AURC {area[0]:.3f} {interval}, {selective['excess_aurc']:.3f} above perfect"),
        rows=[
            (percent(point["coverage"]), percent(point["least_confidence"]), percent(point["risk"]))
            for point in selective["at"]
        ],
    )


def _out_of_distribution(
    report: Mapping[str, Any], predictions: Predictions, rejection: Mapping[str, Any] | None
) -> OutOfDistribution:
    ood = report["out_of_distribution"]
    measured = [("softmax confidence", ood["by_confidence"])]
    pictures = f"{report['pictures']} pictures of known classes, {ood['pictures']} out-of-distribution"
    chart = None
    if ood["by_distance"] and rejection:
        known, foreign = ood_scores(predictions, rejection)
        measured.insert(0, ("embedding distance", ood["by_distance"]))
        area = ood["by_distance"]["auroc"]
        alt = f"Histogram of embedding distances of known classes and out-of-distribution, AUROC {area[0]:.3f}"
        spread = {"known classes": known, "out-of-distribution": foreign}
        chart = Chart(charts.histogram(spread, f"distance to the {report['distance_to']}", alt), pictures)
    limit, said = ood.get("at_threshold"), ""
    if limit:
        said = (
            f"At the model's own threshold {percent(limit['rejected'][0])} of the out-of-distribution pictures are "
            f"rejected ({between(limit['rejected'])}), and {percent(report['rejection']['rejected'][0])} of the known "
            "ones."
        )
    rows = []
    for name, value in measured:
        area = value["auroc"]
        rows.append((name, f"{area[0]:.3f}", f"{area[1]:.3f} to {area[2]:.3f}", value["rejected_at_5_percent"]))
    return OutOfDistribution(
        chart=chart, by_distance=bool(ood["by_distance"]), pictures=pictures, rows=rows, at_threshold=said
    )


def _confusion(report: Mapping[str, Any], predictions: Predictions) -> Confusion:
    counts, indices, present = busiest(predictions)
    names = [predictions.names[index] for index in indices]
    rows = [(entry["true"], entry["predicted"], entry["count"]) for entry in report["confusions"][:MOST_ROWS]]
    which = "All classes"
    if len(names) != present:
        which = f"The {len(names)} of {present} classes that share most mistakes"
    most = "; ".join(
        f"{true} taken for {other} {'once' if count == 1 else f'{count} times'}" for true, other, count in rows[:3]
    )
    alt = f"Confusion matrix of {len(names)} classes; most frequent: {most}"
    drawn = charts.heat_map(counts, names, names, "true class", "named as", alt)
    return Confusion(chart=Chart(drawn, f"{which}. Green: named right."), count=len(report["confusions"]), rows=rows)


def _class(entry: Mapping[str, Any]) -> ClassRow:
    return ClassRow(
        name=entry["class"],
        pictures=entry["pictures"],
        accuracy=entry["accuracy"],
        top5=percent(entry["top5"]),
        confidence=percent(entry["mean_confidence"]),
        taken_for=", ".join(f"{name} ({count})" for name, count in entry["taken_for"]),
    )


def _card(one: Mistake) -> Card:
    told = one.told
    file = told["path"].rpartition("/")[2]
    shots = [Shot(one.pixels, f"{file}: a picture of {told['true']}")]
    for drawn, whose in ((one.for_predicted, told["predicted"]), (one.for_true, told["true"])):
        if drawn is not None:
            shots.append(Shot(drawn, f"what speaks for {whose}"))
    rank = f"{percent(told['probability_of_true'])}, its choice no. {told['rank_of_true']}"
    return Card(shots, told["predicted"], percent(told["confidence"]), told["true"], rank, file)
