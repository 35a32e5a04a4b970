"""Show what `synthesize` chose: contact sheets of what was kept and what was not, and a table of how many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import command
from ..core.events import conclude, note, table, warn
from ..core.files import atomic_file
from ..core.names import shown
from ..judging.filtering import KEPT, REASONS, Filtered
from ..pictures.sheets import sheet

COLUMNS = 12  # of the contact sheets


def write(
    out: Path, subjects: Sequence[tuple[str, Sequence[np.ndarray], np.ndarray]], chosen: Sequence[Filtered]
) -> None:
    """Write sheet.png: photos and kept pictures; rejected.png: the others by reason, the best scored first.

    Each subject is its label, its photos uint8 (H, W, 3), and its generated pictures uint8 (N, H, W, 3).
    """
    kept_rows: list[tuple[str, list[np.ndarray]]] = []
    other_rows: list[tuple[str, list[np.ndarray]]] = []
    for (label, photos, pictures), found in zip(subjects, chosen, strict=True):
        order = np.argsort(-found.scores, kind="stable")
        by_verdict = {
            verdict: [pictures[index] for index in order if found.verdicts[index] == verdict]
            for verdict in (KEPT, *REASONS)
        }
        kept_rows += [
            (f"{label}: photos", [*photos]),
            (f"{len(by_verdict[KEPT])} kept, best first", by_verdict[KEPT]),
        ]
        other_rows += [(f"{label}: {reason} ({len(some)})", some) for reason in REASONS if (some := by_verdict[reason])]
    for name, rows in (("sheet.png", kept_rows), ("rejected.png", other_rows)):
        if not rows:
            continue
        lines = [
            (label if start == 0 else "", some[start : start + COLUMNS])
            for label, some in rows
            for start in range(0, max(1, len(some)), COLUMNS)
        ]
        with atomic_file(out / name) as temporary:
            sheet([line[1] for line in lines], [line[0] for line in lines], []).save(temporary, format="PNG")


def tell(report: Mapping[str, Any], out: Path) -> None:
    """Say how many pictures of each subject were kept, and why the others were not."""
    rows = []
    for one in report["subjects"]:
        passing, base = (
            "-" if not total else f"{count} of {total}" for count, total in (one["photos_passing"], one["base_passing"])
        )
        kept = f"{one['kept']} of {one['drawn']}"
        rows.append((one["label"], kept, *one["rejected"].values(), f"{one['threshold']:.3f}", passing, base))
    columns = ["label", ">kept", *(f">{reason}" for reason in REASONS), ">above", ">photos", ">base"]
    table(f"Chosen by {report['encoder']['name']}", columns, rows, result=True)
    note(
        "above: the likeness to the photos that a picture must exceed: that of "
        "nearly all of the base's pictures, and at least a"
    )
    note(
        "quarter of the way from these to the photos. Would pass it themselves: "
        "of the photos, each compared with the others; of the"
    )
    note("base's pictures, which are of the same prompts without the subject.")
    for one in report["subjects"]:
        passing, total = one["photos_passing"]
        if total and passing < total:
            warn(
                f"{one['label']}: only {passing} of its {total} photos would pass: "
                f"{report['encoder']['name']} hardly knows this subject"
            )
        if not one["kept"]:
            warn(
                f"{one['label']}: no picture was kept; look at {shown(out / 'rejected.png')}, "
                "and train longer or set `threshold`"
            )
    for noun, made in report["negatives"].items():
        note(f"{noun}: {made} pictures by the base, without the subject")
    rejected = (
        f"; rejected: {shown(out / 'rejected.png')}" if any(one["rejected_files"] for one in report["subjects"]) else ""
    )
    conclude(f"kept: {shown(out / 'sheet.png')}{rejected}")
    if any(one["kept"] for one in report["subjects"]):
        note(f"train with\n  {command('finetune', 'PHOTOS', '--synthesized', out)}")
