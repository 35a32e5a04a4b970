"""Pictures on disk: finding them, and decoding whatever they are stored as into 8-bit sRGB.

The content of a file decides what it is, not its name. Every file gets an answer: a `Picture` with notes of what
was done to it, or a `Skipped` with the reason. Nothing is clipped, squashed or dropped in silence.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from .errors import PhotoError
from .names import shown
from .paths import expanded
from .runs import TEMPORARY

# Only formats that decode without running another program (as EPS would) and that announce themselves.
_MAGIC = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WEBP": rb"RIFF....WEBP",
    "GIF": rb"GIF8[79]a",
    "TIFF": rb"II\*\0|MM\0\*|II\+\0|MM\0\+",
    "BMP": rb"BM....\0\0\0\0",
    "AVIF": rb"....ftyp.{0,48}avi[fs]",
    "JPEG2000": rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    "PPM": rb"P[1-6f]\s",
    "QOI": rb"qoif",
}
_HEIC = re.compile(rb"....ftyp.{0,48}(heic|heix|hevc|hevx)", re.DOTALL)
_RAW = re.compile(r"\.(3fr|arw|cr[23]|dng|erf|kdc|nef|nrw|orf|pef|raf|raw|rw2|sr2|srw)", re.IGNORECASE)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
NOT_A_PICTURE = "not a picture"  # why a file is skipped that neither is one nor is named as one
_PROFILE_SPACE = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}


@dataclass(frozen=True)
class Picture:
    """A decoded file."""

    path: Path
    image: Image.Image
    """Upright, mode RGB, 8 bits, sRGB, opaque."""
    format: str
    """Container and pixel layout as stored, such as `JPEG CMYK`."""
    notes: tuple[str, ...]
    """What was done to it, in words."""


@dataclass(frozen=True)
class Skipped:
    """A file that is not used."""

    path: Path
    reason: str


class _Unusable(Exception):
    pass


def natural_order(name: str) -> tuple[list[str | int], str]:
    """Sorting key by which `photo2` comes before `photo10`."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name.casefold())], name


def find_pictures(paths: Iterable[str | Path], recursive: bool = False) -> tuple[list[Path], list[Skipped]]:
    """Pictures among files and folders: as named, and in natural order within a folder; and what was left out, and why.

    Only the first bytes of a file are read. Hidden and temporary files in a folder are skipped, named ones are not.
    Folders in a folder are skipped unless `recursive`; links back to a folder already seen are not followed.
    Raises PhotoError for a path that does not exist or a folder that cannot be listed.
    """
    pictures: list[Path] = []
    skipped: list[Skipped] = []
    seen: dict[str, Path] = {}

    def add(path: Path) -> None:
        real = os.path.realpath(path)
        if real in seen:
            skipped.append(Skipped(path, f"the same file as {shown(seen[real].name)}"))
            return
        seen[real] = path
        try:
            _format(path)
        except _Unusable as reason:
            skipped.append(Skipped(path, str(reason)))
        else:
            pictures.append(path)

    def walk(folder: Path) -> None:
        seen[os.path.realpath(folder)] = folder
        try:
            names = sorted(os.listdir(folder), key=natural_order)
        except OSError as error:
            raise PhotoError(f"{shown(folder)}: cannot be listed ({error.strerror})", "check its permissions") from None
        for path in (folder / name for name in names):
            if path.name.startswith("."):
                skipped.append(Skipped(path, "unfinished file" if path.name.startswith(TEMPORARY) else "hidden"))
            elif not path.is_dir():
                add(path)
            elif not recursive:
                skipped.append(Skipped(path, "a folder inside a folder; name it too to use its pictures"))
            elif os.path.realpath(path) in seen:
                skipped.append(Skipped(path, "a link to a folder already searched"))
            else:
                walk(path)

    for path in (expanded(named) for named in paths):
        if path.is_dir():
            walk(path)
        elif path.exists():
            add(path)
        else:
            raise PhotoError(f"{shown(path)}: no such file or folder", "check the path")
    return pictures, skipped


def read_picture(path: Path) -> Picture:
    """Decode one picture that cannot be done without. Raises PhotoError naming the file and the reason."""
    result = decode(path)
    if isinstance(result, Skipped):
        raise PhotoError(f"{shown(path)}: {result.reason}", "give a JPEG, PNG, WebP or another common picture")
    return result


def decode(path: Path, least: int | None = None) -> Picture | Skipped:
    """Decode all of a picture: upright by EXIF, in sRGB by its colour profile, 8 bits, over white, first frame.

    With `least`, a JPEG may come out smaller by 2, 4 or 8 (scaled in its DCT, which is far quicker), but neither side
    under `least` pixels.

    Damage is found by decoding every pixel, and in PNG also by checksums; what a JPEG decoder conceals (flipped
    bits that still decode) is not.
    """
    try:
        format = _format(path)
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged metadata; damaged pixels raise
            return _decode(path, file, format, least)
    except _Unusable as reason:
        return Skipped(path, str(reason))
    except Image.DecompressionBombError:
        return Skipped(path, f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} million pixels")
    except UnidentifiedImageError:
        return Skipped(path, f"damaged {format}: its header cannot be read")
    except Exception as error:  # decoders raise nearly everything on damaged input
        problem = str(error) or type(error).__name__
        return Skipped(path, f"truncated {format}" if "truncated" in problem.lower() else f"damaged {format}: {problem}")


