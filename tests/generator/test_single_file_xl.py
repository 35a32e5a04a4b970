"""Single files of Stable Diffusion XL: written as the published ones are, read back to the bit, strangers' too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_readers import published_xl
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from femtobooth.core import config
from femtobooth.core.errors import ModelError
from femtobooth.generator import locate
from femtobooth.generator.convert_settings import ConvertSettings
from femtobooth.generator.families.stable_diffusion_xl import StableDiffusionXL
from femtobooth.generator.formats import ldm_configs, ldm_keys, parts
from femtobooth.generator.formats.single_file import load_single_file, save_single_file
from femtobooth.generator.load import load
from femtobooth.workflows import convert

FIRST, SECOND = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."
TOKENIZER = str(locate.bundled_folder() / "tokenizer")


def ldm(model: StableDiffusionXL) -> dict[str, torch.Tensor]:
    networks = [getattr(model, name) for name in model.NETWORKS]
    return {key: one for network in networks for key, one in ldm_keys.to_ldm(network, xl=True).items()}


def assert_same(one: Any, other: Any) -> None:
    for name in StableDiffusionXL.NETWORKS:
        pairs = zip(getattr(one, name).state_dict().items(), getattr(other, name).state_dict().items(), strict=True)
        assert all(first == second and torch.equal(a, b) for (first, a), (second, b) in pairs), name


def test_a_folder_comes_back_from_a_file_to_the_bit(tiny_xl: Path, tmp_path: Path) -> None:
    settings = {"source": str(tiny_xl), "target": str(tmp_path / "one.safetensors")}
    written = convert.run(config.resolve(ConvertSettings, settings))
    assert written["layout"] == "Stable Diffusion XL layout, sizes of its own"
    base, found = load(str(tiny_xl)), load(str(tmp_path / "one.safetensors"))
    assert isinstance(base, StableDiffusionXL)
    assert isinstance(found, StableDiffusionXL)
    assert_same(found, base)
    assert torch.equal(found.tokenize(["a dog", ""]), base.tokenize(["a dog", ""]))
    assert found.force_zeros
    base.force_zeros = False
    save_single_file(base, tmp_path / "two.safetensors")
    assert load_single_file(tmp_path / "two.safetensors", weights=False).empty_is_none


def test_from_single_file_of_diffusers_loads_what_is_written(tiny_xl: Path, tmp_path: Path) -> None:
    model: Any = load(str(tiny_xl))
    save_single_file(model, tmp_path / "one.safetensors")
    tensors = load_file(tmp_path / "one.safetensors")
    assert tensors[f"{FIRST}embeddings.position_ids"].dtype == torch.int64
    assert tensors[f"{SECOND}text_projection"].shape == (48, 40)
    pipeline = StableDiffusionXLPipeline.from_single_file(
        str(tmp_path / "one.safetensors"), config=str(tiny_xl), local_files_only=True
    )
    assert_same(pipeline, model)
    ids = model.tokenize(["a dog"])[:, 1]
    with torch.no_grad():
        assert torch.equal(pipeline.text_encoder_2(ids).text_embeds, model.text_encoder_2(ids).text_embeds)


def test_the_published_file_is_understood() -> None:
    """Keys and shapes of the base as it was published: 2515 with position_ids and logit_scale."""
    model = published_xl()
    tensors = ldm(model)
    assert len(tensors) == 2513
    assert ldm_configs.other_kind(tensors) is None
    assert ldm_configs.is_xl(tensors)
    assert tensors["model.diffusion_model.label_emb.0.0.weight"].shape == (1280, 2816)
    assert tensors[f"{SECOND}transformer.resblocks.31.attn.in_proj_weight"].shape == (3840, 1280)
    told = ldm_configs.infer(tensors, {"pixels": ldm_configs.XL_PIXELS, "prediction_type": "epsilon"})
    for name in ("unet", "vae"):
        own = getattr(model, name).config
        wanted = {key: list(own[key]) if isinstance(own[key], tuple) else own[key] for key in told[name]}
        if name == "unet":
            wanted["transformer_layers_per_block"], wanted["attention_head_dim"] = [1, 2, 10], [5, 10, 20]
        assert told[name] == wanted
    for name in ("text_encoder", "text_encoder_2"):
        own = getattr(model, name).config.to_dict()
        wanted = {key: own[key] for key in told[name]}
        assert told[name] == wanted | ({"projection_dim": 768} if name == "text_encoder" else {})
    built = {name: parts.build(kind, told[name], "it") for name, kind in StableDiffusionXL.NETWORKS.items()}
    StableDiffusionXL.refuse_misfits(built, "it")
    for name, one in built.items():
        shapes = {key: tensor.shape for key, tensor in one.state_dict().items()}
        assert shapes == {key: tensor.shape for key, tensor in getattr(model, name).state_dict().items()}


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory, tiny_xl: Path) -> tuple[Path, StableDiffusionXL]:
    """A small file that says nothing of itself, and what it holds: heads and groups as the published ones have them."""
    torch.manual_seed(3)
    tiny: Any = load(str(tiny_xl))
    text = {"vocab_size": len(tiny.tokenizer), "max_position_embeddings": 77, "num_attention_heads": 1}
    ends = {name: getattr(tiny.tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    first = CLIPTextConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, **text, **ends)
    second = CLIPTextConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, hidden_act="gelu", projection_dim=40, **text, **ends
    )
    model = replace(
        tiny,
        text_encoder=CLIPTextModel(first).eval(),
        text_encoder_2=CLIPTextModelWithProjection(second).eval(),
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(32, 32),
            scaling_factor=0.13025,
        ).eval(),
        unet=UNet2DConditionModel(
            **{**tiny.unet.config, "norm_num_groups": 32, "cross_attention_dim": 96, "attention_head_dim": (1, 1, 1)}
        ).eval(),
    )
    path = tmp_path_factory.mktemp("strangers") / "xl.safetensors"
    save_file({key: one.contiguous() for key, one in ldm(model).items()}, path)
    return path, model


def test_a_strangers_file_is_the_model_it_holds(stranger: tuple[Path, StableDiffusionXL]) -> None:
    path, model = stranger
    found: Any = load_single_file(path, TOKENIZER)
    assert_same(found, model)
    assert (found.tokenizer_2.pad_token_id, found.vae.config.scaling_factor) == (0, 0.13025)
    assert found.unet.config.sample_size * found.vae_factor == 1024
    assert (found.process.prediction_type, found.force_zeros) == ("epsilon", True)
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    predicted = []
    for one in (model, found):
        with torch.no_grad():
            predicted.append(one.denoise(noisy, torch.tensor([300]), one.condition(model.tokenize(["a dog"]))))
    torch.testing.assert_close(*predicted)


def test_a_strangers_v_prediction_is_heard(stranger: tuple[Path, StableDiffusionXL], tmp_path: Path) -> None:
    path, _ = stranger
    save_file(load_file(path) | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, tmp_path / "v.safetensors")
    found = load_single_file(tmp_path / "v.safetensors", TOKENIZER, weights=False)
    assert (found.process.prediction_type, found.size) == ("v_prediction", 1024)


@pytest.mark.parametrize(
    ("rename", "drop", "says"),
    [
        ((SECOND, "conditioner.embedders.0.model."), FIRST, "a Stable Diffusion XL refiner"),
        (None, FIRST, "a Stable Diffusion XL without its first text encoder"),
        (None, "first_stage_model.", "a Stable Diffusion XL without its VAE"),
    ],
)
def test_others_of_its_kind_are_named(
    rename: tuple[str, str] | None, drop: str, says: str, stranger: tuple[Path, StableDiffusionXL], tmp_path: Path
) -> None:
    tensors = {key: one for key, one in load_file(stranger[0]).items() if not key.startswith(drop)}
    if rename:
        tensors = {key.replace(*rename): one for key, one in tensors.items()}
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=says) as caught:
        load_single_file(tmp_path / "other.safetensors", TOKENIZER)
    assert "1.x, 2.x or XL" in str(caught.value.way_out)


def test_an_inpainting_file_is_named(stranger: tuple[Path, StableDiffusionXL], tmp_path: Path) -> None:
    tensors = load_file(stranger[0])
    key = "model.diffusion_model.input_blocks.0.0.weight"
    tensors[key] = torch.zeros(tensors[key].shape[0], 9, 3, 3)
    save_file(tensors, tmp_path / "inpainting.safetensors")
    with pytest.raises(ModelError, match="an inpainting model: its UNet reads 9 channels, its VAE makes 4"):
        load_single_file(tmp_path / "inpainting.safetensors", TOKENIZER)
