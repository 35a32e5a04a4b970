"""Where bases come from, and what is said when they do not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from femtobooth.core.errors import ExistsError, ModelError
from femtobooth.core.older_runs import with_base_of_today
from femtobooth.generator import cards, locate
from femtobooth.generator.formats.folder import save_folder
from femtobooth.generator.load import load
from femtobooth.generator.locate import PARTS
from femtobooth.generator.settings import RECOMMENDABLE, of_card


def test_the_bundled_base_is_whole() -> None:
    model = load("bundled")
    assert (model.size, model.vae_factor, model.process.prediction_type) == (64, 4, "v_prediction")
    assert model.scheduler.config.rescale_betas_zero_snr
    assert model.card["personalize"]["prior"]["prompt"] == "a {class}"
    assert all(
        parameter.dtype == torch.float32 and not parameter.requires_grad for parameter in model.unet.parameters()
    )
    assert {command: of_card("bundled", command) for command in model.card} == model.card


def test_attention_is_scaled_dot_product() -> None:
    model = load("bundled")
    assert {type(one).__name__ for one in model.denoiser.attn_processors.values()} == {"AttnProcessor2_0"}
    assert {one.config._attn_implementation for one in model.text_encoders.values()} == {"sdpa"}


def test_a_run_folder_stands_for_its_model(tiny_sd1: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_sd1, tmp_path / "run" / "model")
    assert load(str(tmp_path / "run")).hash == load(str(tiny_sd1)).hash


def test_stable_diffusion_latents_are_never_clipped(tiny_sd1: Path) -> None:
    """PNDM's configuration says nothing of clipping; DDIM's own default would clip latents to [-1, 1]."""
    assert "clip_sample" not in json.loads((tiny_sd1 / "scheduler" / "scheduler_config.json").read_text())
    assert load(str(tiny_sd1)).scheduler.config.clip_sample is False


def test_what_is_saved_loads_anywhere_and_names_no_path(tiny_sd2: Path, tmp_path: Path) -> None:
    model = load(str(tiny_sd2))
    model.tokenize(["a dog"])  # leaves its padding in the tokenizer's state
    save_folder(model, tmp_path / "copy", card="# copy\n")
    again = load(str(tmp_path / "copy"))
    for part in ("unet", "vae", "text_encoder"):
        pairs = zip(getattr(model, part).state_dict().values(), getattr(again, part).state_dict().values(), strict=True)
        assert all(torch.equal(first, second) for first, second in pairs)
    assert {"tokenizer.json", "vocab.json", "merges.txt"} <= {
        path.name for path in (tmp_path / "copy/tokenizer").iterdir()
    }
    for path in (tmp_path / "copy").rglob("*.json"):
        assert str(tmp_path.parent) not in path.read_text()
    assert json.loads((tmp_path / "copy/tokenizer/tokenizer.json").read_text())["padding"] is None
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "copy")
    assert pipeline.unet.dtype == torch.float32
    with pytest.raises(ExistsError):
        save_folder(model, tmp_path / "copy", card="")
    assert model.unet.dtype == torch.float32
    save_folder(model, tmp_path / "half", card="", dtype=torch.float16)
    size = sum(path.stat().st_size for path in (tmp_path / "half").rglob("*.safetensors"))
    assert size < 0.52 * sum(path.stat().st_size for path in (tmp_path / "copy").rglob("*.safetensors"))


def test_a_hub_id_is_found_in_the_local_cache(tiny_sd1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    cached = tmp_path / "hub" / "models--someone--something"
    shutil.copytree(tiny_sd1, cached / "snapshots" / "0123456789abcdef")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123456789abcdef")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load("someone/something").size == 64


def test_a_hub_id_that_cannot_be_had_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError) as caught:
        load("someone/nothing")
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert "someone/nothing" in lines[0]
    assert "hf download someone/nothing --local-dir FOLDER" in lines[1]


@pytest.mark.parametrize("name", ["no/such/folder/anywhere", "nothing.safetensors", "./nothing", "sd15"])
def test_nothing_there(name: str) -> None:
    with pytest.raises(ModelError, match=r"no such (base model|file or folder)"):
        load(name)


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part_is_named(tiny_sd1: Path, tmp_path: Path, part: str) -> None:
    shutil.copytree(tiny_sd1, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / part)
    with pytest.raises(ModelError, match=f"its {part}/ folder is missing"):
        load(str(tmp_path / "model"))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("unet/diffusion_pytorch_model.safetensors", b"\x10\x00"),
        ("vae/config.json", b"{"),
        ("text_encoder/model.safetensors", b""),
        ("scheduler/scheduler_config.json", b"not json"),
        ("tokenizer/tokenizer.json", b"{}"),
    ],
)
def test_a_damaged_part_is_named(tiny_sd1: Path, tmp_path: Path, file: str, content: bytes) -> None:
    shutil.copytree(tiny_sd1, tmp_path / "model")
    (tmp_path / "model" / file).write_bytes(content)
    with pytest.raises(ModelError, match=file.partition("/")[0]):
        load(str(tmp_path / "model"))


def test_pickled_weights_are_not_even_opened(tiny_sd1: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_sd1, tmp_path / "model")
    weights = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.bin"))
    with pytest.raises(ModelError, match=r"unet: holds only diffusion_pytorch_model\.bin, which is not opened"):
        load(str(tmp_path / "model"))


def test_inpainting_checkpoints_are_refused(tiny_sd1: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_sd1, tmp_path / "model")
    config = dict(UNet2DConditionModel.load_config(tmp_path / "model" / "unet"))
    UNet2DConditionModel.from_config({**config, "in_channels": 9}).save_pretrained(tmp_path / "model" / "unet")
    with pytest.raises(ModelError, match="its UNet reads 9 channels"):
        load(str(tmp_path / "model"))


@pytest.mark.parametrize(
    "text", ["# no front matter\n", "---\n---\nfemtobooth: {steps: 3}\n", "---\nfemtobooth: 3\n---\n"]
)
def test_a_card_that_recommends_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text)
    assert cards.read_card(tmp_path, RECOMMENDABLE) == {}


def test_a_card_writes_numbers_as_a_settings_file_does(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(
        "---\nfemtobooth: {personalize: {train: {unet_learning_rate: 1e-4}}}\n---\n# A base\n"
    )
    assert cards.read_card(tmp_path, RECOMMENDABLE) == {"personalize": {"train": {"unet_learning_rate": 1e-4}}}


def test_runs_on_the_bundled_base_of_before_go_on(tmp_path: Path) -> None:
    """Its text encoder's keys had no `text_model.`; the weights are the same, and so is the base that a run names by
    its hash.
    """
    former = tmp_path / "former"
    shutil.copytree(locate.bundled_folder(), former)
    file = former / "text_encoder" / "model.safetensors"
    save_file(
        {key.removeprefix("text_model."): value for key, value in load_file(file).items()},
        file,
        metadata={"format": "pt"},
    )
    began = {"base_hash": load(str(former)).hash, "token": "sks"}
    assert with_base_of_today(began) == {"base_hash": load("bundled").hash, "token": "sks"}
    assert with_base_of_today({"base_hash": "another"}) == {"base_hash": "another"}
