"""Pixels against values worked out by hand: depths, planes, inversion, transparency, and what a file says of its
colours.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from femtobooth.pictures import colour
from femtobooth.pictures.images import Picture, Skipped, decode

HEIGHT, WIDTH = 6, 20
ACROSS = np.linspace(0, 1, WIDTH)
GREY = np.tile(ACROSS, (HEIGHT, 1))
RGB = np.stack([GREY, GREY[:, ::-1], np.tile(np.linspace(0, 1, HEIGHT)[:, None], (1, WIDTH))], axis=-1)
ALPHA = np.tile(np.linspace(1, 0, HEIGHT)[:, None], (1, WIDTH))


def seen(path: Path) -> np.ndarray:
    picture = decode(path)
    assert isinstance(picture, Picture), picture
    return np.asarray(picture.image).astype(float)


def expected(light: np.ndarray, alpha: np.ndarray | float = 1) -> np.ndarray:
    """Levels of colours 0 to 1 over white, (H, W, 3)."""
    colours = np.repeat(light[..., None], 3, axis=-1) if light.ndim == 2 else light
    share = np.asarray(alpha)[..., None] if isinstance(alpha, np.ndarray) else alpha
    return 255 * (colours * share + 1 - share)


def srgb(light: np.ndarray) -> np.ndarray:
    """Linear light 0 to 1 to levels 0 to 255."""
    light = light.clip(0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light.clip(1e-9) ** (1 / 2.4) - 0.055)


# --- TIFF ---


def stored(values: np.ndarray, kind: str) -> np.ndarray:
    return values.astype(kind) if "f" in kind else np.rint(values * np.iinfo(kind).max).astype(kind)


def tiff(
    values: np.ndarray, photometric: int, *, bits: int | None = None, planar: bool = False, deflate: bool = False, predictor: int = 1,
    extra: tuple[int, ...] = (), tags: dict[int, tuple[int, bytes]] | None = None, rows: int = 4,
) -> bytes:  # fmt: skip
    """A TIFF of (H, W, S) samples in the byte order of their type, in strips of `rows`."""
    values = values.reshape(*values.shape[:2], -1)
    big = values.dtype.byteorder == ">"
    order, (height, width, samples), kind = (
        ">" if big else "<",
        values.shape,
        {"u": 1, "i": 2, "f": 3}[values.dtype.kind],
    )
    strips = []
    for plane in np.moveaxis(values, -1, 0)[..., None] if planar else [values]:
        for top in range(0, height, rows):
            strip = plane[top : top + rows]
            if predictor == 2:
                strip = np.diff(strip, axis=1, prepend=strip[:, :1] * 0)
            data = strip.astype(values.dtype).tobytes() if bits is None else packed(strip, bits)
            strips.append(zlib.compress(data) if deflate else data)
    depth = bits or 8 * values.dtype.itemsize

    def shorts(*numbers: int) -> tuple[int, bytes]:
        return 3, struct.pack(f"{order}{len(numbers)}H", *numbers)

    def longs(*numbers: int) -> tuple[int, bytes]:
        return 4, struct.pack(f"{order}{len(numbers)}I", *numbers)

    places = 8 + np.cumsum([0, *map(len, strips)])
    fields = {
        256: longs(width), 257: longs(height), 258: shorts(*[depth] * samples), 259: shorts(8 if deflate else 1), 262: shorts(photometric),
        273: longs(*places[:-1]), 277: shorts(samples), 278: longs(rows), 279: longs(*map(len, strips)), 284: shorts(2 if planar else 1),
        317: shorts(predictor), 339: shorts(*[kind] * samples),
    }  # fmt: skip
    fields |= ({338: shorts(*extra)} if extra else {}) | (tags or {})
    start, table, lists = int(places[-1]), b"", b""
    for key, (type_, data) in sorted(fields.items()):
        count = len(data) // {1: 1, 3: 2, 4: 4, 7: 1}[type_]
        if len(data) > 4:
            lists += data
            data = struct.pack(f"{order}I", start + 6 + 12 * len(fields) + len(lists) - len(data))  # noqa: PLW2901
        table += struct.pack(f"{order}HHI", key, type_, count) + data.ljust(4, b"\0")
    head = (b"MM\0*" if big else b"II*\0") + struct.pack(f"{order}I", start)
    return head + b"".join(strips) + struct.pack(f"{order}H", len(fields)) + table + bytes(4) + lists


def packed(values: np.ndarray, bits: int) -> bytes:
    """Rows of samples of a few bits, each row padded to a byte."""
    single = values.reshape(len(values), -1, 1) >> np.arange(bits)[::-1] & 1
    return np.packbits(single.reshape(len(values), -1).astype(np.uint8), axis=1).tobytes()


def bits(values: np.ndarray, depth: int) -> np.ndarray:
    return np.rint(values * (2**depth - 1)).astype("<u2")


TIFFS: dict[str, tuple[bytes, np.ndarray]] = {
    **{f"white is zero, {kind}": (tiff(stored(GREY, kind), 0), expected(1 - GREY)) for kind in ("<u2", ">u2", "<f4", ">f4", "<u4", "<f2")},
    **{f"black is zero, {kind}": (tiff(stored(GREY, kind), 1), expected(GREY)) for kind in ("<u2", ">u2", "<f4", ">f4", ">u4", "<f8")},
    **{
        f"white is zero, {depth} bits": (tiff(bits(GREY, depth), 0, bits=depth), expected(1 - bits(GREY, depth) / (2**depth - 1)))
        for depth in (1, 2, 4, 10, 12, 14)
    },
    "white is zero, 8 bits": (tiff(stored(GREY, "u1"), 0), expected(1 - GREY)),
    **{
        (f"planar {kind} " f"{'deflate' if deflate else 'plain'}"): (tiff(stored(RGB, kind), 2, planar=True, deflate=deflate), expected(RGB))
        for kind, deflate in itertools.product(("u1", "<u2", ">u2", "<f4"), (False, True))
    },
    "planar with predictor": (tiff(stored(RGB, "<u2"), 2, planar=True, deflate=True, predictor=2), expected(RGB)),
    "planar rgba": (tiff(stored(np.dstack([RGB, ALPHA]), ">u2"), 2, planar=True, extra=(2,)), expected(RGB, ALPHA)),
    "planar with a sample that is no alpha": (tiff(stored(np.dstack([RGB, ALPHA]), "<u2"), 2, planar=True, extra=(0,)), expected(RGB)),
    "rgb float": (tiff(stored(RGB, "<f4"), 2), expected(RGB)),
    "rgb float brighter than white": (tiff(stored(RGB * 1.05, "<f4"), 2), expected((RGB * 1.05).clip(0, 1))),
    "rgb 32 bits": (tiff(stored(RGB, ">u4"), 2), expected(RGB)),
    "rgba 16 bits premultiplied": (
        tiff(stored(np.dstack([RGB * ALPHA[..., None], ALPHA]), "<u2"), 2, extra=(1,)), expected(RGB, ALPHA),
    ),
    "grey and alpha of 16 bits": (tiff(stored(np.dstack([GREY, ALPHA]), "<u2"), 1, extra=(2,)), expected(GREY, ALPHA)),
    "white is zero and alpha": (tiff(stored(np.dstack([GREY, ALPHA]), "u1"), 0, extra=(2,)), expected(1 - GREY, ALPHA)),
    "cmyk 16 bits planar": (tiff(stored(np.dstack([1 - RGB, 0 * GREY]), "<u2"), 5, planar=True), expected(RGB)),
    "signed 8 bits": (tiff(np.rint(GREY * 255 - 128).astype("i1"), 1), expected(GREY)),
    "lab 16 bits, grey": (
        tiff(stored(np.dstack([GREY, 0 * GREY, 0 * GREY]), "<u2"), 8),
        expected(srgb(np.where(GREY > 0.08, ((GREY + 0.16) / 1.16) ** 3, GREY / 9.033)) / 255),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TIFFS)
def test_tiff_layouts(tmp_path: Path, name: str) -> None:
    content, wanted = TIFFS[name]
    (tmp_path / "a.tif").write_bytes(content)
    assert np.abs(seen(tmp_path / "a.tif") - wanted).max() <= (3 if "lab" in name or "premultiplied" in name else 1)


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_layout_that_pil_does_not_know_is_turned_as_others_are(tmp_path: Path, turn: int) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(stored(RGB, "<u2"), 2, planar=True, tags={274: (3, struct.pack("<H", turn))}))
    (tmp_path / "b.tif").write_bytes(tiff(stored(RGB, "u1"), 2, tags={274: (3, struct.pack("<H", turn))}))
    assert np.abs(seen(tmp_path / "a.tif") - seen(tmp_path / "b.tif")).max() <= 1


def test_subsampled_ycbcr_without_compression(tmp_path: Path) -> None:
    left, right = np.array([200, 30, 20]), np.array([30, 40, 190])
    blocks = []
    for rgb in [left] * 5 + [right] * 5:
        y = rgb @ (0.299, 0.587, 0.114)
        blocks.append([y] * 4 + [(rgb[2] - y) / 1.772 + 128, (rgb[0] - y) / 1.402 + 128])
    data = np.rint(np.array([blocks] * 3)).astype(np.uint8)  # 3 x 10 blocks of 2x2 pixels
    whole = tiff(np.zeros((HEIGHT, WIDTH, 3), np.uint8), 6, tags={530: (3, struct.pack("<2H", 2, 2))}, rows=HEIGHT)
    (tmp_path / "a.tif").write_bytes(whole[:8] + data.tobytes() + whole[8 + data.size :])
    found = seen(tmp_path / "a.tif")
    assert np.abs(found[:, :10] - left).max() <= 2
    assert np.abs(found[:, 10:] - right).max() <= 2


@pytest.mark.parametrize(
    "content",
    [
        tiff(stored(RGB, "<f4"), 32803),
        tiff(np.zeros((4, 4, 1), "<u2"), 2),
        tiff(bits(GREY, 12), 1, bits=12, predictor=2),
        tiff(stored(RGB, "<u2"), 2, planar=True)[:-60],
    ],
)
def test_what_cannot_be_read_says_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tif").write_bytes(content)
    assert isinstance(decode(tmp_path / "a.tif"), Skipped)


# --- PNG ---


def png(values: np.ndarray, kind: int, depth: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of (H, W, S) samples of `depth` bits, with further chunks before its pixels."""
    values = values.reshape(*values.shape[:2], -1)
    rows = [b"\0" + (packed(row[None], depth) if depth < 16 else row.astype(">u2").tobytes()) for row in values]
    head = (b"IHDR", struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, kind, 0, 0, 0))
    every = [head, *chunks, (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in every
    )


def steps(depth: int, kind: int) -> np.ndarray:
    """Whole numbers of so many bits, (H, W, S)."""
    return np.rint((GREY[..., None] if kind == 0 else RGB) * (2**depth - 1)).astype(np.uint16)


@pytest.mark.parametrize(("kind", "depth"), [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16)])
def test_the_transparent_colour_of_every_depth(tmp_path: Path, kind: int, depth: int) -> None:
    """One colour of the picture is transparent; of 16 bits, another that differs in the low byte alone is not."""
    values = steps(depth, kind)
    hole = values[2, 5].copy()
    if depth == 16:
        values[4, 7] = hole ^ 1
    (tmp_path / "a.png").write_bytes(png(values, kind, depth, (b"tRNS", struct.pack(f">{len(hole)}H", *hole))))
    wanted = np.repeat(values, 3 // values.shape[-1], axis=-1) * (255 / (2**depth - 1))
    wanted[(values == hole).all(axis=-1)] = 255
    assert np.abs(seen(tmp_path / "a.png") - wanted).max() <= 1


def test_transparent_palette_of_few_bits(tmp_path: Path) -> None:
    values = np.tile(np.arange(WIDTH) % 4, (HEIGHT, 1)).astype(np.uint16)
    palette = np.array([(200, 0, 0), (0, 200, 0), (0, 0, 200), (9, 9, 9)], np.uint8)
    (tmp_path / "a.png").write_bytes(png(values, 3, 2, (b"PLTE", palette.tobytes()), (b"tRNS", bytes((255, 0, 51)))))
    wanted = [(200, 0, 0), (255, 255, 255), (204, 204, 244), (9, 9, 9)]
    assert np.abs(seen(tmp_path / "a.png")[0, :4] - wanted).max() <= 1


# --- colours ---


def light_of_srgb(values: np.ndarray) -> np.ndarray:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


# To linear sRGB; CSS Color 4 and Bruce Lindbloom's tables for D65.
P3 = np.array([[1.2249402, -0.2249402, 0], [-0.0420570, 1.0420570, 0], [-0.0196376, -0.0786361, 1.0982736]])
ADOBE = np.array([[1.3983557, -0.3983557, 0], [0, 1, 0], [0, -0.0429290, 1.0429290]])
REC2020 = np.array(
    [[1.6604910, -0.5876411, -0.0728499], [-0.1245505, 1.1328999, -0.0083494], [-0.0181508, -0.1005789, 1.1187297]]
)
INSIDE = 0.4 + 0.2 * RGB  # of these primaries, no colour that sRGB lacks


def named(light: np.ndarray, points: Any = colour.SRGB) -> bytes:
    """A profile that calls itself sRGB, whatever it does."""
    profile = colour.matrix_profile(points, light)
    assert profile
    return profile.replace(b"colours of the file", b"sRGB IEC61966-2.1\0\0")


EVEN = np.linspace(0, 1, 4096)
PROFILES: dict[str, tuple[bytes, np.ndarray]] = {
    "sRGB by name, gamma 2.2": (named(EVEN**2.2), srgb(INSIDE**2.2)),
    "sRGB by name, gamma 1.8": (named(EVEN**1.8), srgb(INSIDE**1.8)),
    "sRGB by name, linear": (named(EVEN), srgb(INSIDE)),
    "sRGB by name, P3": (named(light_of_srgb(EVEN), (*colour._P3, colour.SRGB[3])), srgb(light_of_srgb(INSIDE) @ P3.T)),
    "sRGB by name, Adobe RGB": (named(EVEN**2.2, colour.ADOBE_RGB), srgb(INSIDE**2.2 @ ADOBE.T)),
    "sRGB": (named(light_of_srgb(EVEN)), 255 * INSIDE),
}


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_judged_by_what_it_does(tmp_path: Path, name: str, depth: int) -> None:
    profile, wanted = PROFILES[name]
    values = np.rint(INSIDE * (2**depth - 1)).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(png(values, 2, depth, (b"iCCP", b"sRGB\0\0" + zlib.compress(profile))))
    assert np.abs(seen(tmp_path / "a.png") - wanted).max() <= (2 if depth == 8 else 1)


def test_srgb_as_others_write_it_changes_no_pixel(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for profile in (
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        named(light_of_srgb(np.linspace(0, 1, 1024))),
    ):
        Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=profile)
        assert np.array_equal(seen(tmp_path / "a.png"), pixels)


def test_dark_colours_of_sixteen_bits_stay_apart(tmp_path: Path) -> None:
    """Linear light: between the levels 0 and 1 of 8 bits lie thirteen of sRGB."""
    light = np.tile(np.linspace(0, 1 / 255, 40)[:, None], (2, 1, 3))
    profile = (b"iCCP", b"x\0\0" + zlib.compress(named(EVEN)))
    (tmp_path / "a.png").write_bytes(png(np.rint(light * 65535).astype(np.uint16), 2, 16, profile))
    tags = {34675: (7, named(EVEN))}
    (tmp_path / "a.tif").write_bytes(tiff(np.rint(light * 65535).astype("<u2"), 2, tags=tags))
    for name in ("a.png", "a.tif"):
        assert np.abs(seen(tmp_path / name) - srgb(light)).max() <= 1


def fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}I", *(round(100000 * value) for value in values))


