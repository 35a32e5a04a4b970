import numpy as np
import pytest
from PIL import Image

from femtobooth.pictures import sheets
from femtobooth.pictures.sheets import sheet

RED, GREEN = (200, 30, 30), (30, 160, 30)


def plain(colour: tuple[int, int, int], width: int = 64, height: int = 64) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


def box(drawn: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of everything in this very colour."""
    y, x = np.nonzero((np.asarray(drawn) == colour).all(axis=2))
    return int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1


def ink(drawn: Image.Image, area: tuple[int, int, int, int]) -> bool:
    return bool((np.asarray(drawn.crop(area).convert("L")) < 100).any())


def test_small_pictures_grow_and_stand_in_their_places() -> None:
    drawn = sheet([[plain(RED), None], [None, plain(GREEN)]], ["a red one", "a green one"], ["left", "right"])
    red, green = box(drawn, RED), box(drawn, GREEN)
    assert (red[2] - red[0], red[3] - red[1]) == (128, 128) == (green[2] - green[0], green[3] - green[1])
    assert 0 < green[0] - red[2] < 16 and 0 < green[1] - red[3] < 16
    assert ink(drawn, (0, red[1], red[0], red[3])) and ink(drawn, (red[0], 0, red[2], red[1]))
    assert (
        drawn.getpixel((0, 0))
        == drawn.getpixel(((red[0] + red[2]) // 2, (green[1] + green[3]) // 2))
        == (255, 255, 255)
    )


def test_pictures_are_never_squashed() -> None:
    drawn = sheet([[plain(RED, 300, 150), plain(GREEN, 100, 150)]], [], [])
    red, green = box(drawn, RED), box(drawn, GREEN)
    assert (red[2] - red[0], red[3] - red[1], green[2] - green[0], green[3] - green[1]) == (300, 150, 100, 150)


def test_equal_headings_become_one() -> None:
    row = [plain(RED)] * 4
    apart = sheet([row], [], ["a", "b", "c", "d"])
    merged = sheet([row], [], ["before", "before", "after", "after"])
    left, top, right, _ = box(merged, RED)
    middle = (left + right) // 2
    assert apart.size == merged.size
    assert ink(merged, (left + 110, 0, left + 150, top - 6)) and not ink(merged, (middle - 20, 0, middle + 20, top - 6))


@pytest.mark.parametrize("text", ["word " * 60, "x" * 400, "ein Hund \N{EM DASH} schön \N{SLIGHTLY SMILING FACE}", ""])
def test_any_label_stays_beside_its_row(text: str) -> None:
    drawn = sheet([[plain(RED)], [plain(RED)]], [text, "short"], ["c" * 90], title=text)
    left, top, _, bottom = box(drawn, RED)
    assert drawn.height - bottom < 40 and drawn.width < 600
    assert not ink(drawn, (left - 6, top, left, bottom))


def test_a_large_sheet_shrinks_its_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheets, "MAX_PIXELS", 100_000)
    drawn = sheet([[plain(RED, 512, 512)] * 5] * 5, [], [])
    assert drawn.width * drawn.height < 150_000
    assert sheet([[plain(RED)]], [], [], cell=300).width > 300


def test_nothing_to_show_is_still_a_picture() -> None:
    assert min(sheet([], [], [], title="nothing yet").size) > 0
