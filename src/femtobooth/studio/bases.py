"""What a subject can be taught to: the models that are here, with what a person wants to know of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.files import read_object
from ..core.paths import existing
from ..generator import available, locate
from ..recognizer.model import weights
from .state import Studio
from .uploads import Upload, Uploads

USUAL_SIDE = 512


@dataclass(frozen=True)
class Base:
    """Hold one model to start from."""

    reference: str
    """What stands for it in settings."""
    name: str
    about: str
    side: int
    """Of its pictures, in pixels."""
    path: str
    """What the command line calls it."""


def bases(studio: Studio) -> list[Base]:
    """List what is here, the bundled base first; runs are no bases."""
    found = []
    for one in studio.catalog.models():
        if one.kind != "base":
            continue
        path = studio.desk.path_of(one.reference, "base") or one.reference
        side = _side(path)
        about = f"pictures of {side} by {side} pixels"
        if one.reference == locate.BUNDLED:
            about = "drawings of 64 by 64 pixels, in a few minutes on any computer; it knows no photographs"
        found.append(Base(one.reference, one.title[:1].upper() + one.title[1:], about, side, path))
    return found


def find(here: Sequence[Base], reference: str) -> Base:
    """Find a base; the bundled one where that is not here any more."""
    return next((one for one in here if one.reference == reference), here[0])


def bundled_nouns() -> list[str]:
    """List what the bundled base has seen, as the recognizer that learned the same pictures names it."""
    labels = read_object(weights.bundled_folder() / "recognizer.json").get("labels", {})
    return sorted(labels.get("names", []))


def whole(uploads: Uploads, upload: Upload) -> Path:
    """Say where the picture lies from which an upload was cut."""
    path = uploads.path(upload)
    before = path.with_suffix(".whole.png")
    return before if before.is_file() else path


def _side(reference: str) -> int:
    """Say how large a model's pictures are [px]: as its configs do, or as most are."""
    folder = locate.bundled_folder() if reference == locate.BUNDLED else existing(reference)
    if folder is None or not folder.is_dir():  # in the hub's cache, or a single file
        return USUAL_SIDE
    return available.side_of(folder) or USUAL_SIDE
