"""The samples of a TIFF's first page as they are stored, for layouts that PIL reads wrongly or not at all.

PIL (libtiff) undoes the compression, for which the page is described to it as one of 8-bit grey; what its bytes mean is
read here: depth, byte order, planes, predictor, sample format. JPEG, fax and other compressions that know pixels are
PIL's own business.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from io import BytesIO
from typing import IO, Any

import numpy as np
from PIL import TiffImagePlugin

MOST_BYTES = 2**31  # of a page, decompressed
_FORMATS = {1: "u", 2: "i", 3: "f"}
_BYTE_COMPRESSIONS = {
    1,
    5,
    8,
    32773,
    32946,
    34925,
    50000,
}  # none, LZW, deflate, PackBits, deflate again, LZMA, Zstandard
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL = 256, 257, 258, 259, 262, 266
_STRIPS, _SAMPLES, _STRIP_ROWS, _STRIP_SIZES, _PLANAR, _PREDICTOR = 273, 277, 278, 279, 284, 317
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_SIZES, _EXTRA, _SAMPLE_FORMAT = 322, 323, 324, 325, 338, 339
_PROFILE, _ORIENTATION = 34675, 274


class UnknownLayout(ValueError):
    """What is stored in a way that is not read here, in words."""


@dataclass(frozen=True)
class Page:
    """How the first page of a TIFF is stored."""

    tags: Any
    little: bool
    width: int
    height: int
    samples: int
    bits: int
    kind: str
    """u, i or f: unsigned, signed, float."""
    photometric: int
    """0 white is zero, 1 black is zero, 2 RGB, 3 palette, 5 CMYK, 6 YCbCr, 8 CIELab, 9 ICCLab."""
    extra: tuple[int, ...]
    """Of the last samples: 0 unspecified, 1 premultiplied alpha, 2 alpha."""
    planar: bool
    compression: int
    more: bool
    """Whether other pages follow."""

    @property
    def profile(self) -> bytes | None:
        return self.tags.get(_PROFILE)

    @property
    def orientation(self) -> int:
        return self.tags.get(_ORIENTATION, 1)

    @property
    def misread(self) -> bool:
        """Whether PIL reads such a page wrongly, or loses what only its depth holds."""
        if self.compression not in _BYTE_COMPRESSIONS or self.photometric == 3:
            return False
        deep = self.bits > 8 and (self.samples == 1 or self.planar or self.photometric == 0 or self.profile is not None)
        return deep or self.kind != "u"


def first_page(file: IO[bytes]) -> Page:
    """Read the description of a TIFF's first page."""
    file.seek(0)
    header = file.read(8)
    if len(header) == 8 and header[2 if header[:2] == b"II" else 3] == 43:  # BigTIFF
        header += file.read(8)
    tags = TiffImagePlugin.ImageFileDirectory_v2(header)
    file.seek(tags.next)
    tags.load(file)
    width, height, samples = tags[_WIDTH], tags[_HEIGHT], tags.get(_SAMPLES, 1)
    bits, kinds = set(tags.get(_BITS, (1,))), set(tags.get(_SAMPLE_FORMAT, (1,)))
    if not all(isinstance(value, int) and value > 0 for value in (width, height, samples)) or samples > 64:
        raise UnknownLayout(f"a page of {width}x{height} pixels of {samples} samples")
    one_kind = len(bits) == 1 and len(kinds) == 1
    return Page(
        tags=tags,
        little=header[:2] == b"II",
        width=width,
        height=height,
        samples=samples,
        bits=max(bits),
        kind=_FORMATS.get(max(kinds), "?") if one_kind else "?",
        photometric=tags.get(_PHOTOMETRIC, 0),
        extra=tuple(tags.get(_EXTRA, ())),
        planar=tags.get(_PLANAR, 1) == 2 and samples > 1,
        compression=tags.get(_COMPRESSION, 1),
        more=bool(tags.next),
    )


def read_samples(file: IO[bytes], page: Page) -> np.ndarray:
    """Read what the page holds, (H, W, S) in the type it is stored in.

    Raises UnknownLayout, or what PIL raises on damage.
    """
    if page.kind == "?" or page.compression not in _BYTE_COMPRESSIONS or page.photometric not in (0, 1, 2, 5, 8, 9):
        raise UnknownLayout(
            f"a TIFF of {page.samples}x{page.bits} bits, photometric {page.photometric}, compression {page.compression}"
        )
    if page.width * page.height * page.samples * max(page.bits, 8) // 8 > MOST_BYTES:
        raise UnknownLayout(f"a TIFF of more than {MOST_BYTES // 2**30} GB")
    if not page.planar:
        return _plane(file, page, 0, page.samples)
    return np.concatenate([_plane(file, page, number, 1) for number in range(page.samples)], axis=-1)


