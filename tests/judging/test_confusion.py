"""Who was drawn when who was asked for, by hand: pictures of one colour, an encoder that sees their mean colour."""

from __future__ import annotations

import numpy as np
import pytest

from femtobooth.core.metrics import wilson
from femtobooth.judging.confusion import Galleries, confusion, counts, together, windows
from femtobooth.judging.encoders import Encoder

RED, GREEN, BLUE = np.eye(3) * 200


def colour(*parts: float) -> np.ndarray:
    """A picture of one colour, 20 x 20."""
    return np.broadcast_to(np.array(parts, np.uint8), (20, 20, 3)).copy()


def by_colour(pictures: list[np.ndarray]) -> np.ndarray:
    return np.array([one.reshape(-1, 3).mean(axis=0) + 1e-3 for one in pictures])


ENCODER = Encoder("colours", "none", frozenset(), by_colour)
PHOTOS = {"rex": [colour(200, 10, 0), colour(200, 0, 20)], "mug": [colour(0, 200, 10), colour(20, 200, 0)]}


def test_a_matrix_by_hand() -> None:
    galleries = Galleries(ENCODER, {**PHOTOS, "sea": [colour(*BLUE)]}, region=False)
    asked = {
        "rex": [colour(*RED), colour(*RED), colour(*GREEN), colour(0, 0, 250)],
        "mug": [colour(10, 90, 20), colour(250, 90, 0)],
    }
    base = {"rex": [colour(*BLUE)] * 4, "mug": [colour(*GREEN)] * 2}
    found = confusion(galleries, asked, base)
    assert found["asked"] == ["rex", "mug"] and found["recognized"] == ["rex", "mug", "sea"]
    assert found["counts"] == [[2, 1, 1], [1, 1, 0]]
    assert found["base"] == [[0, 0, 4], [0, 2, 0]]
    assert found["right"] == [list(wilson(2, 4)), list(wilson(1, 2))]
    assert found["photos"] == [4, 4]  # the single photo of the sea has none to be compared with
    assert counts({"a": [1, 1], "b": []}, 2).tolist() == [[0, 2], [0, 0]]


def test_likeness_is_a_mean_of_cosines() -> None:
    galleries = Galleries(ENCODER, PHOTOS, region=False)
    (row,) = galleries.likeness([colour(*RED)])
    wanted = np.mean([200 / np.hypot(200, 10), 200 / np.hypot(200, 20)])
    assert row[0] == pytest.approx(wanted, abs=1e-4) and row[1] < 0.1


def test_photos_that_an_encoder_cannot_tell_apart_are_counted() -> None:
    same = Galleries(ENCODER, {"a": [colour(*RED), colour(*GREEN)], "b": [colour(*RED), colour(*GREEN)]}, region=False)
    assert same.photos_recognized() == (0, 4)


def test_windows_cover_a_picture() -> None:
    picture = np.arange(30 * 20 * 3, dtype=np.int64).reshape(30, 20, 3)
    cut = windows(picture)
    assert len(cut) == 9 and {one.shape for one in cut} == {(18, 12, 3)}
    assert set(np.concatenate([one.ravel() for one in cut])) == set(picture.ravel())


def test_both_are_found_where_both_are() -> None:
    def halves(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        picture = np.zeros((20, 20, 3), np.uint8)
        picture[:, :10], picture[:, 10:] = left, right
        return picture

    galleries = Galleries(ENCODER, PHOTOS, region=False)
    base = [halves(BLUE, BLUE)] * 3
    found = together(galleries, ("rex", "mug"), [halves(RED, GREEN), halves(RED, RED), halves(BLUE, GREEN)], base)
    assert found == {
        "subjects": ["rex", "mug"],
        "of": 3,
        "found": [list(wilson(2, 3)), list(wilson(2, 3))],
        "both": list(wilson(1, 3)),
        "base": [0, 0, 0],
    }
