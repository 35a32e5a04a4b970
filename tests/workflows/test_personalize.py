"""A run never takes the place of anything but a run."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from femtobooth.core import config
from femtobooth.core.errors import ExistsError, Interrupted, SettingsError
from femtobooth.core.files import sweep
from femtobooth.generator.load import load
from femtobooth.generator.photos import Photo
from femtobooth.generator.run import PersonalizedRun
from femtobooth.generator.sampling_settings import SamplingSettings
from femtobooth.generator.settings import PersonalizeSettings
from femtobooth.generator.taught import Taught
from femtobooth.training.checkpoints import Signals
from femtobooth.workflows import personalize
from femtobooth.workflows.personalizing import checks
from femtobooth.workflows.personalizing.training_data import latents


def _settings(tmp_path: Path, **changes: Any) -> Any:
    wanted = {
        "photos": {"paths": [str(tmp_path / "photos")], "class_noun": "dog"},
        "runs": str(tmp_path),
        "overwrite": True,
    }
    return config.settle(PersonalizeSettings, wanted, changes)


def test_overwrite_spares_what_is_not_a_run(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    diary = tmp_path / "precious" / "diary.txt"
    diary.write_text("dear diary")
    with pytest.raises(ExistsError, match="does not say that femtobooth personalize made it"):
        personalize.run(_settings(tmp_path, name="precious"))
    assert diary.read_text() == "dear diary"


def test_overwrite_spares_what_the_run_needs(tmp_path: Path) -> None:
    (tmp_path / "old" / "photos").mkdir(parents=True)
    (tmp_path / "old" / "run.json").write_text(json.dumps({"status": "done"}))
    with pytest.raises(ExistsError, match=r"old holds .*photos, which this command reads"):
        personalize.run(
            _settings(tmp_path, name="old", photos={"paths": [str(tmp_path / "old" / "photos")], "class_noun": "dog"})
        )
    assert (tmp_path / "old" / "run.json").exists()


@pytest.mark.parametrize("name", ["..", ".", "a/b", "/absolute", "..\\x", ".hidden", ""])
def test_a_name_is_one_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="name: "):
        config.resolve(personalize.PersonalizeSettings, _settings(tmp_path).model_dump(), {"name": name})


def test_class_nouns_never_lead_out_of_the_runs(tmp_path: Path) -> None:
    settings = _settings(tmp_path, photos={"paths": ["x"], "class_noun": "../toy car"})
    assert PersonalizedRun.place(settings).path.parent == tmp_path


def test_paths_are_kept_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    settled = personalize._settled(_settings(tmp_path, photos={"paths": ["photos"], "class_noun": "dog"}))
    assert settled.photos.paths == [str(tmp_path / "photos")]
    assert settled.base == "bundled"


def test_a_lone_token_needs_no_class_images(tmp_path: Path) -> None:
    assert personalize._settled(_settings(tmp_path, train={"parts": ["token"]})).prior.weight == 0
    assert personalize._settled(_settings(tmp_path, train={"parts": ["token", "attention"]})).prior.weight == 1


def test_class_images_teach_what_is_around_the_subject(tmp_path: Path, tiny_base: Path) -> None:
    settings = _settings(tmp_path, loss={"background": "class"})
    settings.prior = settings.prior.model_copy(
        update={"images": 2, "other_classes": ["cat"], "prompt": "a photo of a {class}"}
    )
    settings.prior.sampling = SamplingSettings(steps=1)
    model, alone = load(str(tiny_base)), SimpleNamespace(barrier=lambda: None, broadcast=lambda value, source=0: value)
    pixels = np.full((64, 64, 3), 200, np.uint8)
    pixels[24:48, 24:48] = (220, 30, 30)
    photos = [Photo(tmp_path / "photo.png", pixels, ("a {token} {class}",), ())]
    process: Any = SimpleNamespace(strategy=alone, global_rank=0, world_size=1)
    subject, kept = latents(process, settings, model, [Taught(settings, "sks", photos, [])], 64)
    assert kept is not None
    captions = [*(["a photo of a dog"] * 2 + ["a photo of a cat"] * 2) * 2, *["a photo of a sks dog"] * 2]
    assert torch.equal(kept.tokens[:, 0], model.tokenize(captions))
    torch.testing.assert_close(kept.mean[8:], kept.mean[:2], rtol=1e-3, atol=1e-4)
    assert (kept.mask[:8] == 1).all()
    assert (kept.mask[8:] == 0).any()
    assert kept.taught.tolist() == [False] * 8 + [True] * 2
    assert not subject.taught.any()
    assert subject.mask[0, 0, 0, 0, 0] == 0 < subject.mask[0, 0, 0, 4, 4]


def _of_photos(tmp_path: Path, model: Any, background: str, outside: float = 0.0, mask: Any = None) -> tuple[Any, Any]:
    loss = {"background": background, "unmasked_weight": outside}
    settings = _settings(tmp_path, loss=loss, prior={"target": "photos"})
    settings.photos = settings.photos.model_copy(update={"flip": True})
    pixels = np.full((2, 64, 64, 3), 200, np.uint8)
    pixels[:, 24:48, 8:32] = (220, 30, 30)
    pixels[1, :, :4] = 90
    photos = [
        Photo(tmp_path / "a.png", pixels[0], ("a {token} {class}", "{token} in the snow"), ()),
        Photo(tmp_path / "b.png", pixels[1], ("my {token} {class}",), (), mask=mask),
    ]
    process: Any = SimpleNamespace(global_rank=0, world_size=1)
    return latents(process, settings, model, [Taught(settings, "sks", photos, [])], 64)


def test_the_photos_are_their_own_prior(tmp_path: Path, tiny_base: Path) -> None:
    model = load(str(tiny_base))
    subject, kept = _of_photos(tmp_path, model, "photos")
    captions = ["a dog", "dog in the snow", "my dog", "my dog"]
    assert torch.equal(kept.tokens.reshape(4, -1), model.tokenize(captions))
    assert torch.equal(kept.mean, subject.mean)
    assert torch.equal(kept.log_variance, subject.log_variance)
    assert (kept.mask == 1).all()
    assert kept.taught.all()
    assert not subject.taught.any()


def test_without_class_images_the_photos_teach_the_background_of_the_base(tmp_path: Path, tiny_base: Path) -> None:
    subject, kept = _of_photos(tmp_path, load(str(tiny_base)), "class")
    assert len(kept) == 6
    assert kept.taught.all()
    assert (kept.mask[:4] == 1).all()
    assert torch.equal(kept.tokens[4:], subject.tokens)
    assert torch.equal(kept.mask[4:] > 0, subject.mask == 0)
    torch.testing.assert_close(kept.mask[4:].mean((2, 3, 4)), torch.ones(2, 2))
    assert torch.equal(kept.tokens[:2], kept.tokens[2:4])


@pytest.mark.parametrize("outside", [0.0, 0.25])
def test_what_a_mask_leaves_out_the_base_teaches(tmp_path: Path, tiny_base: Path, outside: float) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[:32] = 255
    subject, kept = _of_photos(tmp_path, load(str(tiny_base)), "class", outside, mask)
    taught, learned = kept.mask[5, 0, 0], subject.mask[1, 0, 0]
    assert torch.equal(taught, torch.tensor([0.0, 2.0]).repeat_interleave(4)[:, None].expand(8, 8))
    assert torch.equal(
        learned, torch.tensor([1.0, outside]).repeat_interleave(4)[:, None].expand(8, 8) * 2 / (1 + outside)
    )


@pytest.mark.parametrize("weights", [3334.0, 1e9])
def test_a_pull_that_lets_nothing_be_learned_is_refused(tmp_path: Path, weights: float) -> None:
    train = {"parts": ["unet"], "unet_learning_rate": 3e-4}
    with pytest.raises(SettingsError, match=r"`prior.weights=.*: with `train.unet_learning_rate=0.0003` every step"):
        checks.refuse_too_strong_a_pull(_settings(tmp_path, train=train, prior={"weights": weights}))
    checks.refuse_too_strong_a_pull(_settings(tmp_path, train=train, prior={"weights": 3333.0}))


def test_what_a_killed_write_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / ".tmp-1-step-000003").mkdir(parents=True)
    (tmp_path / "checkpoints" / ".tmp-1-step-000003" / "state.ckpt").touch()
    (tmp_path / ".tmp-2-run.json").touch()
    (tmp_path / "run.json").touch()
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["checkpoints", "run.json"]


def test_a_signal_before_the_first_step_stops_with_the_way_on() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with (
        pytest.raises(Interrupted, match="femtobooth personalize --resume runs/x") as caught,
        Signals("femtobooth personalize --resume runs/x"),
    ):
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.exit_code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
