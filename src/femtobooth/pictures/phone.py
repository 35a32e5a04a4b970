"""Pictures as phones store them, HEIC and JPEG XL, by plugins of PIL that are installed or not (the extra `phone`)."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.util import find_spec
from typing import IO, Any

from PIL import Image

from ..core.errors import needs

PLUGINS = {"HEIF": "pillow_heif", "JXL": "pillow_jxl"}
"""Packages by PIL's name of the format that they read."""
ENDINGS = {".heic": "HEIF", ".heif": "HEIF", ".hif": "HEIF", ".jxl": "JXL"}
_RATIOS = ((1, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # ISO 18181-1, table of SizeHeader


def unread(format: str) -> str | None:
    """Say what reads a format where its plugin is not here; None where it is."""
    if find_spec(PLUGINS[format]):
        return None
    name = {"HEIF": "HEIC", "JXL": "JPEG XL"}[format]
    how = needs("phone")
    return f"{name} cannot be read here ({how}); or export it as JPEG or PNG"


def register(format: str) -> None:
    """Teach PIL a format, decoded by one thread: pictures are decoded side by side as it is."""
    if format == "HEIF":
        heif = import_module("pillow_heif")
        heif.options.DECODE_THREADS = 1
        heif.register_heif_opener()
    else:
        plugin: Any = import_module("pillow_jxl.JpegXLImagePlugin")
        plugin.DECODE_THREADS = 0


def has_gain_map(image: Image.Image, file: IO[bytes]) -> bool:
    """Tell whether a JPEG or HEIC holds a gain map beside its picture, which makes it brighter on screens that can be:
    as Ultra HDR (ISO 21496-1) says in the picture's own XMP, and Apple in the gain map's, or as an auxiliary picture.
    """
    if image.format == "HEIF":
        return any("gainmap" in str(name).lower() for name in image.info.get("aux", ()))
    if image.format == "JPEG" and "mp" in image.info:  # which PIL opens as one picture only where it is Ultra HDR
        return True
    if image.format != "MPO":
        return False
    for entry in getattr(image, "mpinfo", {}).get(0xB002, ())[1:]:
        file.seek(entry["DataOffset"])  # from a place near the start of the file, so the picture begins a little later
        if re.search(rb"hdrgm:Version|HDRGainMap", file.read(2**18)):
            return True
    return False


def refuse_bomb(file: IO[bytes]) -> None:
    """Raise DecompressionBombError for a JPEG XL of more pixels than can be held: its plugin decodes all it opens."""
    file.seek(0)
    start = file.read(2**16)
    file.seek(0)
    place = 0
    if not start.startswith(b"\xff\x0a"):  # in a container: the codestream, or its first part behind a number
        found = [(start.find(name), skip) for name, skip in ((b"jxlc", 4), (b"jxlp", 8))]
        place = min((at + skip for at, skip in found if at >= 0), default=-1)
    size = _size(start[place + 2 : place + 16]) if place >= 0 and start[place : place + 2] == b"\xff\x0a" else None
    if size is not None and size[0] * size[1] > 2 * (Image.MAX_IMAGE_PIXELS or 0):
        raise Image.DecompressionBombError


def _size(header: bytes) -> tuple[int, int]:
    """Read width and height from the bits behind the signature of a codestream (ISO 18181-1, SizeHeader)."""
    bits, at = int.from_bytes(header, "little"), 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        return bits >> (at - count) & ((1 << count) - 1)

    small = take(1)

    def side() -> int:
        return 8 * (take(5) + 1) if small else take((9, 13, 18, 30)[take(2)]) + 1

    height = side()
    ratio = take(3)
    return (side() if not ratio else height * _RATIOS[ratio][0] // _RATIOS[ratio][1]), height
