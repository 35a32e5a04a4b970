"""Single-file checkpoints: the key layout, the round trip, files of others, and files that must be refused."""

from __future__ import annotations

import collections
import json
import os
import pickle
import sys
import types
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils as theirs
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from femtobooth.core.errors import ExistsError, ModelError, UnsafeFileError
from femtobooth.core.files import sha256_of
from femtobooth.generator import locate
from femtobooth.generator.families.stable_diffusion import StableDiffusion
from femtobooth.generator.formats import ldm_configs, ldm_keys
from femtobooth.generator.formats.single_file import load_single_file, save_single_file
from femtobooth.generator.load import load

PARTS = ("unet", "vae", "text_encoder")
FULL = {  # the published sizes
    "1.x": (
        {"cross_attention_dim": 768, "attention_head_dim": 8},
        {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    ),
    "2.x": (
        {
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
            "upcast_attention": True,
        },
        {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 23,
            "num_attention_heads": 16,
            "hidden_act": "gelu",
        },
    ),
}


def _vae(*widths: int, groups: int = 32) -> AutoencoderKL:
    levels = len(widths)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=widths,
        layers_per_block=2,
        norm_num_groups=groups,
    )


def _full_size(shape: str) -> dict[str, torch.nn.Module]:
    unet, text = FULL[shape]
    with torch.device("meta"):
        return {
            "unet": UNet2DConditionModel(sample_size=64, **unet),
            "vae": _vae(128, 256, 512, 512),
            "text_encoder": CLIPTextModel(CLIPTextConfig(vocab_size=49408, **text)),
        }


def _ldm(parts: dict[str, torch.nn.Module]) -> dict[str, torch.Tensor]:
    return {key: tensor for part in parts.values() for key, tensor in ldm_keys.to_ldm(part).items()}


def _by_diffusers(
    parts: dict[str, torch.nn.Module], tensors: dict[str, torch.Tensor]
) -> dict[str, dict[str, torch.Tensor]]:
    """What diffusers' own single-file reader makes of `tensors`."""
    if ldm_keys.is_second(parts["text_encoder"]):
        text = theirs.convert_open_clip_checkpoint(parts["text_encoder"], dict(tensors))
    else:
        text = theirs.convert_ldm_clip_checkpoint(dict(tensors))
    return {
        "unet": theirs.convert_ldm_unet_checkpoint(dict(tensors), parts["unet"].config),
        "vae": theirs.convert_ldm_vae_checkpoint(dict(tensors), parts["vae"].config),
        "text_encoder": {
            key.removeprefix("text_model."): tensor for key, tensor in text.items() if not key.endswith("position_ids")
        },
    }


def _parts(model: StableDiffusion) -> dict[str, torch.nn.Module]:
    return {part: getattr(model, part) for part in PARTS}


def _assert_same_tensors(first: StableDiffusion, second: StableDiffusion) -> None:
    for part in PARTS:
        one, two = getattr(first, part).state_dict(), getattr(second, part).state_dict()
        assert list(one) == list(two)
        assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture(scope="module")
def tokenizer() -> str:
    return str(locate.bundled_folder() / "tokenizer")


def _foreign_model(second: bool, layers: int = 2) -> dict[str, torch.nn.Module]:
    """The smallest UNet, VAE and text encoder with the groups and heads that files of others are taken to have."""
    torch.manual_seed(3)
    text = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": layers, "num_attention_heads": 1}
    return {
        "unet": UNet2DConditionModel(
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=64,
            attention_head_dim=[1, 1] if second else 8,
            use_linear_projection=second,
        ),
        "vae": _vae(32, 32),
        "text_encoder": CLIPTextModel(
            CLIPTextConfig(
                vocab_size=2400, max_position_embeddings=77, hidden_act="gelu" if second else "quick_gelu", **text
            )
        ),
    }


@pytest.fixture(scope="module")
def foreign() -> dict[str, torch.Tensor]:
    return _ldm(_foreign_model(second=False))


# The layout