def _plane(file: IO[bytes], page: Page, number: int, samples: int) -> np.ndarray:
    """Read plane `number` of `samples` samples a pixel, (H, W, samples)."""
    tags, tiled = page.tags, _TILES in page.tags
    wide, high = (
        (tags[_TILE_WIDTH], tags[_TILE_HEIGHT])
        if tiled
        else (page.width, min(tags.get(_STRIP_ROWS, page.height), page.height))
    )
    if not all(isinstance(value, int) and value > 0 for value in (wide, high)):
        raise UnknownLayout("a TIFF with blocks of no size")
    across, down = -(-page.width // wide), -(-page.height // high)
    row = -(-wide * samples * page.bits // 8)  # bytes
    rows = down * high if tiled else page.height
    if across * row * rows > MOST_BYTES:
        raise UnknownLayout(f"a TIFF of more than {MOST_BYTES // 2**30} GB")
    places, sizes = (tags.get(_TILES), tags.get(_TILE_SIZES)) if tiled else (tags.get(_STRIPS), tags.get(_STRIP_SIZES))
    if not places:
        raise UnknownLayout("a TIFF without pixels")
    sizes = sizes or [row * rows] * len(places)
    blocks = across * down
    part = slice(number * blocks, (number + 1) * blocks)
    ours = list(zip(places[part], sizes[part], strict=False))
    if len(ours) < blocks:
        raise OSError("truncated list of blocks")
    stored = _bytes_of(file, page, ours, (across * row, rows), (row if tiled else 0, high))
    values = _values(
        stored.reshape(rows * across, row), page, samples, wide
    )  # rows of one block below another where there are tiles
    return values.reshape(rows, across * wide, samples)[: page.height, : page.width]


def _bytes_of(
    file: IO[bytes], page: Page, blocks: list[tuple[int, int]], size: tuple[int, int], block: tuple[int, int]
) -> np.ndarray:
    """Read the decompressed bytes, uint8 (H, W), of blocks (place, size), as of a grey page of `size` (width, height)
    in tiles or strips.
    """
    content = []
    for place, length in blocks:
        file.seek(place)
        content.append(file.read(min(length, MOST_BYTES)))
    tile_width, rows = block
    names = (_TILES, _TILE_SIZES) if tile_width else (_STRIPS, _STRIP_SIZES)
    entries = {
        _WIDTH: [size[0]],
        _HEIGHT: [size[1]],
        _BITS: [8],
        _COMPRESSION: [page.compression],
        _PHOTOMETRIC: [1],
        _SAMPLES: [1],
    }
    entries |= {_FILL: [page.tags.get(_FILL, 1)], names[1]: [len(part) for part in content]}
    entries |= {_TILE_WIDTH: [tile_width], _TILE_HEIGHT: [rows]} if tile_width else {_STRIP_ROWS: [rows]}
    start = 8 + 2 + 12 * (len(entries) + 1) + 4
    places = start + 8 * len(content) + np.cumsum([0, *entries[names[1]]])[:-1]
    entries[names[0]] = [int(place) for place in places]
    lists, table = b"", b""
    for key, values in sorted(entries.items()):
        packed = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            packed, lists = struct.pack("<I", start + len(lists)), lists + packed
        table += struct.pack("<HHI", key, 4, len(values)) + packed
    head = (
        b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + table + bytes(4) + lists.ljust(8 * len(content), b"\0")
    )
    image = TiffImagePlugin.TiffImageFile(BytesIO(head + b"".join(content)))
    return np.asarray(image)


def _values(rows: np.ndarray, page: Page, samples: int, wide: int) -> np.ndarray:
    """Read samples (N, wide, samples) of rows of bytes (N, B): bits unpacked, predictor undone."""
    order, bits, predictor = "<" if page.little else ">", page.bits, page.tags.get(_PREDICTOR, 1)
    if page.kind == "f" and predictor == 3:  # differences of bytes, the highest of all values first
        summed = np.add.accumulate(rows.reshape(len(rows), -1, samples), axis=1, dtype=np.uint8)
        rows, order, predictor = summed.reshape(len(rows), bits // 8, -1).swapaxes(1, 2).reshape(len(rows), -1), ">", 1
    if bits in (8, 16, 32, 64) and not (page.kind == "f" and bits == 8):
        values = np.ascontiguousarray(rows).view(f"{order}{page.kind}{bits // 8}").reshape(len(rows), wide, samples)
        if predictor == 2 and page.kind != "f":
            values = np.add.accumulate(values, axis=1, dtype=values.dtype.newbyteorder("="))
        return values
    if page.kind != "u" or bits > 32 or predictor != 1:
        raise UnknownLayout(f"a TIFF of {bits}-bit samples of kind {page.kind} with predictor {predictor}")
    single = np.unpackbits(rows, axis=1)[:, : wide * samples * bits].reshape(len(rows), wide, samples, bits)
    if bits == 24 and page.little:
        single = single.reshape(*single.shape[:-1], 3, 8)[..., ::-1, :].reshape(single.shape)
    powers = (1 << np.arange(bits)[::-1]).astype(np.uint32)
    return (single * powers).sum(axis=-1, dtype=np.uint32)