CHRM_ADOBE = (b"cHRM", fixed(0.3127, 0.3290, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06))
CHRM_SRGB = (b"cHRM", fixed(0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06))
PQ = 203 / 10000 * INSIDE  # light as a share of 10,000 cd/m2
PQ_SIGNAL = ((0.8359375 + 18.8515625 * PQ**0.1593017578125) / (1 + 18.6875 * PQ**0.1593017578125)) ** 78.84375
CHUNKS: dict[str, tuple[np.ndarray, list[tuple[bytes, bytes]], np.ndarray]] = {
    "gAMA 1": (INSIDE, [(b"gAMA", fixed(1))], srgb(INSIDE)),
    "gAMA of an old Macintosh": (INSIDE, [(b"gAMA", fixed(1 / 1.8))], srgb(INSIDE**1.8)),
    "gAMA as beside sRGB": (INSIDE, [(b"gAMA", fixed(0.45455))], 255 * INSIDE),
    "gAMA and cHRM as beside sRGB": (INSIDE, [(b"gAMA", fixed(0.45455)), CHRM_SRGB], 255 * INSIDE),
    "gAMA and cHRM of Adobe RGB": (INSIDE, [(b"gAMA", fixed(1 / 2.2)), CHRM_ADOBE], srgb(INSIDE**2.2 @ ADOBE.T)),
    "cHRM alone": (INSIDE, [CHRM_ADOBE], srgb(light_of_srgb(INSIDE) @ ADOBE.T)),
    "sRGB wins over gAMA": (INSIDE, [(b"sRGB", b"\0"), (b"gAMA", fixed(1))], 255 * INSIDE),
    "gAMA 0": (INSIDE, [(b"gAMA", fixed(0))], 255 * INSIDE),
    "cHRM of no triangle": (INSIDE, [(b"cHRM", fixed(*[0.3] * 8))], 255 * INSIDE),
    "cICP P3": (INSIDE, [(b"cICP", bytes((12, 13, 0, 1)))], srgb(light_of_srgb(INSIDE) @ P3.T)),
    "cICP wins over all": (
        INSIDE,
        [(b"gAMA", fixed(1)), (b"cICP", bytes((12, 13, 0, 1)))],
        srgb(light_of_srgb(INSIDE) @ P3.T),
    ),
    "cICP sRGB": (INSIDE, [(b"cICP", bytes((1, 13, 0, 1)))], 255 * INSIDE),
    "cICP 2020 linear": (INSIDE, [(b"cICP", bytes((9, 8, 0, 1)))], srgb(INSIDE @ REC2020.T)),
    "cICP PQ": (PQ_SIGNAL, [(b"cICP", bytes((1, 16, 0, 1)))], srgb(INSIDE)),
}