def _format(path: Path) -> str:
    try:
        if not path.is_file():
            raise _Unusable("a link to nothing" if path.is_symlink() else "not a regular file" if path.exists() else "no such file")
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise _Unusable(f"cannot be read ({error.strerror})") from None
    if not start:
        raise _Unusable("empty file")
    if _RAW.fullmatch(path.suffix):  # most are TIFF files whose first picture is a thumbnail
        raise _Unusable("camera raw; develop it to JPEG, PNG or TIFF")
    for format, magic in _MAGIC.items():
        if re.match(magic, start, re.DOTALL):
            return format
    if _HEIC.match(start):
        raise _Unusable("HEIC cannot be read here; export it as JPEG or PNG")
    raise _Unusable(NOT_A_PICTURE if not _named_as(path) else f"not a picture, though named {path.suffix}")


def _named_as(path: Path) -> str | None:
    Image.init()
    return Image.registered_extensions().get(path.suffix.lower())


def _decode(path: Path, file: IO[bytes], format: str, least: int | None) -> Picture:
    Image.open(file, formats=[format]).verify()
    file.seek(0)
    image = Image.open(file, formats=[format])
    notes: list[str] = []
    if (_named_as(path) or "").replace("MPO", "JPEG") != format:
        notes.append(f"{format} by content")
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        notes.append(f"first of {frames} frames")
    if least:
        image.draft(None, (least, least))
    raw = str(image.tile)  # names the bit depth that PIL reduces on its own
    turn = _orientation(image, notes)
    image.load()
    stored, profile = image.mode, image.info.get("icc_profile")
    turned = turn and not _orientation(image, [])  # TIFF turns itself while it loads
    if turn:
        notes.append("rotated" if turn in (3, 6, 8) else "mirrored" if turn in (2, 4) else "rotated and mirrored")
    rgb = _over_white(_eight_bits(image, raw, notes), profile, notes)
    if turn and not turned:
        rgb = rgb.transpose(_UPRIGHT[turn])
    return Picture(path, rgb, f"{format} {stored}", tuple(notes))


def _orientation(image: Image.Image, notes: list[str]) -> int:
    """The EXIF (or XMP) orientation 2 to 8; 0 if there is nothing to do."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # EXIF is written by every camera in its own way; the pixels do not depend on it
        notes.append("broken EXIF ignored")
        return 0
    return value if value in _UPRIGHT else 0


def _eight_bits(image: Image.Image, raw: str, notes: list[str]) -> Image.Image:
    """16-bit, 32-bit and float grey scaled to mode L (LA if one value is transparent); other modes as they are."""
    if not image.mode.startswith(("I", "F")):
        if ";16" in raw:
            notes.append("16 bits to 8")
        return image
    values = np.asarray(image).astype(np.float32)  # (H, W)
    finite = np.isfinite(values)
    if not finite.any():
        raise _Unusable("no finite pixel")
    if not finite.all():
        notes.append("infinite pixels made black")
    low, high = float(values[finite].min()), float(values[finite].max())
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        bottom, top = 0.0, 4095.0 if "I;12" in raw else 65535.0
    else:  # the file does not say what is white: the narrowest usual range that holds all values
        usual = (1.0, 255.0) if image.mode == "F" else (255.0, 65535.0)
        holding = [value for value in usual if low >= 0 and high <= value]
        bottom, top = (0.0, holding[0]) if holding else (low, high)
    notes.append(f"grey {bottom:g}..{top:g} to 8 bits")
    grey = np.where(finite, (values - bottom) * (255 / max(top - bottom, 1e-30)), 0)
    scaled = Image.fromarray(np.rint(grey).clip(0, 255).astype(np.uint8))
    hole = image.info.get("transparency")
    if isinstance(hole, int):
        scaled.putalpha(Image.fromarray(np.where(values == hole, 0, 255).astype(np.uint8)))
    return scaled


def _over_white(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    """Any 8-bit mode to opaque sRGB; colours are converted before they are laid over white."""
    alpha = None
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        straight = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        alpha = straight.getchannel("A")
        image = straight.convert("L" if grey else "RGB")
    elif image.mode not in _PROFILE_SPACE:
        profile = None if image.mode == "LAB" else profile  # LAB needs none
        image = image.convert("L" if grey else "RGB")
    opaque = _to_srgb(image, profile, notes)
    if alpha is None or alpha.getextrema()[0] == 255:
        return opaque
    notes.append("alpha over white")
    white = Image.new("RGB", opaque.size, "white")
    white.paste(opaque, mask=alpha)
    return white


def _to_srgb(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    """L, RGB or CMYK to RGB by the embedded profile if it is usable, else by PIL's plain formulas.

    A profile is usable if it is of the picture's colour space and keeps a faint tint light.
    """
    if image.mode == "CMYK":
        notes.append("CMYK converted")
    if not profile:
        return image.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        name, space = ImageCms.getProfileDescription(source).strip(), source.profile.xcolor_space.strip()
        if image.mode == "L" and space == "RGB":
            image = image.convert("RGB")
        if space != _PROFILE_SPACE[image.mode]:
            notes.append(f"colour profile for {space} ignored")
            return image.convert("RGB")
        if "srgb" in name.lower() and image.mode == "RGB":
            return image
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            image.mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        faint = Image.new(image.mode, (1, 1), (12, 0, 0, 0) if image.mode == "CMYK" else "#f3f3f3")  # lcms mends white itself
        if min(transform.apply(faint).tobytes()) < 128:
            notes.append(f"implausible colour profile {shown(name)!r} ignored")
            return image.convert("RGB")
        converted = transform.apply(image)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        notes.append("broken colour profile ignored")
        return image.convert("RGB")
    notes.append(f"{shown(name) or space} to sRGB")
    return converted
