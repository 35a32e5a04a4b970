"""Photos in a run folder, as they are trained on: written, read again, laid out on a sheet."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..core.errors import PhotoError
from ..core.files import atomic_folder
from ..pictures.framing import Framing
from ..pictures.images import find_pictures, read_picture
from ..pictures.masks import show_mask, without_masks
from ..pictures.regions import only_subject, subject_masks
from ..pictures.sheets import sheet, stacked
from .captions import own_captions
from .photos import Photo
from .prompts import SUBJECT

FRAMING = "framing"  # the text in a PNG file that says how the photo was framed


def counted(photos: Sequence[Photo], background: str) -> list[np.ndarray | None]:
    """Show what of photos counts in the loss, grey where nothing does; None where all of a photo counts.

    That is the mask of a photo that has one; of others, with `loss.background` "class", what is taken for the subject.
    """
    apart = background == "class"
    found = subject_masks([photo.pixels for photo in photos]) if apart else [None] * len(photos)
    return [
        show_mask(photo.pixels, photo.mask)
        if photo.mask is not None
        else only_subject(photo.pixels, mask)
        if mask is not None
        else None
        for photo, mask in zip(photos, found, strict=True)
    ]


def size_of(photo: Photo) -> str:
    """Say how large a photo is as it is trained on, such as 640x384."""
    return "x".join(map(str, photo.shape))


def crops_sheet(photos: Sequence[Photo], background: str = "photos") -> Image.Image:
    """Lay out all photos as they are trained on, with their names, and below them what of them counts; in buckets also
    their sizes.
    """
    columns, below = min(len(photos), 6), counted(photos, background)
    buckets = any(photo.shape[0] != photo.shape[1] for photo in photos)
    sheets = []
    for first in range(0, len(photos), columns):
        some, parts = photos[first : first + columns], below[first : first + columns]
        rows: list[list[np.ndarray | None]] = [[photo.pixels for photo in some]]
        if any(part is not None for part in parts):
            rows.append(parts)
        names = [f"{photo.path.name} {size_of(photo)}" if buckets else photo.path.name for photo in some]
        sheets.append(sheet(rows, [], names, cell=192))
    return stacked(sheets)


def mask_place(photo: Path) -> Path:
    """Say where the mask of a stored photo lies."""
    return photo.with_suffix(".mask.png")


def store_photos(photos: Sequence[Photo], folder: Path) -> list[Path]:
    """Write photos losslessly as they are trained on, and how they were framed: `00.png`, its captions `00.txt` and its
    mask, if any, `00.mask.png`, fit to be given as photos again; returns the first.

    Raises ExistsError if `folder` already holds something.
    """
    with atomic_folder(folder) as temporary:
        for index, photo in enumerate(photos):
            image = temporary / f"{index:02d}.png"
            chunks = PngInfo()
            if photo.framing:
                chunks.add_text(FRAMING, photo.framing.text())
            Image.fromarray(photo.pixels).save(image, pnginfo=chunks)
            if photo.mask is not None:
                Image.fromarray(photo.mask).save(mask_place(image))
            image.with_suffix(".txt").write_text(
                "\n".join(photo.captions).replace("{token}", SUBJECT) + "\n", encoding="utf-8"
            )
    return [folder / f"{index:02d}.png" for index in range(len(photos))]


def restore_photos(folder: Path, masks: Collection[str] | None = None) -> list[Photo]:
    """Read what `store_photos` wrote: same pixels, captions and order; the files of `masks`, or all masks there are.

    Raises PhotoError naming what is missing or damaged.
    """
    found, others = find_pictures([folder])
    paths = without_masks(found)
    numbered = {f"{index:02d}.png" for index in range(len(paths))} - {path.name for path in paths}
    masks = {path.name for path in found} - {path.name for path in paths} if masks is None else masks
    numbered |= set(masks) - {path.name for path in found}
    lost = [one.path for one in others if one.path.suffix == ".png"] + [folder / name for name in sorted(numbered)]
    if lost:
        raise PhotoError(f"{lost[0]}: missing or damaged", "put it back, or start a new run")
    photos = []
    for path in paths:
        place = mask_place(path)
        mask = np.array(read_picture(place).image.convert("L")) if place.name in masks else None
        pixels = np.array(read_picture(path).image)
        with Image.open(path) as image:
            framing = Framing.of_text(getattr(image, "text", {}).get(FRAMING))
        photos.append(Photo(path, pixels, own_captions(path), (), mask=mask, framing=framing))
    for photo in photos:
        if not photo.captions:
            raise PhotoError(f"{photo.path.with_suffix('.txt')}: missing or empty", "put it back, or start a new run")
    if not photos:
        raise PhotoError(f"{folder}: holds no photo", "put its photos back, or start a new run")
    return photos
