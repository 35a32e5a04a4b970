"""The part of a run's page about several subjects: who was recognized when who was asked for, and both together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from .html import Shot, Strip


@dataclass(frozen=True, kw_only=True)
class Section:
    """Hold what the page shows of it."""

    columns: list[str]
    rows: list[tuple[str, ...]]
    """Who was asked for, how often who was recognized, and the share that is right."""
    caption: str
    note: str
    together: list[tuple[str, ...]]
    """Of each prompt of two subjects: in how many pictures the first, the second and both were found; by the base."""
    rule: str
    pictures: list[Strip]


def section(folder: Path, evaluation: Mapping[str, Any]) -> Section | None:
    """Read it from what evaluation.json holds; None of one subject, or where that is damaged."""
    try:
        found, both = evaluation["confusion"], evaluation["together"]
        right, total = found["photos"]
        rows = zip(found["asked"], found["counts"], found["right"], strict=True)
        return Section(
            columns=["asked for", *(f">{name}" for name in found["recognized"]), ">right (95 %)"],
            rows=[(name, *map(str, counts), _share(share)) for name, counts, share in rows],
            caption=f"Recognized by {found['encoder']} as the nearest of the subjects' photos",
            note=f"Of the real photos {right} of {total} are recognized, each by the others.",
            together=[_pair(one) for one in both["pairs"]],
            rule=both["rule"],
            pictures=_sheet(folder / "evaluation" / "together.png"),
        )
    except (KeyError, TypeError, ValueError):
        return None


def _pair(one: Mapping[str, Any]) -> tuple[str, ...]:
    each = [f"{name}: {_share(share)}" for name, share in zip(one["subjects"], one["found"], strict=True)]
    return one["prompt"], *each, _share(one["both"]), f"{one['base'][-1]} of {one['of']}"


def _share(interval: Sequence[float]) -> str:
    value, low, high = interval
    return f"{value:.0%} ({low:.0%} to {high:.0%})"


def _sheet(path: Path) -> list[Strip]:
    try:
        with Image.open(path) as image:
            shot = Shot(image.convert("RGB"), "pictures of two subjects, by the base and by the tuned model", 900, 900)
    except OSError:
        return []
    return [Strip([shot], "The same prompts and seeds by the base and by the tuned model.")]
