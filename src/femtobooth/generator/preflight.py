"""The table that says what became of each file of a photo folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core import events
from ..core.names import stored
from ..pictures.images import Picture


def file_row(
    path: Path,
    picture: Picture | None = None,
    reason: str | None = None,
    notes: Sequence[str] = (),
    captions: Sequence[str] = (),
) -> dict[str, Any]:
    """Make the row of a file (file, width, height, format, status, notes, captions); skipped with a `reason`."""
    return {
        "file": stored(path),
        "width": picture.image.width if picture else None,
        "height": picture.image.height if picture else None,
        "format": picture.format if picture else None,
        "status": "skipped" if reason else "used",
        "notes": [reason] if reason else list(notes),
        "captions": list(captions),
    }


def print_table(rows: Sequence[dict[str, Any]], title: str = "photos") -> None:
    """Show the rows, and how many were used."""
    names = Counter(Path(row["file"]).name for row in rows)
    cells = []
    for row in rows:
        name = Path(row["file"]).name
        size = f"{row['width']}x{row['height']}" if row["width"] else ""
        cells.append(
            [
                name if names[name] == 1 else row["file"],
                size,
                row["format"] or "",
                row["status"],
                "; ".join(row["notes"]),
            ]
        )
    used = sum(row["status"] == "used" for row in rows)
    events.table(
        f"{title}: {used} used, {len(rows) - used} skipped", ["file", ">size", "format", "status", "notes"], cells
    )
