"""Write the page of a fine-tuning run: how good the result is, where it errs, comparison, dataset report, settings."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.config import dump
from ..pictures.images import Picture, decode
from ..recognizer.finetuning.comparison import shares
from ..recognizer.finetuning.run import FinetunedRun
from ..recognizer.settings import FinetuneSettings
from . import labels
from .charts import heat_map, line_chart
from .html import Chart, Page, Shot, Strip, Tile, render
from .labels import LabelTable

MOST = 24  # pictures shown of one finding, and classes of a matrix
NAMES = {"probe": "linear probe", "finetuned": "fine-tuning"}


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Hold what was taken for what, and pictures: the mistakes, or else some of each class."""

    matrix: Chart | None
    note: str
    shots: list[Strip]
    left: int
    """How many more mistakes there are."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Hold one of the two models that are compared."""

    name: str
    right: str
    accuracy: tuple[float, float, float]
    """Share and its 95 % interval."""
    shares: str
    """The same as text."""
    log_loss: str
    calibration_error: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Hold how the fine-tuned network and the probe compare."""

    both: bool
    """Whether there was a fine-tuned network."""
    finetuned_won: bool
    rows: list[Row]
    tests: str
    several: list[tuple[str, ...]]
    """The same where a picture may have several labels: mAP, mean F1, F1 over all, all right, log loss."""


@dataclass(frozen=True)
class Finding:
    """Hold the files of one finding."""

    heading: str
    shots: list[Strip]
    files: list[str]


@dataclass(frozen=True, kw_only=True)
class Data:
    """Hold the dataset report."""

    findings: list[tuple[str, object, str]]
    """What, how often, what it means."""
    details: list[Finding]
    columns: list[str]
    classes: list[tuple[object, ...]]
    """Class and its pictures in each part."""
    caption: str


@dataclass(frozen=True, kw_only=True)
class FinetunePage(Page):
    """Hold what the page shows."""

    headline: str
    outcome: str
    """Which of the two is the result, and why."""
    tiles: list[Tile]
    warnings: list[str]
    labels: LabelTable | None
    """Of pictures that may have several."""
    errors: Errors
    comparison: Comparison
    data: Data
    guidance: list[str]
    """Whether fine-tuning was worth its time, and what had been measured before."""
    teacher: str
    """Who taught it, in a sentence; "" where nobody did."""
    curve: Chart | None
    config: str


def finetune_page(run: FinetunedRun, report: dict[str, Any], settings: FinetuneSettings) -> str:
    """Write the page of a finished run from its report.json and settings."""
    verdict = report["comparison"]["verdict"]
    page = FinetunePage(
        title=run.name,
        kind="femtobooth finetune",
        footer=", ".join(f"{name} {version}" for name, version in run.versions.items()),
        headline=headline(report),
        outcome=f"{verdict[:1].upper()}{verdict[1:]}.",
        tiles=_tiles(report, run),
        warnings=[
            one["about"] for one in report["data"]["findings"] if one["count"] and "flatters the result" in one["about"]
        ],
        labels=_labels(run, report),
        errors=_errors(report),
        comparison=_comparison(report),
        data=_data(report["data"]),
        guidance=[
            f"{text[:1].upper()}{text[1:].replace('`', '')}."
            for key in ("after", "before")
            if (text := (report.get("guidance") or {}).get(key))
        ],
        teacher=_teacher(report),
        curve=_curve(run.folder),
        config=dump(settings),
    )
    return render("finetune.html", page)


def headline(report: dict[str, Any]) -> str:
    """Say how good the result is, in one sentence."""
    judged = report["judged"]
    what = "The linear probe" if report["comparison"]["result"] == "probe" else "The fine-tuned network"
    if not judged["measured"]:
        return f"{what} is the result; there was no picture to measure it on."
    measured = judged["measured"]
    if "map" in measured:
        return labels.headline(measured, what)
    value, low, high = (100 * part for part in measured["accuracy"])
    asked = "pictures right in cross-validation" if judged["by"].startswith("cross") else "validation pictures right"
    return (
        f"{what} names {measured['right']} of {measured['pictures']} {asked}: "
        f"{value:.0f} % (95 % interval {low:.0f} to {high:.0f} %)."
    )


def _tiles(report: dict[str, Any], run: FinetunedRun) -> list[Tile]:
    judged, calibration = report["judged"]["measured"], report["calibration"]
    tiles = []
    limit = Tile("rejected below", f"{calibration['rejected_below']:.2f}", calibration["rejection"])
    if run.multi_label:
        return [*(labels.tiles(judged) if judged else []), limit, _time(run)]
    if judged:
        low, high = (100 * edge for edge in judged["accuracy"][1:])
        detail = f"{judged['right']} of {judged['pictures']}, {low:.0f} to {high:.0f} %, {report['judged']['by']}"
        tiles.append(Tile("named right", f"{judged['accuracy'][0]:.1%}", detail))
    for name, part in (("linear probe", report["probe"]["validation"]), ("fine-tuned", report.get("finetuned"))):
        if part:
            right = f"{part['right']} of {part['pictures']}"
            tiles.append(Tile(f"{name}, validation", right, shares(part["accuracy"])))
    tiles.append(limit)
    tiles.append(Tile("temperature", f"{calibration['temperature']:.2f}", f"from {calibration['from']}"))
    return [*tiles, _time(run)]


def _teacher(report: dict[str, Any]) -> str:
    """Say who taught what, on what, and how good the teacher is itself."""
    taught = report.get("teacher")
    if not taught:
        return ""
    also = f" on the labelled pictures and on {taught['unlabelled']} without labels" if taught["unlabelled"] else ""
    text = f"{taught['model']} ({taught['architecture']}, {taught['parameters'] / 1e6:.2f} M parameters) taught "
    return f"{text}{' and '.join(taught['teaches'])}{also}."


def _time(run: FinetunedRun) -> Tile:
    spent = ", ".join(f"{NAMES[name]} {cost['seconds']:.0f} s" for name, cost in run.costs.items())
    return Tile("time", f"{sum(cost['seconds'] for cost in run.costs.values()):.0f} s", spent)


def _labels(run: FinetunedRun, report: dict[str, Any]) -> LabelTable | None:
    judged = report["judged"]
    if not run.multi_label or not judged["measured"]:
        return None
    caption = (
        f"On {judged['by']}, worst F1 first. The figures are by calibration and thresholds that were fitted to other "
        "pictures (5 folds); the thresholds shown go into the model. Bootstrap intervals (95 %)"
    )
    return labels.label_table(judged["measured"], caption)


def _errors(report: dict[str, Any]) -> Errors:
    rows = report["judged"]["pictures"]
    if "map" in (report["judged"]["measured"] or {}):
        several, left = labels.wrong_pictures(rows)
        note = "" if several else "Nowhere here: every label of every picture is right."
        return Errors(matrix=None, note=note, shots=several, left=left)
    wrong = [row for row in rows if row["named"] != row["label"]]
    strips: list[Strip] = []
    for row in wrong or _of_each_class(rows):
        told = f"{row['label']} named {row['named']}" if row in wrong else row["label"]
        if len(strips) < MOST and (strip := _thumbnail(f"{row['path']}: {told}")):
            strips.append(strip)
    return Errors(
        matrix=_matrix(rows, wrong, list(report["data"]["classes"])) if wrong else None,
        note="Nowhere here: every picture was named right. Some of each class:" if rows and not wrong else "",
        shots=strips,
        left=len(wrong) - MOST,
    )


def _matrix(rows: Sequence[dict[str, str]], wrong: Sequence[dict[str, str]], names: Sequence[str]) -> Chart:
    """Draw the confusion matrix; of many classes, those with mistakes."""
    shown = wrong if len(names) > MOST else rows
    kept = [name for name in names if any(name in (row["label"], row["named"]) for row in shown)][:MOST]
    pairs = Counter((row["label"], row["named"]) for row in rows)
    counts = np.array([[pairs[true, named] for named in kept] for true in kept])
    most = "; ".join(
        f"{true} named {named} {_times(count)}" for (true, named), count in pairs.most_common() if true != named
    )
    drawn = heat_map(counts, kept, kept, "true class", "named as", f"Confusion matrix; {most}")
    return Chart(drawn, f"{most[:200]}. Green: named right.")


def _of_each_class(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Order the rows with the first of every class in front, then the second ones."""
    seen: Counter[str] = Counter()
    place = []
    for row in rows:
        place.append(seen[row["label"]])
        seen[row["label"]] += 1
    return [row for _, row in sorted(zip(place, rows, strict=True), key=lambda pair: pair[0])]


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _comparison(report: dict[str, Any]) -> Comparison:
    compared, rows = report["comparison"], []
    if "map" in (report["judged"]["measured"] or {}):
        several = [
            (
                name,
                *(shares(one[key]) if one[key] else "" for key in ("map", "macro_f1", "micro_f1", "exact")),
                f"{one['log_loss']:.3f}",
            )
            for name, one in (
                ("linear probe", report["probe"]["validation"]),
                ("fine-tuned", report.get("finetuned")),
                ("teacher", (report.get("teacher") or {}).get("validation")),
            )
            if one
        ]
        won = compared["result"] == "finetuned"
        rule = f"Result by rule: {compared['rule']}.{_averaged(report)}"
        both = "finetuned" in report
        return Comparison(both=both, finetuned_won=won, rows=[], tests=rule, several=several)
    for name, key, facts in (
        ("linear probe", "probe", report["probe"]["validation"]),
        ("fine-tuned", "finetuned", report.get("finetuned")),
        ("teacher", "", (report.get("teacher") or {}).get("validation")),
    ):
        if facts:
            loss = facts.get("calibrated_log_loss") if not key else compared.get("log_loss", {}).get(key)
            row = Row(
                name=name,
                right=f"{facts['right']} of {facts['pictures']}",
                accuracy=tuple(facts["accuracy"]),
                shares=shares(facts["accuracy"]),
                log_loss="–" if loss is None else f"{loss:.3f}",  # noqa: RUF001
                calibration_error=f"{facts['ece']:.3f}",
            )
            rows.append(row)
    tests = ""
    if "log_loss_difference" in compared:
        change, low, high = compared["log_loss_difference"]
        tests = (
            f"Exact McNemar test: p = {compared['mcnemar_p']:.3f}. Calibrated log loss (at temperatures fitted to "
            f"other pictures) changed by {change:+.3f} ({low:+.3f} to {high:+.3f}; bootstrap over groups of "
            "near-duplicates). "
            f"Result by rule: {compared['rule']}.{_averaged(report)}"
        )
    won = compared["result"] == "finetuned"
    return Comparison(both="finetuned" in report, finetuned_won=won, rows=rows, tests=tests, several=[])