def test_full_size_1x_has_exactly_the_published_keys() -> None:
    tensors = _ldm(_full_size("1.x"))
    counts = collections.Counter(key.split(".")[0] for key in tensors)
    assert counts == {"model": 686, "first_stage_model": 248, "cond_stage_model": 196}
    for key, shape in {
        "model.diffusion_model.time_embed.2.bias": (1280,),
        "model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
        "model.diffusion_model.input_blocks.3.0.op.weight": (320, 320, 3, 3),
        "model.diffusion_model.input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1),
        "model.diffusion_model.input_blocks.8.1.transformer_blocks.0.ff.net.0.proj.weight": (10240, 1280),
        "model.diffusion_model.input_blocks.11.0.emb_layers.1.weight": (1280, 1280),
        "model.diffusion_model.middle_block.1.proj_in.weight": (1280, 1280, 1, 1),
        "model.diffusion_model.output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
        "model.diffusion_model.output_blocks.8.2.conv.bias": (640,),
        "model.diffusion_model.output_blocks.11.0.skip_connection.weight": (320, 640, 1, 1),
        "model.diffusion_model.out.2.weight": (4, 320, 3, 3),
        "first_stage_model.encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
        "first_stage_model.encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
        "first_stage_model.decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
        "first_stage_model.decoder.up.0.block.2.conv2.weight": (128, 128, 3, 3),
        "first_stage_model.decoder.norm_out.weight": (128,),
        "first_stage_model.quant_conv.weight": (8, 8, 1, 1),
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (49408, 768),
        "cond_stage_model.transformer.text_model.encoder.layers.11.self_attn.q_proj.weight": (768, 768),
        "cond_stage_model.transformer.text_model.final_layer_norm.bias": (768,),
    }.items():
        assert tensors[key].shape == shape, key


def test_full_size_2x_stacks_query_key_and_value() -> None:
    tensors = _ldm(_full_size("2.x"))
    assert tensors["cond_stage_model.model.transformer.resblocks.22.attn.in_proj_weight"].shape == (3072, 1024)
    assert tensors["cond_stage_model.model.positional_embedding"].shape == (77, 1024)
    assert tensors["model.diffusion_model.middle_block.1.proj_in.weight"].shape == (1280, 1280)
    assert len(tensors) == 686 + 248 + 23 * 12 + 4


@pytest.mark.parametrize("shape", FULL)
def test_full_size_names_agree_with_diffusers(shape: str) -> None:
    parts = _full_size(shape)
    for part, state in _by_diffusers(parts, _ldm(parts)).items():
        assert {key: tensor.shape for key, tensor in state.items()} == {
            k: t.shape for k, t in parts[part].state_dict().items()
        }


@pytest.mark.parametrize("shape", FULL)
def test_sizes_of_the_published_models_are_told_from_tensors(shape: str) -> None:
    parts = _full_size(shape)
    process = {
        "1.x": {"prediction_type": "epsilon", "pixels": 512},
        "2.x": {"prediction_type": "v_prediction", "pixels": 768},
    }[shape]
    configs = ldm_configs.infer(_ldm(parts), process)
    for part in PARTS:
        config = parts[part].config
        for key, value in configs[part].items():
            known = getattr(config, key)
            if key not in ("sample_size", "projection_dim"):
                assert value == (list(known) if isinstance(known, tuple) else known), key
    assert configs["unet"]["sample_size"] == {"1.x": 64, "2.x": 96}[shape]


# The round trip


@pytest.fixture(params=["tiny_sd1", "tiny_sd2", "bundled"])
def reference(request: pytest.FixtureRequest) -> str:
    return "bundled" if request.param == "bundled" else str(request.getfixturevalue(request.param))


