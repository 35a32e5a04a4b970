"""femtobooth convert: folder to single file and back."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel

from femtobooth.core.errors import ExistsError, FemtoboothError, SettingsError
from femtobooth.generator import cards
from femtobooth.generator.convert_settings import ConvertSettings
from femtobooth.generator.families.stable_diffusion import StableDiffusion
from femtobooth.generator.formats import ldm_configs
from femtobooth.generator.formats.folder import save_folder
from femtobooth.generator.formats.single_file import save_single_file
from femtobooth.generator.load import load
from femtobooth.workflows import convert


def _weights(folder: Path) -> dict[str, str]:
    files = sorted(folder.rglob("*.safetensors"))
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.parametrize(
    ("fixture", "layout"), [("tiny_sd1", "Stable Diffusion 1.x"), ("tiny_sd2", "Stable Diffusion 2.x")]
)
def test_folder_to_file_to_folder(fixture: str, layout: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source = request.getfixturevalue(fixture)
    written = _convert(str(source), tmp_path / "model.safetensors")
    assert written["layout"] == f"{layout} layout, sizes of its own"
    assert written["loaded_by"] == ["femtobooth"]
    assert written["bytes"] == (tmp_path / "model.safetensors").stat().st_size
    assert _convert(str(tmp_path / "model.safetensors"), tmp_path / "folder")["loaded_by"] == [
        "femtobooth",
        "diffusers",
    ]
    assert _weights(tmp_path / "folder") == _weights(source)
    assert (tmp_path / "folder" / "README.md").read_text() == (source / "README.md").read_text()
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "folder")
    assert pipeline.scheduler.config.prediction_type == written["prediction_type"]


def test_a_runs_subject_survives(tiny_sd1: Path, tmp_path: Path) -> None:
    model = load(str(tiny_sd1))
    model.subject = {"token": "sks", "class_noun": "dog"}
    save_folder(model, tmp_path / "run" / "model", card="# a dog\n")
    _convert(str(tmp_path / "run"), tmp_path / "dog.safetensors")
    _convert(str(tmp_path / "dog.safetensors"), tmp_path / "dog")
    assert load(str(tmp_path / "dog")).subject == model.subject


def test_the_suffix_in_any_case_makes_a_file(tiny_sd1: Path, tmp_path: Path) -> None:
    _convert(str(tiny_sd1), tmp_path / "out.SAFETENSORS")
    assert (tmp_path / "out.SAFETENSORS").is_file()
    assert load(str(tmp_path / "out.SAFETENSORS")).size == 64
    with pytest.raises(SettingsError, match="pickled checkpoints"):
        _convert(str(tiny_sd1), tmp_path / "out.CKPT")


def test_a_card_for_the_hub_goes_along(tiny_sd1: Path, tmp_path: Path) -> None:
    """A run's licence, attribution and picture survive; a model that came without a card gets one."""
    model = load(str(tiny_sd1))
    (tmp_path / "overview.png").write_bytes(b"a picture")
    text = "---\nlicense: apache-2.0\ninstance_prompt: a sks dog\n---\n# sks dog\n"
    save_folder(model, tmp_path / "run" / "model", text, picture=tmp_path / "overview.png")
    _convert(str(tmp_path / "run"), tmp_path / "folder")
    card = (tmp_path / "folder" / "README.md").read_text()
    matter = cards.front_matter(card, tmp_path)
    assert (matter["license"], matter["instance_prompt"], matter["library_name"]) == (
        "apache-2.0",
        "a sks dog",
        "diffusers",
    )
    assert {"text-to-image", "stable-diffusion-diffusers"} <= set(matter["tags"])
    assert card.endswith("---\n# sks dog\n")
    assert (tmp_path / "folder" / "overview.png").read_bytes() == b"a picture"
    model.readme = ""
    save_single_file(model, tmp_path / "my model.safetensors")
    _convert(str(tmp_path / "my model.safetensors"), tmp_path / "bare")
    matter = cards.front_matter((tmp_path / "bare" / "README.md").read_text(), tmp_path)
    assert (matter["base_model"], matter["library_name"], matter["pipeline_tag"]) == (
        "my-model",
        "diffusers",
        "text-to-image",
    )


def test_the_published_sizes_are_what_other_programs_load() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768)
        levels = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        vae = AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, **levels)
    text = CLIPTextConfig(vocab_size=49408, hidden_size=768, num_hidden_layers=12)
    other = CLIPTextConfig(vocab_size=49409, hidden_size=768, num_hidden_layers=12)
    known = {"tokenizer": None, "vae": vae, "unet": unet, "scheduler": None, "source": "", "hash": ""}
    with torch.device("meta"):
        assert ldm_configs.is_published(StableDiffusion(text_encoder=CLIPTextModel(text), **known))
        assert not ldm_configs.is_published(StableDiffusion(text_encoder=CLIPTextModel(other), **known))
    assert not ldm_configs.is_published(load("bundled"))


def test_16_bits(tiny_sd1: Path, tmp_path: Path) -> None:
    _convert(str(tiny_sd1), tmp_path / "half.safetensors", precision="fp16")
    weight = load_file(tmp_path / "half.safetensors")["model.diffusion_model.out.2.weight"]
    assert torch.equal(weight, load(str(tiny_sd1)).unet.conv_out.weight.half())


def test_targets_that_would_lose_something(tiny_sd1: Path, tmp_path: Path) -> None:
    (tmp_path / "old.safetensors").write_text("mine")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_text("mine")
    (tmp_path / "folder.safetensors").mkdir()
    cases: list[tuple[str, bool, type[FemtoboothError]]] = [
        ("old.safetensors", False, ExistsError),
        ("old.safetensors", True, ExistsError),
        ("photos", False, ExistsError),
        ("photos", True, ExistsError),
        ("folder.safetensors", True, ExistsError),
        ("model.ckpt", False, SettingsError),
    ]
    for name, overwrite, error in cases:
        with pytest.raises(error, match=name):
            _convert(str(tiny_sd1), tmp_path / name, overwrite=overwrite)
    assert (tmp_path / "old.safetensors").read_text() == "mine"
    assert (tmp_path / "photos" / "cat.png").read_text() == "mine"


def test_what_convert_wrote_is_replaced_but_never_its_source(tiny_sd1: Path, tmp_path: Path) -> None:
    for target in (tmp_path / "model.safetensors", tmp_path / "folder"):
        _convert(str(tiny_sd1), target)
        with pytest.raises(ExistsError, match="this command reads"):
            _convert(str(target), target, precision="fp16", overwrite=True)
        _convert(str(tiny_sd1), target, precision="fp16", overwrite=True)
        assert load(str(target)).size == 64
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder", "model.safetensors"]


def _convert(source: str, target: Path, **how: Any) -> dict[str, Any]:
    return convert.run(ConvertSettings(source=source, target=str(target), **how))
