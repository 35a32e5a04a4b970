"""What is taken for the subject of one picture, and for that of several photos of it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from femtobooth.generator.locate import bundled_folder
from femtobooth.pictures.regions import (
    find_subject,
    find_subjects,
    only_subject,
    subject_mask,
    subject_masks,
    without_subject,
)

WALLS = ((70, 90, 200), (90, 160, 90), (120, 120, 125), (60, 60, 80))


def overlap(mask: np.ndarray | None, truth: np.ndarray) -> float:
    assert mask is not None
    return float((mask & truth).sum() / (mask | truth).sum())


def ball(wall: tuple[int, int, int], held: bool = False, foot: bool = True, size: int = 96) -> np.ndarray:
    """A red ball with a brown foot, on a wall with some grain, on request held by an arm."""
    image = Image.new("RGB", (96, 96), wall)
    draw = ImageDraw.Draw(image)
    if held:
        draw.rectangle((42, 56, 62, 88), fill=(225, 180, 150))
    draw.ellipse((30, 20, 66, 56), fill=(210, 30, 40))
    if foot:
        draw.rectangle((34, 56, 62, 68), fill=(120, 80, 45))
    grain = np.random.default_rng(sum(wall)).normal(0, 3, (96, 96, 1))
    return np.asarray(Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8)).resize((size, size)))


def truth(foot: bool = True, size: int = 96) -> np.ndarray:
    """Where ball and foot are."""
    image = Image.new("1", (96, 96))
    draw = ImageDraw.Draw(image)
    draw.ellipse((30, 20, 66, 56), fill=1)
    if foot:
        draw.rectangle((34, 56, 62, 68), fill=1)
    return np.asarray(image.resize((size, size)))


def test_the_region_is_the_subject() -> None:
    pixels = np.random.default_rng(0).integers(90, 110, (80, 80, 3)).astype(np.uint8)
    pixels[24:60, 20:50] = (220, 40, 30)
    mask = subject_mask(pixels)
    truth = np.zeros((80, 80), bool)
    truth[24:60, 20:50] = True
    assert (mask & truth).sum() / (mask | truth).sum() > 0.75
    assert (only_subject(pixels)[~mask] == 128).all()
    assert (only_subject(pixels)[mask] == pixels[mask]).all()
    assert (without_subject(pixels)[mask] == 128).all()
    assert 0.2 < subject_mask(np.full((32, 32, 3), 7, np.uint8)).mean() < 0.3  # nothing stands out: the middle


def test_what_is_in_one_photo_alone_is_not_the_subject() -> None:
    photos = [ball(wall, held=number == 0, foot=False) for number, wall in enumerate(WALLS)]
    alone, together = find_subject(photos[0]), find_subjects(photos)
    assert overlap(alone, truth(foot=False)) < 0.75  # the arm too
    assert all(overlap(mask, truth(foot=False)) > 0.85 for mask in together)


def test_the_mascot_is_whole_in_every_photo() -> None:
    photos = [
        np.asarray(Image.open(path).convert("RGB"))
        for path in sorted(bundled_folder().with_name("mascot").glob("*.jpg"))
    ]
    yellow = [(np.abs(one.astype(int) - (255, 212, 0)) < 60).all(axis=-1) for one in photos]  # antenna, hands and feet
    alone = [only[mask].mean() for only, mask in zip((subject_mask(one) for one in photos), yellow, strict=True)]
    together = [mask[where].mean() for mask, where in zip(subject_masks(photos), yellow, strict=True)]
    assert min(alone) < 0.3
    assert min(together) > 0.8


def test_photos_of_any_size_and_light_and_such_that_show_nothing() -> None:
    photos = [
        *(ball(wall, size=size) for wall, size in zip(WALLS, (64, 96, 150, 220), strict=True)),
        np.full((40, 50, 3), 9, np.uint8),
    ]
    photos[1], photos[2] = (photos[1] * 0.6).astype(np.uint8), (photos[2] * 0.9).astype(np.uint8)
    found = find_subjects(photos)
    assert [None if mask is None else mask.shape for mask in found] == [
        (64, 64),
        (96, 96),
        (150, 150),
        (220, 220),
        None,
    ]
    assert overlap(found[1], truth()) > 0.85
    assert overlap(found[3], truth(size=220)) > 0.85
    assert [mask.shape for mask in subject_masks(photos)][-1] == (40, 50)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_two_photos_are_taken_one_by_one(count: int) -> None:
    photos = [ball(wall, held=True) for wall in WALLS[:count]]
    for mask, photo in zip(find_subjects(photos), photos, strict=True):
        assert np.array_equal(mask, find_subject(photo))  # type: ignore[arg-type]


def test_photos_of_different_things_keep_what_stands_out() -> None:
    photos = []
    for wall, colour in zip(WALLS, ((210, 30, 40), (250, 230, 60), (30, 200, 220), (250, 250, 250)), strict=True):
        image = Image.fromarray(ball(wall, foot=False))
        ImageDraw.Draw(image).ellipse((30, 20, 66, 56), fill=colour)
        photos.append(np.asarray(image))
    for mask, photo in zip(find_subjects(photos), photos, strict=True):
        assert np.array_equal(mask, find_subject(photo))  # type: ignore[arg-type]
