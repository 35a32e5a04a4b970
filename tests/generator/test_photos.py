"""Preflight, crops and captions of subject photos."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from femtobooth.core.errors import ExistsError, PhotoError
from femtobooth.core.files import write_json
from femtobooth.generator.captions import STYLES
from femtobooth.generator.photos import Photo, hold_out, load_photos
from femtobooth.generator.stored_photos import crops_sheet, restore_photos, store_photos
from femtobooth.generator.subject_settings import PhotoSettings


def load(*paths: Path, size: int = 64, **settings: Any) -> tuple[list[Photo], dict[str, dict[str, Any]]]:
    photos, rows = load_photos(PhotoSettings(paths=[str(path) for path in paths], class_noun="toy", **settings), size)
    return photos, {Path(row["file"]).name: row for row in rows}


def scene(seed: int, width: int = 96, height: int = 96) -> Image.Image:
    """Coloured blocks, unlike those of any other seed."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC)


# --- preflight ---


def test_every_file_gets_a_row(tmp_path: Path, said: io.StringIO) -> None:
    for name, image in {
        "a.png": scene(0),
        "b.png": scene(1, 200, 120),
        "c.png": scene(2).convert("LA"),
        "tiny.png": scene(3, 63, 400),
        "thread.png": Image.new("RGB", (20000, 10), "red"),
        "dot.png": Image.new("RGB", (1, 1)),
        ".hidden.png": scene(4),
    }.items():
        image.save(tmp_path / name)
    scene(5).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    scene(0).save(tmp_path / "same.bmp")
    scene(6).save(tmp_path / "moving.gif", save_all=True, append_images=[scene(7)])
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:3000])
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "inner.jpg").mkdir()
    (tmp_path / "b.txt").write_text("a drawing of [V] by {me}")
    photos, rows = load(tmp_path)
    skipped = {
        "tiny.png": "too small: needs 64 px each way",
        "thread.png": "too small: needs 64 px each way",
        "dot.png": "too small: needs 64 px each way",
        ".hidden.png": "hidden",
        "same.bmp": "same pixels as a.png",
        "cut.png": "truncated PNG",
        "text.jpg": "not a picture, though named .jpg",
        "empty.jpg": "empty file",
        "inner.jpg": "a folder inside a folder; name it too to use its pictures",
    }
    used = {
        "a.png": [],
        "b.png": ["own caption"],
        "c.png": [],
        "cmyk.jpg": ["CMYK converted"],
        "moving.gif": ["first of 2 frames"],
    }
    assert {name: row["notes"] for name, row in rows.items() if row["status"] == "skipped"} == {
        k: [v] for k, v in skipped.items()
    }
    assert {name: row["notes"] for name, row in rows.items() if row["status"] == "used"} == used
    assert [photo.path.name for photo in photos] == list(used)
    assert all(photo.pixels.shape == (64, 64, 3) and photo.pixels.dtype == np.uint8 for photo in photos)
    assert (rows["b.png"]["width"], rows["b.png"]["height"], rows["cmyk.jpg"]["format"]) == (200, 120, "JPEG CMYK")
    table = said.getvalue()
    assert "5 used, 9 skipped" in table
    assert all(name in table and reason in table for name, reason in skipped.items())
    assert "warning" not in table