def test_round_trip_loses_nothing(reference: str, tmp_path: Path) -> None:
    model = load(reference)
    model.subject = {"token": "sks", "class_noun": "dog"}
    model.readme = "---\nfemtobooth:\n  personalize:\n    size: 72\n---\n# Ä card\n"
    path = tmp_path / "model.safetensors"
    save_single_file(model, path)
    back = load(str(path))

    _assert_same_tensors(model, back)
    for part in ("unet", "vae", "scheduler"):
        configs = [{k: v for k, v in getattr(each, part).config.items() if k[0] != "_"} for each in (model, back)]
        assert json.dumps(configs[0], sort_keys=True) == json.dumps(configs[1], sort_keys=True)
    assert model.text_encoder.config.to_diff_dict() == back.text_encoder.config.to_diff_dict()
    assert model.tokenizer.get_vocab() == back.tokenizer.get_vocab()
    assert back.subject == model.subject
    assert back.readme == model.readme
    assert back.card == {"personalize": {"size": 72}}

    prompts = ["a photo of a dog", "", "a sks dog on the moon, extraordinarily " * 30]
    assert torch.equal(model.tokenize(prompts), back.tokenize(prompts))
    states = model.condition(model.tokenize(prompts)).tensors["encoder_hidden_states"]
    assert torch.equal(states, back.condition(back.tokenize(prompts)).tensors["encoder_hidden_states"])
    size = model.unet.config.sample_size
    latents = torch.randn(1, model.unet.config.in_channels, size, size, generator=torch.Generator().manual_seed(1))
    assert torch.equal(model.unet(latents, 500, states[:1]).sample, back.unet(latents, 500, states[:1]).sample)
    assert torch.equal(model.vae.decode(latents).sample, back.vae.decode(latents).sample)

    again = tmp_path / "again.safetensors"
    save_single_file(back, again)
    assert sha256_of(again) == sha256_of(path)


def test_files_are_read_alike_by_diffusers(reference: str, tmp_path: Path) -> None:
    model = load(reference)
    save_single_file(model, tmp_path / "model.safetensors")
    for part, state in _by_diffusers(_parts(model), load_file(tmp_path / "model.safetensors")).items():
        wanted = getattr(model, part).state_dict()
        assert set(state) == set(wanted)
        assert all(torch.equal(state[key], wanted[key]) for key in wanted)


