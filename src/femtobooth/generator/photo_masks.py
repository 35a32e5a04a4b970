"""Which part of a photo counts: its mask from a file, from its transparency, or by a segmentation model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core import events
from ..core.errors import PhotoError
from ..core.names import shown
from ..pictures.images import Picture
from ..pictures.masks import mask_files, masks_near, read_mask
from .mask_model import MaskModel
from .preflight import file_row
from .subject_settings import PhotoSettings

MIN_COVERED, MAX_COVERED = 0.01, 0.95  # share of a square that the mask of a subject covers, as a rule


def mask_of(picture: Picture, settings: PhotoSettings, model: MaskModel | None) -> tuple[np.ndarray, str] | None:
    """Find the mask of a photo, uint8 (H, W) with 255 where all of it counts, and say where it is from; None without.

    Raises PhotoError for a mask file that is none, and for a photo without what `settings.mask` names.
    """
    path, source = picture.path, settings.mask
    if source in ("auto", "files"):
        files = mask_files(path)
        if len(files) > 1:
            unused = ", ".join(_named(file, path) for file in files[1:])
            events.warn(f"{shown(path.name)} has several masks: {_named(files[0], path)} is used, {unused} is not")
        if files:
            return read_mask(files[0], path.name, picture.image.size), f"mask {_named(files[0], path)}"
        if source == "files":
            raise PhotoError(
                f"`photos.mask=files`: {shown(path.name)} has no mask",
                f"put {shown(path.stem)}.mask.png beside it, or leave the setting out",
            )
    if source in ("auto", "alpha"):
        if picture.alpha is not None:
            return np.asarray(picture.alpha), "mask by its transparency"
        if source == "alpha":
            raise PhotoError(
                f"`photos.mask=alpha`: {shown(path.name)} has nothing transparent", "leave the setting out"
            )
    if model and source == "auto":
        return model.mask(picture.image), f"mask by {shown(model.path.name)}"
    return None


def unused_masks(photos: Collection[Path], masks: Collection[Path], settings: PhotoSettings) -> list[dict[str, Any]]:
    """Make rows of the preflight table for the mask files, of `masks` and beside photos, that no photo has use for."""
    if settings.mask in ("alpha", "none"):
        used, reason = set(), f"a mask, unused with `photos.mask={settings.mask}`"
    else:
        used, reason = {file for photo in photos for file in mask_files(photo)}, "a mask, but of none of the photos"
    left = {path.resolve(): path for path in [*masks, *masks_near(photos)] if path not in used}
    return [file_row(path, reason=reason) for path in left.values()]


def covered(mask: np.ndarray) -> float:
    """Compute the share of a picture that its mask, uint8 (H, W), covers, 0..1."""
    return float(mask.mean()) / 255


def doubtful_masks(masks: Sequence[tuple[Path, np.ndarray]]) -> list[str]:
    """List warnings of masks, uint8 (H, W), that cover next to nothing of their photo's square, or nearly all of it."""
    shares = [(shown(path.name), covered(mask)) for path, mask in masks]
    little = [f"{name} ({share:.1%})" for name, share in shares if share < MIN_COVERED]
    most = [f"{name} ({share:.1%})" for name, share in shares if share > MAX_COVERED]
    warnings = []
    if little:
        warnings.append(f"the mask covers next to nothing, so that hardly anything is learned: {', '.join(little)}")
    if most:
        warnings.append(f"the mask leaves next to nothing out: {', '.join(most)}")
    return warnings


def _named(file: Path, photo: Path) -> str:
    return shown(file.name if file.parent == photo.parent else f"{file.parent.name}/{file.name}")