@pytest.mark.parametrize("name", CHUNKS)
def test_what_a_png_says_of_its_colours(tmp_path: Path, name: str) -> None:
    signal, chunks, wanted = CHUNKS[name]
    (tmp_path / "a.png").write_bytes(png(np.rint(signal * 65535).astype(np.uint16), 2, 16, *chunks))
    assert np.abs(seen(tmp_path / "a.png") - wanted).max() <= 1.5


def test_avif_of_p3_without_a_profile(tmp_path: Path) -> None:
    patch = np.full((64, 64, 3), (200, 60, 60), np.uint8)
    Image.fromarray(patch).save(tmp_path / "a.avif", quality=100, subsampling="4:4:4")
    content = (tmp_path / "a.avif").read_bytes()
    place = content.index(b"colrnclx") + 8
    (tmp_path / "b.avif").write_bytes(content[:place] + struct.pack(">HH", 12, 13) + content[place + 4 :])
    assert np.abs(seen(tmp_path / "a.avif")[32, 32] - (200, 60, 60)).max() <= 2
    assert (
        np.abs(seen(tmp_path / "b.avif")[32, 32] - srgb(light_of_srgb(np.array([200, 60, 60]) / 255) @ P3.T)).max() <= 3
    )


def test_the_adobe_rgb_of_a_camera(tmp_path: Path) -> None:
    """EXIF names the DCF option file R03 where a camera was set to Adobe RGB and writes no profile."""
    patch = np.full((64, 64, 3), (150, 110, 90), np.uint8)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    Image.fromarray(patch).save(tmp_path / "a.jpg", quality=100, exif=exif)
    assert (
        np.abs(seen(tmp_path / "a.jpg")[32, 32] - srgb((np.array([150, 110, 90]) / 255) ** (563 / 256) @ ADOBE.T)).max()
        <= 2
    )


