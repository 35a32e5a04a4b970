"""Photos as phones store them: HEIC and JPEG XL, turned, of wide gamut, of ten bits, of several frames."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
from PIL import ExifTags, Image
from pillow_jxl import JpegXLImagePlugin  # noqa: F401  (teaches PIL to write)

from femtobooth.core.errors import needs
from femtobooth.pictures import colour, formats, phone
from femtobooth.pictures.images import Picture, Skipped, decode, find_pictures

P3 = np.array([[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]])
"""Display P3 to sRGB, linear light (both D65), worked out from their primaries."""
HALVES = Image.fromarray(np.repeat([[(200, 60, 60), (40, 120, 200)]], 64, axis=0).repeat(48, axis=1).astype(np.uint8))


def read(path: Path) -> Picture:
    found = decode(path)
    assert isinstance(found, Picture), found
    return found


def light(levels: np.ndarray) -> np.ndarray:
    part = levels / 255
    return np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)


def signal(values: np.ndarray) -> np.ndarray:
    values = values.clip(0, 1)
    return 255 * np.where(values <= 0.0031308, 12.92 * values, 1.055 * values ** (1 / 2.4) - 0.055)


def heic(path: Path, image: Image.Image, **options: object) -> Path:
    pillow_heif.from_pillow(image).save(path, quality=-1, chroma=444, **options)
    return path


def test_heic_of_display_p3_is_srgb_as_the_formulas_have_it(tmp_path: Path) -> None:
    pillow_heif.register_heif_opener()
    primaries = colour._PRIMARIES[12]
    wide = HALVES.copy()
    wide.info["icc_profile"] = colour.matrix_profile(primaries, colour._srgb_light())
    plain, converted = read(heic(tmp_path / "plain.heic", HALVES)), read(heic(tmp_path / "wide.heic", wide))
    assert np.abs(np.asarray(plain.image, int) - np.asarray(HALVES)).max() <= 2
    expected = signal(light(np.asarray(HALVES, float)) @ P3.T)
    assert np.abs(np.asarray(converted.image) - expected).max() <= 3
    assert (converted.format, "colours of the file to sRGB" in converted.notes) == ("HEIF RGB", True)


def test_heic_that_says_its_colours_by_a_code(tmp_path: Path) -> None:
    pillow_heif.register_heif_opener()
    path = heic(tmp_path / "a.heic", HALVES)
    content = path.read_bytes()
    place = content.index(b"colrnclx") + 8
    path.write_bytes(content[:place] + struct.pack(">HH", 12, 13) + content[place + 4 :])
    assert np.abs(np.asarray(read(path).image) - signal(light(np.asarray(HALVES, float)) @ P3.T)).max() <= 3


def test_ten_bits_turned_and_the_first_of_several(tmp_path: Path) -> None:
    deep = (np.asarray(HALVES, np.uint16) << 8).tobytes()
    file = pillow_heif.from_bytes("RGB;16", HALVES.size, deep)
    pillow_heif.options.SAVE_HDR_TO_12_BIT = False
    file.save(tmp_path / "deep.heic", quality=-1, chroma=444)
    found = read(tmp_path / "deep.heic")
    assert "10 bits to 8" in found.notes
    assert np.abs(np.asarray(found.image, int) - np.asarray(HALVES)).max() <= 2

    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # the phone was held upright
    turned = read(heic(tmp_path / "turned.heic", HALVES, exif=exif.tobytes()))
    assert turned.image.size == (64, 96)
    assert np.abs(np.asarray(turned.image.getpixel((32, 8)), int) - (200, 60, 60)).max() <= 2

    several = pillow_heif.from_pillow(HALVES)
    several.add_from_pillow(Image.new("RGB", HALVES.size))
    several.save(tmp_path / "burst.heic", quality=-1, primary_index=0)
    found = read(tmp_path / "burst.heic")
    assert "first of 2 frames" in found.notes
    assert np.asarray(found.image).max() > 100


SHARES = np.array([0.02, 0.18, 0.5, 0.9, 1.0, 4.0])
"""Light of six greys, as shares of the white of a page; the last is brighter."""


def pq(share: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084, white at 203 cd/m2 (BT.2408)."""
    power = (203 / 10000 * share) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg(share: np.ndarray) -> np.ndarray:
    """ARIB STD-B67, white at a signal of 0.75 (BT.2408)."""
    light = (share * (np.exp((0.75 - 0.55991073) / 0.17883277) + 0.28466892) / 12).clip(0, 1)
    high = 0.17883277 * np.log(12 * np.maximum(light, 1 / 12) - 0.28466892) + 0.55991073
    return np.where(light <= 1 / 12, np.sqrt(3 * light), high)


