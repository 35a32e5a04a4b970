"""Masks of subject photos, from their file to the run folder."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from femtobooth.core import config
from femtobooth.core.config import Layer
from femtobooth.core.errors import PhotoError, SettingsError
from femtobooth.generator.photos import Photo, load_class_images, load_photos
from femtobooth.generator.settings import PersonalizeSettings
from femtobooth.generator.stored_photos import counted, crops_sheet, restore_photos, store_photos
from femtobooth.generator.subject_settings import PhotoSettings


def load(*paths: Path, size: int = 64, **settings: Any) -> tuple[list[Photo], dict[str, dict[str, Any]]]:
    photos, rows = load_photos(PhotoSettings(paths=[str(path) for path in paths], class_noun="toy", **settings), size)
    return photos, {Path(row["file"]).name: row for row in rows}


def _toy(seed: int, width: int = 200, height: int = 150) -> tuple[Image.Image, Image.Image]:
    """A photo of a disc on blocks, and how opaque it is, soft at the outline."""
    random = np.random.default_rng(seed)
    image = Image.fromarray(random.integers(0, 256, (5, 6, 3), np.uint8)).resize((width, height))
    soft = Image.new("L", (4 * width, 4 * height))
    ImageDraw.Draw(soft).ellipse((80 * 4, 30 * 4, 150 * 4, 100 * 4), fill=255)
    mask = soft.resize((width, height), Image.Resampling.BOX)
    image.paste((220, 40, 40), mask=mask)
    return image, mask


@pytest.mark.parametrize("crop", ["center", "smart", "pad", "subject"])
def test_alpha_and_files_are_the_same_bit_for_bit(tmp_path: Path, said: io.StringIO, crop: str) -> None:
    for seed in range(3):
        image, mask = _toy(seed)
        clear, beside, inside = (tmp_path / name for name in ("alpha", "beside", "inside"))
        for folder in (clear, beside, inside / "masks"):
            folder.mkdir(exist_ok=True, parents=True)
        image.putalpha(mask)
        image.save(clear / f"{seed}.png")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=mask)
        for folder, place in ((beside, beside / f"{seed}.mask.png"), (inside, inside / "masks" / f"{seed}.png")):
            white.save(folder / f"{seed}.png")
            mask.save(place)
    by_alpha, rows = load(clear, crop=crop)
    assert [row["notes"][-1].partition(",")[0] for row in rows.values()] == ["mask by its transparency"] * 3
    for folder, note in ((beside, "mask 0.mask.png, "), (inside, "mask masks/0.png, ")):
        photos, rows = load(folder, crop=crop)
        assert list(rows) == ["0.png", "1.png", "2.png"]
        assert rows["0.png"]["notes"][-1].startswith(note)
        for ours, theirs in zip(photos, by_alpha, strict=True):
            assert ours.mask is not None and theirs.mask is not None
            assert np.array_equal(ours.pixels, theirs.pixels)
            assert np.array_equal(ours.mask, theirs.mask)
            assert ours.mask.dtype == np.uint8 and ours.mask.shape == (64, 64)
            assert set(range(1, 255)) & set(np.unique(ours.mask)), "soft"


def test_photos_without_masks_are_what_they_were(tmp_path: Path, said: io.StringIO) -> None:
    for seed in range(3):
        _toy(seed)[0].save(tmp_path / f"{seed}.jpg")
    for crop in ("smart", "subject"):
        (some, rows), (same, others) = (load(tmp_path, crop=crop, mask=mask) for mask in ("auto", "none"))
        assert rows == others
        assert [photo.mask for photo in some] == [None] * 3
        assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(some, same, strict=True))


def test_which_mask_is_used(tmp_path: Path, said: io.StringIO) -> None:
    for seed in range(3):
        image, mask = _toy(seed)
        if seed < 2:
            image.putalpha(mask)
        image.save(tmp_path / f"{seed}.png")
    Image.new("L", (200, 150), 255).save(tmp_path / "0.mask.png")
    Image.new("L", (200, 150), 255).save(tmp_path / "9.mask.png")
    (tmp_path / "masks").mkdir()
    for name in ("0.png", "odd.png"):
        Image.new("L", (200, 150)).save(tmp_path / "masks" / name)
    photos, rows = load(tmp_path)
    assert [None if photo.mask is None else photo.mask.mean() == 255 for photo in photos] == [True, False, None]
    none = ["a mask, but of none of the photos"]
    assert {name: row["notes"] for name, row in rows.items() if row["status"] == "skipped"} == dict.fromkeys(
        ("9.mask.png", "odd.png"), none
    )
    words = said.getvalue()
    assert "0.png has several masks: 0.mask.png is used, masks/0.png is not" in words
    assert "the mask leaves next to nothing out: 0.png (100.0%)" in words
    photos, rows = load(tmp_path, mask="none")
    assert [photo.mask for photo in photos] == [None] * 3
    assert rows["0.mask.png"]["notes"] == ["a mask, unused with `photos.mask=none`"]
    with pytest.raises(PhotoError, match=r"`photos.mask=files`: 1.png has no mask\n.*put 1.mask.png beside it"):
        load(tmp_path, mask="files")
    with pytest.raises(PhotoError, match=r"`photos.mask=alpha`: 2.png has nothing transparent"):
        load(tmp_path, mask="alpha")


@pytest.mark.parametrize("crop", ["center", "subject"])
def test_masks_that_cover_next_to_nothing_or_nearly_all_are_told(tmp_path: Path, said: io.StringIO, crop: str) -> None:
    for seed, part in enumerate((0, 1, 40, 147)):
        image, mask = _toy(seed, 150, 150)[0], np.zeros((150, 150), np.uint8)
        mask[:part, :part] = 255
        image.save(tmp_path / f"{seed}.png")
        Image.fromarray(mask).save(tmp_path / f"{seed}.mask.png")
    photos, _ = load(tmp_path, crop=crop)
    assert all(photo.mask is not None and photo.mask.shape == (64, 64) for photo in photos)
    words = said.getvalue()
    assert "the mask covers next to nothing, so that hardly anything is learned: 0.png (0.0%), 1.png (0.0%)" in words
    assert "the mask leaves next to nothing out: 3.png (9" in words
    assert "2.png (" not in words


def test_a_photo_and_its_mask_are_turned_each_by_its_own_exif(tmp_path: Path, said: io.StringIO) -> None:
    image, mask = _toy(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, turned in (("both", True), ("photo", False)):
        folder = tmp_path / name
        folder.mkdir()
        image.transpose(Image.Transpose.ROTATE_90).save(folder / "a.png", exif=exif)
        stored = mask.transpose(Image.Transpose.ROTATE_90) if turned else mask
        stored.save(folder / "a.mask.png", exif=exif if turned else None)
    (tmp_path / "plain").mkdir()
    image.save(tmp_path / "plain" / "a.png")
    mask.save(tmp_path / "plain" / "a.mask.png")
    ours, both, alone = (load(tmp_path / name)[0][0] for name in ("plain", "both", "photo"))
    for one in (both, alone):
        assert np.array_equal(one.mask, ours.mask)  # type: ignore[arg-type]
        assert np.array_equal(one.pixels, ours.pixels)
    mask.transpose(Image.Transpose.ROTATE_90).save(
        tmp_path / "photo" / "a.mask.png"
    )  # as the file lies, not as it is shown
    with pytest.raises(PhotoError, match=r"the mask has 150x200 pixels, and a.png 200x150, upright"):
        load(tmp_path / "photo")


def test_a_subject_crop_is_around_the_mask(tmp_path: Path, said: io.StringIO) -> None:
    """What stands out is the disc; the mask wants the blue corner."""
    image, mask = Image.new("RGB", (400, 400), "white"), Image.new("L", (400, 400))
    ImageDraw.Draw(image).ellipse((100, 100, 250, 250), fill=(220, 40, 40))
    ImageDraw.Draw(image).rectangle((300, 320, 369, 389), fill=(20, 40, 220))
    ImageDraw.Draw(mask).rectangle((300, 320, 369, 389), fill=255)
    image.save(tmp_path / "a.png")
    without = load(tmp_path, crop="subject")[0][0]
    mask.save(tmp_path / "a.mask.png")
    said.truncate(0)
    photos, rows = load(tmp_path, crop="subject")
    assert (without.pixels == (220, 40, 40)).all(-1).mean() > 0.3
    assert (photos[0].pixels == (20, 40, 220)).all(-1).mean() > 0.3
    assert rows["a.png"]["notes"][:2] == ["crop around the subject keeps 6%", "mask a.mask.png, 49%"]
    assert "keeps little" not in said.getvalue()  # it is what was wanted


def test_stored_masks_come_back_the_same(tmp_path: Path, said: io.StringIO) -> None:
    for seed in range(3):
        image, mask = _toy(seed)
        image.save(tmp_path / f"{seed}.png")
        if seed:
            mask.save(tmp_path / f"{seed}.mask.png")
    photos, _ = load(tmp_path)
    photos[2] = replace(photos[2], mask=photos[2].mask // 3)  # type: ignore[operator]  # of a crop that left the white out
    run = tmp_path / "run"
    assert [path.name for path in store_photos(photos, run)] == ["00.png", "01.png", "02.png"]
    restored = restore_photos(run, ["01.mask.png", "02.mask.png"])
    for ours, theirs in zip(restored, photos, strict=True):
        assert np.array_equal(ours.pixels, theirs.pixels)
        assert (ours.mask is None) == (theirs.mask is None)
        assert ours.mask is None or np.array_equal(ours.mask, theirs.mask)  # type: ignore[arg-type]
    assert [photo.mask is None for photo in restore_photos(run)] == [True, False, False]
    assert [photo.mask for photo in restore_photos(run, [])] == [None] * 3
    (run / "01.mask.png").unlink()
    with pytest.raises(PhotoError, match=r"01\.mask\.png: missing or damaged"):
        restore_photos(run, ["01.mask.png", "02.mask.png"])
    (run / "02.mask.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    with pytest.raises(PhotoError, match=r"02\.mask\.png: damaged PNG"):
        restore_photos(run, ["02.mask.png"])


def test_what_counts_is_shown_below_the_photos(tmp_path: Path, said: io.StringIO) -> None:
    for seed in range(3):
        image, mask = _toy(seed)
        image.save(tmp_path / f"{seed}.png")
        if seed == 1:
            mask.save(tmp_path / "1.mask.png")
    photos, _ = load(tmp_path)
    shown = counted(photos, "photos")
    assert [one is None for one in shown] == [True, False, True]
    assert photos[1].mask is not None and shown[1] is not None
    assert (shown[1][photos[1].mask == 0] == 128).all()
    assert np.array_equal(shown[1][photos[1].mask == 255], photos[1].pixels[photos[1].mask == 255])
    assert all(one is not None for one in counted(photos, "class"))
    bare = [photo for photo in photos if photo.mask is None]
    assert crops_sheet(photos).height > 1.5 * crops_sheet(bare).height
    assert np.asarray(crops_sheet(photos, "class")).shape == np.asarray(crops_sheet(photos)).shape


def test_masks_are_no_class_images(tmp_path: Path, said: io.StringIO) -> None:
    for seed in range(2):
        image, mask = _toy(seed)
        image.save(tmp_path / f"{seed}.png")
        mask.save(tmp_path / f"{seed}.mask.png")
    assert [photo.path.name for photo in load_class_images(str(tmp_path), 64)] == ["0.png", "1.png"]


def test_settings_of_masks_that_do_nothing_are_refused() -> None:
    def settle(**given: Any) -> PersonalizeSettings:
        layers = [Layer(config.nested(path.replace("__", "."), value)) for path, value in given.items()]
        for layer, path in zip(layers, given, strict=True):
            layer.names = {path.replace("__", "."): f"--{path}"}
        return config.settle(PersonalizeSettings, {"photos": {"paths": ["x"], "class_noun": "toy"}}, *layers)

    settle(photos__mask="none", loss__unmasked_weight=0.5, loss__background="class")
    settle(photos__mask="files", loss__unmasked_weight=0.5)
    with pytest.raises(SettingsError, match=r"has no effect with `photos\.mask=none` and `loss\.background=photos`"):
        settle(photos__mask="none", loss__unmasked_weight=0.5, loss__background="photos")
    with pytest.raises(SettingsError, match=r"mask_model: has no effect with `photos\.mask=files`"):
        settle(photos__mask="files", photos__mask_model="u2net.onnx")
    with pytest.raises(SettingsError, match="less than or equal to 1"):
        settle(loss__unmasked_weight=1.5)
