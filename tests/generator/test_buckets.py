"""Photos and class images in aspect-ratio buckets: which they are put in, and what training sees of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from femtobooth.core import config
from femtobooth.core.errors import PhotoError, SettingsError
from femtobooth.generator.deterministic import fixed_batches
from femtobooth.generator.dreambooth import DreamBooth
from femtobooth.generator.latents import LatentSets, encode
from femtobooth.generator.load import load
from femtobooth.generator.photos import Photo, in_proportion, load_class_images, load_photos, shape_counts
from femtobooth.generator.settings import PersonalizeSettings
from femtobooth.generator.stored_photos import restore_photos, store_photos
from femtobooth.generator.subject_settings import PhotoSettings
from femtobooth.generator.taught import Taught
from femtobooth.pictures.regions import subject_masks
from femtobooth.workflows.personalizing import checks
from femtobooth.workflows.personalizing.training_data import latents

SHAPES = [(128, 128), (192, 64), (64, 192)]  # of tiny_sd1, whose step is 64, at 128 pixels
SIZES = {"a.png": (150, 140), "b.png": (300, 100), "c.png": (160, 480), "d.png": (290, 110)}


def picture(seed: int, width: int, height: int) -> Image.Image:
    """A red block on a coloured pattern of its own."""
    blocks = np.random.default_rng(seed).integers(0, 120, (5, 5, 3), np.uint8)
    pixels = np.array(Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST))
    pixels[height // 4 : height * 3 // 4, width // 4 : width // 2] = (230, 30, 40)
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four photos, one square, two lying, one standing, which has a mask."""
    place = tmp_path / "photos"
    place.mkdir()
    for seed, (name, size) in enumerate(SIZES.items()):
        picture(seed, *size).save(place / name)
    mask = np.zeros((480, 160), np.uint8)
    mask[120:360, 40:80] = 255
    Image.fromarray(mask).save(place / "c.mask.png")
    return place


def loaded(folder: Path, **settings: Any) -> tuple[list[Photo], list[dict[str, Any]]]:
    given = {"paths": [str(folder)], "class_noun": "robot", "shapes": "buckets", **settings}
    return load_photos(PhotoSettings.model_validate(given), 128, SHAPES)


def test_each_photo_and_its_mask_are_cropped_to_the_photos_bucket(folder: Path, tmp_path: Path) -> None:
    photos, rows = loaded(folder)
    assert [photo.shape for photo in photos] == [(128, 128), (192, 64), (64, 192), (192, 64)]
    notes = {Path(row["file"]).name: row["notes"][0] for row in rows}
    assert notes["a.png"] == "bucket 128x128 keeps 93%"
    assert notes["b.png"] == "bucket 192x64 keeps 100%"
    mask = photos[2].mask
    assert mask is not None
    assert mask.shape == (192, 64)
    assert (mask[50:142, 17:31] == 255).all()  # 120..360 and 40..80 of the photo, by 0.4
    assert mask[:46].max() == mask[:, :14].max() == mask[:, 34:].max() == 0
    store_photos(photos, tmp_path / "stored")
    for stored, photo in zip(restore_photos(tmp_path / "stored"), photos, strict=True):
        assert np.array_equal(stored.pixels, photo.pixels)
        assert (stored.mask is None) == (photo.mask is None)


def test_own_class_images_are_cropped_to_the_photos_shapes_in_their_proportion(tmp_path: Path) -> None:
    sizes = [(100, 100), (90, 100), (200, 100), (300, 100), (100, 280), (120, 100)]
    for number, size in enumerate(sizes):
        picture(number, *size).save(tmp_path / f"{number}.png")
    counts = {(64, 192): 1, (128, 128): 3, (192, 64): 2}
    found = load_class_images(str(tmp_path), counts)
    assert shape_counts(found) == counts
    assert [photo.shape for photo in found] == [(128, 128), (128, 128), (192, 64), (192, 64), (64, 192), (128, 128)]
    (tmp_path / "few").mkdir()
    for number in range(2):
        picture(number, 100, 100).save(tmp_path / "few" / f"{number}.png")
    with pytest.raises(PhotoError, match="2 pictures for the 3 shapes"):
        load_class_images(str(tmp_path / "few"), counts)


def test_things_are_shared_out_in_proportion() -> None:
    assert in_proportion({(1, 1): 3, (2, 1): 1}, 100) == {(1, 1): 75, (2, 1): 25}
    assert in_proportion({(1, 1): 5, (2, 1): 1, (1, 2): 1}, 3) == {(1, 1): 1, (2, 1): 1, (1, 2): 1}
    assert in_proportion({(1, 1): 5, (2, 1): 1, (1, 2): 1}, 1) == {(1, 1): 1, (2, 1): 1, (1, 2): 1}
    assert in_proportion({(64, 64): 4}, 7) == {(64, 64): 7}