@pytest.mark.parametrize(("name", "curve", "code"), [("PQ", pq, 16), ("HLG", hlg, 18)])
def test_high_dynamic_range_is_as_bright_as_its_white(
    tmp_path: Path, name: str, curve: Callable[[np.ndarray], np.ndarray], code: int
) -> None:
    """Ten bits in HEIC, eight in AVIF; what is brighter than the white of a page becomes white, and the notes say so."""
    greys = np.repeat(np.repeat(curve(SHARES)[None, :, None], 64, axis=0), 32, axis=1).repeat(3, axis=2)
    pillow_heif.options.SAVE_HDR_TO_12_BIT = False
    file = pillow_heif.from_bytes("RGB;16", (192, 64), np.rint(65535 * greys).astype(np.uint16).tobytes())
    codes = {"color_primaries": 9, "transfer_characteristics": code, "matrix_coefficients": 9, "full_range_flag": 1}
    file.save(tmp_path / "a.heic", quality=-1, chroma=444, **codes)
    Image.fromarray(np.rint(255 * greys).astype(np.uint8)).save(tmp_path / "a.avif", quality=100, subsampling="4:4:4")
    content = (tmp_path / "a.avif").read_bytes()
    place = content.index(b"colrnclx") + 8
    (tmp_path / "a.avif").write_bytes(content[:place] + struct.pack(">HH", 9, code) + content[place + 4 :])
    for kind, most in (("heic", 2), ("avif", 6)):
        found = read(tmp_path / f"a.{kind}")
        seen = np.asarray(found.image, float)[32, 16::32].mean(axis=1)
        assert np.abs(seen - signal(SHARES)).max() <= most
        assert f"high dynamic range ({name}) to sRGB" in found.notes
    assert "10 bits to 8" in read(tmp_path / "a.heic").notes


def with_auxiliary(content: bytes, kind: bytes) -> bytes:
    """Make the second of two pictures in a HEIC an auxiliary one of the first, as ISO 23008-12 has it: a reference
    `auxl`, and a property `auxC`.
    """
    kind_of = struct.pack(">I4sI", 13 + len(kind), b"auxC", 0) + kind + b"\0"
    reference = struct.pack(">I4sI", 26, b"iref", 0) + struct.pack(">I4sHHH", 14, b"auxl", 2, 1, 1)
    more = len(kind_of) + len(reference) + 1

    def larger(name: bytes, by: int, inside: bytes = b"") -> int:
        """Say that a box is larger, put `inside` at its end, and return where that begins."""
        nonlocal content
        at = content.index(name) - 4
        size = struct.unpack(">I", content[at : at + 4])[0] + by
        content = content[:at] + struct.pack(">I", size) + content[at + 4 :]
        end = at + size - len(inside)
        content = content[:end] + inside + content[end:]
        return end

    for item in range(2):  # where their bytes lie, behind all that grows
        at = content.index(b"iloc") + 12 + 18 * item + 4
        place = struct.unpack(">I", content[at : at + 4])[0] + more
        content = content[:at] + struct.pack(">I", place) + content[at + 4 :]
    end = larger(b"ipma", 1, b"\x08")
    content = content[: end - 6] + b"\x06" + content[end - 5 :]
    larger(b"ipco", len(kind_of), kind_of)
    larger(b"iprp", len(kind_of) + 1)
    larger(b"meta", more, reference)
    return content


