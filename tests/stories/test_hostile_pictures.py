"""Bad input: each of many odd, damaged or hostile files gets the right answer or a row with an error, and the pictures
beside it in the same folder keep the labels they have alone.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from femtobooth.core.names import stored
from femtobooth.recognizer.inference.engines import Engine
from femtobooth.recognizer.inference.predict import predict
from femtobooth.recognizer.inference.sources import find
from femtobooth.recognizer.inference.units import rows_of
from femtobooth.recognizer.model.artifact import Description
from femtobooth.recognizer.model.labels import Labels
from femtobooth.recognizer.model.preprocess import Preprocess

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 200, 30),
    "blue": (30, 30, 220),
    "grey": (128, 128, 128),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
}
PREPROCESS = Preprocess(size=(32, 32), crop_pct=0.875)


def colour_engine() -> Engine:
    """A model whose answer is known beforehand: the colour nearest to that of a spot which no turn or mirroring leaves
    in place.
    """
    table = np.array(list(COLOURS.values()), np.float32)

    def run(pixels: np.ndarray) -> dict[str, np.ndarray]:
        mean = pixels[:, 2:6, 18:22].astype(np.float32).mean(axis=(1, 2))  # (B, 3)
        return {"logits": -np.abs(mean[:, None] - table).sum(axis=2), "embedding": mean}

    return Engine("colours", Description("colours", PREPROCESS, Labels(tuple(COLOURS))), run)


def solid(colour: str = "red", size: tuple[int, int] = (96, 64), mode: str = "RGB") -> Image.Image:
    return Image.new("RGB", size, COLOURS[colour]).convert(mode)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noisy(size: tuple[int, int] = (160, 120)) -> Image.Image:
    """Detail in every part, so that a cut anywhere loses pixels; reddish on the whole."""
    pixels = np.random.default_rng(0).integers(0, 60, (size[1], size[0], 3)) + np.array([190, 10, 10])
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def cut(format: str, quarter: int, **options: object) -> bytes:
    whole = encoded(noisy(), format, **options)
    return whole[: len(whole) * quarter // 4]


def oriented(turn: int) -> bytes:
    """Red where the engine looks once it is upright, blue all around; stored as a camera held that way stores it."""
    upright = Image.new("RGB", (128, 128), COLOURS["blue"])
    upright.paste(COLOURS["red"], (64, 0, 96, 32))
    flip = Image.Transpose
    undo = {2: flip.FLIP_LEFT_RIGHT, 3: flip.ROTATE_180, 4: flip.FLIP_TOP_BOTTOM, 5: flip.TRANSPOSE}
    undo |= {6: flip.ROTATE_90, 7: flip.TRANSVERSE, 8: flip.ROTATE_270}
    exif = Image.Exif()
    exif[0x0112] = turn
    return encoded(upright.transpose(undo[turn]) if turn > 1 else upright, "JPEG", quality=95, exif=exif)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims to be huge."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (body, data, b"IEND")
    )


def boxed(*brands: str) -> bytes:
    """The first box of an ISO base media file, and nothing in the others."""
    body = b"ftyp" + brands[0].encode() + bytes(4) + "".join(brands[1:]).encode()
    return struct.pack(">I", 4 + len(body)) + body + bytes(300)


def flipped(data: bytes, place: float) -> bytes:
    index = int(len(data) * place)
    return data[:index] + bytes([data[index] ^ 0xFF]) + data[index + 1 :]


def grey16(value: int) -> bytes:
    return encoded(Image.fromarray(np.full((64, 64), value, np.uint16)), "PNG")


def float_tiff(value: float) -> bytes:
    return encoded(Image.fromarray(np.full((64, 64), value, np.float32)), "TIFF")


def palette(transparent: bool) -> bytes:
    image = solid("red").quantize(4)
    return encoded(image, "PNG", **({"transparency": 0} if transparent else {}))


def animated(format: str) -> bytes:
    return encoded(solid("green"), format, save_all=True, append_images=[solid("blue"), solid("red")])


def half_transparent() -> bytes:
    image = solid("red").convert("RGBA")
    image.putalpha(0)
    return encoded(image, "PNG")


def with_profile(data: bytes) -> bytes:
    return encoded(solid("green"), "JPEG", quality=95, icc_profile=data)


JPEG = {"quality": 95}
NAMES = [  # that are the same in every output as on the disk
    "Screenshot 2025-01-02 at 9.41.00\u202fAM.png",
    "no\u00a0break.png",
    "family \U0001f469\u200d\U0001f469\u200d\U0001f467.png",
    "\u5168\u89d2\u3000.png",
    "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645.png",
    "cafe\u0301.png",
    "[edited] :dog: [bold].png",
    "back\\slash.png",
    "\u202egnp.exe.png",
    "\x1b[2J\x9b31m.png",
]
Content = Callable[[], bytes]
# name -> (what the file holds, the label, or a part of the error)
FILES: dict[str, tuple[Content, str]] = {
    # cut off
    **{f"cut-{part}of4.jpg": (lambda part=part: cut("JPEG", part, **JPEG), "error: ") for part in (1, 2, 3)},  # type: ignore[misc]
    **{f"cut-{part}of4.png": (lambda part=part: cut("PNG", part), "error: ") for part in (1, 2, 3)},  # type: ignore[misc]
    **{f"cut-{part}of4.webp": (lambda part=part: cut("WEBP", part), "error: ") for part in (1, 2, 3)},  # type: ignore[misc]
    **{f"cut-{part}of4.gif": (lambda part=part: cut("GIF", part), "error: ") for part in (1, 2, 3)},  # type: ignore[misc]
    **{f"cut-{part}of4.tif": (lambda part=part: cut("TIFF", part), "error: ") for part in (1, 2, 3)},  # type: ignore[misc]
    **{f"cut-{part}of4.bmp": (lambda part=part: cut("BMP", part), "error: ") for part in (1, 2, 3)},  # type: ignore[misc]
    "whole.jpg": (lambda: cut("JPEG", 4, **JPEG), "red"),
    "one-byte.jpg": (lambda: b"\xff", "error: not a picture"),
    "three-bytes.jpg": (lambda: b"\xff\xd8\xff", "error: damaged JPEG"),
    # damaged
    "zero-bytes.jpg": (lambda: b"", "error: empty file"),
    "zeros.png": (lambda: bytes(5000), "error: not a picture"),
    "noise.jpg": (lambda: np.random.default_rng(1).bytes(5000), "error: not a picture"),
    "flipped-in-data.png": (lambda: flipped(encoded(noisy(), "PNG"), 0.5), "error: damaged PNG"),
    "only-magic.png": (lambda: b"\x89PNG\r\n\x1a\n", "error: damaged PNG"),
    "junk-after-magic.webp": (lambda: b"RIFF\x10\0\0\0WEBP" + bytes(200), "error: damaged WEBP"),
    "junk-at-the-end.jpg": (lambda: encoded(solid("blue"), "JPEG", **JPEG) + b"<?php evil() ?>" * 99, "blue"),
    # another kind of file than its name says
    "text.jpg": (lambda: b"I am no picture\n" * 9, "error: not a picture, though named .jpg"),
    "html.png": (lambda: b"<html><img src=x onerror=alert(1)></html>", "error: not a picture"),
    "vector.svg": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "passed over"),
    "~$scan.jpg": (
        lambda: b"\x05Alice" + bytes(156),
        "error: not a picture, though named .jpg",
    ),  # beside a file open in Office
    "archive.png": (lambda: b"PK\x03\x04" + bytes(100), "error: not a picture"),
    "pickle.jpg": (lambda: b"\x80\x04cos\nsystem\n(S'touch /tmp/owned'\ntR.", "error: not a picture"),
    "postscript.eps": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n(%pipe%touch /tmp/owned) (w) file\n", "error: not a picture"),
    "program.jpg": (lambda: b"\x7fELF" + bytes(500), "error: not a picture"),
    "png-named.jpg": (lambda: encoded(solid("green"), "PNG"), "green"),
    "jpeg-named.png": (lambda: encoded(solid("green"), "JPEG", **JPEG), "green"),
    "webp-named.gif": (lambda: encoded(solid("blue"), "WEBP"), "blue"),
    "jpeg-named.txt": (lambda: encoded(solid("blue"), "JPEG", **JPEG), "blue"),
    "jpeg-without-ending": (lambda: encoded(solid("blue"), "JPEG", **JPEG), "blue"),
    "upper-case.JPEG": (lambda: encoded(solid("green"), "JPEG", **JPEG), "green"),
    "notes.txt": (lambda: b"picked by hand\n", "passed over"),
    "phone.heic": (lambda: boxed("heic", "mif1", "heic"), "error: damaged HEIF"),
    **{
        f"{brand}.jpg": (lambda brand=brand: boxed(brand), "error: damaged HEIF")
        for brand in ("mif1", "msf1", "hevx", "heim", "miaf")
    },  # type: ignore[misc]
    "named-by-its-compatible-brands": (lambda: boxed("XXXX", *["aaaa"] * 20, "hevc"), "error: damaged HEIF"),
    "avif-sequence.avif": (lambda: boxed("avis", "avif", "msf1"), "error: damaged AVIF"),
    "heif-of-av1.heif": (lambda: boxed("mif1", "avif"), "error: damaged AVIF"),
    "bare.jxl": (lambda: b"\xff\x0a" + bytes(50), "error: damaged JXL"),
    "boxed.jxl": (lambda: b"\0\0\0\x0cJXL \r\n\x87\n" + boxed("jxl "), "error: damaged JXL"),
    "video.jpg": (lambda: boxed("isom", "mp41"), "error: a video"),
    "camera.cr3x": (lambda: boxed("crx "), "error: camera raw"),
    "layers.psd": (lambda: b"8BPS\0\1" + bytes(50), "error: a Photoshop document"),
    "layers.xcf": (lambda: b"gimp xcf v011" + bytes(50), "error: a GIMP document"),
    "light.exr": (lambda: b"v/1\x01\x02\0\0\0" + bytes(50), "error: a high dynamic range picture"),
    "light.hdr": (lambda: b"#?RADIANCE\n" + bytes(50), "error: a high dynamic range picture"),
    "camera.dng": (lambda: encoded(solid(), "TIFF"), "error: camera raw"),
    # sizes
    "1x1.png": (lambda: encoded(solid("blue", (1, 1)), "PNG"), "blue"),
    "20000x10.png": (lambda: encoded(solid("green", (20000, 10)), "PNG"), "green"),
    "10x20000.png": (lambda: encoded(solid("green", (10, 20000)), "PNG"), "green"),
    "60000x1.png": (lambda: encoded(solid("blue", (60000, 1)), "PNG"), "blue"),
    "1x60000.jpg": (lambda: encoded(solid("blue", (1, 60000)), "JPEG", **JPEG), "blue"),
    "6000x4000.jpg": (lambda: encoded(solid("green", (6000, 4000)), "JPEG", **JPEG), "green"),
    "bomb.png": (lambda: png_header(100000, 100000), "error: more than"),
    "bomb-largest.png": (lambda: png_header(2**31 - 1, 2**31 - 1), "error: "),
    "no-size.png": (lambda: png_header(0, 0), "error: "),
    # pixel layouts
    "cmyk.jpg": (lambda: encoded(solid("red", mode="CMYK"), "JPEG", **JPEG), "red"),
    "grey.jpg": (lambda: encoded(solid("grey", mode="L"), "JPEG", **JPEG), "grey"),
    "progressive.jpg": (lambda: encoded(solid("green"), "JPEG", progressive=True, **JPEG), "green"),
    "1-bit.png": (lambda: encoded(Image.new("1", (64, 64), 1), "PNG"), "white"),
    "16-bit-grey.png": (lambda: grey16(0x8080), "grey"),
    "16-bit-white.png": (lambda: grey16(0xFFFF), "white"),
    "16-bit-black.png": (lambda: grey16(0), "black"),
    "float.tif": (lambda: float_tiff(0.5), "grey"),
    "float-nan.tif": (lambda: float_tiff(float("nan")), "error: no finite pixel"),
    "palette.png": (lambda: palette(False), "red"),
    "palette-transparent.png": (lambda: palette(True), "white"),
    "transparent.png": (half_transparent, "white"),
    "grey-alpha.png": (lambda: encoded(solid("grey", mode="LA"), "PNG"), "grey"),
    "ycbcr.tif": (lambda: encoded(solid("green", mode="YCbCr"), "TIFF"), "green"),
    "lab.tif": (lambda: encoded(Image.new("LAB", (64, 64), (255, 128, 128)), "TIFF"), "white"),
    "animated.gif": (lambda: animated("GIF"), "green"),
    "animated.webp": (lambda: animated("WEBP"), "green"),
    "animated.png": (lambda: animated("PNG"), "green"),
    "pages.tif": (lambda: animated("TIFF"), "green"),
    "colours.ppm": (lambda: encoded(solid("blue"), "PPM"), "blue"),
    "srgb-profile.jpg": (
        lambda: with_profile(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()),
        "green",
    ),
    "broken-profile.jpg": (lambda: with_profile(b"not a profile" * 20), "green"),
    "broken-exif.jpg": (lambda: encoded(solid("green"), "JPEG", exif=b"Exif\0\0garbage", **JPEG), "green"),
    **{f"turned-{turn}.jpg": (lambda turn=turn: oriented(turn), "red") for turn in range(1, 9)},  # type: ignore[misc]
    # names
    "spaces and 'quotes'.png": (lambda: encoded(solid("blue"), "PNG"), "blue"),
    "-rf.png": (lambda: encoded(solid("blue"), "PNG"), "blue"),
    "new\nline.png": (lambda: encoded(solid("blue"), "PNG"), "blue"),
    "*.png": (lambda: encoded(solid("green"), "PNG"), "green"),
    "名前-é.png": (lambda: encoded(solid("green"), "PNG"), "green"),
    os.fsdecode(b"not-utf8-\xff\xfe.png"): (lambda: encoded(solid("green"), "PNG"), "green"),
    "n" * 240 + ".png": (lambda: encoded(solid("green"), "PNG"), "green"),
    **{name: (lambda: encoded(solid("green"), "PNG"), "green") for name in NAMES},
}


def link_to_nothing(path: Path) -> None:
    path.symlink_to(path.parent / "gone")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def link_to_parent(path: Path) -> None:
    path.symlink_to(path.parent, target_is_directory=True)


def link_to_picture(path: Path) -> None:
    path.symlink_to(path.parent / "neighbour-0.png")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def door(path: Path) -> None:
    """A socket, whose own path may be no longer than 107 bytes."""
    with tempfile.TemporaryDirectory() as name, socket.socket(socket.AF_UNIX) as made:
        made.bind(f"{name}/s")
        shutil.move(f"{name}/s", path)


def folder_named_as_a_picture(path: Path) -> None:
    path.mkdir()
    solid("green").save(path / "inside.png")


PLACES: dict[str, tuple[Callable[[Path], None], str]] = {
    "link-to-nothing.jpg": (link_to_nothing, "error: a link to nothing"),
    "link-to-itself.jpg": (link_to_itself, "error: a link to nothing"),
    "link-to-parent": (link_to_parent, "passed over"),
    "link-to-picture.png": (link_to_picture, "red"),
    "pipe.jpg": (pipe, "error: not a regular file"),
    "socket.jpg": (door, "error: not a regular file"),
    "folder.jpg": (folder_named_as_a_picture, "green"),
}
NEIGHBOURS = {f"neighbour-{index}.png": colour for index, colour in enumerate(("red", "green", "blue", "grey"))}


def build(folder: Path, name: str) -> str:
    """Put the hostile file among its neighbours; what is expected of it."""
    for neighbour, colour in NEIGHBOURS.items():
        solid(colour).save(folder / neighbour)
    if name in FILES:
        content, expected = FILES[name]
        (folder / name).write_bytes(content())
    else:
        make, expected = PLACES[name]
        make(folder / name)
    return expected


def labels(folder: Path, fast: bool = False) -> dict[str, str]:
    """Path within the folder -> label, or `error: ...`; classified three at a time, so that a batch holds good and
    bad.
    """
    engine = colour_engine()
    there = {stored(path.relative_to(folder)) for path in folder.rglob("*")}
    found: dict[str, str] = {}
    for batch in predict(engine, find([str(folder)]), batch_size=3, workers=2, fast=fast):
        for row in rows_of(engine, batch, 1):
            json.dumps(row).encode()
            name = row["path"].removeprefix(f"{folder}/")
            assert name not in found
            assert name in there or row["error"]
            found[name] = f"error: {row['error']}" if row["error"] else row["label"]
    return found


@pytest.mark.parametrize("fast", [False, True], ids=["exact", "fast"])
@pytest.mark.parametrize("name", [*FILES, *PLACES], ids=lambda name: ascii(name)[:40])
def test_each_gets_the_right_answer_and_its_neighbours_keep_theirs(tmp_path: Path, name: str, fast: bool) -> None:
    expected = build(tmp_path, name)
    found = labels(tmp_path, fast)
    assert {neighbour: found.pop(neighbour) for neighbour in NEIGHBOURS} == NEIGHBOURS
    if expected == "passed over":
        assert found == {}
    else:
        (answer,) = found.values()
        assert answer.startswith(expected)


def test_all_of_them_in_one_folder(tmp_path: Path) -> None:
    expected = {}
    for name in [*FILES, *PLACES]:
        own = tmp_path / "alone" / str(len(expected))
        own.mkdir(parents=True)
        expected[str(len(expected))] = build(own, name)
    found = labels(tmp_path / "alone")
    for place, answer in expected.items():
        mine = {path.removeprefix(f"{place}/"): label for path, label in found.items() if path.startswith(f"{place}/")}
        assert {neighbour: mine.pop(neighbour) for neighbour in NEIGHBOURS} == NEIGHBOURS
        assert (not mine) if answer == "passed over" else next(iter(mine.values())).startswith(answer)


def test_what_may_not_be_read() -> None:
    """As a user who is not root, who may read everything."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        build(folder, "whole.jpg")
        (folder / "whole.jpg").chmod(0)
        closed = folder / "closed"
        closed.mkdir(mode=0)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)
            found = labels(folder)
        finally:
            os.seteuid(user)
            closed.chmod(0o700)
    errors = {
        "whole.jpg": "error: cannot be read (Permission denied)",
        "closed": "error: cannot be listed (Permission denied)",
    }
    assert found == NEIGHBOURS | errors


