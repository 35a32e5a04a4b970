"""femtobooth convert: LoRAs merged into models, taken out of them, and from one layout to another."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_readers import assert_same_changes, changes, everything, random_lora, validate

from femtobooth.core import config
from femtobooth.core.errors import ExistsError, ModelError, SettingsError
from femtobooth.generator.adapters import Adapter, apply, layers
from femtobooth.generator.convert_settings import ConvertSettings
from femtobooth.generator.families.stable_diffusion import StableDiffusion
from femtobooth.generator.formats.adapter_reading import read
from femtobooth.generator.formats.adapter_writing import DIFFUSERS_NAME, write_kohya
from femtobooth.generator.formats.folder import save_folder
from femtobooth.generator.load import load
from femtobooth.generator.locate import SUBJECT_FILE
from femtobooth.generator.settings import GenerateSettings
from femtobooth.workflows import convert, generate

SUBJECT = {"token": "sks", "class_noun": "dog"}


@pytest.fixture(scope="module")
def base(tiny_sd1: Path) -> StableDiffusion:
    model = load(str(tiny_sd1))
    assert isinstance(model, StableDiffusion)
    return model


@pytest.fixture(scope="module")
def lora(base: StableDiffusion) -> Adapter:
    return random_lora(base, everything(base)[::3], rank=4, alpha=2.0)


def convert_to(source: Path | str, target: Path, **other: Any) -> dict[str, Any]:
    return convert.run(config.settle(ConvertSettings, {"source": str(source), "target": str(target), **other}))


def picture(run: Path, *loras: str) -> np.ndarray:
    given = {"run": str(run), "prompts": ["a sks dog"], "count": 1, "sampling": {"steps": 2}, "loras": [*loras]}
    return next(iter(generate.pictures(config.settle(GenerateSettings, given)))).astype(int)


def test_merged_is_the_adapter_beside_its_base(tiny_sd1: Path, lora: Adapter, tmp_path: Path) -> None:
    write_kohya(tmp_path / "rex.safetensors", lora, {})
    convert_to(tiny_sd1, tmp_path / "merged.safetensors", loras=[f"{tmp_path / 'rex.safetensors'}:0.5"])
    wanted = picture(tiny_sd1, f"{tmp_path / 'rex.safetensors'}:0.5")
    assert np.abs(picture(tmp_path / "merged.safetensors") - wanted).max() <= 1
    assert np.abs(picture(tiny_sd1) - wanted).mean() > 3


def test_from_one_layout_to_the_other_and_back(
    tiny_sd1: Path, base: StableDiffusion, lora: Adapter, tmp_path: Path
) -> None:
    write_kohya(tmp_path / "theirs.safetensors", lora, {})
    as_lora = {"form": "lora", "base": str(tiny_sd1)}
    written = convert_to(tmp_path / "theirs.safetensors", tmp_path / "rex", **as_lora)
    assert (written["layout"], written["kind"], written["layers"]) == ("diffusers", "LoRA", len(lora.modules))
    assert "energy" not in written
    validate(tmp_path / "rex" / DIFFUSERS_NAME)
    written = convert_to(tmp_path / "rex", tmp_path / "back.safetensors", **as_lora)
    assert written["layout"] == "kohya" and written["bytes"] == (tmp_path / "back.safetensors").stat().st_size
    found = validate(tmp_path / "back.safetensors")
    assert (found["modelspec.title"], found["modelspec.merged_from"]) == ("back", "tiny-sd1")
    assert str(tmp_path) not in json.dumps(found)
    assert_same_changes(changes(base, read(tmp_path / "back.safetensors", base)), changes(base, lora))
    with pytest.raises(ExistsError):
        convert_to(tmp_path / "rex", tmp_path / "back.safetensors", **as_lora)
    convert_to(tmp_path / "rex", tmp_path / "back.safetensors", overwrite=True, **as_lora)


def test_a_runs_adapter(tiny_sd1: Path, base: StableDiffusion, lora: Adapter, tmp_path: Path) -> None:
    folder = tmp_path / "rex" / "model"
    folder.mkdir(parents=True)
    write_kohya(folder / "rex.safetensors", lora, {"modelspec.trigger_phrase": "sks dog"})
    described = {"kind": "lora", "weights": "rex.safetensors", "embedding": None, "base": str(tiny_sd1)}
    subject = {**SUBJECT, "base_hash": base.hash, "adapter": described}
    (folder / SUBJECT_FILE).write_text(json.dumps(subject))
    convert_to(tmp_path / "rex", tmp_path / "whole.safetensors")
    wanted = replace(base, unet=deepcopy(base.unet), text_encoder=deepcopy(base.text_encoder))
    apply(wanted, lora)
    merged = load(str(tmp_path / "whole.safetensors"))
    assert merged.subject["token"] == "sks"
    for (_, found), (_, layer) in zip(layers(merged), layers(wanted), strict=True):
        assert torch.equal(found.weight, layer.weight)
    written = convert_to(tmp_path / "rex", tmp_path / "alone.safetensors", form="lora", precision="fp16")
    assert written["base"] == str(tiny_sd1.name) or written["base"] == str(tiny_sd1)
    found = validate(tmp_path / "alone.safetensors")
    assert found["modelspec.trigger_phrase"] == "sks dog" and str(tmp_path) not in json.dumps(found)
    assert set(read(tmp_path / "alone.safetensors", base).modules) == set(lora.modules)
    with pytest.raises(SettingsError, match="is an adapter, which has its own"):
        convert_to(tmp_path / "rex", tmp_path / "no.safetensors", form="lora", rank=8)


def test_extracted_from_a_tuned_model(tiny_sd1: Path, base: StableDiffusion, tmp_path: Path, capsys: Any) -> None:
    tuned = replace(base, unet=deepcopy(base.unet), text_encoder=deepcopy(base.text_encoder), subject=SUBJECT)
    apply(tuned, random_lora(base, everything(base)[::3], rank=3, alpha=2.0), 0.7)
    save_folder(tuned, tmp_path / "tuned", card="# tuned\n")
    how = {"form": "lora", "base": str(tiny_sd1)}
    with pytest.raises(SettingsError, match="does not say which base it was tuned from"):
        convert_to(tmp_path / "tuned", tmp_path / "x.safetensors", form="lora")
    written = convert_to(tmp_path / "tuned", tmp_path / "four.safetensors", rank=4, **how)
    assert written["energy"] == pytest.approx(1, abs=1e-5) and written["energy_in_layers"] == 1
    assert written["picture_difference"] < 0.1 and written["picture_difference_of_base"] > 3
    found = validate(tmp_path / "four.safetensors")
    assert (found["ss_network_dim"], found["ss_network_alpha"]) == ("4", "4.0")
    assert (found["modelspec.trigger_phrase"], found["modelspec.merged_from"]) == ("sks dog", "tiny-sd1")
    mine = picture(tiny_sd1, str(tmp_path / "four.safetensors"))
    assert np.abs(mine - picture(tmp_path / "tuned")).max() <= 1
    less = convert_to(tmp_path / "tuned", tmp_path / "one.safetensors", rank=1, pictures=0, **how)
    assert 0.3 < less["energy"] < 0.95 and "picture_difference" not in less
    assert less["bytes"] < written["bytes"] / 2


def test_what_goes_together(tiny_sd1: Path, lora: Adapter, tmp_path: Path) -> None:
    write_kohya(tmp_path / "rex.safetensors", lora, {})
    with pytest.raises(SettingsError, match="does not say for which base"):
        convert_to(tmp_path / "rex.safetensors", tmp_path / "x.safetensors", form="lora")
    with pytest.raises(ModelError, match=r"rex\.safetensors"):
        convert_to(tmp_path / "rex.safetensors", tmp_path / "x.safetensors", form="lora", base="bundled")
    (tmp_path / "mine.safetensors").write_bytes((tmp_path / "rex.safetensors").read_bytes())
    with pytest.raises(ExistsError, match="is no file that femtobooth convert writes"):
        convert_to(tiny_sd1, tmp_path / "mine.safetensors", overwrite=True)
    idle = ConvertSettings(source="a", target="b", rank=4)
    assert set(idle.without_effect()) == {"rank"}
    assert not list(tmp_path.glob("x*"))
