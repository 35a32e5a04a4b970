"""What PIL leaves out of a PNG: checksums without reading all frames, the cICP chunk, the low bytes of 16-bit
colours.
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from .formats import Unusable

MOST_CHUNKS = 10_000  # besides those of pixels; each costs time, and no picture has so many


def check(file: IO[bytes]) -> tuple[int, int] | None:
    """Verify the checksums of a PNG's first frame and all before it; returns primaries and transfer of its cICP chunk.

    Raises SyntaxError or OSError on damage, and Unusable for a file of more chunks than any picture has.
    """
    file.seek(0)
    if file.read(16)[12:] != b"IHDR":
        raise UnidentifiedImageError
    file.seek(8)
    others, before, code = 0, True, None
    while others <= MOST_CHUNKS:
        head = file.read(8)
        if len(head) < 8:
            raise OSError("truncated")
        length, name = struct.unpack(">I4s", head)
        others += name != b"IDAT"
        if name == b"IEND" or (name in (b"fcTL", b"fdAT") and not before):
            return code
        if before or name == b"IDAT":
            content = _checked(file, name, length)
            if name == b"cICP" and len(content) == 4:
                code = content[0], content[1]
            before = before and name != b"IDAT"
        else:
            file.seek(length + 4, os.SEEK_CUR)
    raise Unusable(f"a PNG of more than {MOST_CHUNKS:,} chunks")


def _checked(file: IO[bytes], name: bytes, length: int) -> bytes:
    """Read a chunk's content, of which the first bytes are returned.

    Raises SyntaxError where its checksum does not fit.
    """
    start, crc, left = b"", zlib.crc32(name), length
    while left:
        part = file.read(min(left, 2**20))
        if not part:
            raise OSError("truncated")
        start, crc, left = start or part[:64], zlib.crc32(part, crc), left - len(part)
    if file.read(4) != struct.pack(">I", crc):
        raise SyntaxError(f"bad checksum in {name!r}")
    return start


def sixteen_bits(file: IO[bytes], image: Image.Image, raw: str) -> np.ndarray:
    """Read both bytes of the samples of a decoded PNG of 16-bit colours or of grey and alpha, of which PIL keeps the
    high one: (H, W, S).
    """
    if "LA;16B" in raw:  # as a picture of four 8-bit samples
        both = np.asarray(_decoded(file, "LA;16B", "RGBA"))
        high, low = both[..., 0::2], both[..., 1::2]
    else:
        high, low = np.asarray(image), np.asarray(_decoded(file, ";16B", ";16L"))
    return high.astype(np.uint16) << 8 | low


def _decoded(file: IO[bytes], stored: str, read: str) -> Image.Image:
    """Decode the picture with its samples read another way."""
    file.seek(0)
    image = Image.open(file, formats=["PNG"])
    image.tile = [tile._replace(args=str(tile.args).replace(stored, read)) for tile in image.tile]
    image.load()
    return image
