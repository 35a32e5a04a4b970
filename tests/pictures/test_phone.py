"""Photos as phones store them: HEIC and JPEG XL, turned, of wide gamut, of ten bits, of several frames."""

from __future__ import annotations

import struct
from pathlib import Path

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
