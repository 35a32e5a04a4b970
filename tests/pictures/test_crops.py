"""How pictures become squares or other shapes, and their masks with them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from femtobooth.pictures.crops import SUBJECT_SHARE, make_square, placement, shapes_of


def scene(seed: int, width: int = 96, height: int = 96) -> Image.Image:
    """Coloured blocks, unlike those of any other seed."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC)


def _ball(width: int, height: int, x: int, y: int) -> Image.Image:
    """A textured red disc of diameter 80 around (x, y), on a softly shaded wall with some grain."""
    random = np.random.default_rng(3)
    shade = np.linspace(120, 170, width)[None, :, None] + random.normal(0, 3, (height, width, 3))
    image = Image.fromarray(shade.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.ellipse((x - 40, y - 40, x + 40, y + 40), fill=(200, 30, 30))
    draw.ellipse((x - 20, y - 20, x + 10, y + 10), fill=(240, 200, 60))
    return image


def _red_extent(square: Image.Image) -> tuple[int, int]:
    """Width and height in pixels of what is red."""
    pixels = np.asarray(square).astype(int)
    red = (pixels[..., 0] > 150) & (pixels[..., 2] < 110)
    return int(red.any(0).sum()), int(red.any(1).sum())


@pytest.mark.parametrize("standing", [False, True])
@pytest.mark.parametrize("where", [50, 120, 300, 480, 550])
@pytest.mark.parametrize("crop", ["center", "smart", "pad"])
def test_crops_never_squash_and_smart_keeps_the_subject(crop: str, where: int, standing: bool) -> None:
    image = _ball(600, 200, where, 100)
    if standing:
        image = image.transpose(Image.Transpose.TRANSPOSE)
    square, _ = make_square(image, 120, crop)
    assert square.size == (120, 120)
    width, height = _red_extent(square)
    whole = crop != "center" or where == 300
    if whole:
        expected = 80 * 120 / (600 if crop == "pad" else 200)
        assert abs(width - expected) <= 2, (width, expected)
        assert abs(height - expected) <= 2, (height, expected)
    else:
        assert min(width, height) == 0


@pytest.mark.parametrize("standing", [False, True])
def test_subject_crop_comes_close_but_never_enlarges(standing: bool) -> None:
    image = _ball(400, 300, 250, 120)  # 80 pixels wide
    if standing:
        image = image.transpose(Image.Transpose.TRANSPOSE)
    for size, across in ((64, 64 * SUBJECT_SHARE), (200, 80), (300, 80)):
        square, notes = make_square(image, size, "subject")
        width, height = _red_extent(square)
        assert square.size == (size, size)
        assert abs(width - height) <= 2
        assert abs(width - across) <= 8, (size, width)
        kept = int(notes[0].removeprefix("crop around the subject keeps ").removesuffix("%"))
        side = max(80 / SUBJECT_SHARE, size)
        assert abs(kept - 100 * side**2 / (400 * 300)) <= 4, notes
        assert len(notes) == 1


def test_subject_crop_of_what_has_none_is_smart() -> None:
    for image in (
        Image.new("RGB", (240, 80), "white"),
        _ball(800, 600, 500, 200),
    ):  # nothing, and less than 2 % of the picture
        assert np.array_equal(make_square(image, 80, "subject")[0], make_square(image, 80, "smart")[0])
    assert make_square(Image.new("RGB", (240, 80), "white"), 80, "subject")[1] == ["crop keeps 33%"]


def test_smart_takes_the_middle_of_a_plain_picture() -> None:
    checks = Image.fromarray(
        np.kron(np.indices((10, 30)).sum(0) % 2, np.ones((8, 8)))[..., None].repeat(3, 2).astype(np.uint8) * 255
    )
    for image in (checks, Image.new("RGB", (240, 80), "white")):
        assert np.array_equal(make_square(image, 80, "smart")[0], make_square(image, 80, "center")[0])


def test_center_crop_is_the_middle_to_the_pixel() -> None:
    image = scene(0, 101, 64)
    assert np.array_equal(make_square(image, 64, "center")[0], image.crop((18, 0, 82, 64)))


def test_pad_continues_the_borders() -> None:
    image = Image.new("RGB", (200, 100), "white")
    image.paste((255, 0, 0), (0, 50, 200, 100))
    image.paste((0, 0, 0), (90, 20, 110, 80))  # the subject does not touch a border
    square, notes = make_square(image, 64, "pad")
    pixels = np.asarray(square)
    assert (pixels[:14] == 255).all()
    assert (pixels[-14:] == (255, 0, 0)).all()
    assert notes == ["padded from 200x100"]
    assert make_square(image, 150, "pad")[1] == ["padded from 200x100"]
    assert make_square(image, 400, "pad")[1] == ["enlarged x2", "padded from 200x100"]


def test_scaling_down_is_antialiased() -> None:
    """Lines of one pixel become grey, not stripes."""
    lines = np.zeros((640, 900, 3), np.uint8)
    lines[:, ::2] = 255
    for image in (lines, lines[:, :640]):
        for crop in ("center", "smart", "pad"):
            pixels = np.asarray(make_square(Image.fromarray(image), 64, crop)[0]).astype(int)
            inside = pixels[12:-12, 2:-2]
            assert np.abs(inside - 127).max() < 12


# --- masks ---


@pytest.mark.parametrize("crop", ["center", "smart", "pad", "subject"])
@pytest.mark.parametrize(("width", "height"), [(300, 200), (200, 300), (240, 240), (101, 77), (640, 96)])
@pytest.mark.parametrize("shapes", [[(64, 64)], [(120, 120)], [(64, 64), (80, 48), (48, 80)]])
def test_a_mask_follows_its_picture(crop: str, width: int, height: int, shapes: list[tuple[int, int]]) -> None:
    """A white rectangle on black is its own mask: where the square of the one is white, so is that of the other."""
    pixels = np.zeros((height, width), np.uint8)
    pixels[height // 5 : height // 2, width // 3 : width // 2] = 255
    image = Image.fromarray(pixels).convert("RGB")
    place = placement(image, shapes, crop, pixels > 0)
    picture, mask = np.asarray(place.picture(image))[..., 0].astype(int), place.mask(pixels).astype(int)
    assert picture.shape == mask.shape == place.shape[::-1]
    assert set(np.unique(mask)) <= {0, 255}
    edge = np.abs(np.diff(mask, axis=0, prepend=0)) + np.abs(np.diff(mask, axis=1, prepend=0)) > 0
    near = edge | np.roll(edge, -1, 0) | np.roll(edge, -1, 1) | np.roll(edge, 1, 0) | np.roll(edge, 1, 1)
    assert near.mean() < 0.3
    assert ((picture > 127) == (mask > 127))[~near].all()
    assert picture[mask == 0].max(initial=0) < 250  # what is wholly white is in the mask


def test_nothing_thin_is_lost() -> None:
    """Whatever its place, one white line of 1024 stays a line of 64, where a mean would leave 16 of 255."""
    image = Image.new("RGB", (1024, 1024))
    place = placement(image, 64, "center")
    for at in (0, 500, 1023):
        mask = np.zeros((1024, 1024), np.uint8)
        mask[:, at] = 255
        assert (place.mask(mask).max(axis=0) == 255).sum() == 1
        assert (place.mask(mask)[:, at // 16] == 255).all()


def test_continued_borders_are_not_masked() -> None:
    place = placement(Image.new("RGB", (200, 100), "white"), 64, "pad")
    square = place.mask(np.full((100, 200), 255, np.uint8))
    assert (square[16:48] == 255).all()
    assert square[:16].max() == square[48:].max() == 0


def test_an_enlarged_mask_has_the_nearest_values() -> None:
    mask = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) % 251
    place = placement(Image.new("RGB", (64, 64)), 128, "center")
    assert np.array_equal(place.mask(mask), mask.repeat(2, 0).repeat(2, 1))


# --- aspect-ratio buckets ---


def test_shapes_are_steps_of_the_model_within_its_area() -> None:
    assert shapes_of(64, 16, 2.0) == [(64, 64), (80, 48), (48, 80)]
    assert shapes_of(512, 64, 2.0) == [(512, 512), (576, 448), (448, 576), (640, 384), (384, 640)]
    assert shapes_of(512, 64, 2.5)[5:] == [(704, 320), (320, 704), (768, 320), (320, 768)]
    lying = [(832, 704), (896, 640), (960, 576), (1024, 576)]
    assert shapes_of(768, 64, 2.0)[1::2] == lying
    assert all(width * height <= 768 * 768 for width, height in lying)
    assert shapes_of(64, 64, 2.0) == [(64, 64)]


@pytest.mark.parametrize(
    ("width", "height", "shape", "kept"),
    [
        (600, 600, (512, 512), 1.0),
        (640, 600, (512, 512), 15 / 16),
        (700, 600, (576, 448), 49 / 54),  # a square would keep 6 / 7
        (800, 600, (576, 448), 27 / 28),
        (900, 600, (640, 384), 0.9),  # 576x448 would keep 6 / 7
        (600, 900, (384, 640), 0.9),
        (1600, 900, (640, 384), 15 / 16),
        (3000, 600, (640, 384), 1 / 3),  # no further than 2:1
    ],
)
@pytest.mark.parametrize("crop", ["center", "smart"])
def test_a_picture_takes_the_shape_whose_crop_keeps_most(
    crop: str, width: int, height: int, shape: tuple[int, int], kept: float
) -> None:
    image = scene(0, width, height)
    place = placement(image, shapes_of(512, 64, 2.0), crop)
    assert place.shape == shape
    assert place.kept(image) == pytest.approx(kept, abs=0.002)
    assert place.picture(image).size == shape


@pytest.mark.parametrize("standing", [False, True])
@pytest.mark.parametrize("where", [50, 300, 550])
def test_a_bucket_holds_what_is_off_centre_unsquashed(where: int, standing: bool) -> None:
    image = _ball(600, 200, where, 100)
    shapes = [(64, 64), (80, 48), (48, 80)]
    if standing:
        image = image.transpose(Image.Transpose.TRANSPOSE)
    place = placement(image, shapes, "smart")
    assert place.shape == ((48, 80) if standing else (80, 48))
    width, height = _red_extent(place.picture(image))
    assert abs(width - 80 * 48 / 200) <= 2
    assert abs(height - 80 * 48 / 200) <= 2


def test_the_shape_around_a_subject_is_the_subjects() -> None:
    subject = np.zeros((300, 600), bool)
    subject[40:260, 420:500] = True  # 80 wide, 220 high, in a picture twice as wide as high
    image, shapes = scene(0, 600, 300), [(64, 64), (80, 48), (48, 80)]
    place = placement(image, shapes, "subject", subject)
    assert place.shape == (48, 80)
    assert place.cut == (370, 0, 550, 300)  # 220 / 0.7 is more than there is: all of its height, 48:80 of it wide
    assert placement(image, shapes, "subject", np.zeros((300, 600), bool)).shape == (80, 48)  # no subject: the picture


def test_padding_to_a_bucket_shows_all_of_it() -> None:
    image = Image.new("RGB", (200, 100), "white")
    place = placement(image, [(64, 64), (80, 48)], "pad")
    assert place.shape == (80, 48)
    mask = place.mask(np.full((100, 200), 255, np.uint8))
    assert (mask[4:44] == 255).all()  # 80 wide is 40 high
    assert mask[:4].max() == mask[44:].max() == 0
