"""Copies are found however they were changed; different shots are not taken for copies."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

import femtobooth
from femtobooth.core.images import read_picture
from femtobooth.recognizer.duplicates import SAME, groups, views

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
    hashes = [views(image) for image in photos]
    assert len(hashes) == 5
    distances = [np.mean(a[0] != b[0]) for i, a in enumerate(hashes) for b in hashes[:i] if a is not None and b is not None]
    assert min(distances) > SAME


def test_plain_pictures_are_copies_only_by_their_bytes() -> None:
    plain = [views(Image.new("RGB", (64, 64), colour)) for colour in ("red", "blue", "red")]
    assert plain == [None] * 3
    assert groups(plain, ["1", "2", "1"]).tolist() == [0, 1, 0]


def test_chains_are_one_group() -> None:
    bits = np.zeros((4, 4, 255), bool)
    for index in range(4):
        bits[index, :, : 50 * index] = True  # neighbours differ in 20 %, the ends in 59 %
    assert groups(list(bits), list("abcd"), block=2).tolist() == [0, 0, 0, 0]