def test_rows_of_any_name_can_be_stored(tmp_path: Path, said: io.StringIO) -> None:
    try:
        scene(0).save(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"), format="PNG")
    except OSError:
        pytest.skip("this file system takes no such name")
    photos, rows = load(tmp_path)
    write_json(tmp_path / "out" / "preflight.json", rows)
    assert json.loads((tmp_path / "out" / "preflight.json").read_text()) == rows
    assert len(photos) == 1
    assert "caf\\xe9.png" in said.getvalue()


@pytest.mark.parametrize(("count", "words"), [(1, "only 1 usable photo;"), (2, "only 2 usable photos;"), (3, "")])
def test_few_photos_warn(tmp_path: Path, said: io.StringIO, count: int, words: str) -> None:
    for index in range(count):
        scene(index).save(tmp_path / f"{index}.png")
    load(tmp_path)
    assert ("warning" in said.getvalue()) == bool(words)
    assert words in said.getvalue()


def test_no_photo_is_an_error_after_the_table(tmp_path: Path, said: io.StringIO) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0 rubbish")
    with pytest.raises(PhotoError, match="no usable photo in"):
        load(tmp_path)
    assert "truncated JPEG" in said.getvalue()


def _again(image: Image.Image, quality: int) -> Image.Image:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    return Image.open(data)


def _product(x: int) -> Image.Image:
    image = Image.new("RGB", (200, 200), "white")
    ImageDraw.Draw(image).ellipse((x, 80, x + 50, 130), fill=(200, 30, 30))
    return image


TWINS = {
    "saved again": (scene(0, 300, 300), _again(scene(0, 300, 300), 30), True),
    "half the size": (scene(0, 300, 200), scene(0, 300, 200).resize((150, 100)), True),
    "slightly cropped": (scene(0, 300, 300), scene(0, 300, 300).crop((4, 4, 297, 297)), True),
    "the same plain wall, noisy": (
        Image.new("RGB", (99, 99), (90, 90, 90)),
        Image.new("RGB", (90, 90), (91, 90, 90)),
        True,
    ),
    "mirrored": (scene(0, 300, 300), scene(0, 300, 300).transpose(Image.Transpose.FLIP_LEFT_RIGHT), False),
    "plain, of other colours": (
        Image.new("RGB", (99, 99), (90, 90, 90)),
        Image.new("RGB", (99, 99), (110, 90, 90)),
        False,
    ),
    "a product moved on white": (_product(50), _product(55), False),
    "pale and different": (scene(0).point(lambda v: 235 + v // 20), scene(1).point(lambda v: 235 + v // 20), False),
}


@pytest.mark.parametrize("case", TWINS)
def test_near_duplicates_are_kept_and_named(tmp_path: Path, said: io.StringIO, case: str) -> None:
    first, second, alike = TWINS[case]
    first.save(tmp_path / "first.png")
    second.save(tmp_path / "second.png")
    photos, rows = load(tmp_path)
    assert len(photos) == 2
    assert ("nearly the same as first.png" in rows["second.png"]["notes"]) == alike
    assert ("second.png is nearly the same as first.png" in said.getvalue()) == alike


def test_same_bytes_of_another_shape_are_no_duplicate(tmp_path: Path, said: io.StringIO) -> None:
    Image.new("RGB", (64, 128), "red").save(tmp_path / "a.png")
    Image.new("RGB", (128, 64), "red").save(tmp_path / "b.png")
    assert len(load(tmp_path)[0]) == 2


def test_enlarging_warns(tmp_path: Path, said: io.StringIO) -> None:
    scene(0, 100, 300).save(tmp_path / "small.png")
    scene(1, 256, 300).save(tmp_path / "enough.png")
    _, rows = load(tmp_path, size=256)
    assert rows["small.png"]["notes"] == ["enlarged x2.6", "crop keeps 33%"]
    assert rows["enough.png"]["notes"] == []
    assert "smaller than 256 px and enlarged, which blurs them: small.png" in said.getvalue()


# --- crops ---


def test_subject_crop_keeps_what_the_photos_have_in_common(tmp_path: Path) -> None:
    for number in range(4):
        image = Image.new("RGB", (400, 400), (60 + 40 * number, 90, 200 - 40 * number))
        draw = ImageDraw.Draw(image)
        if number == 0:  # an arm holds it in this photo alone
            draw.rectangle((190, 150, 240, 340), fill=(225, 180, 150))
        draw.ellipse((150, 80, 270, 200), fill=(210, 30, 40))
        image.save(tmp_path / f"{number}.png")
    photos, rows = load(tmp_path, crop="subject")
    kept = {name: row["notes"][0] for name, row in rows.items()}
    assert set(kept.values()) <= {f"crop around the subject keeps {percent}%" for percent in (17, 18, 19, 20)}, kept
    alone, _ = load(tmp_path / "0.png", crop="subject")
    red = (one.pixels.astype(int) @ (1, 0, -1) > 100 for one in (alone[0], photos[0]))
    wider, closer = (int(one.any(0).sum()) for one in red)
    assert closer > 1.3 * wider


def test_a_doubtful_crop_is_told(tmp_path: Path, said: io.StringIO) -> None:
    """A red ball in four photos; in a fifth something green stands out instead, and in a sixth the ball is far away."""
    for number in range(6):
        image = Image.new("RGB", (400, 400), (150, 150, 150 + 10 * number))
        colour, radius = ((30, 170, 40), 130) if number == 4 else ((210, 30, 40), 45 if number == 5 else 130)
        ImageDraw.Draw(image).ellipse((200 - radius, 200 - radius, 200 + radius, 200 + radius), fill=colour)
        image.save(tmp_path / f"{number}.png")
    photos, _ = load(tmp_path, crop="subject")
    words = " ".join(said.getvalue().split())
    assert "what stands out in 4.png has other colours than in the rest; see in crops.png if it is the subject" in words
    assert re.search(r"the crop around what stands out keeps little of 5\.png \(1\d%\)", words)
    assert [name for name in ("0.png", "1.png", "2.png", "3.png") if f"{name} (" in words] == []
    page = crops_sheet(photos)
    assert page.width > 5 * 192 and page.height > 192
    said.truncate(0)
    load(*(tmp_path / f"{number}.png" for number in range(4)), crop="subject")
    assert "stands out" not in said.getvalue()


# --- captions ---


def test_captions(tmp_path: Path, said: io.StringIO) -> None:
    for index in range(4):
        scene(index).save(tmp_path / f"p{index}.png")
    (tmp_path / "p0.txt").write_bytes("\ufeff[V] on  a {red} chair\n\na [v] {class}\n".encode())
    (tmp_path / "p1.txt").write_text("my sks dog, 100% café", encoding="utf-8")
    (tmp_path / "p2.txt").write_text("  \n")
    photos, rows = load(tmp_path, captions="plain")
    assert [photo.captions for photo in photos] == [
        ("{token} on a {red} chair", "a {token} {class}"),
        ("my sks dog, 100% café",),
        *[("a {token} {class}",)] * 2,
    ]
    assert [rows[f"p{i}.png"]["notes"] for i in range(4)] == [["own caption"], ["own caption, without [V]"], [], []]
    assert [tuple(row["captions"]) for row in rows.values()] == [photo.captions for photo in photos]
    assert [photo.captions for photo in load(tmp_path)[0]][2:] == [("a photo of a {token} {class}",)] * 2


def test_varied_captions_are_all_there_for_every_photo(tmp_path: Path, said: io.StringIO) -> None:
    for index in range(2):
        scene(index, 64, 64).save(tmp_path / f"p{index}.png")
    for photo in load(tmp_path, captions="varied")[0]:
        assert len(set(photo.captions)) == 20
    assert all("{token}" in caption and "{class}" in caption for style in STYLES.values() for caption in style)


def test_a_caption_that_is_not_text_is_an_error(tmp_path: Path) -> None:
    scene(0).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00caption")
    with pytest.raises(PhotoError, match=r"a\.txt: the caption cannot be read"):
        load(tmp_path)


# --- in the run folder ---


def test_stored_photos_come_back_the_same(tmp_path: Path, said: io.StringIO) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for index in range(12):
        scene(index, 100, 80).save(source / f"p{index}.png")
    (source / "p1.txt").write_text("[V] in the rain")
    photos, _ = load(source, captions="varied")
    store_photos(photos, tmp_path / "run")
    restored = restore_photos(tmp_path / "run")
    assert [photo.captions for photo in restored] == [photo.captions for photo in photos]
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(photos, restored, strict=True))
    with pytest.raises(ExistsError):
        store_photos(photos, tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "content", "problem"), [("01.txt", None, "missing"), ("01.png", b"\x89PNG\r\n\x1a\nrubbish", "damaged")]
)
def test_damaged_stored_photos_are_an_error(
    tmp_path: Path, said: io.StringIO, name: str, content: bytes | None, problem: str
) -> None:
    for index in range(3):
        scene(index).save(tmp_path / f"p{index}.png")
    store_photos(load(tmp_path)[0], tmp_path / "run")
    (tmp_path / "run" / name).unlink() if content is None else (tmp_path / "run" / name).write_bytes(content)
    with pytest.raises(PhotoError, match=rf"01\.\w+: .*{problem}"):
        restore_photos(tmp_path / "run")


# --- photos kept out of training ---


def test_the_last_photos_are_held_out(tmp_path: Path) -> None:
    for index in range(5):
        scene(index).save(tmp_path / f"{index}.png")
    photos, _ = load(tmp_path)
    kept, held = hold_out(photos, 2)
    assert [photo.path.stem for photo in kept] == ["0", "1", "2"]
    assert [photo.path.stem for photo in held] == ["3", "4"]
    assert hold_out(photos, 0) == (photos, [])


def test_near_copies_are_held_out_last(tmp_path: Path) -> None:
    """Scored against a copy of what it was trained on, any model looks good."""
    for index, seed in enumerate((0, 1, 2, 2)):
        scene(seed, 96 + index, 96 + index).save(tmp_path / f"{index}.png")
    photos, _ = load(tmp_path)
    assert [photo.path.stem for photo in hold_out(photos, 1)[1]] == ["1"]
    assert [photo.path.stem for photo in hold_out(photos, 2)[1]] == ["0", "1"]


@pytest.mark.parametrize(("given", "count"), [(3, 2), (2, 1), (1, 1), (3, 9)])
def test_two_photos_are_left_to_train_on(given: int, count: int, tmp_path: Path) -> None:
    for index in range(given):
        scene(index).save(tmp_path / f"{index}.png")
    photos, _ = load(tmp_path)
    with pytest.raises(PhotoError, match=f"`photos.hold_out={count}`: leaves"):
        hold_out(photos, count)
