"""The report of a fine-tuning run as one HTML page: how good the result is, where it errs, comparison, dataset report,
curves, settings.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core.config import dump
from ..pictures.images import Picture, decode
from ..recognizer.finetuning.comparison import shares
from ..recognizer.finetuning.run import FinetunedRun
from ..recognizer.settings import FinetuneSettings
from . import html
from .charts import heat_map, line_chart
from .html import Html

MOST = 24  # pictures shown of one finding, and classes of a matrix
NAMES = {"probe": "linear probe", "finetuned": "fine-tuning"}


def draw(run: FinetunedRun, report: dict[str, Any], settings: FinetuneSettings) -> Html:
    """The page of a finished run: how good the result is and where it errs, then how it came about."""
    compared, found = report["comparison"], report["data"]["findings"]
    return html.page(
        run.name,
        _tiles(report, run),
        *(
            html.callout(one["about"], "warn")
            for one in found
            if one["count"] and "flatters the result" in one["about"]
        ),
        _errors(report),
        _comparison(report),
        _data(report["data"]),
        _curve(run.folder),
        html.section("Settings", html.folded("config.yaml", Html(f"<pre>{html.markup(dump(settings))}</pre>"))),
        lead=html.join(html.strong(headline(report)), _sentence(compared["verdict"])),
        kind="femtobooth finetune",
        footer=", ".join(f"{name} {version}" for name, version in run.versions.items()),
    )


def headline(report: dict[str, Any]) -> str:
    """How good the result is, in one sentence."""
    judged = report["judged"]
    what = "The linear probe" if report["comparison"]["result"] == "probe" else "The fine-tuned network"
    if not judged["measured"]:
        return f"{what} is the result; there was no picture to measure it on."
    measured = judged["measured"]
    value, low, high = (100 * part for part in measured["accuracy"])
    asked = "pictures right in cross-validation" if judged["by"].startswith("cross") else "validation pictures right"
    return (
        f"{what} names {measured['right']} of {measured['pictures']} {asked}: "
        f"{value:.0f} % (95 % interval {low:.0f} to {high:.0f} %)."
    )


def _tiles(report: dict[str, Any], run: FinetunedRun) -> Html:
    judged, calibration = report["judged"]["measured"], report["calibration"]
    tiles: list[tuple[object, object, object]] = []
    if judged:
        low, high = (100 * edge for edge in judged["accuracy"][1:])
        detail = f"{judged['right']} of {judged['pictures']}, {low:.0f} to {high:.0f} %, {report['judged']['by']}"
        tiles.append(("named right", f"{judged['accuracy'][0]:.1%}", detail))
    for name, part in (("linear probe", report["probe"]["validation"]), ("fine-tuned", report.get("finetuned"))):
        if part:
            tiles.append(
                (f"{name}, validation", f"{part['right']} of {part['pictures']}", f"{shares(part['accuracy'])}")
            )
    tiles.append(("rejected below", f"{calibration['rejected_below']:.2f}", calibration["rejection"]))
    tiles.append(("temperature", f"{calibration['temperature']:.2f}", f"from {calibration['from']}"))
    spent = ", ".join(f"{NAMES[name]} {cost['seconds']:.0f} s" for name, cost in run.costs.items())
    tiles.append(("time", f"{sum(cost['seconds'] for cost in run.costs.values()):.0f} s", spent))
    return html.tiles(*tiles)


def _errors(report: dict[str, Any]) -> Html:
    """What was taken for what, and pictures: the mistakes, or else some of each class."""
    rows = report["judged"]["pictures"]
    wrong = [row for row in rows if row["named"] != row["label"]]
    names = list(report["data"]["classes"])
    parts: list[object] = []
    if wrong:
        involved = [
            name
            for name in names
            if any(name in (row["label"], row["named"]) for row in (wrong if len(names) > MOST else rows))
        ]
        kept = involved[:MOST]
        pairs = Counter((row["label"], row["named"]) for row in rows)
        counts = np.array([[pairs[true, named] for named in kept] for true in kept])
        most = "; ".join(
            f"{true} named {named} {_times(count)}" for (true, named), count in pairs.most_common() if true != named
        )
        chart = heat_map(counts, kept, kept, "true class", "named as", f"Confusion matrix; {most}")
        parts.append(html.figure(chart, f"{most[:200]}. Green: named right.", wide=True))
    elif rows:
        parts.append(html.text("Nowhere here: every picture was named right. Some of each class:"))
    figures: list[Html] = []
    for row in wrong or _of_each_class(rows):
        told = f"{row['label']} named {row['named']}" if row in wrong else row["label"]
        if len(figures) < MOST and (figure := _thumbnail(f"{row['path']}: {told}")):
            figures.append(figure)
    if figures:
        parts.append(html.grid(*figures))
    left = len(wrong) - MOST
    parts += [html.text(f"{left} more mistakes are in report.json.")] if left > 0 else []
    return html.section("Where it errs", *parts) if parts else Html("")


def _of_each_class(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The rows with the first of every class in front, then the second ones."""
    seen: Counter[str] = Counter()
    place = []
    for row in rows:
        place.append(seen[row["label"]])
        seen[row["label"]] += 1
    return [row for _, row in sorted(zip(place, rows, strict=True), key=lambda pair: pair[0])]


