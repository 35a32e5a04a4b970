"""Copies are found however they were changed; different shots are not taken for copies."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance
from sklearn.datasets import load_digits

import femtobooth
from femtobooth.pictures.duplicates import ALIKE, SAME, groups, thumbnails, views
from femtobooth.pictures.images import read_picture

MASCOT = sorted((Path(femtobooth.__file__).parent / "assets" / "mascot").glob("*.jpg"))


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    """Five shots of one subject."""
    return [read_picture(path).image for path in MASCOT]


def recompressed(image: Image.Image) -> Image.Image:
    stored = io.BytesIO()
    image.resize((image.width // 2, image.height // 2)).save(stored, "JPEG", quality=25)
    return Image.open(stored).convert("RGB")


def trimmed(image: Image.Image) -> Image.Image:
    width, height = image.size
    return image.crop((width // 20, height // 20, width - width // 20, height - height // 20))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "resized": lambda image: image.resize((200, 150)),
    "recompressed": recompressed,
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.25),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "trimmed": trimmed,
    "trimmed and mirrored": lambda image: trimmed(image).transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


@pytest.mark.parametrize("name", CHANGES)
def test_copies_share_a_group(photos: list[Image.Image], name: str) -> None:
    both = [*photos, *map(CHANGES[name], photos)]
    found = groups([views(image) for image in both], [str(i) for i in range(len(both))])
    assert found.tolist() == [*range(len(photos))] * 2


def test_shots_of_one_subject_are_no_copies(photos: list[Image.Image]) -> None:
    found = np.stack([own[0] for image in photos if (own := views(image)) is not None])
    assert len(found) == 5
    bits = found > np.median(found, axis=1, keepdims=True)
    pairs = [(i, j) for i in range(5) for j in range(i)]
    assert min(np.mean(bits[i] != bits[j]) for i, j in pairs) > SAME
    assert max(found[i] @ found[j] for i, j in pairs) < ALIKE


def test_smooth_pictures() -> None:
    """Their high frequencies are noise, which must neither hide a copy nor make one."""
    blocks = [np.random.default_rng(seed).integers(60, 200, (5, 5, 3)).astype(np.uint8) for seed in range(8)]
    smooth = [Image.fromarray(one).resize((72, 60), Image.Resampling.BICUBIC) for one in blocks]
    both = [*smooth, *(recompressed(image) for image in smooth)]
    assert groups([views(image) for image in both], [str(i) for i in range(16)]).tolist() == [*range(8)] * 2


def test_plain_pictures_are_copies_only_by_their_bytes() -> None:
    plain = [views(Image.new("RGB", (64, 64), colour)) for colour in ("red", "blue", "red")]
    assert plain == [None] * 3
    assert groups(plain, ["1", "2", "1"]).tolist() == [0, 1, 0]


def test_a_chain_of_likenesses_is_no_group() -> None:
    """Neighbours differ in 20 % of the bits, every second one in 39 %: a group is of what is all near each other."""
    signs = np.tile(np.where(np.arange(255) < 127, 1.0, -1.0), (4, 1))
    for index in range(1, 4):
        signs[index:, 25 * index : 25 * index + 25] *= -1
        signs[index:, 128 + 25 * index : 153 + 25 * index] *= -1
    chain = [np.tile(row, (4, 1)).astype(np.float32) / np.float32(255**0.5) for row in signs]
    assert np.mean(signs[0] != signs[1]) < SAME < np.mean(signs[0] != signs[2])
    assert groups(chain, list("abcd"), block=2).tolist() == [0, 0, 2, 2]
    assert groups([chain[0], chain[2]], list("ab")).tolist() == [0, 1]
    assert groups(chain, list("aacc"), block=2).tolist() == [0, 0, 2, 2]


def both(images: list[Image.Image]) -> list[int]:
    return groups(
        [views(image) for image in images],
        [str(i) for i in range(len(images))],
        [thumbnails(image) for image in images],
    ).tolist()


def scene(photo: Image.Image, seed: int, place: tuple[int, int] | None = None, colour: str = "white") -> Image.Image:
    """A shot of a fixed camera: one background, the sensor's noise, and perhaps something small in it."""
    shot = photo.resize((320, 240))
    if place:
        ImageDraw.Draw(shot).ellipse((*place, place[0] + 24, place[1] + 24), fill=colour)
    noise = np.random.default_rng(seed).normal(0, 3, (240, 320, 3))
    return Image.fromarray((np.asarray(shot) + noise).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("place", [(40, 40), (200, 60), (280, 200), (150, 120)])
def test_shots_of_a_fixed_camera_are_told_apart_by_a_region(photos: list[Image.Image], place: tuple[int, int]) -> None:
    shots = [
        scene(photos[0], 0),
        scene(photos[0], 1),
        scene(photos[0], 2, place),
        scene(photos[0], 3, place),
        scene(photos[0], 4, (90, 180)),
    ]
    assert groups([views(shot) for shot in shots], list("abcde")).tolist() == [0] * 5  # to the hash alone they are one
    assert both(shots) == [0, 0, 2, 2, 4]


def test_a_light_that_changes_its_colour_only() -> None:
    """Red and green of one brightness: grey tells nothing."""
    road = Image.fromarray(np.random.default_rng(0).integers(60, 200, (6, 8, 3)).astype(np.uint8)).resize(
        (320, 240), Image.Resampling.BICUBIC
    )
    shots = [
        scene(road, seed, (150, 100), colour)
        for seed, colour in enumerate(["#e00000", "#007200", "#e00000", "#007200"])
    ]
    assert both(shots) == [0, 1, 0, 1]


@pytest.mark.parametrize("name", CHANGES)
def test_an_edited_copy_has_no_region_that_differs(photos: list[Image.Image], name: str) -> None:
    found = both([*photos, *map(CHANGES[name], photos)])
    assert found == [*range(len(photos))] * 2


def test_digits_are_no_chain_of_copies() -> None:
    """1,797 scans of 8x8 pixels by 43 people: 395 were one group of copies when likeness was passed on along a
    chain.
    """
    digits = load_digits().images[:400]
    grey = [Image.fromarray((one * 255 / 16).astype(np.uint8)) for one in digits]
    images = [one.resize((32, 32), Image.Resampling.NEAREST).convert("RGB") for one in grey]
    sizes = np.bincount(both(images))
    assert sizes.max() <= 4
    assert (sizes > 0).sum() > 350
