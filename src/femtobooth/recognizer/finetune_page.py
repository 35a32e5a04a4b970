"""The report of a fine-tuning run as one HTML page: verdict, comparison, data report, curves, settings."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core import pages
from ..core.charts import line_chart
from ..core.config import dump
from ..core.images import Picture, decode
from ..core.pages import Html
from .comparison import shares
from .settings import FinetuneSettings

MOST = 24  # pictures shown of one finding


def draw(folder: Path, report: dict[str, Any], facts: dict[str, Any], settings: FinetuneSettings) -> Html:
    """The page of a finished run."""
    compared, data = report["comparison"], report["data"]
    result = "the linear probe" if compared["result"] == "probe" else "the fine-tuned network"
    return pages.page(
        folder.resolve().name,
        _tiles(report),
        _comparison(report),
        _data(data),
        _curve(folder),
        pages.section("Settings", pages.folded("config.yaml", Html(f"<pre>{pages.markup(dump(settings))}</pre>"))),
        lead=f"{compared['verdict'].capitalize()}. The result in model/ is {result}.",
        kind="femtobooth finetune",
        footer=", ".join(f"{name} {version}" for name, version in facts["environment"].items()),
    )


def _tiles(report: dict[str, Any]) -> Html:
    calibration, crossed = report["calibration"], report["probe"]["cross_validated"]
    tiles: list[tuple[object, object, object]] = []
    if crossed:
        low, high = (100 * edge for edge in crossed["accuracy"][1:])
        tiles.append(
            (
                "linear probe",
                f"{crossed['accuracy'][0]:.1%}",
                f"{low:.0f} to {high:.0f} %, cross-validated over {crossed['pictures']} pictures",
            )
        )
    if "finetuned" in report:
        tuned = report["finetuned"]
        low, high = (100 * edge for edge in tuned["accuracy"][1:])
        tiles.append(("fine-tuned", f"{tuned['accuracy'][0]:.1%}", f"{low:.0f} to {high:.0f} % on {tuned['pictures']} validation pictures"))
    tiles.append(("temperature", f"{calibration['temperature']:.2f}", f"from {calibration['from']}"))
    tiles.append(("rejected below", f"{calibration['rejected_below']:.2f}", calibration["rejection"]))
    return pages.tiles(*tiles)


def _comparison(report: dict[str, Any]) -> Html:
    compared = report["comparison"]
    rows = []
    for name, key, facts in (
        ("linear probe", "probe", report["probe"]["validation"]),
        ("fine-tuned", "finetuned", report.get("finetuned")),
    ):
        if facts:
            value, low, high = facts["accuracy"]
            meter = pages.meter(value, low, high, shares(facts["accuracy"]))
            rows.append(
                (name, f"{facts['right']} of {facts['pictures']}", meter, f"{compared['log_loss'][key]:.3f}", f"{facts['ece']:.3f}")
            )
    content: list[object] = [pages.callout(compared["verdict"].capitalize() + ".", "good" if compared["result"] == "finetuned" else "info")]
    if rows:
        content.append(
            pages.table(
                ["", ">right", "accuracy", ">calibrated log loss", ">calibration error"],
                rows,
                "On the same validation pictures, with 95 % Wilson intervals; calibration error is before temperature scaling",
            )
        )
    if compared["pictures"]:
        change, low, high = compared["log_loss_difference"]
        content.append(
            pages.text(
                f"Exact McNemar test: p = {compared['mcnemar_p']:.3f}. Calibrated log loss (at temperatures fitted to other pictures) "
                f"changed by {change:+.3f} ({low:+.3f} to {high:+.3f}; bootstrap over groups of near-duplicates). "
                f"Result by rule: {compared['rule']}."
            )
        )
    return pages.section("Did fine-tuning beat the probe?", *content)


def _data(data: dict[str, Any]) -> Html:
    parts = [name for name in ("train", "stop", "val", "left out") if any(name in counts for counts in data["classes"].values())]
    classes = pages.table(
        ["class", *(f">{part}" for part in parts), ">generated"],
        [(name, *(counts.get(part, 0) for part in parts), counts["generated"]) for name, counts in data["classes"].items()],
        f"{data['pictures']} readable pictures of {len(data['classes'])} classes",
    )
    findings = pages.table(
        ["finding", ">count", "what it means"],
        [(one["what"], one["count"] or "–", one["about"]) for one in data["findings"]],  # noqa: RUF001
        "What was found in the data",
    )
    details = [_details(one) for one in data["findings"] if one["count"] and one["files"]]
    return pages.section("The data", findings, *details, pages.folded("Pictures of each class", classes))


def _details(finding: dict[str, Any]) -> Html:
    figures: list[Html] = []
    for group in finding["files"]:
        figures += [found for text in group if len(figures) < MOST and (found := _thumbnail(text))]
    lines = [pages.text(pages.code(" · ".join(group))) for group in finding["files"][:200] if group]
    return pages.folded(f"{finding['what']}: {finding['count']}", pages.grid(*figures) if figures else "", *lines)


def _thumbnail(text: str) -> Html | None:
    """A picture of `path: remark`, if its file can still be read."""
    path, _, remark = text.rpartition(": ")
    picture = decode(Path(path)) if path else None
    if not isinstance(picture, Picture):
        return None
    return pages.figure(pages.picture(picture.image, f"{picture.path.name}, {remark}", 160), f"{picture.path.name}: {remark}")


def _curve(folder: Path) -> Html:
    try:
        with (folder / "logs" / "metrics.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError:
        return Html("")
    series = {label: _column(rows, name) for name, label in (("loss/train", "training"), ("loss/set_aside", "set aside"))}
    series = {label: points for label, points in series.items() if points[0]}
    if not series:
        return Html("")
    chart = line_chart(series, "step", "loss", "Loss over optimizer steps")
    return pages.section("Training", pages.figure(chart, "Loss at each step; targets are smoothed and blended, so it does not reach 0."))


def _column(rows: Sequence[dict[str, str]], name: str) -> tuple[list[float], list[float]]:
    kept = [(float(row["step"]), float(row[name])) for row in rows if row.get(name)]
    return [step for step, _ in kept], [value for _, value in kept]
