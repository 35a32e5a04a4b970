"""Odd files of every kind: the right colours, or a clear reason."""

from __future__ import annotations

import os
import struct
import sys
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from femtobooth.core.errors import PhotoError
from femtobooth.pictures.images import Picture, Skipped, decode, find_pictures, natural_order, read_picture

RED, GREEN, BLUE, YELLOW = (200, 30, 20), (20, 160, 40), (30, 40, 190), (220, 210, 30)
QUARTERS = ((16, 16), (48, 16), (16, 32), (48, 32))  # x, y in the middle of each quarter of 64x48


def quarters(*colours: Any, mode: str = "RGB") -> Image.Image:
    """64x48: top left, top right, bottom left, bottom right."""
    image = Image.new(mode, (64, 48))
    for index, colour in enumerate(colours or (RED, GREEN, BLUE, YELLOW)):
        image.paste(colour, (32 * (index % 2), 24 * (index // 2), 32 * (index % 2) + 32, 24 * (index // 2) + 24))
    return image


def save(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def good(path: Path) -> Picture:
    picture = decode(path)
    assert isinstance(picture, Picture), picture
    assert picture.image.mode == "RGB"
    return picture


def bad(path: Path) -> str:
    skipped = decode(path)
    assert isinstance(skipped, Skipped), skipped
    return skipped.reason


def close(picture: Picture, colours: Any, tolerance: float, points: Any = QUARTERS) -> None:
    for point, colour in zip(points, colours, strict=True):
        got = picture.image.getpixel(point)
        assert np.abs(np.subtract(got, colour)).max() <= tolerance, (point, got, colour)


# --- colour layouts: (file name, how to make it, four expected colours, tolerance, words in the notes) ---


def _p3_to_srgb(colour: tuple[int, ...]) -> np.ndarray:
    """Display P3 to sRGB by their primaries (both D65), clipped; values from the CSS Color 4 matrices."""
    v = np.array(colour) / 255
    linear = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.48657095, 0.26566769, 0.19821729], [0.22897456, 0.69173852, 0.07928691], [0, 0.04511338, 1.04394437]]
    )
    to_rgb = np.array(
        [
            [3.24096994, -1.53738318, -0.49861076],
            [-0.96924364, 1.8759675, 0.04155506],
            [0.05563008, -0.20397696, 1.05697151],
        ]
    )
    out = (to_rgb @ to_xyz @ linear).clip(0, 1)
    return 255 * np.where(out <= 0.0031308, 12.92 * out, 1.055 * out ** (1 / 2.4) - 0.055)


def _profile(space: bytes, pcs: bytes, tags: dict[bytes, bytes], device: bytes = b"mntr") -> bytes:
    """A minimal ICC version 2 profile."""
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(4 + 4 + 2 + 1 + 67), **tags}
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    white = struct.pack(">iii", *(round(65536 * value) for value in (0.9642, 1, 0.8249)))
    header = (
        struct.pack(">I4sI4s4s4s", start + len(body), b"lcms", 0x02400000, device, space, pcs) + bytes(12) + b"acsp"
    )
    return (header + bytes(28) + white).ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def _xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">iii", *(round(65536 * value) for value in values))


def _gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(256 * value))


def _srgb_curve() -> bytes:
    v = np.linspace(0, 1, 1024)
    linear = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    return b"curv\0\0\0\0" + struct.pack(">I", 1024) + np.rint(65535 * linear).astype(">u2").tobytes()


def display_p3() -> bytes:
    tags = {b"wtpt": _xyz(0.9642, 1, 0.8249), b"rTRC": _srgb_curve(), b"gTRC": _srgb_curve(), b"bTRC": _srgb_curve()}
    tags |= {
        b"rXYZ": _xyz(0.5151, 0.2412, -0.00105),
        b"gXYZ": _xyz(0.29198, 0.69225, 0.04189),
        b"bXYZ": _xyz(0.1571, 0.06657, 0.78407),
    }
    return _profile(b"RGB ", b"XYZ ", tags)


def swapped_inks(white_l: int = 255) -> bytes:
    """A CMYK profile in which cyan prints red: only reading it gives the right colours."""
    corners = []
    for corner in range(16):  # C is the slowest index, K the fastest
        c, m, y, k = (corner >> shift & 1 for shift in (3, 2, 1, 0))
        lightness = 0 if k or c + m + y > 1 else white_l if not c + m + y else 128
        corners += [lightness, 128 + 80 * c * (lightness > 0), 128 + 60 * c * (lightness > 0)]
    straight = bytes(range(256))
    unit = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    lut = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + unit + straight * 4 + bytes(corners) + straight * 3
    return _profile(b"CMYK", b"Lab ", {b"wtpt": _xyz(0.9642, 1, 0.8249), b"A2B0": lut, b"A2B1": lut}, b"prtr")


