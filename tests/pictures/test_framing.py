"""How pictures were framed: what Stable Diffusion XL is told of them."""

from __future__ import annotations

import numpy as np
from PIL import Image

from femtobooth.pictures.crops import placement
from femtobooth.pictures.framing import Framing


def lying(width: int = 120, height: int = 80) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_a_crop_is_measured_in_the_scaled_picture() -> None:
    framing = Framing.of((120, 80), placement(lying(), 40, "center"))
    assert framing == Framing(80, 120, top=0, left=10, right=10)
    assert framing.numbers(40, 40) == (80, 120, 0, 10, 40, 40)


def test_the_mirrored_crop_lies_at_the_other_side() -> None:
    mask = np.zeros((80, 120), np.uint8)
    mask[10:30, 80:100] = 1
    place = placement(lying(), 20, "subject", mask > 0)
    assert place.cut is not None
    left, top, right, _ = place.cut
    scale = 20 / (right - left)
    framing = Framing.of((120, 80), place)
    assert framing == Framing(80, 120, round(top * scale), round(left * scale), round((120 - right) * scale))
    assert framing.left > framing.right
    assert framing.mirrored() == framing._replace(left=framing.right, right=framing.left)
    assert framing.mirrored().mirrored() == framing


def test_padded_and_square_pictures_are_whole() -> None:
    assert Framing.of((120, 80), placement(lying(), 40, "pad")) == Framing(80, 120)
    assert Framing.of((96, 96), placement(lying(96, 96), 48, "smart")) == Framing(96, 96)


def test_it_survives_as_text() -> None:
    framing = Framing(800, 1200, 3, 40, 56)
    assert Framing.of_text(framing.text()) == framing
    for broken in (None, "", "1 2 3 4 five", "1 2 3 4 5 6", "1 2 -3 4 5"):
        assert Framing.of_text(broken) is None


def test_a_tall_crop() -> None:
    framing = Framing.of((120, 80), placement(lying(), [(40, 60)], "center"))
    assert framing == Framing(80, 120, 0, left=25, right=26)
    assert framing.numbers(60, 40) == (80, 120, 0, 25, 60, 40)