# --- what costs much: first frames of very many, texts and profiles that unpack to very much, sizes that are only
# claimed ---


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_of(*chunks: bytes, kind: int = 2, side: int = 4) -> bytes:
    """A black PNG, with other chunks before its pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, kind, 0, 0, 0))
    rows = bytes((1 + side * {0: 1, 2: 3, 6: 4}[kind]) * side)
    return b"\x89PNG\r\n\x1a\n" + b"".join([head, *chunks, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")])


def pages(count: int) -> bytes:
    size, end = 2 + 8 * 12 + 4, 8 + count * (2 + 8 * 12 + 4)
    fields = [(256, 1), (257, 1), (258, 8), (259, 1), (262, 1), (273, end), (278, 1), (279, 1)]
    page = struct.pack("<H", 8) + b"".join(struct.pack("<HHII", key, 4, 1, value) for key, value in fields)
    links = (struct.pack("<I", 8 + size * number if number < count else 0) for number in range(1, count + 1))
    return b"II*\0\x08\0\0\0" + b"".join(page + link for link in links) + b"\x80"


def frames_of_gif(count: int) -> bytes:
    frame = b"\x21\xf9\x04\0\0\0\0\0," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff" + frame * count + b";"


def frames_of_png(count: int) -> bytes:
    whole = png_of(
        chunk(b"acTL", struct.pack(">II", count, 0)), chunk(b"fcTL", struct.pack(">5I2H2B", 0, 4, 4, 0, 0, 1, 10, 0, 0))
    )
    frame = chunk(b"fcTL", struct.pack(">5I2H2B", 1, 4, 4, 0, 0, 1, 10, 0, 0)) + chunk(b"fdAT", bytes(24))
    return whole[:-12] + frame * count + whole[-12:]


def frames_of_webp(count: int) -> bytes:
    still = encoded(solid("green", (4, 4)), "WEBP", lossless=True)[12:]
    frame = bytes(6) + b"\3\0\0" * 2 + b"\x0a\0\0\0" + still
    head = b"VP8X" + struct.pack("<I", 10) + b"\2\0\0\0" + b"\3\0\0" * 2 + b"ANIM" + struct.pack("<I", 6) + bytes(6)
    body = b"WEBP" + head + (b"ANMF" + struct.pack("<I", len(frame)) + frame) * count
    return b"RIFF" + struct.pack("<I", len(body)) + body


def claims(width: int, height: int) -> bytes:
    """A TIFF of 16 bits that claims to be huge."""
    fields = [(256, width), (257, height), (258, 16), (259, 1), (262, 0), (273, 8), (278, height), (279, 8)]
    return (
        b"II*\0\x08\0\0\0"
        + struct.pack("<H", 8)
        + b"".join(struct.pack("<HHII", key, 4, 1, value) for key, value in fields)
        + bytes(4)
    )


UNPACKED = zlib.compress(bytes(2**27), 9)
BOMBS: dict[str, tuple[Content, str]] = {
    "pages.tif": (lambda: pages(200_000), "1x1 first of many frames"),
    "frames.gif": (lambda: frames_of_gif(300_000), "1x1 first of many frames"),
    "frames.png": (lambda: frames_of_png(200_000), "4x4 first of 200000 frames"),
    "frames.webp": (lambda: frames_of_webp(200_000), "4x4 first of 200000 frames"),
    "chunks.png": (lambda: png_of(chunk(b"tEXt", b"a\0b") * 300_000), "a PNG of more than 10,000 chunks"),
    "text.png": (lambda: png_of(chunk(b"zTXt", b"a\0\0" + UNPACKED)), "damaged PNG"),
    "profile.png": (lambda: png_of(chunk(b"iCCP", b"a\0\0" + UNPACKED)), "damaged PNG"),
    "profile.jpg": (lambda: encoded(solid("green"), "JPEG", icc_profile=bytes(16_000_001)), ("96x64 oversized " "colour " "profile " "ignored")),
    "exif.png": (lambda: png_of(chunk(b"eXIf", b"II*\0\x08\0\0\0\xff\xff" + struct.pack("<HHII", 1, 7, 2**32 - 1, 8) * 65535)), "4x4"),
    "huge.tif": (lambda: claims(2**31, 2**31), "more than"),
    "huge.webp": (
        lambda: b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff" * 6 + b"VP8L\0\0\0\0", "more than",
    ),
    "huge.gif": (lambda: b"GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\xff\xff\xff\xff\0\2\2\x44\1\0;", "more than"),
    "huge.ppm": (lambda: b"P6 1000000000 1000000000 255\n", "more than"),
    "phone.jpg": (lambda: encoded(Image.new("L", (16320, 12240), 90), "JPEG"), "8160x6120 16320x12240 read at 1/2"),
}  # fmt: skip

DECODES = """
import resource, sys, time
from pathlib import Path
from femtobooth.pictures.images import Skipped, decode
resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30, 3 * 2**30))
for name in sys.argv[1:]:
    started = time.process_time()
    found = decode(Path(name))
    said = found.reason if isinstance(found, Skipped) else f"{found.image.width}x{found.image.height} {'; '.join(found.notes)}"
    print(f"{time.process_time() - started:.1f}", said, sep="|")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits its own memory")
