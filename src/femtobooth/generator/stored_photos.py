"""Photos in a run folder, as they are trained on: written, read again, laid out on a sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..core.errors import PhotoError
from ..core.files import atomic_folder
from ..pictures.images import find_pictures, read_picture
from ..pictures.sheets import sheet, stacked
from .captions import own_captions
from .photos import Photo
from .prompts import SUBJECT


def crops_sheet(photos: Sequence[Photo]) -> Image.Image:
    """Lay out all photos as they are trained on, with their names."""
    columns = min(len(photos), 6)
    rows = [photos[first : first + columns] for first in range(0, len(photos), columns)]
    one = [sheet([[photo.pixels for photo in row]], [], [photo.path.name for photo in row], cell=192) for row in rows]
    return stacked(one)


def store_photos(photos: Sequence[Photo], folder: Path) -> list[Path]:
    """Write photos as they are trained on, losslessly: `00.png` and its captions `00.txt`, fit to be given as photos
    again; returns the former.

    Raises ExistsError if `folder` already holds something.
    """
    with atomic_folder(folder) as temporary:
        for index, photo in enumerate(photos):
            image = temporary / f"{index:02d}.png"
            Image.fromarray(photo.pixels).save(image)
            image.with_suffix(".txt").write_text(
                "\n".join(photo.captions).replace("{token}", SUBJECT) + "\n", encoding="utf-8"
            )
    return [folder / f"{index:02d}.png" for index in range(len(photos))]


def restore_photos(folder: Path) -> list[Photo]:
    """Read what `store_photos` wrote: same pixels, captions and order.

    Raises PhotoError naming what is missing or damaged.
    """
    paths, others = find_pictures([folder])
    numbered = {f"{index:02d}.png" for index in range(len(paths))} - {path.name for path in paths}
    lost = [one.path for one in others if one.path.suffix == ".png"] + [folder / name for name in sorted(numbered)]
    if lost:
        raise PhotoError(f"{lost[0]}: missing or damaged", "put it back, or start a new run")
    photos = [Photo(path, np.array(read_picture(path).image), own_captions(path), ()) for path in paths]
    for photo in photos:
        if not photo.captions:
            raise PhotoError(f"{photo.path.with_suffix('.txt')}: missing or empty", "put it back, or start a new run")
    if not photos:
        raise PhotoError(f"{folder}: holds no photo", "put its photos back, or start a new run")
    return photos