def test_16_bits_keep_whole_numbers_whole(tiny_sd1: Path, tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    save_single_file(load(str(tiny_sd1)), path, torch.float16)
    tensors = load_file(path)
    assert torch.equal(tensors.pop(ldm_keys.CLIP + ldm_keys.POSITION_IDS), torch.arange(77)[None])
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert load(str(path)).unet.dtype == torch.float32


def test_no_path_of_this_machine_is_written(tiny_sd1: Path, tmp_path: Path) -> None:
    save_single_file(load(str(tiny_sd1)), tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert str(tiny_sd1) not in json.dumps(file.metadata())


def test_save_never_replaces_unasked_and_leaves_nothing_behind(tiny_sd1: Path, tmp_path: Path) -> None:
    model = load(str(tiny_sd1))
    path = tmp_path / "model.safetensors"
    path.write_text("mine")
    with pytest.raises(ExistsError, match="already exists"):
        save_single_file(model, path)
    with torch.no_grad():
        model.vae.quant_conv.bias[0] = 1e9
    with pytest.raises(ModelError, match=r"quant_conv\.bias would hold NaN or infinite"):
        save_single_file(model, path, torch.float16, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    assert path.read_text() == "mine"


# Files of others


def _checkpoint(path: Path, tensors: dict[str, torch.Tensor], **more: object) -> Path:
    torch.save({"state_dict": tensors, **more}, path)
    return path


@pytest.mark.parametrize("second", [False, True], ids=["1.x", "2.x"])
def test_foreign_safetensors(second: bool, tokenizer: str, tmp_path: Path) -> None:
    parts = _foreign_model(second)
    path = tmp_path / "model.safetensors"
    save_file({**_ldm(parts), "betas": torch.zeros(1000), "model_ema.decay": torch.ones(1)}, path)
    model = load_single_file(path, tokenizer)
    for part, given in parts.items():
        assert all(
            torch.equal(tensor, getattr(model, part).state_dict()[key]) for key, tensor in given.state_dict().items()
        )
    assert model.process.prediction_type == ("v_prediction" if second else "epsilon")
    assert model.scheduler.config.clip_sample is False
    assert float(model.scheduler.alphas_cumprod[-1]) == pytest.approx(0.00466, abs=1e-5)  # of Stable Diffusion
    assert model.size == (768 if second else 512)
    assert model.tokenizer.model_max_length <= 77
    assert model.tokenizer.pad_token == ("!" if second else "<|endoftext|>")
    latents = torch.randn(1, 4, 8, 8)
    states = parts["text_encoder"].eval()(model.tokenize(["a dog"])).last_hidden_state
    assert torch.equal(model.condition(model.tokenize(["a dog"])).tensors["encoder_hidden_states"], states)
    assert torch.equal(model.unet(latents, 9, states).sample, parts["unet"].eval()(latents, 9, states).sample)


@pytest.mark.parametrize(
    ("yaml", "step", "prediction", "size"),
    [
        (None, None, "v_prediction", 768),
        (None, 875000, "epsilon", 512),
        ("model: {params: {parameterization: eps}}", None, "epsilon", 512),
        ("model: {params: {parameterization: v}}", 875000, "v_prediction", 768),
    ],
)
def test_prediction_type_of_2x(
    yaml: str | None, step: int | None, prediction: str, size: int, tokenizer: str, tmp_path: Path
) -> None:
    path = _checkpoint(tmp_path / "v2.ckpt", _ldm(_foreign_model(second=True)), global_step=step)
    if yaml:
        path.with_suffix(".yaml").write_text(yaml)
    model = load_single_file(path, tokenizer)
    assert (model.process.prediction_type, model.size) == (prediction, size)


def test_open_clip_reads_23_of_24_layers(tokenizer: str, tmp_path: Path) -> None:
    parts = _foreign_model(second=True, layers=24)
    extra = {
        "cond_stage_model.model.text_projection": torch.zeros(64, 64),
        "cond_stage_model.model.logit_scale": torch.ones(()),
    }
    model = load_single_file(_checkpoint(tmp_path / "v2.ckpt", {**_ldm(parts), **extra}), tokenizer)
    assert model.text_encoder.config.num_hidden_layers == 23
    penultimate = parts["text_encoder"].eval()(model.tokenize(["a dog"]), output_hidden_states=True).hidden_states[-2]
    assert torch.equal(
        model.condition(model.tokenize(["a dog"])).tensors["encoder_hidden_states"],
        parts["text_encoder"].final_layer_norm(penultimate),
    )


def test_keys_of_2022_without_text_model(foreign: dict[str, torch.Tensor], tokenizer: str, tmp_path: Path) -> None:
    renamed = {key.replace("transformer.text_model.", "transformer."): tensor for key, tensor in foreign.items()}
    model = load_single_file(_checkpoint(tmp_path / "old.ckpt", renamed), tokenizer)
    table = foreign[ldm_keys.CLIP + "embeddings.token_embedding.weight"]
    assert torch.equal(model.text_encoder.get_input_embeddings().weight, table)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_a_trainers_leftovers_do_no_harm(
    zipped: bool, foreign: dict[str, torch.Tensor], tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shape of sd-v1-4.ckpt: a callback's class as a key, numpy scalars, optimizer states."""
    names = ["pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.callbacks.model_checkpoint"]
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    callback = type("ModelCheckpoint", (), {"__module__": names[-1]})
    monkeypatch.setattr(sys.modules[names[-1]], "ModelCheckpoint", callback, raising=False)
    leftover = callback()
    leftover.monitor = "val/loss"
    path = tmp_path / "sd-v1-4.ckpt"
    torch.save(
        {
            "epoch": 25,
            "global_step": 470000,
            "pytorch-lightning_version": "1.4.2",
            "state_dict": {**foreign, "model_ema.decay": torch.ones(1)},
            "callbacks": {callback: {"monitor": "val/loss", "best_model_score": np.float64(0.1), "object": leftover}},
            "optimizer_states": [{"state": {}, "param_groups": [{"lr": np.array([1e-4])}]}],
        },
        path,
        _use_new_zipfile_serialization=zipped,
    )
    for name in names:
        monkeypatch.delitem(sys.modules, name)
    model = load_single_file(path, tokenizer)
    assert torch.equal(model.unet.conv_in.weight, foreign["model.diffusion_model.input_blocks.0.0.weight"])
    assert not any(name in sys.modules for name in names)


# Files that must be refused


class _Payload:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False], ids=["torch", "plain pickle"])
def test_a_malicious_pickle_is_refused_and_not_run(protocol: int, zipped: bool, tmp_path: Path) -> None:
    path, trace = tmp_path / "evil.ckpt", tmp_path / "ran"
    content = {"state_dict": {}, "callbacks": _Payload(f"touch {trace}")}
    if zipped:
        torch.save(content, path, pickle_protocol=protocol)
    else:
        path.write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(UnsafeFileError, match=r"evil\.ckpt: .*was not loaded\n  -> take the \.safetensors") as caught:
        load(str(path))
    if protocol == 2:
        assert "posix.system" in caught.value.problem
    assert not trace.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("kept", [0.9, 0.5, 0.001])
def test_truncated(suffix: str, kept: float, foreign: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    if suffix == ".ckpt":
        _checkpoint(path, foreign)
    else:
        save_file(foreign, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(ModelError, match=f"model{suffix}: damaged or cut off") as caught:
        load(str(path))
    assert not isinstance(caught.value, UnsafeFileError)


@pytest.mark.parametrize(
    ("content", "seems"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
        (b"GGUF\x03\x00\x00\x00", "a GGUF file of quantized weights"),
        (b"\x00" * 4096, "neither safetensors nor a torch checkpoint"),
    ],
)
def test_not_a_checkpoint(content: bytes, seems: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=seems):
        load(str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize(
    ("keys", "seems"),
    [
        (["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"], "a LoRA"),
        (["unet.mid_block.attentions.0.to_q.lora_A.weight"], "a LoRA"),
        (["emb_params"], "textual-inversion"),
        (
            [ldm_keys.UNET + "out.0.bias", ldm_keys.VAE + "a", "conditioner.embedders.0.transformer.text_model.a"],
            "Diffusion XL",
        ),
        ([ldm_keys.UNET + "joint_blocks.0.context_block.adaLN_modulation.1.bias"], "Stable Diffusion 3"),
        ([ldm_keys.UNET + "double_blocks.0.img_attn.norm.key_norm.scale"], "a Flux model"),
        (["control_model.time_embed.0.weight"], "a ControlNet"),
        (["down_blocks.0.resnets.0.conv1.weight", "conv_in.weight"], "a UNet alone"),
        (["encoder.conv_in.weight", "decoder.conv_in.weight"], "a VAE alone"),
        (["text_model.final_layer_norm.bias"], "a text encoder alone"),
        ([ldm_keys.UNET + "out.0.bias", ldm_keys.CLIP + "final_layer_norm.bias"], "without its VAE"),
        (["layer1.0.conv1.weight"], r"something else; its first tensor is layer1\.0\.conv1\.weight"),
    ],
)
def test_other_kinds_are_named(keys: list[str], seems: str, tmp_path: Path) -> None:
    save_file({key: torch.zeros(1) for key in keys}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=seems):
        load(str(tmp_path / "model.safetensors"))


NAN = torch.tensor([float("nan")])
FIRST = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model.diffusion_model.out.2.bias": NAN.repeat(4)}, r"out\.2\.bias holds NaN"),
        ({"model.diffusion_model.out.2.bias": None}, r"out\.2\.bias is missing"),
        ({"model.diffusion_model.out.2.bias": torch.zeros(5)}, r"out\.2\.bias has shape \(5,\)"),
        ({"model.diffusion_model.label_emb.0.0.weight": torch.zeros(2)}, r"another architecture, .*label_emb"),
        ({FIRST: torch.zeros(32, 9, 3, 3)}, "inpainting model"),
        ({FIRST: None}, "no Stable Diffusion that femtobooth knows"),
    ],
)
def test_faulty_tensors(
    change: dict[str, torch.Tensor | None], says: str, foreign: dict[str, torch.Tensor], tokenizer: str, tmp_path: Path
) -> None:
    tensors = {key: tensor for key, tensor in {**foreign, **change}.items() if tensor is not None}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=says):
        load_single_file(tmp_path / "model.safetensors", tokenizer)


def test_damaged_description(foreign: dict[str, torch.Tensor], tmp_path: Path) -> None:
    for text in ("{", "[]", '{"unet": 3}'):
        save_file(foreign, tmp_path / "model.safetensors", metadata={"femtobooth": text})
        with pytest.raises(ModelError, match="description is damaged"):
            load(str(tmp_path / "model.safetensors"))


@pytest.mark.usefixtures("offline")
def test_without_tokenizer_and_network(foreign: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(foreign, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"has no tokenizer in it.*\n  -> .*`tokenizer`$"):
        load(str(tmp_path / "model.safetensors"))


def test_a_tokenizer_too_large_for_the_text_encoder(tokenizer: str, tmp_path: Path) -> None:
    parts = _foreign_model(second=False)
    parts["text_encoder"] = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=100, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=1
        )
    )
    save_file(_ldm(parts), tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"the text encoder knows 100\n  -> .*`tokenizer`"):
        load_single_file(tmp_path / "model.safetensors", tokenizer)