def _palette(transparent: bool) -> Image.Image:
    image = quarters(0, 1, 2, 3, mode="P")
    image.putpalette([value for colour in (RED, GREEN, BLUE, YELLOW) for value in colour])
    if transparent:
        image.info["transparency"] = bytes([255, 0, 127, 255])
    return image


def _grey16(dtype: str = "<u2", top: float = 65535) -> Image.Image:
    return Image.fromarray((np.asarray(quarters(0, 85, 170, 255, mode="L")) / 255 * top).astype(dtype))


GREYS = [(v, v, v) for v in (0, 85, 170, 255)]
PURE = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]
PURE_CMYK = ((0, 255, 255, 0), (255, 0, 255, 0), (255, 255, 0, 0), (0, 0, 0, 0))
HALF = tuple(round(value * 127 / 255 + 128) for value in BLUE)
COLOURS = [RED, GREEN, BLUE, YELLOW]
P3 = [(200, 60, 60), (60, 180, 70), (90, 90, 200), (128, 128, 128)]

LAYOUTS: dict[str, tuple[str, Callable[[], Image.Image], dict[str, Any], Any, float, str]] = {
    "rgb jpeg": ("a.jpg", quarters, {"quality": 98}, COLOURS, 4, ""),
    "webp": ("a.webp", quarters, {"lossless": True}, COLOURS, 0, ""),
    "wrong extension": ("a.jpg", quarters, {"format": "PNG"}, COLOURS, 0, "PNG by content"),
    "no extension": ("a", quarters, {"format": "PNG"}, COLOURS, 0, "PNG by content"),
    "grey": ("a.png", lambda: quarters(0, 85, 170, 255, mode="L"), {}, GREYS, 0, ""),
    "1-bit": ("a.png", lambda: quarters(0, 1, 1, 0, mode="1"), {}, [GREYS[0], GREYS[3], GREYS[3], GREYS[0]], 0, ""),
    "palette": ("a.png", lambda: _palette(False), {}, COLOURS, 0, ""),
    "palette alpha": ("a.png", lambda: _palette(True), {}, [RED, (255, 255, 255), HALF, YELLOW], 1, "alpha over white"),
    "grey alpha": (
        "a.png",
        lambda: quarters((0, 255), (0, 0), (0, 51), (100, 255), mode="LA"),
        {},
        [(0, 0, 0), (255, 255, 255), (204, 204, 204), (100, 100, 100)],
        1,
        "alpha over white",
    ),
    "rgb alpha": (
        "a.png",
        lambda: quarters((*RED, 255), (*GREEN, 0), (*BLUE, 127), (*YELLOW, 255), mode="RGBA"),
        {},
        [RED, (255, 255, 255), HALF, YELLOW],
        1,
        "alpha over white",
    ),
    "one colour transparent": (
        "a.png",
        quarters,
        {"transparency": GREEN},
        [RED, (255, 255, 255), BLUE, YELLOW],
        0,
        "alpha",
    ),
    "16-bit grey png": ("a.png", _grey16, {}, GREYS, 1, "grey 0..65535"),
    "16-bit grey, one transparent": (
        "a.png",
        _grey16,
        {"transparency": 0},
        [GREYS[3], *GREYS[1:]],
        1,
        "alpha over white",
    ),
    "16-bit grey tiff": ("a.tif", _grey16, {}, GREYS, 1, "grey 0..65535"),
    "dark 16-bit grey": (
        "a.png",
        lambda: _grey16(top=255 * 257 * 0.1),
        {},
        [(v, v, v) for v in (0, 8, 17, 26)],
        1,
        "grey 0..65535",
    ),
    "32-bit grey": ("a.tif", lambda: _grey16("<i4"), {}, GREYS, 1, "grey 0..65535"),
    "signed grey": (
        "a.tif",
        lambda: Image.fromarray(np.asarray(_grey16("<i4")) - 40000),
        {},
        GREYS,
        1,
        "grey -40000..25535",
    ),
    "float 0..1": ("a.tif", lambda: _grey16("<f4", 1), {}, GREYS, 1, "grey 0..1"),
    "float 0..255": ("a.tif", lambda: _grey16("<f4", 255), {}, GREYS, 1, "grey 0..255"),
    "float with holes": (
        "a.tif",
        lambda: Image.fromarray(np.where(np.asarray(_grey16("<f4", 1)) > 0.6, np.nan, np.asarray(_grey16("<f4", 1)))),
        {},
        [GREYS[0], GREYS[1], GREYS[0], GREYS[0]],
        1,
        "infinite pixels made black; grey 0..1",
    ),
    "dark 16-bit pgm": ("a.pgm", lambda: _grey16(top=250), {}, [(v, v, v) for v in (0, 0, 1, 1)], 0, "grey 0..65535"),
    "float of any range": ("a.tif", lambda: _grey16("<f4", 9000), {}, GREYS, 1, "grey 0..9000"),
    "cmyk jpeg": ("a.jpg", lambda: quarters(*PURE_CMYK, mode="CMYK"), {"quality": 98}, PURE, 6, "CMYK converted"),
    "cmyk tiff": ("a.tif", lambda: quarters(*PURE_CMYK, mode="CMYK"), {}, PURE, 0, "CMYK converted"),
    "cmyk by profile": (
        "a.jpg",
        lambda: quarters((255, 0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 255), (0, 0, 0, 0), mode="CMYK"),
        {"quality": 98, "icc_profile": swapped_inks()},
        [(255, 0, 25), (255, 255, 255), (0, 0, 0), (255, 255, 255)],
        35,
        "test to sRGB",
    ),
    "cmyk with implausible profile": (
        "a.tif",
        lambda: quarters(*PURE_CMYK, mode="CMYK"),
        {"icc_profile": swapped_inks(white_l=60)},
        PURE,
        0,
        "implausible colour profile",
    ),
    "cmyk with rgb profile": (
        "a.tif",
        lambda: quarters(*PURE_CMYK, mode="CMYK"),
        {"icc_profile": display_p3()},
        PURE,
        0,
        "for RGB ignored",
    ),
    "display p3": (
        "a.png",
        lambda: quarters(*P3),
        {"icc_profile": display_p3()},
        [_p3_to_srgb(c) for c in P3],
        2,
        "test to sRGB",
    ),
    "display p3 with alpha": (
        "a.png",
        lambda: quarters(*((*c, 255) for c in P3[:3]), (0, 0, 0, 0), mode="RGBA"),
        {"icc_profile": display_p3()},
        [*(_p3_to_srgb(c) for c in P3[:3]), (255, 255, 255)],
        2,
        "alpha over white",
    ),
    "grey by profile": (
        "a.png",
        lambda: quarters(0, 85, 170, 255, mode="L"),
        {"icc_profile": _profile(b"GRAY", b"XYZ ", {b"wtpt": _xyz(0.9642, 1, 0.8249), b"kTRC": _gamma(1.0)})},
        [(v, v, v) for v in (0, 156, 213, 255)],  # linear light
        2,
        "to sRGB",
    ),
    "grey and transparent by profile": (
        "a.png",
        lambda: quarters((0, 255), (85, 255), (170, 255), (9, 0), mode="LA"),
        {"icc_profile": _profile(b"GRAY", b"XYZ ", {b"wtpt": _xyz(0.9642, 1, 0.8249), b"kTRC": _gamma(1.0)})},
        [(v, v, v) for v in (0, 156, 213, 255)],
        2,
        "test to sRGB; alpha over white",
    ),
    "grey with rgb profile": (
        "a.png",
        lambda: quarters(0, 85, 170, 255, mode="L"),
        {"icc_profile": display_p3()},
        GREYS,
        1,
        "to sRGB",
    ),
    "srgb profile": (
        "a.png",
        quarters,
        {"icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()},
        COLOURS,
        0,
        "",
    ),
    "broken profile": ("a.png", quarters, {"icc_profile": b"rubbish"}, COLOURS, 0, "broken colour profile ignored"),
    "lab": (
        "a.tif",
        lambda: ImageCms.profileToProfile(
            quarters(), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        ),
        {},
        COLOURS,
        10,
        "",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_colours(tmp_path: Path, layout: str) -> None:
    name, make, options, colours, tolerance, words = LAYOUTS[layout]
    picture = good(save(tmp_path / name, make(), **options))
    close(picture, colours, tolerance)
    assert words in "; ".join(picture.notes)
    assert bool(words) == bool(picture.notes), picture.notes


def _png(width: int, height: int, depth: int, kind: int, rows: bytes) -> bytes:
    """A PNG by hand, for what PIL does not write."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def test_sixteen_bit_rgb_is_scaled(tmp_path: Path) -> None:
    row = b"\0" + b"".join(struct.pack(">3H", *(257 * value for value in RED)) for _ in range(64))
    (tmp_path / "a.png").write_bytes(_png(64, 48, 16, 2, row * 48))
    picture = good(tmp_path / "a.png")
    close(picture, [RED] * 4, 0)
    assert picture.notes == ("16 bits to 8",)


def test_premultiplied_grey_alpha(tmp_path: Path) -> None:
    """Its ExtraSamples tag says 1 where PIL writes 2; 50 at half opacity is then grey 100."""
    path = save(tmp_path / "a.tif", Image.new("LA", (64, 48), (50, 128)))
    plain, associated = (struct.pack("<HHIH", 338, 3, 1, kind) for kind in (2, 1))
    assert path.read_bytes().count(plain) == 1
    path.write_bytes(path.read_bytes().replace(plain, associated))
    close(good(path), [(177, 177, 177)] * 4, 2)


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tif", "avif"])
@pytest.mark.parametrize("orientation", range(10))
def test_orientation_is_applied(tmp_path: Path, extension: str, orientation: int) -> None:
    """What is stored turned and mirrored comes out as it was seen; orientations that do not exist change nothing."""
    seen = quarters()
    stored = {  # the inverse of what a viewer does, from the EXIF specification's picture of row 0 and column 0
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: np.rot90,
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }.get(orientation, lambda a: a)(np.asarray(seen))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"webp": {"lossless": True}, "png": {}, "tif": {}}.get(extension, {"quality": 98})
    picture = good(
        save(tmp_path / f"a.{extension}", Image.fromarray(np.ascontiguousarray(stored)), exif=exif, **options)
    )
    assert picture.image.size == (64, 48)
    close(picture, COLOURS, 6)
    assert bool(picture.notes) == (2 <= orientation <= 8)


def test_grey16_is_turned_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = good(save(tmp_path / "a.png", _grey16().transpose(Image.Transpose.ROTATE_90), exif=exif))
    close(picture, GREYS, 1)


def test_broken_exif_does_not_matter(tmp_path: Path) -> None:
    close(
        good(save(tmp_path / "a.jpg", quarters(), exif=b"Exif\0\0II*\0\xff\xff\xff\x7f rubbish", quality=98)),
        COLOURS,
        4,
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.gif", {}),
        ("a.webp", {"lossless": True}),
        ("a.png", {}),
        ("a.tif", {}),
        ("a.mpo", {"quality": 98}),
        ("a.jpg", {"format": "MPO", "quality": 98}),
    ],
)
def test_first_frame_of_several(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    picture = good(
        save(tmp_path / name, quarters(), save_all=True, append_images=[quarters(BLUE), quarters(GREEN)], **options)
    )
    close(picture, COLOURS, 4)
    assert picture.notes == ("first of 3 frames",)


@pytest.mark.parametrize(
    ("extension", "options"),
    [
        ("jpg", {}),
        ("jpg", {"progressive": True}),
        ("png", {}),
        ("webp", {}),
        ("gif", {}),
        ("tif", {}),
        ("tif", {"compression": "tiff_lzw"}),
        ("bmp", {}),
        ("avif", {}),
    ],
)
def test_every_truncation_is_found(tmp_path: Path, extension: str, options: dict[str, Any]) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    path = save(tmp_path / f"a.{extension}", noise, **options)
    whole = path.read_bytes()
    good(path)
    for part in (0.02, 0.25, 0.5, 0.75, 0.97):
        path.write_bytes(whole[: int(len(whole) * part)])
        assert bad(path).startswith(("truncated", "damaged"))


def test_flipped_bits_of_a_png_are_found(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", quarters())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    assert bad(path).startswith("damaged PNG")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jpg", b"", "empty file"),
        ("a.jpg", b"These are my notes.", "not a picture, though named .jpg"),
        ("a.md", b"# notes", "not a picture"),
        ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
        ("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture, though named .eps"),
        (
            "a.heic",
            b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40),
            "damaged HEIF: its header cannot be read",
        ),
        ("a.dng", b"II*\0" + bytes(40), "camera raw; develop it to JPEG, PNG or TIFF"),
        ("a.png", b"\x89PNG\r\n\x1a\n" + bytes(50), "damaged PNG: its header cannot be read"),
    ],
)
def test_not_a_picture(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert bad(tmp_path / name) == reason


def test_decompression_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(_png(20000, 20000, 8, 2, b""))
    assert bad(path) == "more than 178 million pixels"


def test_extreme_shapes(tmp_path: Path) -> None:
    assert good(save(tmp_path / "dot.png", Image.new("RGB", (1, 1), RED))).image.getpixel((0, 0)) == RED
    assert good(save(tmp_path / "line.png", Image.new("RGB", (20000, 10), RED))).image.size == (20000, 10)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a file that opens but cannot be read")
def test_unreadable_file(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to("/proc/self/mem")
    assert bad(tmp_path / "a.jpg").startswith("cannot be read (")


def test_read_picture_names_the_file(tmp_path: Path) -> None:
    assert read_picture(save(tmp_path / "a.png", quarters())).format == "PNG RGB"
    with pytest.raises(PhotoError, match=r"nowhere\.png: no such file"):
        read_picture(tmp_path / "nowhere.png")


# --- finding ---


def _folder(root: Path) -> Path:
    for name in (
        "b10.png",
        "b9.png",
        "A1.png",
        ".hidden.png",
        ".tmp-1f-b.png",
        "inner/c.png",
        "inner/deep/d.png",
        ".git/e.png",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        quarters().save(root / name, format="PNG")
    (root / "notes.txt").write_text("notes")
    (root / "x.jpg").mkdir()
    (root / "gone.jpg").symlink_to(root / "nowhere.jpg")
    (root / "twin.png").symlink_to(root / "b9.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    (root / "inner" / "up").symlink_to(root)
    os.mkfifo(root / "pipe.png")
    return root


REASONS = {
    ".hidden.png": "hidden",
    ".git": "hidden",
    ".tmp-1f-b.png": "unfinished file",
    "notes.txt": "not a picture",
    "gone.jpg": "a link to nothing",
    "loop.png": "a link to nothing",
    "pipe.png": "not a regular file",
    "twin.png": "the same file as b9.png",
}


def test_find_in_a_folder(tmp_path: Path) -> None:
    pictures, skipped = find_pictures([_folder(tmp_path)])
    assert [path.name for path in pictures] == ["A1.png", "b9.png", "b10.png"]
    inside = "a folder inside a folder; name it too to use its pictures"
    assert {left.path.name: left.reason for left in skipped} == {**REASONS, "inner": inside, "x.jpg": inside}


def test_find_recursively_ends_in_a_loop_of_links(tmp_path: Path) -> None:
    pictures, skipped = find_pictures([str(_folder(tmp_path))], recursive=True)
    assert [path.name for path in pictures] == ["A1.png", "b9.png", "b10.png", "c.png", "d.png"]
    assert {left.path.name: left.reason for left in skipped} == {**REASONS, "up": "a link to a folder already searched"}


def test_named_files_keep_their_order_and_may_be_hidden(tmp_path: Path) -> None:
    root = _folder(tmp_path)
    pictures, skipped = find_pictures(
        [root / "b10.png", root / ".hidden.png", root / "notes.txt", root / "A1.png", root / "b10.png"]
    )
    assert [path.name for path in pictures] == ["b10.png", ".hidden.png", "A1.png"]
    assert [left.reason for left in skipped] == ["not a picture", "the same file as b10.png"]


@pytest.mark.parametrize("name", ["nowhere.png", "nowhere/", "gone.jpg"])
def test_a_named_path_must_exist(tmp_path: Path, name: str) -> None:
    with pytest.raises(PhotoError, match="no such file or folder"):
        find_pictures([_folder(tmp_path) / name])


def test_names_that_are_not_utf8_are_found(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9\x1b[2J.png"))
    try:
        quarters().save(path)
    except OSError:
        pytest.skip("this file system takes no such name")
    assert find_pictures([tmp_path])[0] == [path]
    assert good(path).path == path


def test_natural_order() -> None:
    names = ["IMG_10.jpg", "img_9.jpg", "10.jpg", "9.jpg", "a.jpg", "02.jpg", "2.jpg", ""]
    assert sorted(names, key=natural_order) == [
        "",
        "02.jpg",
        "2.jpg",
        "9.jpg",
        "10.jpg",
        "a.jpg",
        "img_9.jpg",
        "IMG_10.jpg",
    ]


def test_images_does_not_load_torch() -> None:
    import subprocess

    code = "import sys, femtobooth.pictures.images; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_decoding_says_nothing_itself(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    data = BytesIO()
    quarters().save(data, "TIFF")
    (tmp_path / "a.tif").write_bytes(data.getvalue()[:-100])
    bad(tmp_path / "a.tif")
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")