def _sentence(verdict: str) -> str:
    return f"{verdict[:1].upper()}{verdict[1:]}."


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _comparison(report: dict[str, Any]) -> Html:
    compared = report["comparison"]
    rows = []
    for name, key, facts in (
        ("linear probe", "probe", report["probe"]["validation"]),
        ("fine-tuned", "finetuned", report.get("finetuned")),
    ):
        if facts:
            value, low, high = facts["accuracy"]
            meter = html.meter(value, low, high, shares(facts["accuracy"]))
            loss = f"{compared['log_loss'][key]:.3f}" if "log_loss" in compared else "–"  # noqa: RUF001
            rows.append((name, f"{facts['right']} of {facts['pictures']}", meter, loss, f"{facts['ece']:.3f}"))
    content: list[object] = [
        html.callout(
            f"{compared['verdict'][:1].upper()}{compared['verdict'][1:]}.",
            "good" if compared["result"] == "finetuned" else "info",
        )
    ]
    if rows:
        content.append(
            html.table(
                ["", ">right", "accuracy", ">calibrated log loss", ">calibration error"],
                rows,
                (
                    "On the same validation pictures, with 95 % Wilson intervals; "
                    "calibration error is before temperature scaling"
                ),
            )
        )
    if "log_loss_difference" in compared:
        change, low, high = compared["log_loss_difference"]
        content.append(
            html.text(
                f"Exact McNemar test: p = {compared['mcnemar_p']:.3f}. Calibrated log "
                "loss (at temperatures fitted to other pictures) "
                f"changed by {change:+.3f} ({low:+.3f} to {high:+.3f}; bootstrap over groups of near-duplicates). "
                f"Result by rule: {compared['rule']}."
            )
        )
    return html.section(
        "Did fine-tuning beat the probe?" if "finetuned" in report else "The probe on the validation pictures", *content
    )


def _data(data: dict[str, Any]) -> Html:
    parts = [
        name
        for name in ("train", "stop", "val", "left out")
        if any(name in counts for counts in data["classes"].values())
    ]
    classes = html.table(
        ["class", *(f">{part}" for part in parts), ">generated"],
        [
            (name, *(counts.get(part, 0) for part in parts), counts["generated"])
            for name, counts in data["classes"].items()
        ],
        f"{data['pictures']} readable pictures of {len(data['classes'])} classes",
    )
    findings = html.table(
        ["finding", ">count", "what it means"],
        [(one["what"], one["count"] or "–", one["about"]) for one in data["findings"]],  # noqa: RUF001
        "What was found in the data",
    )
    details = [_details(one) for one in data["findings"] if one["count"] and one["files"]]
    return html.section("The data", findings, *details, html.folded("Pictures of each class", classes))


def _details(finding: dict[str, Any]) -> Html:
    figures: list[Html] = []
    for group in finding["files"]:
        figures += [found for text in group if len(figures) < MOST and (found := _thumbnail(text))]
    lines = [html.text(html.code(" · ".join(group))) for group in finding["files"][:200] if group]
    return html.folded(f"{finding['what']}: {finding['count']}", html.grid(*figures) if figures else "", *lines)


def _thumbnail(text: str) -> Html | None:
    """A picture of `path: remark`, if its file can still be read."""
    path, _, remark = text.rpartition(": ")
    picture = decode(Path(path)) if path else None
    if not isinstance(picture, Picture):
        return None
    return html.figure(
        html.picture(picture.image, f"{picture.path.name}, {remark}", 160), f"{picture.path.name}: {remark}"
    )


def _curve(folder: Path) -> Html:
    try:
        with (folder / "logs" / "metrics.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError:
        return Html("")
    series = {
        label: _column(rows, name) for name, label in (("loss/train", "training"), ("loss/set_aside", "set aside"))
    }
    series = {label: points for label, points in series.items() if points[0]}
    if not series:
        return Html("")
    chart = line_chart(series, "step", "loss", "Loss over optimizer steps")
    return html.section(
        "Training", html.figure(chart, "Loss at each step; targets are smoothed and blended, so it does not reach 0.")
    )


def _column(rows: Sequence[dict[str, str]], name: str) -> tuple[list[float], list[float]]:
    kept = [(float(row["step"]), float(row[name])) for row in rows if row.get(name)]
    return [step for step, _ in kept], [value for _, value in kept]
