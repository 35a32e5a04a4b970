"""Show what a model's answers are worth label by label, where a picture may have several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..pictures.images import Picture, decode
from ..recognizer.finetuning.comparison import shares
from .html import Page, Shot, Strip, Tile, render

MOST = 24  # pictures shown
Interval = Sequence[float]
Maps = Mapping[str, Sequence[tuple[str, np.ndarray]]]
"""By a picture's path, labels and what speaks for them, uint8 (H, W, 3)."""
OF_MAPS = (
    "Beside a picture, bright where it speaks for a label (Grad-CAM): for those it missed, then those wrongly said."
)


@dataclass(frozen=True, kw_only=True)
class LabelRow:
    """Hold one label of the table."""

    name: str
    pictures: int
    precision: Interval | None
    """Average precision."""
    f1: Interval | None
    exact: str
    """Precision and recall of what is said."""
    threshold: str


@dataclass(frozen=True, kw_only=True)
class LabelTable:
    """Hold the labels, the worst F1 first, and what groups there are."""

    rows: list[LabelRow]
    caption: str
    groups: list[tuple[str, Interval]]
    """Group of labels that exclude each other, and the share of its pictures that are right."""


@dataclass(frozen=True, kw_only=True)
class MultiLabelPage(Page):
    """Hold what the page of an evaluation shows."""

    headline: str
    tiles: list[Tile]
    remarks: list[str]
    labels: LabelTable
    mistakes: list[Strip]
    left: int
    maps: str
    """What the maps beside the mistakes are, or why there are none."""
    facts: list[tuple[str, str]]
    skipped: list[tuple[str, str]]


def label_table(measured: Mapping[str, Any], caption: str) -> LabelTable:
    """Gather the table from what `multilabel.measure` gave."""
    rows = [
        LabelRow(
            name=one["label"],
            pictures=one["pictures"],
            precision=one["average_precision"],
            f1=one["f1"],
            exact=f"{one['right']} of {one['said']} said, {one['right']} of {one['pictures']} there",
            threshold="likeliest" if one["threshold"] is None else f"{one['threshold']:.2f}",
        )
        for one in sorted(measured["per_label"], key=lambda one: (one["f1"] or [2])[0])
    ]
    return LabelTable(rows=rows, caption=caption, groups=list(measured["groups"].items()))


def tiles(measured: Mapping[str, Any]) -> list[Tile]:
    """Show the figures over all labels."""
    names = {
        "map": "mean average precision",
        "macro_f1": "mean F1 of the labels",
        "micro_f1": "F1 over all",
        "exact": "all labels right",
    }
    values = {name: measured[key] for key, name in names.items()}
    if rejection := measured.get("rejection"):
        values["rejected, of known pictures"] = rejection["rejected"]
        if ood := rejection["out_of_distribution"]:
            values[f"rejected, of {ood['pictures']} out of distribution"] = ood["rejected"]
    return [
        Tile(name, f"{value[0]:.1%}", f"{100 * value[1]:.0f} to {100 * value[2]:.0f} %")
        for name, value in values.items()
        if value
    ]


def headline(measured: Mapping[str, Any], who: str) -> str:
    """Say how good it is in one sentence."""
    value = measured["map"]
    if not value:
        return f"{who} was measured on {measured['pictures']} pictures that have no label."
    groups = "".join(f", and {name} is right on {shares(right)}" for name, right in measured["groups"].items())
    return (
        f"{who} ranks {measured['labels_measured']} labels of {measured['pictures']} pictures with a mean average "
        f"precision of {shares(value)}{groups}; all that it says has an F1 of {shares(measured['micro_f1'])}."
    )


def worst(told: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Find the pictures with wrong labels, those with most of them first."""
    wrong = [one for one in told if one["missing"] or one["too_many"]]
    return sorted(wrong, key=lambda one: -len(one["missing"]) - len(one["too_many"]))


def wrong_pictures(told: Sequence[Mapping[str, Any]], maps: Maps | None = None) -> tuple[list[Strip], int]:
    """Show the pictures with most wrong labels, with what is missing and too many, and how many more there are; beside
    a picture, the `maps` of its path, each with what it is of.
    """
    wrong = worst(told)
    strips = []
    for one in wrong[:MOST]:
        picture = decode(Path(one["path"]))
        if isinstance(picture, Picture):
            remarks = [
                f"{what}: {', '.join(one[key])}"
                for key, what in (("missing", "missed"), ("too_many", "wrongly said"))
                if one[key]
            ]
            name = picture.path.name
            alt = f"{name}, {one['label']}"
            shots = [Shot(picture.image, alt, longest=160)]
            shots += [
                Shot(shown, f"{name}, evidence for {of}", longest=160)
                for of, shown in (maps or {}).get(one["path"], ())
            ]
            strips.append(Strip(shots, f"{name}: {one['label']};", "; ".join(remarks)))
    return strips, len(wrong) - len(strips)


def multi_label_page(report: Mapping[str, Any], told: Sequence[Mapping[str, Any]], maps: Maps) -> str:
    """Write the page of `evaluate-classifier` for a multi-label model, from its report, `deciding.wrong`'s facts and
    maps of evidence by path.
    """
    mistakes, left = wrong_pictures(told, maps)
    page = MultiLabelPage(
        title=f"{report['model']} on {report['data']}",
        kind="femtobooth evaluate-classifier",
        headline=headline(report, "The model"),
        tiles=tiles(report),
        remarks=list(report["remarks"]),
        labels=label_table(report, "By the model's own thresholds; bootstrap intervals (95 %); worst F1 first"),
        mistakes=mistakes,
        left=left,
        maps=report["no_maps"] or OF_MAPS,
        facts=[(name, str(report[name])) for name in ("model", "data", "engine", "hash", "preprocess", "environment")],
        skipped=[(one["path"], one["reason"]) for one in report["skipped"]],
    )
    return render("multi_label.html", page)
