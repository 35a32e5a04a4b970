"""From an open picture file to 8-bit sRGB: upright, over white, whatever depth and colours it is stored in."""

from __future__ import annotations

import os
import struct
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageFile, JpegImagePlugin, UnidentifiedImageError

from . import colour, phone, png, tiff
from .declared import declared_profile
from .formats import Unusable
from .samples import CHANNELS, Samples, to_srgb

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TIFF_COLOURS = {0: "L", 1: "L", 2: "RGB", 5: "CMYK", 8: "LAB", 9: "LAB"}  # by photometric interpretation
MOST_OF_JPEG = 2**30  # pixels; a JPEG can be made smaller while it is read
MOST_OF_PROGRESSIVE = 2**28  # of which the whole is held all the same, 3 to 6 bytes a pixel
COUNTED = (
    2**18
)  # bytes: the frames of larger GIF and TIFF files are not counted, which takes walking through all of them


class Decoded(NamedTuple):
    """What `decode` finds."""

    image: Image.Image
    """Upright, mode RGB, opaque."""
    alpha: Image.Image | None
    """Mode L, where not all is opaque."""
    layout: str
    """Pixel layout as stored, such as `CMYK`."""


def decode(file: IO[bytes], format: str, least: int | None, notes: list[str]) -> Decoded:
    """Decode the first frame, turn it upright, convert it by its profile and lay it over white; `notes` says what was
    done.

    With `least`, a JPEG may come out smaller by 2, 4 or 8, but neither side under `least` pixels. Raises Unusable, or
    whatever PIL raises on damage.
    """
    page = _first_page(file) if format == "TIFF" else None
    if page and page.misread:
        return _decode_page(file, page, notes)
    try:
        image = _open(file, format)
    except Exception:
        if not page:
            raise
        return _decode_page(file, page, notes)  # raises where that cannot be read either
    if (
        page and page.photometric == 6 and page.compression == 1
    ):  # PIL's own way takes subsampled YCbCr for whole pixels
        image._mode, image.use_load_libtiff = "RGB", True
        image.tile = [ImageFile._Tile("libtiff", (0, 0, *image.size), 0, ("RGBX", False, page.tags.offset))]
    _note_frames(image, file, page, notes)
    _shrink(image, least, notes)
    raw = str(image.tile)  # names the bit depth that PIL reduces on its own
    depth = next((depth for depth in (2, 4) if f"'L;{depth}" in raw), 8)
    turn = _orientation(image, notes)
    image.load()
    stored, profile = image.mode, image.info.get("icc_profile") or declared_profile(file, image, format)
    turned = turn and not _orientation(image, [])  # TIFF turns itself while it loads
    samples = _deep(file, image, raw, profile)
    if samples:
        opaque, alpha = to_srgb(samples, profile, notes)
    else:
        if image.format == "HEIF" and (bits := image.info.get("bit_depth", 8)) > 8:
            notes.append(f"{bits} bits to 8")
        if ";16" in raw:
            notes.append("16 bits to 8")
        opaque, alpha = _from_eight_bits(image, depth, profile, notes)
    opaque, alpha = _over_white(opaque, alpha, notes)
    return Decoded(*_upright(opaque, alpha, turn, 0 if turned else turn, notes), stored)


def _open(file: IO[bytes], format: str) -> Any:
    """Open a picture, and check what can be checked without decoding it.

    Raises DecompressionBombError for more than can be held.
    """
    file.seek(0)
    if format == "JPEG":  # whose size alone is no bomb, as it can be made smaller while it is read
        try:
            image = JpegImagePlugin.jpeg_factory(file)
        except SyntaxError as error:
            raise UnidentifiedImageError from error
        if image.width * image.height > (MOST_OF_PROGRESSIVE if image.info.get("progressive") else MOST_OF_JPEG):
            raise Image.DecompressionBombError
        return image
    if format in phone.PLUGINS:
        phone.register(format)
        if format == "JXL":
            phone.refuse_bomb(file)
    code = png.check(file) if format == "PNG" else None
    file.seek(0)
    opened = Image.open(file, formats=[format])
    opened.info["cicp"] = code
    return opened