def test_the_profile_of_a_jpeg_2000_and_of_a_bitmap(tmp_path: Path) -> None:
    patch = Image.new("RGB", (64, 64), (150, 110, 90))
    profile, wanted = named(EVEN**1.8), srgb((np.array([150, 110, 90]) / 255) ** 1.8)
    patch.save(tmp_path / "a.jp2")
    boxes = (tmp_path / "a.jp2").read_bytes()
    at, around = boxes.index(b"colr") - 4, boxes.index(b"jp2h") - 4
    box = struct.pack(">I4s3B", 11 + len(profile), b"colr", 2, 0, 0) + profile
    larger = struct.pack(">I", int.from_bytes(boxes[around : around + 4], "big") + len(box) - 15)
    (tmp_path / "a.jp2").write_bytes(boxes[:around] + larger + boxes[around + 4 : at] + box + boxes[at + 15 :])
    patch.save(tmp_path / "a.bmp")
    pixels = (tmp_path / "a.bmp").read_bytes()[54:]
    head = struct.pack("<IiiHHIIiiII", 124, 64, 64, 1, 24, 0, len(pixels), 0, 0, 0, 0) + bytes(16) + b"DEBM" + bytes(48)
    head += struct.pack("<IIII", 4, 124 + len(pixels), len(profile), 0)
    content = b"BM" + struct.pack("<IHHI", 138 + len(pixels) + len(profile), 0, 0, 138) + head + pixels + profile
    (tmp_path / "a.bmp").write_bytes(content)
    for name in ("a.jp2", "a.bmp"):
        assert np.abs(seen(tmp_path / name)[32, 32] - wanted).max() <= 2, name
    (tmp_path / "b.bmp").write_bytes(content[:-2000])  # half of its profile is gone
    assert np.abs(seen(tmp_path / "b.bmp")[32, 32] - (150, 110, 90)).max() <= 1
