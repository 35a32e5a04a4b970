"""Masks of photos: where they lie, what is one, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from femtobooth.core.errors import PhotoError
from femtobooth.pictures.images import find_pictures
from femtobooth.pictures.masks import mask_files, masks_near, read_mask, show_mask, without_masks

HALVES = np.repeat(np.array([[0, 255]], np.uint8), 40, axis=1).repeat(60, axis=0)  # (60, 80): its right half


def save(values: np.ndarray, path: Path, **options: object) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(values).save(path, **options)
    return path


def test_masks_lie_beside_their_photos_or_in_a_folder_there(tmp_path: Path) -> None:
    for name in (
        "rex.jpg",
        "rex.mask.png",
        "rex.png",
        "rex.png.mask.webp",
        "max.jpg",
        "Masks/max.png",
        "masks/rexi.png",
    ):
        save(HALVES, tmp_path / name)
    (tmp_path / "rex.mask.txt").write_text("no picture")
    found = {path.name: [str(mask.relative_to(tmp_path)) for mask in mask_files(path)] for path in tmp_path.glob("*.*")}
    assert found["rex.jpg"] == ["rex.mask.png"]
    assert found["rex.png"] == ["rex.png.mask.webp", "rex.mask.png"]
    assert [name.lower() for name in found["max.jpg"]] == ["masks/max.png"]
    assert [path.name for path in masks_near([tmp_path / "rex.jpg"])] in (
        ["max.png", "rexi.png"],
        ["rexi.png", "max.png"],
    )


@pytest.mark.parametrize("named", ["the folder", "all that lies in it", "every file"])
def test_a_mask_is_no_photo(tmp_path: Path, named: str) -> None:
    for name in ("rex.jpg", "rex.mask.png", "max.jpg", "max.MASK.PNG", "masks/max.png", "masks/other.png"):
        save(HALVES, tmp_path / name)
    given = {
        "the folder": [tmp_path],
        "all that lies in it": sorted(tmp_path.iterdir()),
        "every file": sorted(tmp_path.rglob("*.*")),
    }
    assert [path.name for path in without_masks(find_pictures(given[named])[0])] == ["max.jpg", "rex.jpg"]


def test_a_folder_of_carnival_masks_holds_photos(tmp_path: Path) -> None:
    """Its name alone makes no masks of them: there is no photo that they could be of."""
    for name in ("masks/1.jpg", "masks/2.jpg"):
        save(HALVES, tmp_path / name)
    assert len(without_masks(find_pictures([tmp_path / "masks"])[0])) == 2


STORED: dict[str, Callable[[Path], Path]] = {
    "grey": lambda folder: save(HALVES, folder / "m.png"),
    "one bit": lambda folder: save(HALVES > 0, folder / "m.png"),
    "16 bits": lambda folder: save(HALVES.astype(np.uint16) * 257, folder / "m.png"),
    "RGB": lambda folder: save(HALVES[..., None].repeat(3, -1), folder / "m.bmp"),
    "a cut-out": lambda folder: save(np.dstack([*[HALVES // 2 + 30] * 2, HALVES // 3, HALVES]), folder / "m.png"),
    "turned by EXIF": lambda folder: save(np.rot90(HALVES), folder / "m.png", exif=_turned(6)),
}


def _turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("kind", STORED)
def test_however_it_is_stored_it_is_the_same_mask(tmp_path: Path, kind: str) -> None:
    assert np.array_equal(read_mask(STORED[kind](tmp_path), "photo.jpg", (80, 60)), HALVES)


def test_grey_stays_grey(tmp_path: Path) -> None:
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(read_mask(save(every, tmp_path / "m.png"), "photo.jpg", (16, 16)), every)


@pytest.mark.parametrize("values", [0, 255])
def test_an_empty_and_a_full_mask_are_masks(tmp_path: Path, values: int) -> None:
    mask = np.full((60, 80), values, np.uint8)
    assert np.array_equal(read_mask(save(mask, tmp_path / "m.png"), "photo.jpg", (80, 60)), mask)


HOSTILE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "another size": (lambda folder: save(HALVES[:, :79], folder / "m.png"), r"m\.png: the mask has 79x60 pixels, and photo\.jpg 80x60\n"),
    "twice the size": (lambda folder: save(HALVES.repeat(2, 0).repeat(2, 1), folder / "m.png"), "has 160x120 pixels, and photo.jpg 80x60\n"),
    "not turned": (lambda folder: save(HALVES.T, folder / "m.png"), "has 60x80 pixels, and photo.jpg 80x60, upright\n"),
    "a photo": (lambda folder: save(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8), folder / "m.png"), "is in colour"),
    "ones": (lambda folder: save(HALVES // 255, folder / "m.png"), "nothing in the mask is lighter than 1 of 255"),
    "cut off": (lambda folder: _cut(save(HALVES, folder / "m.png")), "cannot be read: truncated PNG"),
}  # fmt: skip


def _cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:60])
    return path


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_cannot_be_a_mask_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    make, problem = HOSTILE[kind]
    with pytest.raises(PhotoError, match=problem):
        read_mask(make(tmp_path), "photo.jpg", (80, 60))


def test_what_a_mask_leaves_out_is_shown_grey() -> None:
    picture = np.full((2, 3, 3), 228, np.uint8)
    shown = show_mask(picture, np.array([[0, 51, 255]] * 2, np.uint8))
    assert shown[0, :, 0].tolist() == [128, 148, 228]
