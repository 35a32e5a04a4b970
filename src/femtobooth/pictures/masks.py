"""Masks that people make of their photos: where they lie, how they are read, how they are shown.

A mask is a picture as large as its photo, white where the subject is and black elsewhere; what is grey counts in part.
Of a photo `rex.jpg` it lies beside it (`rex.mask.png` or `rex.jpg.mask.png`) or in a folder there (`masks/rex.png`).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np

from ..core.errors import PhotoError
from ..core.names import shown
from .images import Skipped, decode, is_other

FOLDER, MARK = "masks", ".mask"
HALF = 128  # of 255: from here on a pixel is taken for the subject's, where something has to be either
COLOURED = 32  # levels between a pixel's channels that no grey has, a JPEG's neither
MAX_COLOURED_SHARE = 0.01  # of a mask's pixels


def mask_files(photo: Path) -> list[Path]:
    """List the files that lie where a photo's mask does; the first is meant."""
    near = _names(photo.parent)
    beside = [path for path in near if path.stem.lower().endswith(MARK)]
    inside = [path for folder in near if is_mask_folder(folder) for path in _names(folder)]
    named = [(path, path.stem[: -len(MARK)]) for path in beside] + [(path, path.stem) for path in inside]
    return [path for wanted in (photo.name, photo.stem) for path, name in named if name == wanted and _is_picture(path)]


def is_mask(path: Path, others: Iterable[Path]) -> bool:
    """Tell whether a file is a mask and no photo, by its name or since it lies in a folder `masks` in that of a photo
    among `others`.
    """
    if path.stem.lower().endswith(MARK):
        return True
    folder = path.parent.resolve()
    above = folder.parent
    return folder.name.lower() == FOLDER and any(other.parent.resolve() == above for other in others)


def is_mask_folder(path: Path) -> bool:
    """Tell whether a folder is one in which masks lie, by its name."""
    return path.name.lower() == FOLDER and path.is_dir()


def without_masks(paths: Collection[Path]) -> list[Path]:
    """Leave out of several pictures those that are masks."""
    return [path for path in paths if not is_mask(path, paths)]


def masks_near(photos: Collection[Path]) -> list[Path]:
    """List the pictures in the folders `masks` beside photos."""
    folders = {path for photo in photos for path in _names(photo.parent) if is_mask_folder(path)}
    return [path for folder in sorted(folders) for path in _names(folder) if _is_picture(path)]


def read_mask(path: Path, photo: str, size: tuple[int, int]) -> np.ndarray:
    """Read the mask of a photo of `size` (width, height) pixels: uint8 (H, W), 255 where all of it counts.

    A picture with transparent parts is a cut-out, whose alpha is the mask. Both picture and photo were turned upright.
    Raises PhotoError for what is damaged, of another size, in colour, or has no white although it is not all black.
    """
    picture = decode(path)
    if isinstance(picture, Skipped):
        raise PhotoError(f"{shown(path)}: the mask cannot be read: {picture.reason}", "save it as PNG, or remove it")
    if picture.image.size != size:
        (width, height), (wanted, down) = picture.image.size, size
        turned = ", upright" if (height, width) == size else ""
        raise PhotoError(
            f"{shown(path)}: the mask has {width}x{height} pixels, and {shown(photo)} {wanted}x{down}{turned}",
            "save it in the size of its photo",
        )
    if picture.alpha is not None:
        return np.asarray(picture.alpha)
    colours = np.asarray(picture.image)
    spread = colours.max(-1).astype(int) - colours.min(-1)
    if (spread > COLOURED).mean() > MAX_COLOURED_SHARE:
        raise PhotoError(f"{shown(path)}: the mask is in colour", "make it white where the subject is, black elsewhere")
    mask = np.asarray(picture.image.convert("L"))
    if 0 < mask.max() < HALF:  # white was meant to be 1, as a rule
        raise PhotoError(f"{shown(path)}: nothing in the mask is lighter than {mask.max()} of 255", "make white 255")
    return mask


def show_mask(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Make a picture uint8 (H, W, 3) fade to grey where its mask uint8 (H, W) falls to 0."""
    share = mask[..., None] / np.float32(255)
    return np.rint(pixels * share + 128 * (1 - share)).astype(np.uint8)


def _is_picture(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and not is_other(path)


def _names(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in sorted(os.listdir(folder))]
    except OSError:
        return []
