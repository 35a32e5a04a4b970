"""Model folders of others: whole ones load whatever their layout, and what lacks, breaks or mixes parts is refused by
name.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel

from femtobooth.core.errors import ModelError
from femtobooth.generator import locate
from femtobooth.generator.families import known
from femtobooth.generator.families.stable_diffusion import StableDiffusion
from femtobooth.generator.formats import part_folder
from femtobooth.generator.formats.folder import save_folder
from femtobooth.generator.load import load

pytestmark = pytest.mark.usefixtures("terminal")

FILES = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
Tensors = dict[str, Tensor]


@pytest.fixture
def folder(tiny_sd1: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_sd1, tmp_path / "model")
    return tmp_path / "model"


def _change(folder: Path, part: str, change: Callable[[Tensors], Tensors]) -> None:
    path = folder / part / FILES[part]
    save_file(change(load_file(path)), path)


def _config(folder: Path, file: str, **changes: Any) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _same(first: StableDiffusion, second: StableDiffusion) -> None:
    for part in FILES:
        ours, theirs = getattr(first, part).state_dict(), getattr(second, part).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), part
    assert torch.equal(
        first.condition(first.tokenize(["a dog"])).tensors["encoder_hidden_states"],
        second.condition(second.tokenize(["a dog"])).tensors["encoder_hidden_states"],
    )


# Whole models in the shapes that tools leave behind


def _without_text_model(tensors: Tensors) -> Tensors:
    return {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}


def _old_attention(tensors: Tensors) -> Tensors:
    """As the published VAEs of Stable Diffusion 1.x name it."""
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = dict(tensors)
    for new, old in names.items():
        for name in [name for name in renamed if f".attentions.0.{new}." in name]:
            renamed[name.replace(f".{new}.", f".{old}.")] = renamed.pop(name)
    assert renamed.keys() != tensors.keys()
    return renamed


LAYOUTS: dict[str, tuple[str, Callable[[Tensors], Tensors]]] = {
    "torch.compile": ("unet", lambda tensors: {f"_orig_mod.{name}": tensor for name, tensor in tensors.items()}),
    "DDP": ("vae", lambda tensors: {f"module.{name}": tensor for name, tensor in tensors.items()}),
    "DDP of torch.compile": (
        "text_encoder",
        lambda tensors: {f"module._orig_mod.{name}": tensor for name, tensor in tensors.items()},
    ),
    "compiled blocks": (
        "unet",
        lambda tensors: {name.replace("mid_block.", "mid_block._orig_mod."): t for name, t in tensors.items()},
    ),
    "FSDP": ("unet", lambda tensors: {f"_fsdp_wrapped_module.{name}": tensor for name, tensor in tensors.items()}),
    "transformers 5": ("text_encoder", _without_text_model),
    "position ids": (
        "text_encoder",
        lambda tensors: {**tensors, "text_model.embeddings.position_ids": torch.arange(77)[None]},
    ),
    "VAE of 2022": ("vae", _old_attention),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_names_that_tools_leave_behind(name: str, folder: Path, tiny_sd1: Path) -> None:
    part, change = LAYOUTS[name]
    _change(folder, part, change)
    _same(load(str(folder)), load(str(tiny_sd1)))


@pytest.mark.parametrize("part", FILES)
def test_shards(part: str, folder: Path, tiny_sd1: Path) -> None:
    model = getattr(load(str(folder)), part)
    (folder / part / FILES[part]).unlink()
    model.save_pretrained(folder / part, max_shard_size="100KB")
    assert (folder / part / f"{FILES[part]}.index.json").is_file()
    _same(load(str(folder)), load(str(tiny_sd1)))
    shard = sorted((folder / part).glob("*-of-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelError, match=f"{part}/{shard.name}: missing"):
        load(str(folder))


def test_shards_of_another_folder_are_refused(folder: Path) -> None:
    weights = folder / "unet" / FILES["unet"]
    weights.rename(folder / "elsewhere.safetensors")
    index = {"weight_map": {"conv_in.weight": "../elsewhere.safetensors"}}
    weights.with_name(f"{weights.name}.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"index\.json: lists no \.safetensors files of its folder"):
        load(str(folder))


def test_a_variant_alone_is_taken_and_named(folder: Path, tiny_sd1: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part, file in FILES.items():
        tensors = {name: tensor.half() for name, tensor in load_file(folder / part / file).items()}
        (folder / part / file).unlink()
        save_file(tensors, folder / part / file.replace(".safetensors", ".fp16.safetensors"))
    save_file({"conv_in.weight": torch.zeros(1)}, folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors")
    model = load(str(folder))
    assert torch.equal(model.unet.conv_in.weight, load(str(tiny_sd1)).unet.conv_in.weight.half().float())
    assert "unet: takes diffusion_pytorch_model.fp16.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "shards"])
def test_beside_the_plain_weights_a_variant_stays_unread(
    sharded: bool, folder: Path, tiny_sd1: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As published bases have them: diffusion_pytorch_model.safetensors beside ….fp16.safetensors or its shards."""
    model = load(str(tiny_sd1))
    with torch.no_grad():
        for one in model.unet.parameters():
            one.zero_()
    model.unet.save_pretrained(folder / "unet", variant="fp16", max_shard_size="100KB" if sharded else "1GB")
    assert any((folder / "unet").glob("*.fp16*"))
    found = load(str(folder))
    assert torch.equal(found.unet.conv_in.weight, load(str(tiny_sd1)).unet.conv_in.weight)
    assert "takes" not in capsys.readouterr().err
    (folder / "unet" / FILES["unet"]).unlink()
    assert not load(str(folder)).unet.conv_in.weight.any()
    assert f"unet: takes {'diffusion_pytorch_model.safetensors.index.fp16.json' if sharded else ''}" in (
        capsys.readouterr().err
    )
    if sharded:
        shard = sorted((folder / "unet").glob("*.fp16-*"))[1]
        shard.unlink()
        with pytest.raises(ModelError) as caught:
            load(str(folder))
        assert caught.value.problem.endswith(
            f"unet/{shard.name}: missing, though {FILES['unet']}.index.fp16.json lists it"
        )