def _averaged(report: Mapping[str, Any]) -> str:
    """Say how much of the fine-tuned weights is in the fine-tuned network, and what other shares came to."""
    if "averaged" not in report:
        return ""
    tried = ", ".join(f"{one['share']:.0%}: {one['log_loss']:.3f}" for one in report["averaged"]["tried"])
    return (
        f" {report['averaged']['share']:.0%} of the fine-tuned network's weights are from training's end, the rest "
        f"from its beginning, the probe (validation loss at each share: {tried})."
    )


def _data(data: Mapping[str, Any]) -> Data:
    counts = data["classes"]
    parts = [name for name in ("train", "stop", "val", "left out") if any(name in one for one in counts.values())]
    return Data(
        findings=[
            (one["what"], one["count"] or "–", one["about"].replace("`", ""))  # noqa: RUF001
            for one in data["findings"]
        ],
        details=[_finding(one) for one in data["findings"] if one["count"] and one["files"]],
        columns=["class", *(f">{part}" for part in parts), ">generated"],
        classes=[(name, *(one.get(part, 0) for part in parts), one["generated"]) for name, one in counts.items()],
        caption=f"{data['pictures']} readable pictures of {len(counts)} classes",
    )


def _finding(found: Mapping[str, Any]) -> Finding:
    strips: list[Strip] = []
    for group in found["files"]:
        strips += [strip for told in group if len(strips) < MOST and (strip := _thumbnail(told))]
    lines = [" · ".join(group) for group in found["files"][:200] if group]
    return Finding(f"{found['what']}: {found['count']}", strips, lines)


def _thumbnail(told: str) -> Strip | None:
    """Show a picture of `path: remark`, if its file can still be read."""
    path, _, remark = told.rpartition(": ")
    picture = decode(Path(path)) if path else None
    if not isinstance(picture, Picture):
        return None
    name = picture.path.name
    return Strip([Shot(picture.image, f"{name}, {remark}", longest=160)], f"{name}: {remark}")


def _curve(folder: Path) -> Chart | None:
    try:
        with (folder / "logs" / "metrics.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError:
        return None
    series = {
        label: _column(rows, name) for name, label in (("loss/train", "training"), ("loss/set_aside", "set aside"))
    }
    series = {label: points for label, points in series.items() if points[0]}
    if not series:
        return None
    drawn = line_chart(series, "step", "loss", "Loss over optimizer steps")
    return Chart(drawn, "Loss at each step; targets are smoothed and blended, so it does not reach 0.")


def _column(rows: Sequence[dict[str, str]], name: str) -> tuple[list[float], list[float]]:
    kept = [(float(row["step"]), float(row[name])) for row in rows if row.get(name)]
    return [step for step, _ in kept], [value for _, value in kept]
