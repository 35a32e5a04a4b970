"""Paths as a person gives them, and names on the hub: a mistyped path is told from a hub id before anything asks a
network.
"""

from __future__ import annotations

import difflib
import os
import re
from itertools import islice
from pathlib import Path

from .errors import ModelError

RUNS = "runs"  # where personalize and finetune put runs, if they are not told another place
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
_ON_HUB = re.compile(r"^hf[-_]hub:")  # timm's prefix: what follows is a hub id, whatever lies on this disk
_FOLDERS = (
    RUNS,
    "models",
    "checkpoints",
    "weights",
    "outputs",
)  # first parts of a path, none of them an owner on the hub
_FILES = (
    ".safetensors",
    ".ckpt",
    ".pt",
    ".pth",
    ".bin",
    ".onnx",
    ".xml",
    ".zip",
    ".json",
    ".yaml",
    ".png",
    ".jpg",
    ".jpeg",
)
_MOST = 10_000  # names of a folder that are compared with a mistyped one


def expanded(path: str | Path) -> Path:
    """Expand `~` and `~user` where there is such a home; `~$scan.jpg`, which Office leaves beside open files, is a
    file's name.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def existing(path: str | Path) -> Path | None:
    """Return the path that is there under this name; None also for a name that no file can have."""
    try:
        return expanded(path) if expanded(path).exists() else None
    except (OSError, ValueError):  # too long, not to be looked at, NUL
        return None


def hub_id(reference: str) -> str | None:
    """Return the `owner/name` on the hub that `reference` is, with `hf-hub:` before it or as it stands; None for what
    cannot be one.
    """
    name = _ON_HUB.sub("", reference)
    return name if _HUB_ID.match(name) and (name != reference or not means_path(reference)) else None


def means_path(reference: str) -> bool:
    """Tell whether `reference`, which is not there, was meant as a path: by its looks, or because its folder is
    there.
    """
    if _ON_HUB.match(reference):
        return False
    parent, slash, _ = reference.rpartition("/")
    looks = (
        reference.startswith((".", "~", "/"))
        or reference.endswith(("/", *_FILES))
        or "\\" in reference
        or reference.count("/") > 1
    )
    return looks or (bool(slash) and (parent in _FOLDERS or existing(parent) is not None))


def refuse_missing_path(reference: str, way_out: str) -> None:
    """Raise ModelError where `reference` means a path, with the nearest one or else `way_out`; hub ids and plain names
    pass.
    """
    if means_path(reference):
        near = nearest(reference)
        if _HUB_ID.match(reference) and reference.partition("/")[0] not in _FOLDERS:
            way_out += f", or hf-hub:{reference} for what the hub has under this name"
        raise ModelError(f"{reference}: no such file or folder", f"did you mean {near}?" if near else way_out)


def nearest(reference: str) -> str | None:
    """Find the path that differs from `reference` by typing errors only; for a plain name also the run of such a
    name.
    """
    run = _corrected(Path(RUNS, reference), mistyped=True) if reference and "/" not in reference else None
    return run or _corrected(Path(reference), mistyped=False)


def _corrected(path: Path, mistyped: bool) -> str | None:
    """Give `path` with every part that is not there replaced by its nearest name; None where a part has none, or none
    was wrong.
    """
    place = Path(path.anchor)
    for part in path.parts[bool(path.anchor) :]:
        found = part
        if existing(place / part) is None:
            close = difflib.get_close_matches(part, _names(place), n=1)
            if not close:
                return None
            found, mistyped = close[0], True
        place /= found
    return str(place) if mistyped else None


def _names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in islice(entries, _MOST) if not entry.name.startswith(".")]
    except OSError:
        return []
