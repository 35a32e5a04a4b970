"""Paths as a person gives them."""

from __future__ import annotations

from pathlib import Path


def expanded(path: str | Path) -> Path:
    """Expand `~` and `~user` where there is such a home; `~$scan.jpg`, which Office leaves beside open files, is a file's name."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
