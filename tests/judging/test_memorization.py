"""Near-copies are found whatever was done to them; pictures that merely resemble a photo are not."""

from __future__ import annotations

import io
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from femtobooth.generator.photos import load_photos
from femtobooth.generator.subject_settings import PhotoSettings
from femtobooth.judging.memorization import near_copies, nearest


def scene(seed: int, subject: tuple[int, int] = (60, 70)) -> Image.Image:
    """A robot of rectangles at a place, over surroundings that the seed decides."""
    random = np.random.default_rng(seed)
    rough = random.integers(40, 220, (12, 12, 3)).astype(np.uint8)
    image = Image.fromarray(rough).resize((192, 192), Image.Resampling.BICUBIC)
    pen, (x, y) = ImageDraw.Draw(image), subject
    pen.rectangle((x, y, x + 60, y + 70), fill=(200, 40, 30), outline=(20, 20, 20), width=3)
    pen.rectangle((x + 12, y + 12, x + 24, y + 24), fill="white")
    pen.rectangle((x + 36, y + 12, x + 48, y + 24), fill="white")
    return image


def jpeg(image: Image.Image) -> Image.Image:
    stored = io.BytesIO()
    image.save(stored, "JPEG", quality=25)
    return Image.open(stored).convert("RGB")


COPIES = {
    "itself": lambda image: image,
    "recompressed": jpeg,
    "mirrored": ImageOps.mirror,
    "brighter": lambda image: image.point(lambda value: min(255, int(1.2 * value))),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(1.5)),
    "crop of 85 %, off centre": lambda image: image.crop((0, 28, 164, 192)),
    "crop of 70 %": lambda image: image.crop((40, 30, 174, 164)),
    "mirrored crop, recompressed": lambda image: jpeg(ImageOps.mirror(image.crop((20, 10, 164, 154)))),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("size", [64, 128])
def test_copies_are_found(how: str, size: int) -> None:
    photos = [np.array(scene(seed)) for seed in range(3)]
    copy = COPIES[how](scene(1)).resize((size, size), Image.Resampling.LANCZOS)
    assert near_copies([np.array(copy)], photos) == [True]


@pytest.mark.parametrize("end", [0, 72])
def test_a_copy_of_any_end_of_a_lying_photo_is_found(end: int) -> None:
    """Of its thumbnail, squashed to a square, no square would be like the copy."""
    lying = scene(1).crop((0, 60, 192, 180))  # 192x120
    copy = lying.crop((end, 0, end + 120, 120)).resize((64, 64), Image.Resampling.LANCZOS)
    others = [np.array(scene(seed)) for seed in (0, 2)]
    found = nearest([np.array(copy)], [others[0], np.array(lying), others[1]])
    assert [(one.photo, one.copied) for one in found] == [(1, True)]
    standing = [np.array(one.transpose(Image.Transpose.ROTATE_90)) for one in (copy, lying)]
    assert near_copies(standing[:1], [*others, standing[1]]) == [True]


def test_the_subject_elsewhere_is_no_copy() -> None:
    photos = [np.array(scene(seed)) for seed in range(3)]
    others = [
        np.array(scene(seed, (40 + 9 * seed % 50, 30 + 7 * seed % 60)).resize((64, 64))) for seed in range(10, 20)
    ]
    plain = np.full((64, 64, 3), 90, np.uint8)
    assert not any(near_copies([*others, plain], [*photos, plain]))


@pytest.mark.parametrize("size", [64, 512])
def test_photos_of_a_drawn_subject_do_not_copy_each_other(size: int) -> None:
    """The mascot looks the same in each of its photos: by outlines alone, two of the five would be copies (fit .76 and
    .80).
    """
    mascot = Path(str(resources.files("femtobooth") / "assets" / "mascot"))
    photos = [
        photo.pixels
        for photo in load_photos(PhotoSettings(paths=[str(mascot)], class_noun="robot", crop="subject"), size)[0]
    ]
    for index, photo in enumerate(photos):
        assert near_copies([photo], photos[:index] + photos[index + 1 :]) == [False]
        copy = jpeg(ImageOps.mirror(Image.fromarray(photo)).crop((0, size // 8, size * 7 // 8, size)))
        assert near_copies([np.array(copy)], photos) == [True]