@pytest.mark.parametrize(("given", "size"), [([8, 8], 64), ([8, 12], 64), (None, 512), (8, 64)])
def test_sample_size(given: object, size: int, folder: Path) -> None:
    _config(folder, "unet/config.json", sample_size=given)
    assert load(str(folder)).size == size


@pytest.mark.parametrize("length", [None, 10**30, 77])
def test_a_tokenizer_without_a_length_takes_the_text_encoders(length: object, folder: Path) -> None:
    path = folder / "tokenizer" / "tokenizer_config.json"
    config = {key: value for key, value in json.loads(path.read_text()).items() if key != "model_max_length"}
    path.write_text(json.dumps(config | ({"model_max_length": length} if length else {})))
    assert load(str(folder)).tokenize(["a dog"]).shape == (1, 77)


# Broken ones


def _lacking(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}


def _with(name: str, value: Callable[[Tensor], Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: value(tensors[name])}


def _holding(number: float) -> Callable[[Tensor], Tensor]:
    return lambda tensor: torch.cat([tensor.flatten()[:-1], torch.tensor([number])]).reshape(tensor.shape)


BROKEN: dict[str, tuple[str, Callable[[Tensors], Tensors], str]] = {
    "UNet lacks one": ("unet", _lacking("conv_in.weight"), r"unet: conv_in\.weight is missing\n"),
    "UNet lacks a block": ("unet", _lacking("mid_block"), (r"unet: mid_block\.\S+ is missing, and \d+ " r"more of its \d+ " r"tensors")),
    "VAE lacks a decoder": ("vae", _lacking("decoder"), r"vae: decoder\.\S+ is missing, and \d+ more"),
    "text encoder lacks a layer": ("text_encoder", _lacking("text_model.encoder.layers.1."), (r"text_encoder: " r"encoder\.layers\.1\.\S+ is")),
    "no tensor at all": ("unet", lambda _: {}, r"unet: \S+ is missing, and \d+ more"),
    "names of something else": ("unet", lambda tensors: {f"net.{name}": t for name, t in tensors.items()}, (r"unet: \S+ is " r"missing, and")),
    "UNet of NaN": ("unet", _with("conv_out.bias", _holding(float("nan"))), (r"unet: conv_out\.bias holds NaN " r"or infinite")),
    "VAE of infinity": ("vae", _with("quant_conv.bias", _holding(float("inf"))), (r"vae: quant_conv\.bias " r"holds " r"NaN or infinite")),
    "text encoder of NaN": (
        "text_encoder", _with("text_model.final_layer_norm.bias", _holding(float("-inf"))), (r"final_layer_norm\.bias " r"holds " r"NaN or infinite"),
    ),
    "another width": ("unet", _with("conv_out.bias", lambda _: torch.zeros(5)), (r"unet: conv_out\.bias has " r"shape \(5,\)")),
    "more than the config says": ("unet", lambda tensors: {**tensors, "extra.bias": torch.zeros(1)}, (r"unet: extra\.bias has " r"no place")),
    "whole numbers": ("unet", _with("conv_out.bias", lambda tensor: tensor.to(torch.int8)), (r"conv_out\.bias " r"holds " r"whole " r"numbers")),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_weights_are_refused_by_name(name: str, folder: Path) -> None:
    part, change, says = BROKEN[name]
    _change(folder, part, change)
    with pytest.raises(ModelError, match=says) as caught:
        load(str(folder))
    assert str(folder / part) in caught.value.problem
    assert len(str(caught.value).splitlines()) == 2


def test_a_tokenizer_without_its_vocabulary(folder: Path) -> None:
    for name in ("vocab.json", "merges.txt", "tokenizer.json"):
        (folder / "tokenizer" / name).unlink()
    with pytest.raises(ModelError, match="tokenizer: no CLIP tokenizer there\n"):
        load(str(folder))


def test_a_tokenizer_of_another_model(folder: Path) -> None:
    for path in (folder / "tokenizer").iterdir():
        path.unlink()
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(words))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(ModelError, match=r"tokenizer: the tokenizer has \d tokens, the text encoder knows 1598"):
        load(str(folder))


def test_a_broken_subject_blocks_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content in ("{", "[]", '{"token": 3, "class_noun": "dog"}'):
        (folder / "femtobooth.json").write_text(content)
        assert load(str(folder)).subject == {}
        assert "femtobooth.json: cannot be read" in capsys.readouterr().err


# Other kinds


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("StableDiffusionXLImg2ImgPipeline", "a Stable Diffusion XL refiner"),
        ("StableDiffusion3InpaintPipeline", "a Stable Diffusion 3 of another kind"),
        ("FluxFillPipeline", "a FLUX of another kind"),
        ("StableUnCLIPImg2ImgPipeline", "an unCLIP"),
        ("StableDiffusionInpaintPipeline", "an inpainting"),
        ("LatentConsistencyModelPipeline", "LCM"),
    ],
)
def test_other_families_are_named_by_their_index(kind: str, says: str, folder: Path) -> None:
    _config(folder, "model_index.json", _class_name=kind)
    with pytest.raises(ModelError, match=says) as caught:
        load(str(folder))
    assert caught.value.way_out == known.WAY_OUT