def _shrink(image: Image.Image, least: int | None, notes: list[str]) -> None:
    """Have a JPEG scaled by 1/2, 1/4 or 1/8 while it is decoded, which is quicker: as `least` allows, or as its size
    demands.
    """
    width, height = image.size
    most, shrink = 2 * (Image.MAX_IMAGE_PIXELS or 0), 1
    while image.format in ("JPEG", "MPO") and width * height > shrink * shrink * most:
        shrink *= 2
    if shrink > 1:
        notes.append(f"{width}x{height} read at 1/{shrink}")
    if least or shrink > 1:
        image.draft(None, (min(width // shrink, least or width), min(height // shrink, least or height)))


def _note_frames(image: Image.Image, file: IO[bytes], page: tiff.Page | None, notes: list[str]) -> None:
    walks = image.format in ("GIF", "TIFF") and file.seek(0, os.SEEK_END) > COUNTED
    if walks and (page.more if page else getattr(image, "is_animated", False)):
        notes.append("first of many frames")
    elif phone.has_gain_map(image, file):
        notes.append("its gain map (high dynamic range) left out")
    elif not walks and (frames := getattr(image, "n_frames", 1)) > 1:
        notes.append(f"first of {frames} frames")


def _orientation(image: Image.Image, notes: list[str]) -> int:
    """Read the EXIF (or XMP) orientation 2 to 8; 0 if there is nothing to do."""
    if image.format == "JXL" and not getattr(image, "jpeg", None):  # turned by its own header, which goes before EXIF
        return 0
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # EXIF is written by every camera in its own way; the pixels do not depend on it
        notes.append("broken EXIF ignored")
        return 0
    return value if value in _UPRIGHT else 0


def _upright(
    image: Image.Image, alpha: Image.Image | None, turn: int, left: int, notes: list[str]
) -> tuple[Image.Image, Image.Image | None]:
    """Do what is `left` to do of `turn`, and note that it was done."""
    if turn:
        notes.append("rotated" if turn in (3, 6, 8) else "mirrored" if turn in (2, 4) else "rotated and mirrored")
    if left:
        image, alpha = image.transpose(_UPRIGHT[left]), alpha and alpha.transpose(_UPRIGHT[left])
    return image, alpha


# --- 8 bits ---


def _from_eight_bits(
    image: Image.Image, depth: int, profile: bytes | None, notes: list[str]
) -> tuple[Image.Image, Image.Image | None]:
    """Convert any 8-bit mode to sRGB, and its alpha.

    `depth` is that of a grey PNG, whose transparent grey is told in so many bits.
    """
    hole = image.info.get("transparency")
    if image.format == "PNG" and image.mode == "L" and isinstance(hole, int):
        image.info["transparency"] = (hole & (2**depth - 1)) * 255 // (2**depth - 1)
    alpha = None
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        straight = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        alpha = straight.getchannel("A")
        image = straight.convert("L" if grey else "RGB")
    elif image.mode not in (*colour.SPACES, "LAB"):
        image = image.convert("L" if grey else "RGB")
    return colour.to_srgb(image, profile, notes), alpha


def _over_white(
    image: Image.Image, alpha: Image.Image | None, notes: list[str]
) -> tuple[Image.Image, Image.Image | None]:
    """Lay a picture over white; its alpha goes where it is opaque all over."""
    if alpha is None or alpha.getextrema()[0] == 255:
        return image, None
    notes.append("alpha over white")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=alpha)
    return white, alpha


# --- more than 8 bits ---


def _deep(file: IO[bytes], image: Image.Image, raw: str, profile: bytes | None) -> Samples | None:
    """Read the samples of an opened picture whose 8-bit form would lose something; of colours, only where that changes
    what is seen.
    """
    hole = image.info.get("transparency")
    if image.mode.startswith(("I", "F")):
        whole = image.mode.startswith("I;16") or image.format == "PPM"
        holes = (hole,) if isinstance(hole, int) else None
        return Samples(np.asarray(image)[..., None], "L", 12 if "I;12" in raw else 16, hole=holes, whole=whole)
    if image.format != "PNG" or ";16B" not in raw or not (profile or hole):
        return None
    values = png.sixteen_bits(file, image, raw)
    return Samples(
        values,
        "L" if "LA;16B" in raw else "RGB",
        16,
        extra=(2,),
        hole=hole if isinstance(hole, tuple) else None,
        whole=True,
    )


def _first_page(file: IO[bytes]) -> tiff.Page | None:
    """Read the description of a TIFF's first page; None where it is so damaged that PIL shall say what is wrong."""
    try:
        return tiff.first_page(file)
    except (SyntaxError, KeyError, TypeError, ValueError, OSError, struct.error):
        return None


def _decode_page(file: IO[bytes], page: tiff.Page, notes: list[str]) -> Decoded:
    if page.width * page.height > 2 * (Image.MAX_IMAGE_PIXELS or 0):
        raise Image.DecompressionBombError
    mode = _TIFF_COLOURS.get(page.photometric, "")
    if not mode:
        raise Unusable(
            f"a TIFF of photometric interpretation {page.photometric}, which is not read here; save it as RGB"
        )
    if page.more:
        notes.append("first of many frames")
    values = tiff.read_samples(file, page)
    if values.shape[2] < CHANNELS[mode]:
        raise Unusable(f"a TIFF of {values.shape[2]} samples a pixel, where {mode} needs {CHANNELS[mode]}")
    if (
        page.photometric == 8 and page.kind == "u"
    ):  # a and b are signed there, and of 16 bits L alone goes up to all ones
        values = values ^ np.array([0, *[1 << page.bits - 1] * 2, *[0] * (values.shape[2] - 3)], values.dtype)
        if page.bits == 16:
            values[..., 0] = np.rint(values[..., 0] * np.float32(65280 / 65535))
    samples = Samples(
        values,
        mode,
        page.bits,
        inverted=page.photometric == 0,
        extra=page.extra or (2,) * (mode == "RGB"),  # PIL, too, takes a fourth sample that nobody explains for alpha
        whole=page.kind == "u" and page.bits <= 16,
    )
    opaque, alpha = _over_white(*to_srgb(samples, page.profile, notes), notes)
    turn = page.orientation if page.orientation in _UPRIGHT else 0
    return Decoded(*_upright(opaque, alpha, turn, turn, notes), f"{mode} {page.bits} bits")
