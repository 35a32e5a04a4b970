"""The page of `evaluate-classifier`: the answer, then calibration, risk and coverage, classes, the worst mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core import metrics
from ..recognizer.evaluation import Predictions, busiest, ood_scores
from . import charts, html
from .html import Html, code, figure, folded, row, section, strong, table, text, tiles

MOST_ROWS = 200  # longer tables are in report.json


@dataclass(frozen=True)
class Shown:
    """A mistake with its pictures, uint8 (H, W, 3)."""

    mistake: dict[str, Any]
    pixels: np.ndarray
    for_predicted: np.ndarray | None
    """Grad-CAM over the picture, for the class it was taken for; None where the network has no such map."""
    for_true: np.ndarray | None


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def between(interval: Sequence[float]) -> str:
    return f"{percent(interval[1])} to {percent(interval[2])}"


def says_top5(report: dict[str, Any]) -> bool:
    """Whether the top-5 accuracy says anything: of few classes, five are nearly all."""
    return int(report["model_classes"]) >= 2 * int(report["top5_is_top"])


def draw(
    report: dict[str, Any], predictions: Predictions, rejection: dict[str, Any] | None, mistakes: Sequence[Shown]
) -> Html:
    """The whole page, from `evaluation.measure`'s report and what the workflow added: model, data, engine, skipped,
    remarks ...

    `rejection` holds the centroids that distances are measured to, as `measure` had them.
    """
    calibration, ood = report["calibration"], report["out_of_distribution"]
    before, after = calibration["before"], calibration["after"]
    wrong = report["pictures"] - round(report["top1"][0] * report["pictures"])
    facts = [
        ("top-1 accuracy", percent(report["top1"][0]), f"95 % interval {between(report['top1'])}"),
        *(
            [(f"top-{report['top5_is_top']} accuracy", percent(report["top5"][0]), between(report["top5"]))]
            if says_top5(report)
            else []
        ),
        (
            "calibration error (ECE)",
            percent(before["ece"][0]),
            f"{percent(after['ece'][0])} after temperature scaling" if after else "",
        ),
        (
            "area under risk-coverage",
            f"{report['selective']['aurc'][0]:.3f}",
            "0 is best; lower than the error rate is useful",
        ),
    ]
    rejection = report["rejection"]
    if rejection:
        kept = rejection["right_and_kept"]
        facts.insert(
            1, ("right and not rejected", percent(kept[0]), f"what classify says; 95 % interval {between(kept)}")
        )
    if ood and ood["by_distance"]:
        area = ood["by_distance"]["auroc"]
        facts.append(
            (
                "out-of-distribution told apart",
                f"{area[0]:.3f}",
                f"AUROC, {area[1]:.3f} to {area[2]:.3f}; 0.5 is chance",
            )
        )
    facts.append(
        (
            "pictures",
            f"{report['pictures']:,}",
            f"{report['classes']} classes of the model's {len(predictions.names):,}",
        )
    )
    return html.page(
        f"{report['model']} on {report['data']}",
        tiles(*facts),
        *(html.callout(remark, "warn") for remark in report["remarks"]),
        _calibration(report, predictions),
        _selective(report, predictions),
        _out_of_distribution(report, predictions, rejection),
        _confusion(report, predictions),
        _classes(report),
        _mistakes(report, mistakes, wrong),
        _about(report),
        lead=html.join(
            strong(f"{report['pictures'] - wrong} of {report['pictures']} pictures are named right"),
            f"({percent(report['top1'][0])}; with new pictures of this kind, {between(report['top1'])}).",
            _rejecting(report),
            _verdict(report),
        ),
        kind="classifier evaluation",
        footer=(
            f"femtobooth {report['environment'].get('femtobooth', '')} · engine "
            f"{report['engine']} · weights {report['hash'][:12]}"
        ),
    )


def _rejecting(report: dict[str, Any]) -> str:
    """What becomes of the right ones in `classify`."""
    rejection = report["rejection"]
    if not rejection:
        return ""
    away, kept = (round(rejection[name][0] * report["pictures"]) for name in ("rejected", "right_and_kept"))
    if not away:
        return "Classify would reject none of them as out-of-distribution."
    return f"Classify would reject {away} of them as out-of-distribution, which leaves {kept} right."


def _verdict(report: dict[str, Any]) -> str:
    before, after = report["calibration"]["before"], report["calibration"]["after"]
    if before["ece"][0] <= before["ece_of_a_perfect_model"][2]:
        return "Its confidence can be taken at face value, as far as so many pictures can tell."
    off = before["mean_confidence"] - report["top1"][0]
    how = (
        "too sure of itself"
        if off > 0.02
        else "less sure than it could be"
        if off < -0.02
        else "wrong about how sure it is"
    )
    mended = (
        f", {percent(after['ece'][0])} after temperature scaling"
        if after and after["ece"][0] < before["ece"][0]
        else ""
    )
    return (
        f"It is {how}: it claims {percent(before['mean_confidence'])} on average;"
        f" its confidence is off by {percent(before['ece'][0])}{mended}."
    )


def _calibration(report: dict[str, Any], predictions: Predictions) -> Html:
    calibration = report["calibration"]
    bins, before, after = calibration["bins"], calibration["before"], calibration["after"]
    right = metrics.top_k(predictions.logits, predictions.labels, 1)
    states = [(f"as it is (temperature {calibration['temperature_before']:.2f})", before, predictions.probabilities)]
    if after:
        fitted, _ = metrics.cross_fitted_temperature(predictions.logits, predictions.labels, seed=report["seed"])
        temperatures = " and ".join(f"{value:.2f}" for value in calibration["temperatures_after"])
        states.append(
            (f"after scaling (temperatures {temperatures})", after, metrics.softmax(predictions.logits, fitted))
        )
    drawn = []
    for name, state, probabilities in states:
        alt = f"Reliability diagram {name}: expected calibration error {percent(state['ece'][0])}"
        chart = charts.reliability_chart(metrics.reliability(probabilities.max(axis=1), right, bins), alt)
        drawn.append(
            figure(
                chart,
                html.join(strong(f"{name}:"), f"ECE {percent(state['ece'][0])}, 95 % interval {between(state['ece'])}"),
            )
        )
    columns = [
        "",
        ">ECE",
        ">95 % interval",
        ">a perfect model would show",
        ">mean confidence",
        ">negative log-likelihood",
    ]
    rows = [
        (
            name,
            percent(state["ece"][0]),
            between(state["ece"]),
            f"{percent(state['ece_of_a_perfect_model'][0])}, up to {percent(state['ece_of_a_perfect_model'][2])}",
            percent(state["mean_confidence"]),
            f"{state['negative_log_likelihood']:.3f}",
        )
        for name, state, _ in states
    ]
    return section(
        "Can its confidence be believed?",
        text(
            (
                "Of the pictures that the model is 80 % sure of, 80 % should be right: "
                "bars on the diagonal. Bars below it mean too much"
            ),
            "confidence. Lines are 95 % intervals; the grey bars count pictures.",
        ),
        row(*drawn),
        table(columns, rows, f"Expected calibration error over {bins} bins of equal width (Guo et al. 2017)"),
        text(
            (
                "The temperature after scaling was fitted on one random half of the "
                "pictures and used on the other, and the other way"
            ),
            (
                "round: no picture had a part in its own. With few pictures even a "
                "perfectly calibrated model shows an error above 0; the"
            ),
            "table says how much.",
        )
        if after
        else text(calibration["not_scaled"]),
    )


def _selective(report: dict[str, Any], predictions: Predictions) -> Html:
    selective, right = report["selective"], metrics.top_k(predictions.logits, predictions.labels, 1)
    curve = metrics.risk_coverage(predictions.probabilities.max(axis=1), right)
    best = metrics.risk_coverage(right.astype(float), right)
    top = max(0.05, min(1.0, float(np.max(curve.risk[len(curve.risk) // 20 :])) * 1.15))
    chart = charts.line_chart(
        {"this model": (curve.coverage, curve.risk), "perfect order of the same mistakes": (best.coverage, best.risk)},
        "answered (coverage)",
        "wrong among the answered (risk)",
        (
            f"Risk-coverage curve: area {selective['aurc'][0]:.3f}, error at "
            f"full coverage {percent(1 - report['top1'][0])}"
        ),
        x_range=(0, 1),
        y_range=(0, top),
        x_format=".0%",
        y_format=".0%",
    )
    rows = [
        (percent(point["coverage"]), percent(point["least_confidence"]), percent(point["risk"]))
        for point in selective["at"]
    ]
    area = selective["aurc"]
    return section(
        "Does it know when it does not know?",
        text(
            "Answering only the pictures it is surest of should leave fewer "
            "mistakes: the lower the line on the left, the better."
        ),
        row(
            figure(
                chart,
                (
                    f"AURC {area[0]:.3f} (95 % interval {area[1]:.3f} to {area[2]:.3f}), "
                    f"{selective['excess_aurc']:.3f} above perfect"
                ),
            ),
            table(
                ["answer the surest", ">confidence from", ">wrong among them"], rows, "Leaving out uncertain pictures"
            ),
        ),
    )


def _out_of_distribution(report: dict[str, Any], predictions: Predictions, rejection: dict[str, Any] | None) -> Html:
    ood = report["out_of_distribution"]
    heading = "Does it notice what it has never seen?"
    if ood is None:
        return section(
            heading,
            text(
                "Not measured: every class here is one of the model's. Name a folder of other pictures with",
                code("--ood FOLDER"),
            ),
        )
    measured = [("softmax confidence", ood["by_confidence"])]
    pictures = f"{report['pictures']} pictures of known classes, {ood['pictures']} out-of-distribution"
    parts: list[Html] = []
    if ood["by_distance"] and rejection:
        known, foreign = ood_scores(predictions, rejection)
        measured.insert(0, ("embedding distance", ood["by_distance"]))
        alt = (
            "Histogram of embedding distances of known classes and out-of-distribution, "
            f"AUROC {ood['by_distance']['auroc'][0]:.3f}"
        )
        chart = charts.histogram(
            {"known classes": known, "out-of-distribution": foreign}, f"distance to the {report['distance_to']}", alt
        )
        parts.append(figure(chart, pictures))
    rows = [
        (
            name,
            f"{value['auroc'][0]:.3f}",
            f"{value['auroc'][1]:.3f} to {value['auroc'][2]:.3f}",
            _meter(value["rejected_at_5_percent"]),
        )
        for name, value in measured
    ]
    parts.append(table(["told by", ">AUROC", ">95 % interval", "rejected"], rows, pictures))
    told = text(
        (
            "AUROC is the chance that an out-of-distribution picture looks more foreign than a known "
            "one; 0.5 is guessing. Rejected: the share of out-of-distribution"
        ),
        "pictures beyond the limit that 5 % of the known ones exceed.",
        "" if ood["by_distance"] else "This model gives no embeddings with class centroids to measure distances to.",
    )
    limit = ood.get("at_threshold")
    said = (
        [
            text(
                (
                    f"At the model's own threshold {percent(limit['rejected'][0])} "
                    "of the out-of-distribution pictures are rejected"
                ),
                (
                    f"({between(limit['rejected'])}), and "
                    f"{percent(report['rejection']['rejected'][0])} of the known ones."
                ),
            )
        ]
        if limit
        else []
    )
    return section(heading, told, row(*parts), *said)


def _confusion(report: dict[str, Any], predictions: Predictions) -> Html:
    counts, indices, present = busiest(predictions)
    names = [predictions.names[index] for index in indices]
    rows = [(entry["true"], entry["predicted"], entry["count"]) for entry in report["confusions"][:MOST_ROWS]]
    if not rows:
        return section(
            "What it takes for what", text("It takes nothing for anything else: every picture here is named right.")
        )
    which = (
        "All classes" if len(names) == present else f"The {len(names)} of {present} classes that share most mistakes"
    )
    most = "; ".join(
        f"{true} taken for {other} {'once' if count == 1 else f'{count} times'}" for true, other, count in rows[:3]
    )
    alt = f"Confusion matrix of {len(names)} classes; most frequent: {most}"
    chart = charts.heat_map(counts, names, names, "true class", "named as", alt)
    return section(
        "What it takes for what",
        figure(chart, f"{which}. Green: named right.", wide=True),
        folded(
            f"All {len(report['confusions'])} confusions",
            table(["true class", "named as", ">pictures"], rows, "Most frequent first"),
        ),
    )


def _classes(report: dict[str, Any]) -> Html:
    five = says_top5(report)
    rows = [
        (
            entry["class"],
            entry["pictures"],
            _meter(entry["accuracy"]),
            *([percent(entry["top5"])] if five else []),
            percent(entry["mean_confidence"]),
            ", ".join(f"{name} ({count})" for name, count in entry["taken_for"]),
        )
        for entry in report["per_class"][:MOST_ROWS]
    ]
    columns = [
        "class",
        ">pictures",
        "top-1",
        *([f">top-{report['top5_is_top']}"] if five else []),
        ">mean confidence",
        "taken for",
    ]
    left = len(report["per_class"]) - len(rows)
    mean = report["mean_class_accuracy"]
    return section(
        "Class by class",
        text(
            f"Mean accuracy over classes {percent(mean[0])} (95 % interval "
            f"{between(mean)}). Thin lines are Wilson intervals."
        ),
        table(columns, rows, "Worst first" + (f"; {left} more are in report.json" if left else "")),
    )


def _mistakes(report: dict[str, Any], shown: Sequence[Shown], wrong: int) -> Html:
    heading = "The worst mistakes"
    if not shown:
        return section(heading, text("There is none." if not wrong else "Not asked for."))
    cards = []
    for entry in shown:
        mistake = entry.mistake
        name = mistake["path"].rpartition("/")[2]
        pictures = [html.picture(entry.pixels, f"{name}: a picture of {mistake['true']}")]
        for drawn, whose in ((entry.for_predicted, mistake["predicted"]), (entry.for_true, mistake["true"])):
            if drawn is not None:
                pictures.append(html.picture(drawn, f"what speaks for {whose}"))
        triple = Html(f'<div class="maps">{html.join(*pictures)}</div>')
        told = html.join(
            "named",
            strong(mistake["predicted"]),
            f"({percent(mistake['confidence'])}), but it is",
            strong(mistake["true"]),
            f"({percent(mistake['probability_of_true'])}, its choice no. {mistake['rank_of_true']})",
            Html("<br>"),
            code(name),
        )
        cards.append(figure(triple, told))
    maps = shown[0].for_predicted is not None
    return section(
        heading,
        text(
            f"The {len(shown)} of {wrong} mistakes that it was surest of.",
            "Beside each picture, as the model saw it: the places that speak "
            "for the class it named, and for the true one"
            " (Grad-CAM, Selvaraju et al. 2017; each map is scaled to its own maximum)."
            if maps
            else report["no_maps"],
        ),
        html.grid(*cards, cell=340 if maps else 180),
    )


def _meter(interval: Sequence[float]) -> Html:
    value, low, high = interval
    return html.meter(value, low, high)


def _about(report: dict[str, Any]) -> Html:
    skipped = [(entry["path"], entry["reason"]) for entry in report["skipped"]]
    facts = [(name, str(report[name])) for name in ("model", "data", "engine", "hash", "preprocess")]
    facts += [(f"left out: {why}", str(report[f"left_out_{why}"])) for why in ("training", "calibration")]
    facts += [*report["environment"].items()]
    return section(
        "How this was measured",
        folded("Model, data and versions", table(["what", "value"], facts, "Repeat it with these")),
        folded(f"{len(skipped)} files left out", table(["file", "why"], skipped[:MOST_ROWS], "Not part of any figure"))
        if skipped
        else "",
    )
