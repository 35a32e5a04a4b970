"""Which generated pictures are let pass, by an encoder whose answers are known: the mean colours of the quarters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from femtobooth.judging import scores
from femtobooth.judging.encoders import Encoder
from femtobooth.judging.filtering import COPY, EMPTY, KEPT, OTHER, TWICE, UNLIKE, filtered, limit, needed, repeated
from femtobooth.pictures.regions import only_subject

RED, BLUE = (230, 30, 30), (30, 30, 230)


def look(pictures: Sequence[np.ndarray]) -> np.ndarray:
    quarters = [picture.reshape(2, 32, 2, 32, 3).mean(axis=(1, 3)).ravel() for picture in pictures]
    return (np.array(quarters) - 128).astype(np.float32)


ENCODER = Encoder("look", "here", frozenset(), look)


def scene(colour: tuple[int, int, int], seed: int) -> np.ndarray:
    """A round thing of one colour on a backdrop of blotches, which are fine enough to tell two pictures apart by their
    detail.
    """
    random = np.random.default_rng(seed)
    blotches = Image.fromarray(random.integers(60, 200, (12, 12, 3), np.uint8)).resize(
        (64, 64), Image.Resampling.BICUBIC
    )
    pixels = np.asarray(blotches).copy()
    y, x = np.mgrid[:64, :64]
    pixels[(y - 32) ** 2 + (x - 32) ** 2 < random.integers(350, 500)] = colour
    return pixels


@pytest.fixture
def photos() -> list[np.ndarray]:
    return [scene(RED, seed) for seed in range(4)]


@pytest.fixture
def base() -> list[np.ndarray]:
    return [scene(BLUE, seed) for seed in range(10, 30)]


def test_each_reason(photos: list[np.ndarray], base: list[np.ndarray]) -> None:
    good, again = scene(RED, 50), np.array(Image.fromarray(scene(RED, 50)).resize((48, 48)).resize((64, 64)))
    pictures = [good, scene(BLUE, 51), photos[2], again, np.full((64, 64, 3), 200, np.uint8), scene(RED, 52)]
    found = filtered(ENCODER, photos, base, pictures, 0.0)
    assert found.verdicts[1:3] == [UNLIKE, COPY]
    assert sorted([found.verdicts[0], found.verdicts[3]]) == sorted([KEPT, TWICE])
    assert found.scores[[0, 3]].argmax() == [found.verdicts[0], found.verdicts[3]].index(KEPT)
    assert found.verdicts[4:] == [EMPTY, KEPT]
    assert (found.photos_pass, found.base_passes) == (4, 0)


def test_what_is_more_like_another_subject_is_not_this_one(photos: list[np.ndarray], base: list[np.ndarray]) -> None:
    others = [[scene((30, 230, 30), seed) for seed in range(40, 43)], [scene(BLUE, seed) for seed in range(44, 46)]]
    pictures = [scene(RED, 60), scene((60, 230, 30), 61), scene(BLUE, 62)]
    alone = filtered(ENCODER, photos, base, pictures, 0.05, threshold=-1.0)
    assert alone.verdicts == [KEPT] * 3
    found = filtered(ENCODER, photos, base, pictures, 0.05, threshold=-1.0, others=others)
    assert found.verdicts == [KEPT, OTHER, OTHER]
    assert np.array_equal(found.scores, alone.scores)
    assert filtered(ENCODER, photos, base, pictures, 0.05, threshold=-1.0, others=[photos]).verdicts == [KEPT] * 3


def test_scores_are_the_mean_of_whole_and_region(photos: list[np.ndarray], base: list[np.ndarray]) -> None:
    pictures = [scene(RED, 60), scene(BLUE, 61)]
    found = filtered(ENCODER, photos, base, pictures, 0.05)

    def both(images: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return look(images), look([only_subject(one) for one in images])

    whole, region = (
        scores.subject_fidelity(ours, real) for ours, real in zip(both(pictures), both(photos), strict=True)
    )
    assert np.allclose(found.scores, (whole + region) / 2)
    own = [scores.leave_one_out(real) for real in both(photos)]
    assert np.allclose(found.photos, np.mean(own, axis=0))


def test_a_threshold_of_ones_own(photos: list[np.ndarray], base: list[np.ndarray]) -> None:
    assert filtered(ENCODER, photos, base, [scene(BLUE, 70)], 0.05, threshold=-1.0).verdicts == [KEPT]
    assert filtered(ENCODER, photos, base, [scene(RED, 70)], 0.05, threshold=1.0).verdicts == [UNLIKE]


def test_a_single_photo_has_nothing_to_be_compared_with(photos: list[np.ndarray], base: list[np.ndarray]) -> None:
    found = filtered(ENCODER, photos[:1], base, [scene(RED, 80)], 0.05)
    assert (found.verdicts, len(found.photos)) == ([KEPT], 0)


@pytest.mark.parametrize(("share", "passing"), [(0.0, 0), (0.05, 1), (0.049, 0), (0.5, 10), (0.99, 19)])
def test_the_limit_lets_at_most_its_share_pass(share: float, passing: int) -> None:
    values = np.random.default_rng(0).permutation(np.arange(20.0))
    assert int((values > limit(values, share)).sum()) == passing


def test_the_limit_among_equals_lets_none_pass() -> None:
    assert not (np.ones(8) > limit(np.ones(8), 0.5)).any()


def test_repeated_nothing() -> None:
    assert repeated([], np.zeros(0)) == []


def test_junk_that_beats_every_picture_of_the_base_is_still_unlike(
    photos: list[np.ndarray], base: list[np.ndarray]
) -> None:
    """A threshold from the base alone lets what is a little more like the photos pass, though nobody would know the
    subject in it.
    """
    mixed = [scene((int(0.9 * BLUE[0] + 0.1 * RED[0]) + 20, 30, 210), seed) for seed in range(90, 94)]
    found = filtered(ENCODER, photos, base, [*mixed, scene(RED, 95)], 0.05)
    assert (found.scores[:4] > limit(found.base, 0.05)).all()
    assert found.verdicts == [UNLIKE] * 4 + [KEPT]


@pytest.mark.parametrize(("share", "pictures"), [(0.05, 20), (0.5, 20), (0.01, 100), (0.0, 20)])
def test_a_threshold_needs_enough_pictures_of_the_base(share: float, pictures: int) -> None:
    assert needed(share) == pictures
