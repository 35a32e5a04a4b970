"""What a picture file says of its colours where PIL finds no profile:

PNG's chunks, AVIF's and HEIC's codes, EXIF, boxes that PIL passes over.
"""

from __future__ import annotations

import struct
from typing import IO

import numpy as np
from PIL import Image

from . import colour


def declared_profile(file: IO[bytes], image: Image.Image, format: str) -> bytes | None:
    """Find the profile for what a file without one says of its colours in another way."""
    find = _FINDERS.get(format)
    return find(file, image) if find else None


def _in_png(file: IO[bytes], image: Image.Image) -> bytes | None:
    if code := image.info.get("cicp"):
        return colour.profile_of_code(*code)
    points = image.info.get("chromaticity")  # white first, in PNG
    if "srgb" in image.info or ("gamma" not in image.info and not points):
        return None
    pairs = [*zip(points[2::2], points[3::2], strict=True), points[:2]] if points else None
    return colour.profile_of_gamma(image.info.get("gamma"), pairs)


def _in_avif(file: IO[bytes], image: Image.Image) -> bytes | None:
    file.seek(0)
    _, _, nclx = file.read(2**16).partition(b"colrnclx")
    return colour.profile_of_code(*struct.unpack(">HH", nclx[:4])) if len(nclx) >= 4 else None


def _in_heif(file: IO[bytes], image: Image.Image) -> bytes | None:
    code = image.info.get("nclx_profile")
    return colour.profile_of_code(code["color_primaries"], code["transfer_characteristics"]) if code else None


def _in_jpeg(file: IO[bytes], image: Image.Image) -> bytes | None:
    if b"R03\0" in image.info.get("exif", b""):  # the camera's Adobe RGB (DCF 2.0, option file)
        return colour.matrix_profile(colour.ADOBE_RGB, np.linspace(0, 1, 4096) ** (563 / 256))
    return None


def _in_jpeg2000(file: IO[bytes], image: Image.Image) -> bytes | None:
    file.seek(0)
    start, _, box = file.read(colour.LARGEST_PROFILE).partition(b"colr\2")
    return box[2 : int.from_bytes(start[-4:], "big") - 9] or None


def _in_bmp(file: IO[bytes], image: Image.Image) -> bytes | None:
    file.seek(14)
    head = file.read(124)
    if len(head) < 124 or head[:4] != b"\x7c\0\0\0" or head[56:60] != b"DEBM":  # of version 5, with a profile
        return None
    place, size = struct.unpack("<II", head[112:120])
    file.seek(14 + place)
    return file.read(min(size, colour.LARGEST_PROFILE)) or None


_FINDERS = {
    "PNG": _in_png,
    "AVIF": _in_avif,
    "HEIF": _in_heif,
    "JPEG": _in_jpeg,
    "JPEG2000": _in_jpeg2000,
    "BMP": _in_bmp,
}
