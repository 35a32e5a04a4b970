"""What a subject can be taught to: the models that are here, with what a person wants to know of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.files import read_object
from ..core.paths import existing
from ..generator import locate
from ..generator.families import known
from ..recognizer.model import weights
from .state import Studio
from .uploads import Upload, Uploads

SINGLE_FILE_SIDE = 512


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
    """Read the side of a model's pictures [px] from its configuration."""
    folder = locate.bundled_folder() if reference == locate.BUNDLED else existing(reference)
    if folder is None or not folder.is_dir():  # in the hub's cache, or a single file
        return SINGLE_FILE_SIDE
    configs = (read_object(folder / part / "config.json") for part in known.DENOISERS)
    vae = read_object(folder / "vae" / "config.json")
    blocks = vae.get("block_out_channels", [0] * 4)
    latents = next((config["sample_size"] for config in configs if config.get("sample_size")), None)
    if latents is None:  # some transformers know no size of their own
        return int(vae.get("sample_size") or 64 * 2 ** (len(blocks) - 1))
    return int(latents if isinstance(latents, int) else latents[0]) * int(2 ** (len(blocks) - 1))