def test_a_heic_with_a_gain_map_is_its_picture(tmp_path: Path) -> None:
    pillow_heif.register_heif_opener()
    file = pillow_heif.from_pillow(HALVES)
    file.add_from_pillow(Image.new("RGB", (48, 32), "white"))
    file.save(tmp_path / "two.heic", quality=-1, primary_index=0, chroma=444)
    made = with_auxiliary((tmp_path / "two.heic").read_bytes(), b"urn:com:apple:photo:2020:aux:hdrgainmap")
    (tmp_path / "a.heic").write_bytes(made)
    found = read(tmp_path / "a.heic")
    assert found.notes == ("its gain map (high dynamic range) left out",)
    assert np.abs(np.asarray(found.image, int) - np.asarray(HALVES)).max() <= 2


HDRGM = (
    b'<rdf:Description xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" hdrgm:Version="1.0" hdrgm:GainMapMax="2"/>'
)
APPLE = (
    b'<rdf:Description xmlns:HDRGainMap="http://ns.apple.com/HDRGainMap/1.0/" HDRGainMap:HDRGainMapVersion="65536"/>'
)


@pytest.mark.parametrize(
    ("xmp", "of_map", "said"),
    [
        (HDRGM, HDRGM, "its gain map (high dynamic range) left out"),
        (None, APPLE, "its gain map (high dynamic range) left out"),
        (None, None, "first of 2 frames"),
    ],
    ids=["Ultra HDR", "Apple", "stereo"],
)
def test_a_jpeg_with_a_second_picture_is_its_first(
    tmp_path: Path, xmp: bytes | None, of_map: bytes | None, said: str
) -> None:
    """As phones write it (MPF): turned by its EXIF, whatever stands in the second; and the same when it is shrunk."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    second = Image.new("L", (24, 16), 255) if of_map else Image.new("RGB", HALVES.size, "lime")
    second.encoderinfo = {"xmp": of_map} if of_map else {}  # type: ignore[attr-defined]
    options: dict[str, Any] = {"quality": 95, "subsampling": 0, "exif": exif.tobytes()} | ({"xmp": xmp} if xmp else {})
    HALVES.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second], **options)
    assert (tmp_path / "a.jpg").read_bytes().count(b"\xff\xd8\xff") == 2
    for least in (None, 16):
        found = decode(tmp_path / "a.jpg", least)
        assert isinstance(found, Picture) and said in found.notes and found.format.startswith("JPEG")
        upright = np.asarray(found.image.resize((64, 96)), int)
        assert np.abs(upright[8:40].mean(axis=(0, 1)) - (200, 60, 60)).max() <= 4
        assert np.abs(upright[56:88].mean(axis=(0, 1)) - (40, 120, 200)).max() <= 4


def test_jpeg_xl_and_its_size_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    HALVES.save(tmp_path / "a.jxl", lossless=True)
    HALVES.crop((0, 0, 61, 37)).save(tmp_path / "odd.jxl", lossless=True, use_container=True)
    found = read(tmp_path / "a.jxl")
    assert np.array_equal(np.asarray(found.image), np.asarray(HALVES))
    assert read(tmp_path / "odd.jxl").image.size == (61, 37)
    for name, size in (("a.jxl", (96, 64)), ("odd.jxl", (61, 37))):
        content = (tmp_path / name).read_bytes()
        assert phone._size(content[content.index(b"\xff\x0a") + 2 :][:14]) == size
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", size[0] * size[1] // 2 - 1)
        assert isinstance(decode(tmp_path / name), Skipped)
        monkeypatch.undo()


def test_without_the_extra_the_way_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heic(tmp_path / "a.heic", HALVES)
    HALVES.save(tmp_path / "b.jxl")
    assert len(find_pictures([tmp_path])[0]) == 2
    monkeypatch.setattr(phone, "find_spec", lambda _: None)
    _, skipped = find_pictures([tmp_path])
    assert [one.reason.split(" (")[0] for one in skipped] == ["HEIC cannot be read here", "JPEG XL cannot be read here"]
    assert needs("phone") in skipped[0].reason
    assert formats.named_as(".HEIC") == "HEIF"