@pytest.mark.parametrize(
    ("part", "says"), [("text_encoder_2", "Stable Diffusion XL"), ("transformer", "a diffusion transformer")]
)
def test_other_families_are_named_by_their_parts(part: str, says: str, folder: Path) -> None:
    (folder / "model_index.json").unlink()
    (folder / part).mkdir()
    with pytest.raises(ModelError, match=says):
        load(str(folder))


@pytest.mark.parametrize(
    ("file", "changes", "says"),
    [
        (
            "unet/config.json",
            {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 8},
            "an? unCLIP model",
        ),
        ("unet/config.json", {"in_channels": 9}, "an inpainting model: its UNet reads 9 channels, its VAE makes 4"),
        ("unet/config.json", {"time_cond_proj_dim": 16}, "latent consistency"),
        ("unet/config.json", {"cross_attention_dim": 48}, r"UNet \(48\) and text encoder \(32\) do not fit together"),
        (
            "unet/config.json",
            {"_class_name": "UNetSpatioTemporalConditionModel"},
            "unet: a UNetSpatioTemporalConditionModel, not a UNet2D",
        ),
        ("vae/config.json", {"_class_name": "AutoencoderTiny"}, "vae: a AutoencoderTiny, not a AutoencoderKL"),
        ("vae/config.json", {"latent_channels": 16}, "do not fit together|has shape"),
        (
            "text_encoder/config.json",
            {"architectures": ["T5EncoderModel"]},
            "text_encoder: a T5EncoderModel, not a CLIPTextModel",
        ),
        ("unet/config.json", {"quantization_config": {"quant_method": "bitsandbytes"}}, "unet: quantized weights"),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            "FlowMatchEulerDiscreteScheduler is flow",
        ),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "EDMEulerScheduler"},
            "EDMEulerScheduler is no Stable Diffusion",
        ),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow_prediction"}, "flow_prediction is not supported"),
        ("scheduler/scheduler_config.json", {"use_flow_sigmas": True}, "flow matching is not supported"),
    ],
)
def test_other_kinds_are_named_by_their_configs(file: str, changes: dict[str, Any], says: str, folder: Path) -> None:
    _config(folder, file, **changes)
    with pytest.raises(ModelError, match=says) as caught:
        load(str(folder))
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("EulerAncestralDiscreteScheduler", {}),
        (
            "DPMSolverMultistepScheduler",
            {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
        ),
        ("UniPCMultistepScheduler", {"timestep_spacing": "linspace"}),
    ],
)
def test_schedulers_of_other_samplers_keep_what_they_say(kind: str, more: dict[str, Any], folder: Path) -> None:
    _config(folder, "scheduler/scheduler_config.json", _class_name=kind, **more)
    model = load(str(folder))
    assert {key: model.scheduler.config[key] for key in more} == more
    assert (float(model.scheduler.alphas_cumprod[-1]) == 0) == bool(more.get("rescale_betas_zero_snr"))


