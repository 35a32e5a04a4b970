"""What `evaluate` says on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core.events import conclude, note, table, warn
from ...judging import scores, verdict
from ...judging.scores import PHOTOS
from ...judging.scoring import Row
from . import told_apart


def tell(result: Mapping[str, Any], folder: Path) -> None:
    """Tell every score, and what came of it."""
    for remark in result["remarks"]:
        warn(remark)

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    def end(row: Row) -> str:
        """Give the other end of the scale, and what has it where that is not the photos."""
        return number(row["ceiling"]) + (
            f" ({row['ceiling_of']})" if row["ceiling"] is not None and row["ceiling_of"] != PHOTOS else ""
        )

    scored = f"{result['pictures']} pictures of {len(result['prompts'])} prompts"
    note(f"{result['run']}: {scored}, scored against {result['photos']} photos: {result['scored_against']}\n")
    for subject, encoder in dict.fromkeys((row.get("subject"), row["encoder"]) for row in result["scores"]):
        rows = []
        for row in result["scores"]:
            if (row.get("subject"), row["encoder"]) == (subject, encoder):
                value, low, high = row["tuned"]
                name = row["score"] + (" \u2191" if row["better"] == "higher" else " \u2193")
                rows.append((name, number(value), f"{number(low)} to {number(high)}", number(row["base"]), end(row)))
        title = f"{subject}, scored by {encoder}" if subject else f"Scored by {encoder}"
        table(title, ["score", ">tuned", ">95 % interval", ">base", "photos"], rows, result=True)
    told_apart.tell(result)
    note(
        "base: before training, the floor; photos: real photos of the subject in "
        "place of pictures, the ceiling, or what stands beside it"
    )
    copies = result["near_copies"]
    conclude(f"near-copies of training photos: {copies['count']} of {copies['of']} (by the base: {copies['base']})")
    if any(row["encoder"] in ("dino", "clip") for row in result["scores"]):
        published = [[name, *(number(value) for value in values)] for name, *values in scores.PUBLISHED]
        table(
            "Published: 30 subjects x 25 prompts x 4 pictures of 512 pixels",
            ["", ">DINO", ">CLIP-I", ">CLIP-T"],
            published,
        )
    conclude(f"all of it: {folder / 'evaluation.json'}; pictures: {folder / 'grid.png'}")
    if found := verdict.read(result["verdict"]):
        note(f"\n{found.told}")
