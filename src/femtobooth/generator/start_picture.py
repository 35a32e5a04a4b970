"""What img2img and inpainting start from: a picture, and a mask of what is redrawn, in the size that is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..core.errors import InputError
from ..core.events import note, warn
from ..pictures.images import Picture, read_picture
from .settings import GenerateSettings

MAX_LEVEL_DIFFERENCE = 8.0  # of a picture with a hole from the start picture, as after saving it as a JPEG
MASK_THRESHOLD = 0.5  # of white, from which on a pixel is redrawn


@dataclass(frozen=True)
class Start:
    """What img2img and inpainting start from."""

    image: np.ndarray | None = None
    """(H, W, 3), uint8."""
    mask: np.ndarray | None = None
    """(H, W) in [0, 1]: 1 is redrawn."""


@dataclass(frozen=True)
class Original:
    """The same as it lies on the disk."""

    image: Image.Image | None = None
    mask: Image.Image | None = None
    """Mode L, of the same size."""


def read_start(settings: GenerateSettings) -> Original:
    """Read and check start picture and mask. Raises InputError kinds that name the file and the way out."""
    if settings.mask and not settings.init_image:
        raise InputError(f"`mask={settings.mask}`: there is no picture to redraw", "give `init_image` too")
    if not settings.init_image:
        return Original()
    image = read_picture(Path(settings.init_image)).image
    if not settings.mask:
        return Original(image)
    stencil = read_picture(Path(settings.mask))
    if stencil.image.size != image.size:
        raise InputError(
            f"`mask={settings.mask}`: {_size(stencil.image)} pixels, but `init_image` has {_size(image)}",
            "draw the mask over the picture itself, white where it should change",
        )
    return Original(image, _mask(stencil, image, settings.mask))


def fit(original: Original, settings: GenerateSettings) -> Start:
    """Scale start picture and mask to the size to draw, cropped around the middle where the shape differs.

    Raises InputError for an empty mask.
    """
    if original.image is None:
        return Start()
    size = settings.pixels(0)
    if original.image.width * size[1] != original.image.height * size[0]:
        note(
            f"{settings.init_image}: cropped around the middle to the shape of {size[0]}x{size[1]}; `size` changes that"
        )
    image = np.asarray(ImageOps.fit(original.image, size, Image.Resampling.LANCZOS))
    if original.mask is None:
        return Start(image)
    mask = np.asarray(ImageOps.fit(original.mask, size, Image.Resampling.BOX), dtype=np.float32) / 255
    share = float((mask >= MASK_THRESHOLD).mean())
    if share == 0:
        raise InputError(
            f"`mask={settings.mask}`: nothing white is left of it at {size[0]}x{size[1]}", "paint larger areas white"
        )
    if share == 1:
        warn(f"`mask={settings.mask}`: all of it is white, so that the whole picture is redrawn")
    else:
        note(f"`mask={settings.mask}`: {share:.0%} of the picture is redrawn")
    return Start(image, mask)


def _mask(stencil: Picture, image: Image.Image, name: str) -> Image.Image:
    """Make the mask of what is redrawn, white, mode L: what is white in the mask, or transparent where the mask is the
    picture itself with a hole.

    Transparent parts of any other mask are kept: white strokes on a transparent layer are redrawn.
    """
    levels = np.asarray(stencil.image.convert("L"), dtype=np.int16)
    if stencil.alpha is not None:
        alpha = np.asarray(stencil.alpha, dtype=np.int16)
        solid = alpha == 255
        if (
            solid.any()
            and np.abs(np.asarray(stencil.image, dtype=np.int16) - np.asarray(image, dtype=np.int16))[solid].mean()
            < MAX_LEVEL_DIFFERENCE
        ):
            note(f"`mask={name}`: the picture itself with a hole; the hole is redrawn")
            return Image.fromarray((255 - alpha).astype(np.uint8))
        levels = levels - (255 - alpha)  # over black, not white
        note(f"`mask={name}`: its transparent parts are kept")
    if levels.max(initial=0) < 255 * MASK_THRESHOLD:
        raise InputError(f"`mask={name}`: nothing in it is white, so that nothing would be redrawn", _painted(stencil))
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


def _painted(stencil: Picture) -> str:
    if stencil.alpha is not None:
        return (
            "paint white what should change (other colours and transparency are "
            "kept), or give the picture itself with a hole"
        )
    return "paint white what should change, and black what should stay"


def _size(image: Image.Image) -> str:
    return f"{image.width}x{image.height}"