def test_time_and_memory_are_bounded(tmp_path: Path) -> None:
    """With 3 GB of address space in all, and in seconds each; 200 megapixels of a phone are read."""
    for name, (content, _) in BOMBS.items():
        (tmp_path / name).write_bytes(content())
    names = [str(tmp_path / name) for name in BOMBS]
    run = subprocess.run(
        [sys.executable, "-c", DECODES, *names],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    answers = dict(zip(BOMBS, (line.split("|") for line in run.stdout.splitlines()), strict=True))
    assert {name: said for name, (_, said) in answers.items() if not said.startswith(BOMBS[name][1])} == {}
    assert {name: seconds for name, (seconds, _) in answers.items() if float(seconds) > 10} == {}


def test_a_list_of_all_of_them_has_a_row_each(tmp_path: Path) -> None:
    """And one for each line that is no path; nothing waits, and nothing else is looked at."""
    lines: list[bytes] = []
    expected: list[str] = []
    for count, name in enumerate([*FILES, *PLACES]):
        if "\n" in name or name in ("link-to-parent", "folder.jpg"):
            continue
        own = tmp_path / str(count)
        own.mkdir()
        answer = build(own, name)
        lines.append(os.fsencode(own / name))
        expected.append("error: not a picture" if answer == "passed over" else answer)
    for line, answer in {
        b"/dev/zero": "error: not a regular file",
        b"/dev/stdin": "error: ",
        b"gone.jpg": "error: no such file",
        b"": "",
        b"/": "error: the whole disk",
        b"a" * 5000 + b".jpg": "error: cannot be read (File name too long)",
        b"b" * 100_000: "error: no path",
        b"nul\0.jpg": "error: no path: holds a NUL byte",
        b"-": "error: no such file",
        b"*.jpg": "error: no such file",
        b"\xef\xbb\xbf": "error: no such file",
    }.items():
        lines.append(line)
        expected += [answer] if answer else []
    (tmp_path / "list").write_bytes(b"\r\n".join(lines))
    engine, found = colour_engine(), []
    for batch in predict(engine, find([], str(tmp_path / "list")), batch_size=3, workers=2):
        found += [f"error: {row['error']}" if row["error"] else row["label"] for row in rows_of(engine, batch, 1)]
    assert [(answer, got) for answer, got in zip(expected, found, strict=True) if not got.startswith(answer)] == []
