"""Class images: drawn once, the same whoever draws them, never confused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from femtobooth.generator import prior
from femtobooth.generator.families.stable_diffusion import StableDiffusion
from femtobooth.generator.load import load
from femtobooth.generator.loss_settings import PriorSettings
from femtobooth.generator.prior import Processes, class_images, folder_of, recipe
from femtobooth.generator.sampling_settings import SamplingSettings

PROMPT = "a dog"


@pytest.fixture
def model(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StableDiffusion:
    monkeypatch.setenv("FEMTOBOOTH_CACHE", str(tmp_path / "cache"))
    return load(str(tiny_base))


def _settings(images: int = 5, batch: int = 2, **changes: object) -> PriorSettings:
    return PriorSettings(images=images, sampling_batch=batch, sampling=SamplingSettings(steps=2), **changes)  # type: ignore[arg-type]


def _files(model: StableDiffusion, settings: PriorSettings) -> dict[str, float]:
    folder = folder_of(recipe(model.hash, model.empty_is_none, PROMPT, settings, (64, 64)))
    return {path.name: path.stat().st_mtime_ns for path in sorted(folder.glob("*.png"))}


def test_reused_and_topped_up(model: StableDiffusion) -> None:
    first = class_images(model, PROMPT, _settings(3), (64, 64))
    files = _files(model, _settings(3))
    assert len(files) == 3
    assert np.array_equal(class_images(model, PROMPT, _settings(3), (64, 64)), first)
    assert _files(model, _settings(3)) == files
    more = class_images(model, PROMPT, _settings(5), (64, 64))
    assert len(more) == 5
    assert np.array_equal(more[:3], first)


def test_an_image_depends_on_its_seed_alone(
    model: StableDiffusion, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = class_images(model, PROMPT, _settings(5, batch=2), (64, 64))
    assert len({picture.tobytes() for picture in whole}) == 5
    monkeypatch.setenv("FEMTOBOOTH_CACHE", str(tmp_path / "other"))
    other = class_images(model, PROMPT, _settings(5, batch=5), (64, 64))
    assert np.abs(whole.astype(int) - other.astype(int)).max() <= 1  # another batch shape may round differently
    monkeypatch.setenv("FEMTOBOOTH_CACHE", str(tmp_path / "shifted"))
    shifted = class_images(model, PROMPT, _settings(2, seed=3), (64, 64))
    assert np.abs(whole[3:].astype(int) - shifted.astype(int)).max() <= 1


def test_an_interrupted_or_damaged_cache_is_completed_exactly(model: StableDiffusion) -> None:
    whole = class_images(model, PROMPT, _settings(), (64, 64))
    folder = folder_of(recipe(model.hash, model.empty_is_none, PROMPT, _settings(), (64, 64)))
    (folder / "000001.png").unlink()
    data = (folder / "000002.png").read_bytes()
    (folder / "000002.png").write_bytes(data[: len(data) // 2])
    Image.fromarray(whole[0]).save(folder / "000004.png")  # a stray picture under the right name
    (folder / "000003.png").rename(folder / "000000.png")  # a right picture under the wrong name
    (folder / "holiday.png").write_bytes(b"not one of ours")
    assert np.array_equal(class_images(model, PROMPT, _settings(), (64, 64)), whole)


def test_processes_share_the_work_without_duplicates(model: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, one after the other: each draws only its own batches before it waits for the other."""
    drawn: dict[int, list[str]] = {}
    real = prior._write

    class Waiting(Exception):
        pass

    for rank in (0, 1):
        calls: list[str] = []

        def wait() -> None:
            raise Waiting  # the other process is not there yet

        monkeypatch.setattr(prior, "_write", lambda folder, index, *_, calls=calls: calls.append(index))
        with pytest.raises(Waiting):
            class_images(model, PROMPT, _settings(5), (64, 64), Processes(rank, 2, wait))
        drawn[rank] = calls
    monkeypatch.setattr(prior, "_write", real)
    assert sorted(drawn[0] + drawn[1]) == [0, 1, 2, 3, 4]  # type: ignore[comparison-overlap]
    assert drawn[0] and drawn[1]


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a cat"},
        {"base": "other"},
        {"size": 32},
        {"steps": 3},
        {"guidance": 2.0},
        {"sampler": "euler"},
        {"negative": "x"},
    ],
)
def test_every_part_of_the_recipe_has_a_folder_of_its_own(model: StableDiffusion, change: dict[str, object]) -> None:
    facts = recipe(model.hash, model.empty_is_none, PROMPT, _settings(), (64, 64))
    assert set(change) <= set(facts)
    assert folder_of({**facts, **change}) != folder_of(facts)


def test_other_classes_have_prompts_of_their_own() -> None:
    settings = _settings(prompt="a photo of a {class}", other_classes=["cat", "teapot"])
    assert prior.prompts(settings, "dog") == ["a photo of a dog", "a photo of a cat", "a photo of a teapot"]


def test_what_a_rounded_base_draws_is_kept_apart() -> None:
    plain = recipe("abc", False, PROMPT, PriorSettings(), (64, 64))
    facts = [plain, *(recipe("abc", False, PROMPT, PriorSettings(), (64, 64), held) for held in ("bf16", "int8"))]
    assert len({folder_of(one) for one in facts}) == 3
    assert plain == {name: one for name, one in facts[1].items() if name != "held"}
    assert plain == recipe("abc", False, PROMPT, PriorSettings(), (64, 64), "fp32")
