"""Which part of a photo is taken for its subject when pictures are compared with it."""

from __future__ import annotations

import numpy as np
import pytest

from femtobooth.judging.scoring import Real
from femtobooth.pictures.regions import only_subject


def test_a_mask_says_what_the_subject_of_a_photo_is() -> None:
    """Red stands out; the mask wants the upper half."""
    photos = [np.full((64, 64, 3), 200 + number, np.uint8) for number in range(3)]
    for photo in photos:
        photo[20:50, 20:44] = (220, 30, 30)
    mask = np.zeros((64, 64), np.uint8)
    mask[:32], mask[32:40] = 255, 100
    found = Real(photos[:2], photos[2:], masks=[None, mask, mask]).subjects
    assert np.array_equal(found.photos[0], only_subject(photos[0]))
    for one, photo in ((found.photos[1], photos[1]), (found.others[0], photos[2])):
        assert np.array_equal(one[:32], photo[:32])
        assert (one[32:] == 128).all()
    assert np.array_equal(Real(photos).subjects.photos[2], only_subject(photos[2]))
    with pytest.raises(ValueError, match="zip"):
        assert Real(photos, masks=[mask]).subjects