# Resource bombs: bounded time and memory


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("unet/config.json", {"block_out_channels": [10**9] * 4}),
        ("unet/config.json", {"layers_per_block": 10**9}),
        ("unet/config.json", {"layers_per_block": 500, "transformer_layers_per_block": 500}),
        ("unet/config.json", {"block_out_channels": [32] * 10_000}),
        ("unet/config.json", {"transformer_layers_per_block": [[10**6] * 10**4] * 4}),
        ("unet/config.json", {"sample_size": 10**7}),
        ("vae/config.json", {"layers_per_block": 10**7}),
        ("vae/config.json", {"latent_channels": 10**12}),
        ("text_encoder/config.json", {"num_hidden_layers": 10**8}),
        ("text_encoder/config.json", {"vocab_size": 10**12}),
        ("text_encoder/config.json", {"max_position_embeddings": 10**6}),
        ("text_encoder/config.json", {"hidden_size": 0}),
        ("unet/config.json", {"norm_num_groups": 0}),
        ("unet/config.json", {"sample_size": "large"}),
        ("unet/config.json", {"sample_size": []}),
        ("unet/config.json", {"sample_size": -8}),
        ("vae/config.json", {"block_out_channels": 3}),
        ("scheduler/scheduler_config.json", {"trained_betas": 3}),
        ("scheduler/scheduler_config.json", {"trained_betas": ["a"] * 1000}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**10}),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1] * 10**5}),
        ("scheduler/scheduler_config.json", {"beta_start": float("nan")}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_absurd_configs_cost_nothing(file: str, changes: dict[str, Any], folder: Path) -> None:
    _config(folder, file, **changes)
    began = time.process_time()
    with pytest.raises(ModelError, match=f"{file.partition('/')[0]}|sample_size"):
        load(str(folder))
    assert time.process_time() - began < 5


def test_a_broken_index_blocks_nothing(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")
    assert load(str(folder)).size == 64


def test_a_tokenizer_of_a_gigabyte_is_not_read(folder: Path) -> None:
    with (folder / "tokenizer" / "vocab.json").open("r+b") as file:
        file.truncate(1 << 30)
    with pytest.raises(ModelError, match=r"tokenizer/vocab\.json: 1074 MB"):
        load(str(folder))


def test_a_config_of_a_gigabyte_is_not_read(folder: Path) -> None:
    with (folder / "unet" / "config.json").open("r+b") as file:
        file.truncate(1 << 30)  # a hole: it takes no disk
    with pytest.raises(ModelError, match=r"unet/config\.json: 1074 MB, more than any config has"):
        load(str(folder))


# What we write


@pytest.mark.parametrize("reference", ["bundled", "tiny"])
def test_text_encoders_are_written_with_the_names_that_everyone_reads(
    reference: str, tiny_sd1: Path, tmp_path: Path
) -> None:
    folder = locate.bundled_folder() if reference == "bundled" else tiny_sd1
    model = load(str(folder))
    save_folder(model, tmp_path / "written", card="")
    for place in (folder, tmp_path / "written"):
        names = load_file(place / "text_encoder" / FILES["text_encoder"])
        assert {name.partition(".")[0] for name in names} == {"text_model"}
    plain, info = CLIPTextModel.from_pretrained(tmp_path / "written" / "text_encoder", output_loading_info=True)
    assert not any(info.values())
    ids = model.tokenize(["a dog"])
    assert torch.equal(plain.eval()(ids).last_hidden_state, model.text_encoder(ids).last_hidden_state)


def test_attention_is_chosen_by_us_and_not_by_the_file(folder: Path) -> None:
    """An implementation's name may stand for code on a hub."""
    _config(
        folder,
        "text_encoder/config.json",
        _attn_implementation="kernels-community/evil",
        attn_implementation="flash_attention_2",
    )
    assert load(str(folder)).text_encoder.config._attn_implementation == "sdpa"


def test_what_is_read_of_a_part_is_told_by_name(folder: Path) -> None:
    (folder / "unet" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"unet/config\.json: cannot be loaded \(No such file"):
        part_folder.build_part(folder / "unet", StableDiffusion.NETWORKS["unet"])
