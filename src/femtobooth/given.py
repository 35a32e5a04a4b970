"""What programs give the functions of `api`, as settings could hold it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

PathLike = str | os.PathLike[str]


def of_photos(
    photos: PathLike | Sequence[PathLike] | Mapping[str, Any] | None, class_noun: str | None
) -> dict[str, Any]:
    """Give the group `photos` of what `personalize` was given, if anything."""
    paths = {} if photos is None else {"paths": many(photos)} if not isinstance(photos, Mapping) else dict(photos)
    group = paths | ({} if class_noun is None else {"class_noun": class_noun})
    return {"photos": group} if group else {}


def many(given: PathLike | Sequence[PathLike]) -> list[str]:
    """Give one path, or several, as texts."""
    return [os.fspath(given)] if isinstance(given, str | os.PathLike) else [os.fspath(one) for one in given]


def plain(given: Any) -> Any:
    """Give values as a settings file could hold them: text for paths, lists for tuples."""
    if isinstance(given, Mapping):
        return {str(name): plain(value) for name, value in given.items()}
    if isinstance(given, os.PathLike):
        return os.fspath(given)
    return [plain(value) for value in given] if isinstance(given, list | tuple) else given


def opened(picture: PathLike | Image.Image) -> Image.Image:
    """Open a picture as one of mode RGB, upright, over white."""
    from PIL import Image, ImageOps

    from .pictures.images import read_picture

    if not isinstance(picture, Image.Image):
        return read_picture(Path(picture)).image
    upright = ImageOps.exif_transpose(picture)
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    clear = upright.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