def trained_on(folder: Path, base: Path, **changes: Any) -> tuple[Any, Any, Any, PersonalizeSettings]:
    """The model, what it would train on, and the settings."""
    photos = {"paths": [str(folder)], "class_noun": "robot", "shapes": "buckets", "flip": True}
    prior = {"images": 4, "sampling_batch": 2, "sampling": {"steps": 1}}
    settings = config.resolve(
        PersonalizeSettings, {"photos": photos, "prior": prior | changes.pop("prior", {})}, changes
    )
    strategy = SimpleNamespace(barrier=lambda: None, broadcast=lambda value, source=0: value)
    process: Any = SimpleNamespace(strategy=strategy, global_rank=0, world_size=1)
    model = load(str(base))
    return model, *latents(process, settings, model, [Taught(settings, "sks", loaded(folder)[0], [])], 128), settings


def test_class_images_have_the_photos_shapes(folder: Path, tiny_sd1: Path) -> None:
    model, photos, kept, settings = trained_on(folder, tiny_sd1, loss={"background": "class"})
    assert isinstance(photos, LatentSets)
    assert [one.mean.shape for one in photos.sets] == [(1, 2, 4, 24, 8), (1, 2, 4, 16, 16), (2, 2, 4, 8, 24)]
    assert [len(one) // 3 for one in kept.sets] == [1, 1, 2]  # each twice whole, and once for its background
    assert photos.counts == kept.counts == [1, 1, 2]
    module = DreamBooth(model, settings, "sks", lambda _: None)
    module.instance, module.prior = photos, kept
    module.trainer = SimpleNamespace(world_size=2, global_rank=1)  # type: ignore[assignment]
    for micro_step in range(4):
        assert torch.isfinite(module.training_step(micro_step))
    batches = fixed_batches(photos, model, 0)
    assert [batch.timesteps.tolist() for batch in batches] == [[125], [375], [625], [875]]
    assert sorted(batch.latents.shape[-2:] for batch in batches) == [(8, 24), (8, 24), (16, 16), (24, 8)]


def test_a_subject_is_found_by_what_photos_of_all_shapes_have_in_common(folder: Path, tiny_sd1: Path) -> None:
    _, photos, _, _ = trained_on(folder, tiny_sd1, loss={"background": "class"}, prior={"weight": 0})
    found = subject_masks([photo.pixels for photo in loaded(folder)[0]])
    weights = photos.sets[1].mask[0, 0, 0]  # (16, 16) of the square one
    inside = torch.from_numpy(found[0].reshape(16, 8, 16, 8).any((1, 3)))
    assert (weights[inside] > 0).all()
    assert (weights[~inside] == 0).any()


def test_the_loss_of_a_mirrored_photo_is_that_of_the_mirrored_picture(folder: Path, tiny_sd1: Path) -> None:
    photo, model = loaded(folder)[0][2], load(str(tiny_sd1))
    assert photo.mask is not None
    both = encode(model, photo.pixels[None], [["a sks robot"]], mirrored=True, masks=[photo.mask])
    alone = encode(model, photo.pixels[None, :, ::-1], [["a sks robot"]], masks=[photo.mask[:, ::-1]])
    assert torch.equal(both.mean[:, 1:], alone.mean)
    assert torch.equal(both.mask[:, 1:], alone.mask)
    assert torch.equal(both.mask[:, 1:], both.mask[:, :1].flip(-1))
    settings = config.resolve(PersonalizeSettings, {"photos": {"paths": ["x"], "class_noun": "robot"}})
    module, losses = DreamBooth(model, settings, "sks", lambda _: None), []
    for one, view in ((both, 1), (alone, 0)):
        one.mean, one.log_variance, one.mask = (
            part[:, view : view + 1] for part in (one.mean, one.log_variance, one.mask)
        )
        losses.append(module.losses(one.micro_batch(model, "instance", 0, 0, 0, 1, 1)))
    assert torch.equal(*losses)
    assert losses[0] > 0


def test_a_base_without_another_shape_is_refused(tiny_sd1: Path) -> None:
    given = {"paths": ["x"], "class_noun": "robot", "shapes": "buckets"}
    settings, model = config.resolve(PersonalizeSettings, {"photos": given}), load(str(tiny_sd1), weights=False)
    with pytest.raises(SettingsError, match="in steps of this base's 64, there is no shape but the square up to 2:1"):
        checks.shapes(settings, model, 64)
    settings.photos = settings.photos.model_copy(update={"max_aspect": 3.0})
    assert checks.shapes(settings, model, 128) == SHAPES
    assert checks.shapes(config.resolve(PersonalizeSettings, {"photos": given | {"shapes": "square"}}), model, 64) == []
