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

from PIL import Image, UnidentifiedImageError

from ..core.errors import PhotoError
from ..core.files import TEMPORARY
from ..core.names import shown
from ..core.paths import expanded
from . import archive_paths, formats, pixels
from .formats import NOT_A_PICTURE, Unusable, named_as


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
    alpha: Image.Image | None = None
    """Mode L: how opaque it was before it was laid over white; None where all of it was."""


@dataclass(frozen=True)
class Skipped:
    """A file that is not used."""

    path: Path
    reason: str


def is_other(path: Path) -> bool:
    """Tell whether a file neither is a picture nor is named as one, by its first bytes."""
    try:
        _format(path)
    except Unusable as reason:
        return str(reason) == NOT_A_PICTURE
    return False


def natural_order(name: str) -> tuple[list[str | int], str]:
    """Make a sorting key by which `photo2` comes before `photo10`."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name.casefold())], name


def find_pictures(
    paths: Iterable[str | Path], recursive: bool = False, archives: bool = False
) -> tuple[list[Path], list[Skipped]]:
    """Find the pictures among files and folders: as named, and in natural order within a folder; and what was left out,
    and why.

    Only the first bytes of a file are read. Hidden and temporary files in a folder are skipped, named ones are not.
    Folders in a folder are skipped unless `recursive`; links back to a folder already seen are not followed. With
    `archives`, these are folders too; a path that leads into one needs no such permission.
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
        except Unusable as reason:
            skipped.append(Skipped(path, str(reason)))
        else:
            pictures.append(path)

    def walk(folder: Path) -> None:
        seen[os.path.realpath(folder)] = folder
        skipped.extend(Skipped(*one) for one in archive_paths.problems(folder))
        try:
            names = sorted(archive_paths.names(folder), key=natural_order)
        except OSError as error:
            raise PhotoError(f"{folder}: cannot be listed ({error.strerror})", "check its permissions") from None
        for path in (folder / name for name in names):
            if path.name.startswith("."):
                skipped.append(Skipped(path, "unfinished file" if path.name.startswith(TEMPORARY) else "hidden"))
            elif not (archive_paths.is_folder(path) or (archives and archive_paths.is_archive(path))):
                add(path)
            elif not recursive:
                skipped.append(Skipped(path, "a folder inside a folder; name it too to use its pictures"))
            elif os.path.realpath(path) in seen:
                skipped.append(Skipped(path, "a link to a folder already searched"))
            else:
                walk(path)

    for path in (expanded(named) for named in paths):
        if archive_paths.is_folder(path) or (archives and archive_paths.is_archive(path)):
            walk(path)
        elif path.exists() or archive_paths.is_file(path):
            add(path)
        else:
            raise PhotoError(f"{path}: no such file or folder", "check the path")
    return pictures, skipped


def read_picture(path: Path) -> Picture:
    """Decode one picture that cannot be done without. Raises PhotoError naming the file and the reason."""
    result = decode(path)
    if isinstance(result, Skipped):
        raise PhotoError(f"{path}: {result.reason}", "give a JPEG, PNG, WebP or another common picture")
    return result


def decode(path: Path, least: int | None = None, data: bytes | None = None) -> Picture | Skipped:
    """Decode all of a picture: upright by EXIF, in sRGB by its colour profile, 8 bits, over white, first frame.

    With `data`, that is decoded, and `path` is only what it is called. With `least`, a JPEG may come out smaller by 2,
    4 or 8 (scaled in its DCT, which is far quicker), but neither side under `least` pixels.

    Damage is found by decoding every pixel, and in PNG also by checksums; what a JPEG decoder conceals (flipped
    bits that still decode) is not.
    """
    try:
        data = _in_archive(path) if data is None else data
        format = _format(path) if data is None else formats.identify(data[: formats.START], path.suffix)
        notes = [f"{format} by content"] if (named_as(path.suffix) or "").replace("MPO", "JPEG") != format else []
        with path.open("rb") if data is None else BytesIO(data) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged metadata; damaged pixels raise
            found = pixels.decode(file, format, least, notes)
            return Picture(path, found.image, f"{format} {found.layout}", tuple(notes), found.alpha)
    except Unusable as reason:
        return Skipped(path, str(reason))
    except Image.DecompressionBombError:
        return Skipped(path, f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} million pixels")
    except UnidentifiedImageError:
        return Skipped(path, f"damaged {format}: its header cannot be read")
    except Exception as error:  # decoders raise nearly everything on damaged input
        problem = str(error) or type(error).__name__
        return Skipped(
            path, f"truncated {format}" if "truncated" in problem.lower() else f"damaged {format}: {problem}"
        )


def _in_archive(path: Path) -> bytes | None:
    """Read a picture in an archive; None for any other. Raises Unusable."""
    try:
        if not archive_paths.leads_inside(path):
            return None
        with archive_paths.opened(path) as file:
            return file.read()
    except OSError as error:
        raise Unusable(f"cannot be read ({error.strerror or error})") from None
    except PhotoError as error:
        raise Unusable(error.problem) from None


def _format(path: Path) -> str:
    try:
        if not archive_paths.is_file(path):
            raise Unusable(
                "a link to nothing" if path.is_symlink() else "not a regular file" if path.exists() else "no such file"
            )
        with archive_paths.opened(path, formats.START) as file:
            start = file.read(formats.START)
    except OSError as error:
        raise Unusable(f"cannot be read ({error.strerror or error})") from None
    return formats.identify(start, path.suffix)
