"""Files of adapters: what femtobooth writes goes through every reader's own rules, and what others write is read.

The readers' rules are written down here again, from their sources: kohya's `networks/lora.py` (which layers, what they
are called), AUTOMATIC1111's `extensions-builtin/Lora/networks.py` (its names of layers), ComfyUI's `comfy/lora.py` (its
map of keys), and the key tables of diffusers by running it.
"""

from __future__ import annotations

import base64
import getpass
import hashlib
import io
import json
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from femtobooth.core.errors import ExistsError, ModelError, UnsafeFileError
from femtobooth.generator.adapters import Adapter, delta, layers
from femtobooth.generator.families.stable_diffusion import StableDiffusion
from femtobooth.generator.formats import adapter_keys, ldm_keys
from femtobooth.generator.formats.adapter_header import About, header
from femtobooth.generator.formats.adapter_reading import find, parse, read
from femtobooth.generator.formats.adapter_writing import write_diffusers, write_kohya
from femtobooth.generator.load import load

KOHYA_UNET, KOHYA_CONV = ("Transformer2DModel",), ("ResnetBlock2D", "Downsample2D", "Upsample2D")
KOHYA_TEXT = ("CLIPAttention", "CLIPMLP", "CLIPSdpaAttention")
GOLDEN = {  # of the published models: layers by kohya's default and with conv_dim, and the start of a hash of all names
    "1.x": (192, 86, 72, "44edcda39c262433"),
    "2.x": (192, 86, 138, "22bce914ca3c4d0c"),
}
FULL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "1.x": ({"cross_attention_dim": 768, "attention_head_dim": 8}, {"hidden_size": 768, "num_hidden_layers": 12}),
    "2.x": (
        {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
        {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "hidden_act": "gelu"},
    ),
}


@pytest.fixture(scope="module", params=["1.x", "2.x"])
def full(request: pytest.FixtureRequest) -> tuple[str, StableDiffusion]:
    """Stable Diffusion 1.5 and 2.1 at their own size, without weights."""
    unet, text = FULL[request.param]
    with torch.device("meta"):
        return request.param, StableDiffusion(
            tokenizer=None,
            text_encoder=CLIPTextModel(CLIPTextConfig(**{"intermediate_size": 3072, "vocab_size": 49408, **text})),
            vae=AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),
                layers_per_block=2,
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
            ),
            unet=UNet2DConditionModel(sample_size=64, **unet),
            scheduler=DDIMScheduler(prediction_type="epsilon"),
            source=request.param,
            hash="",
        )


# The readers, by their own rules


def kohya_names(model: StableDiffusion, conv: bool = False) -> dict[str, nn.Module]:
    """The layers that kohya's trainer wraps, by its names; in transformers 4 a CLIPTextModel has `text_model`."""

    def inside(root: nn.Module, kinds: tuple[str, ...], prefix: str) -> dict[str, nn.Module]:
        return {
            f"{prefix}.{name}.{child}".replace(".", "_"): layer
            for name, module in root.named_modules()
            if type(module).__name__ in kinds
            for child, layer in module.named_modules()
            if type(layer).__name__ in ("Linear", "Conv2d", "LoRACompatibleLinear", "LoRACompatibleConv")
        }

    unet = inside(model.unet, KOHYA_UNET + (KOHYA_CONV if conv else ()), "lora_unet")
    return unet | inside(model.text_encoder, KOHYA_TEXT, "lora_te.text_model")


def a1111_layer(key: str, second: bool) -> str:  # noqa: PLR0911
    """AUTOMATIC1111's own name of the layer that a key of kohya's stands for."""
    inner = {
        "conv1": "in_layers_2",
        "conv2": "out_layers_3",
        "time_emb_proj": "emb_layers_1",
        "conv_shortcut": "skip_connection",
    }
    if m := re.match(r"lora_unet_(down|up)_blocks_(\d+)_(attentions|resnets)_(\d+)_(.+)", key):
        way, block, kind, place, rest = m[1], int(m[2]), m[3], int(m[4]), m[5]
        rest = inner.get(rest, rest) if kind == "resnets" else rest
        where = f"input_blocks_{1 + block * 3 + place}" if way == "down" else f"output_blocks_{block * 3 + place}"
        return f"diffusion_model_{where}_{1 if kind == 'attentions' else 0}_{rest}"
    if m := re.match(r"lora_unet_mid_block_(attentions|resnets)_(\d+)_(.+)", key):
        rest = inner.get(m[3], m[3]) if m[1] == "resnets" else m[3]
        return f"diffusion_model_middle_block_{1 if m[1] == 'attentions' else int(m[2]) * 2}_{rest}"
    if m := re.match(r"lora_unet_down_blocks_(\d+)_downsamplers_0_conv", key):
        return f"diffusion_model_input_blocks_{3 + int(m[1]) * 3}_0_op"
    if m := re.match(r"lora_unet_up_blocks_(\d+)_upsamplers_0_conv", key):
        return f"diffusion_model_output_blocks_{2 + int(m[1]) * 3}_{2 if int(m[1]) > 0 else 1}_conv"
    if m := re.match(r"lora_te_text_model_encoder_layers_(\d+)_(.+)", key):
        if not second:
            return f"transformer_text_model_encoder_layers_{m[1]}_{m[2]}"
        name = m[2].replace("mlp_fc1", "mlp_c_fc").replace("mlp_fc2", "mlp_c_proj").replace("self_attn", "attn")
        return f"model_transformer_resblocks_{m[1]}_{name}"
    return key


def a1111_layers(model: StableDiffusion) -> set[str]:
    """The layers that AUTOMATIC1111 has of the original model, by its own names."""
    names = {place.key.removeprefix("model.") for place in ldm_keys.places(model.unet).values()}
    names |= {place.key.removeprefix("cond_stage_model.") for place in ldm_keys.places(model.text_encoder).values()}
    found = {re.sub(r"\.(weight|bias)$", "", name).replace(".", "_") for name in names}
    stacked = {name.removesuffix("_in_proj_weight") for name in found if name.endswith("_in_proj_weight")}
    return found | {f"{attention}_{one}_proj" for attention in stacked for one in "qkv"}


def comfy_map(model: StableDiffusion, clip: str) -> dict[str, str]:
    """ComfyUI's map from what files call a layer to its own name of the weight, for the UNet and one CLIP encoder."""
    found: dict[str, str] = {}
    places = ldm_keys.places(model.unet)
    for name, place in places.items():
        if name.endswith(".weight"):
            key = place.key.removeprefix("model.")
            original, ours = key.removesuffix(".weight"), name.removesuffix(".weight")
            found["lora_unet_" + original.removeprefix("diffusion_model.").replace(".", "_")] = key
            found[original] = key
            found["lora_unet_" + ours.replace(".", "_")] = key
            found["lycoris_" + ours.replace(".", "_")] = key
            for prefix in ("", "unet."):
                old = prefix + ours.replace(".to_", ".processor.to_")
                found[old[:-2] if old.endswith(".to_out.0") else old] = key
    for layer in range(model.text_encoder.config.num_hidden_layers):
        for part in ("mlp.fc1", "mlp.fc2", *(f"self_attn.{one}_proj" for one in ("k", "q", "v", "out"))):
            key = f"{clip}.transformer.text_model.encoder.layers.{layer}.{part}"
            plain = f"text_model_encoder_layers_{layer}_{part.replace('.', '_')}"
            found |= dict.fromkeys((f"lora_te_{plain}", f"lora_te1_{plain}", f"text_encoders.{key}"), f"{key}.weight")
            found[f"text_encoder.text_model.encoder.layers.{layer}.{part}"] = f"{key}.weight"
    return found


COMFY_LORA = (
    (".lora_up.weight", ".lora_down.weight", ".lora_mid.weight"),
    ("_lora.up.weight", "_lora.down.weight"),
    (".lora_B.weight", ".lora_A.weight"),
    (".lora.up.weight", ".lora.down.weight"),
    (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
)


def comfy_left_over(keys: Iterable[str], names: Mapping[str, str]) -> set[str]:
    """The keys of a file that ComfyUI says it did not load."""
    keys = set(keys)
    loaded: set[str] = set()
    for name in names:
        loaded |= {f"{name}.{end}" for end in ("alpha", "dora_scale") if f"{name}.{end}" in keys}
        for ends in COMFY_LORA:
            if name + ends[0] in keys:
                loaded |= {name + end for end in ends if name + end in keys}
                break
        for end in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "lokr_w1", "lokr_w2"):
            loaded |= {f"{name}.{end}"} & keys
        for end in ("lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "oft_blocks", "rescale"):
            loaded |= {f"{name}.{end}"} & keys
    return keys - loaded


# What adapters are made of here


def random_lora(model: StableDiffusion, names: Iterable[str], rank: int = 2, alpha: float | None = 1.0) -> Adapter:
    shapes = {name: layer.weight.shape for name, layer in layers(model)}
    generator = torch.Generator().manual_seed(3)
    modules: dict[str, dict[str, Tensor]] = {}
    for name in names:
        out, into, *kernel = shapes[name]
        modules[name] = {
            "lora_down": torch.randn(rank, into, *kernel, generator=generator) * 0.2,
            "lora_up": torch.randn(out, rank, *[1] * len(kernel), generator=generator) * 0.2,
        }
        if alpha is not None:
            modules[name]["alpha"] = torch.tensor(alpha)
    return Adapter(modules)


def everything(model: StableDiffusion) -> list[str]:
    """The layers that LoRAs are made of, those of resnets too."""
    known = set(kohya_names(model, conv=True))
    return [name for name, _ in layers(model) if adapter_keys.kohya(name) in known]


def changes(model: StableDiffusion, adapter: Adapter) -> dict[str, Tensor]:
    weights = {name: layer.weight for name, layer in layers(model)}
    return {name: delta(tensors, weights[name]) for name, tensors in adapter.modules.items()}


def assert_same_changes(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert set(found) == set(wanted) and all(torch.equal(found[name], wanted[name]) for name in wanted)


# Names, at full size


def test_every_reader_finds_a_layer_for_every_key(full: tuple[str, StableDiffusion], tmp_path: Path) -> None:
    version, model = full
    second = version == "2.x"
    default, conv = kohya_names(model), kohya_names(model, conv=True)
    unet = [name for name in default if name.startswith("lora_unet_")]
    in_unet, in_resnets, in_text, start = GOLDEN[version]
    assert (len(unet), len(conv) - len(default), len(default) - len(unet)) == (in_unet, in_resnets, in_text)
    assert hashlib.sha256("\n".join(sorted(conv)).encode()).hexdigest().startswith(start)
    ours = {adapter_keys.kohya(name): layer for name, layer in layers(model)}
    assert set(conv) <= set(ours) and all(ours[name] is layer for name, layer in conv.items())

    adapter = random_lora(model, everything(model), rank=1)
    assert len(adapter.modules) == len(conv)
    write_kohya(tmp_path / "kohya.safetensors", adapter, {})
    keys = set(load_file(tmp_path / "kohya.safetensors"))
    assert keys == {f"{name}.{end}" for name in conv for end in ("lora_down.weight", "lora_up.weight", "alpha")}
    assert not comfy_left_over(keys, comfy_map(model, "clip_h" if second else "clip_l"))
    known = a1111_layers(model)
    assert not {key for key in keys if a1111_layer(key.partition(".")[0], second) not in known}

    write_diffusers(tmp_path / "diffusers.safetensors", adapter, {})
    keys = set(load_file(tmp_path / "diffusers.safetensors"))
    assert len(keys) == 2 * len(conv)
    left = comfy_left_over(keys, comfy_map(model, "clip_h" if second else "clip_l"))
    attention = {key for key in keys if ".attn" in key}
    assert left == attention  # why the one file for everybody is kohya's: ComfyUI knows these with `.processor` alone


def test_names_that_others_use_are_read_as_ours(full: tuple[str, StableDiffusion]) -> None:
    _, model = full
    names = adapter_keys.names(model)
    mine = {place.key: f"unet.{name.removesuffix('.weight')}" for name, place in ldm_keys.places(model.unet).items()}
    known = dict(layers(model))  # not the norms
    mine = {key: name for key, name in mine.items() if name in known}
    for clip in ("clip_l", "clip_h"):
        for theirs, key in comfy_map(model, clip).items():
            text = "text_encoder." + key.partition(".text_model.")[2].removesuffix(".weight")
            assert names.get(theirs) == (mine.get(f"model.{key}") if key.startswith("diffusion_model.") else text)
    assert names["down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out"] == (
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
    )
    assert names["text_encoder.text_model.encoder.layers.3.self_attn.to_k"] == (
        "text_encoder.encoder.layers.3.self_attn.k_proj"
    )
    assert names["text_encoder.encoder.layers.0.mlp.fc1"] == "text_encoder.encoder.layers.0.mlp.fc1"


# Round trips


@pytest.mark.parametrize("fixture", ["tiny_sd1", "tiny_sd2"])
@pytest.mark.parametrize("alpha", [None, 1.0, 3.0])
def test_round_trips_change_the_same_to_the_bit(
    fixture: str, alpha: float | None, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = load(str(request.getfixturevalue(fixture)))
    assert isinstance(model, StableDiffusion)
    adapter = random_lora(model, everything(model), rank=4, alpha=alpha)
    wanted = changes(model, adapter)
    write_kohya(tmp_path / "kohya.safetensors", adapter, {"ss_a": "b"})
    once = read(tmp_path / "kohya.safetensors", model)
    assert_same_changes(changes(model, once), wanted)
    write_diffusers(tmp_path / "diffusers.safetensors", once, {})
    twice = read(tmp_path / "diffusers.safetensors", model)
    write_kohya(tmp_path / "again.safetensors", twice, {})
    thrice = read(tmp_path / "again.safetensors", model)
    for name, change in changes(model, thrice).items():
        if alpha == 3.0:  # 3 / 4 is folded into numbers, and rounded once
            assert torch.allclose(change, wanted[name], rtol=1e-6, atol=1e-7)
        else:
            assert torch.equal(change, wanted[name])


LAYOUTS: dict[str, Callable[[str, str], str]] = {  # by maker, what a tensor is called: our layer, kind
    "diffusers": lambda name, kind: f"{adapter_keys.in_files(name)}.lora_{'A' if kind == 'lora_down' else 'B'}.weight",
    "diffusers under transformers 5": lambda name, kind: f"{name}.lora_{'A' if kind == 'lora_down' else 'B'}.weight",
    "diffusers' example scripts": lambda name, kind: (
        f"{adapter_keys.in_files(name)}.lora.{kind[5:]}.weight"
        if name.startswith("unet")
        else f"{adapter_keys.in_files(name)}.lora_linear_layer.{kind[5:]}.weight"
    ),
    "diffusers of 2023": lambda name, kind: (
        f"{_of_2023(name)}_lora.{kind[5:]}.weight"
        if ".attn" in name
        else f"{adapter_keys.in_files(name)}.lora.{kind[5:]}.weight"
    ),
    "peft": lambda name, kind: (
        f"base_model.model.{name.partition('.')[2]}.lora_{'A' if kind == 'lora_down' else 'B'}.weight"
    ),
    "SimpleTuner": lambda name, kind: (
        f"lycoris_{name.partition('.')[2].replace('.', '_')}.{kind}.weight"
        if name.startswith("unet")
        else f"{adapter_keys.kohya(name)}.{kind}.weight"
    ),
}


def _of_2023(name: str) -> str:
    return name.replace(".to_", ".processor.to_").removesuffix(".0")


@pytest.mark.parametrize("maker", [*LAYOUTS, "ComfyUI"])
def test_strangers_layouts_are_read_to_the_last_tensor(maker: str, tiny_sd1: Path, tmp_path: Path) -> None:
    model = load(str(tiny_sd1))
    assert isinstance(model, StableDiffusion)
    adapter = random_lora(model, everything(model), alpha=None)
    ldm = {f"unet.{name}": place.key for name, place in ldm_keys.places(model.unet).items()}

    def called(name: str, kind: str) -> str:
        if maker != "ComfyUI":
            return LAYOUTS[maker](name, kind)
        if name.startswith("unet"):
            return ldm[f"{name}.weight"].removeprefix("model.").removesuffix("weight") + f"{kind}.weight"
        return f"text_encoders.clip_l.transformer.{adapter_keys.in_files(name).partition('.')[2]}.{kind}.weight"

    held = {called(name, kind): one for name, kinds in adapter.modules.items() for kind, one in kinds.items()}
    assert len(held) == 2 * len(adapter.modules)
    save_file(held, tmp_path / "theirs.safetensors")
    assert_same_changes(changes(model, read(tmp_path / "theirs.safetensors", model)), changes(model, adapter))


def test_alpha_that_diffusers_keeps_in_the_header_counts(tiny_sd1: Path, tmp_path: Path) -> None:
    model = load(str(tiny_sd1))
    name, other = "unet.mid_block.attentions.0.proj_in", "unet.mid_block.attentions.0.proj_out"
    adapter = random_lora(model, [name, other], rank=4, alpha=None)  # type: ignore[arg-type]
    held = {
        LAYOUTS["diffusers"](key, kind): one for key, kinds in adapter.modules.items() for kind, one in kinds.items()
    }
    config = {"unet.r": 4, "unet.lora_alpha": 8, "unet.alpha_pattern": {"attentions.0.proj_out": 2}}
    save_file(held, tmp_path / "a.safetensors", {"lora_adapter_metadata": json.dumps(config)})
    found = changes(model, read(tmp_path / "a.safetensors", model))  # type: ignore[arg-type]
    plain = changes(model, adapter)  # type: ignore[arg-type]
    assert torch.equal(found[name], plain[name] * 2) and torch.equal(found[other], plain[other] * 0.5)
    save_file(
        held, tmp_path / "b.safetensors", {"lora_adapter_metadata": json.dumps({**config, "unet.use_rslora": True})}
    )
    found = changes(model, read(tmp_path / "b.safetensors", model))  # type: ignore[arg-type]
    assert torch.equal(found[name], plain[name] * 4)


def test_dora_of_diffusers_and_of_lycoris(tiny_sd1: Path, tmp_path: Path) -> None:
    model = load(str(tiny_sd1))
    names = ["unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "unet.mid_block.resnets.0.conv1"]
    adapter = random_lora(model, names)  # type: ignore[arg-type]
    norms = {name: torch.rand(model.unet.get_submodule(name[5:]).weight.shape[0]) + 0.5 for name in names}
    dora = Adapter(
        {
            name: {**held, "dora_scale": norms[name].reshape(-1, *[1] * (held["lora_down"].ndim - 1))}
            for name, held in adapter.modules.items()
        }
    )
    write_kohya(tmp_path / "kohya.safetensors", dora, {})
    wanted = changes(model, dora)  # type: ignore[arg-type]
    assert_same_changes(changes(model, read(tmp_path / "kohya.safetensors", model)), wanted)  # type: ignore[arg-type]
    held = {
        f"{name}.lora_{end}.weight": adapter.modules[name][kind]
        for name in names
        for end, kind in (("A", "lora_down"), ("B", "lora_up"))
    }
    held |= {f"{name}.lora_magnitude_vector": norms[name] for name in names}
    config = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 1.0})}
    save_file(held, tmp_path / "diffusers.safetensors", config)
    assert_same_changes(changes(model, read(tmp_path / "diffusers.safetensors", model)), wanted)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="diffusers' layout has no place for"):
        write_diffusers(tmp_path / "no.safetensors", dora, {})


# Refused, by name


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight", "Stable Diffusion XL"),
        ("lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q.lora_up.weight", "Stable Diffusion XL"),
        ("unet.down_blocks.2.attentions.0.transformer_blocks.9.attn1.to_q.lora_A.weight", "Stable Diffusion XL"),
        ("lora_unet_double_blocks_0_img_attn_proj.lora_up.weight", "FLUX"),
        ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "FLUX"),
        ("lora_unet_joint_blocks_0_x_block_attn_qkv.lora_up.weight", "Stable Diffusion 3"),
        ("diffusion_model.layers.0.attention.qkv.lora_A.weight", "a diffusion transformer"),
    ],
)
def test_an_adapter_of_another_family_is_refused_by_name(key: str, named: str, tiny_sd1: Path, tmp_path: Path) -> None:
    model = load(str(tiny_sd1))
    shared = "lora_unet_mid_block_attentions_0_proj_in.alpha"
    save_file({key: torch.zeros(2, 2), shared: torch.tensor(1.0)}, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match=f"an adapter for {named}, not for "):
        read(tmp_path / "x.safetensors", model)


def test_an_adapter_of_1_x_is_refused_on_2_x(full: tuple[str, StableDiffusion], tmp_path: Path) -> None:
    version, model = full
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    other = 768 if version == "2.x" else 1024
    write_kohya(
        tmp_path / "x.safetensors",
        Adapter({name: {"lora_down": torch.zeros(2, other), "lora_up": torch.zeros(320, 2)}}),
        {},
    )
    named = "1" if version == "2.x" else "2"
    with pytest.raises(ModelError, match=rf"an adapter for Stable Diffusion {named}\.x, not for {version}"):
        read(tmp_path / "x.safetensors", model)


def test_what_has_no_place_is_counted_and_named(tiny_sd1: Path, tmp_path: Path) -> None:
    model = load(str(tiny_sd1))
    name = "lora_unet_mid_block_attentions_0_proj_in"
    good = {f"{name}.lora_down.weight": torch.zeros(2, 64, 1, 1), f"{name}.lora_up.weight": torch.zeros(64, 2, 1, 1)}
    odd = {f"{name}.diff_b": torch.zeros(64), "lora_unet_mid_block_nothing.alpha": torch.tensor(1.0)}

    def refused(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> str:
        save_file(tensors, tmp_path / "x.safetensors", metadata)
        with pytest.raises(ModelError) as caught:
            read(tmp_path / "x.safetensors", model)
        return str(caught.value)

    text = refused({**good, **odd})
    assert "2 of its 4 tensors have no place" in text and all(key in text for key in odd)
    text = refused({f"unet.a{index}.lora_A.weight": torch.zeros(1) for index in range(9)})
    assert "9 of its 9 tensors" in text and "and 4 more" in text
    strange = {"unet.a.lora_A.weight": torch.zeros(1)}
    assert "an adapter for kolors/lora" in refused(strange, {"modelspec.architecture": "kolors/lora"})
    assert "no adapter, its first tensor is emb_params" in refused({"emb_params": torch.zeros(1, 8)})
    assert "mid_block.attentions.0.proj_in lacks lora_down" in refused(
        {f"{name}.lora_up.weight": torch.zeros(64, 2, 1, 1)}
    )
    assert "holds NaN or infinite values" in refused({**good, f"{name}.alpha": torch.tensor(torch.nan)})
    twice = {**good, "unet.mid_block.attentions.0.proj_in.lora_A.weight": torch.zeros(2, 64, 1, 1)}
    assert "holds lora_down of unet.mid_block.attentions.0.proj_in twice" in refused(twice)
    wide = {**good, f"{name}.lora_down.weight": torch.zeros(2, 65, 1, 1)}
    assert "proj_in changes a weight of [64, 65, 1, 1], and this one has [64, 64, 1, 1]" in refused(wide)


def test_pickles_are_not_opened(tiny_sd1: Path, tmp_path: Path) -> None:
    model = load(str(tiny_sd1))
    for name, options in (("a.pt", {}), ("b.ckpt", {"_use_new_zipfile_serialization": False})):
        torch.save({"lora_unet_mid_block_attentions_0_proj_in.alpha": torch.tensor(1.0)}, tmp_path / name, **options)
        with pytest.raises(UnsafeFileError, match="is a pickle"):
            read(tmp_path / name, model)
    (tmp_path / "c.safetensors").write_bytes(b"version https://git-lfs")
    with pytest.raises(ModelError, match="Git LFS pointer"):
        read(tmp_path / "c.safetensors", model)


# Where they lie


def test_file_and_strength(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse("rex.safetensors") == ("rex.safetensors", 1.0)
    assert parse("rex.safetensors:0.8") == ("rex.safetensors", 0.8)
    assert parse("rex.safetensors:-1") == ("rex.safetensors", -1.0)
    assert parse(r"C:\loras\rex.safetensors") == (r"C:\loras\rex.safetensors", 1.0)
    assert parse(r"C:\loras\rex.safetensors:.5") == (r"C:\loras\rex.safetensors", 0.5)
    Path("a:0.5").mkdir()
    assert parse("a:0.5") == ("a:0.5", 1.0) and parse("a:0.5:0.25") == ("a:0.5", 0.25)
    for wrong in ("rex:nan", "rex:inf"):
        with pytest.raises(ValueError, match="is no strength"):
            parse(wrong)


def test_a_folder_or_a_run_is_its_adapter(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    with pytest.raises(ModelError, match="holds no adapter"):
        find(str(run))
    file = run / "model" / "pytorch_lora_weights.safetensors"
    file.write_bytes(b"")
    assert find(str(run)) == find(str(run / "model")) == find(str(file)) == file
    with pytest.raises(ModelError, match="no such file or folder"):
        find(str(tmp_path / "nothing.safetensors"))


# The header


MUST = ("sai_model_spec", "architecture", "implementation", "title")
MAY = (
    "resolution", "description", "author", "date", "hash_sha256", "implementation_version", "license", "usage_hint",
    "thumbnail", "tags", "merged_from", "trigger_phrase", "prediction_type", "timestep_range", "encoder_layer",
    "preprocessor", "is_negative_embedding", "unet_dtype", "vae_dtype",
)  # fmt: skip


def validate(path: Path) -> dict[str, str]:
    """Check a header against modelspec 1.0.1, and its hashes against the file; returns it."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    found = json.loads(raw[8 : 8 + length])["__metadata__"]
    assert all(isinstance(value, str) and value for value in found.values())
    spec = {key.removeprefix("modelspec."): value for key, value in found.items() if key.startswith("modelspec.")}
    assert set(MUST) <= set(spec) <= {*MUST, *MAY}
    assert spec["sai_model_spec"] == "1.0.1" and re.fullmatch(r"\d+x\d+", spec["resolution"])
    assert spec["prediction_type"] in ("epsilon", "v") and spec["architecture"].endswith("/lora")
    assert spec["hash_sha256"] == "0x" + hashlib.sha256(raw[8 + length :]).hexdigest()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d(T\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d)?)?", spec.get("date", "2026-01-01"))
    if "thumbnail" in spec:
        kind, _, data = spec["thumbnail"].partition(";base64,")
        assert kind == "data:image/jpeg" and len(data) < 64_000
        assert max(Image.open(io.BytesIO(base64.b64decode(data))).size) <= 256
    assert found["sshs_model_hash"] == spec["hash_sha256"][2:]
    with safe_open(path, "pt") as opened:
        assert opened.metadata() == found
    return found


def kohyas_hashes(path: Path) -> tuple[str, str]:
    """kohya's `precalculate_safetensors_hashes`: over the file as it would be with its own fields alone."""
    with safe_open(path, "pt") as opened:
        kept = {key: value for key, value in opened.metadata().items() if key.startswith("ss_")}
    save_file(load_file(path), path.with_suffix(".kohya"), kept)
    raw = path.with_suffix(".kohya").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return hashlib.sha256(raw[8 + length :]).hexdigest(), hashlib.sha256(raw[0x100000:0x110000]).hexdigest()[:8]


@pytest.mark.parametrize("write", [write_kohya, write_diffusers])
def test_the_header_keeps_to_the_spec(
    write: Callable[..., None], full: tuple[str, StableDiffusion], tmp_path: Path
) -> None:
    version, model = full
    adapter = random_lora(model, everything(model), rank=2, alpha=1.0)
    Image.effect_noise((900, 700), 90).save(tmp_path / "drawn.png")
    about = About(
        title="rex",
        description="a LoRA of a dog",
        trigger_phrase="sks dog",
        merged_from="stable-diffusion",
        license="openrail",
        date="2026-11-29T07:00:00+00:00",
        steps=300,
        seed=7,
        photos=4,
        picture=tmp_path / "drawn.png",
    )
    write(tmp_path / "a.safetensors", adapter, header(adapter, model, about))
    found = validate(tmp_path / "a.safetensors")
    assert (found["sshs_model_hash"], found["sshs_legacy_hash"]) == kohyas_hashes(tmp_path / "a.safetensors")
    second = version == "2.x"
    assert found["modelspec.architecture"] == f"stable-diffusion-v{'2-512' if second else '1'}/lora"
    assert found["modelspec.trigger_phrase"] == "sks dog" and found["modelspec.resolution"] == "512x512"
    kohya = {key: value for key, value in found.items() if key.startswith("ss_")}
    assert kohya == {
        "ss_base_model_version": "sd_v2" if second else "sd_v1",
        "ss_v2": str(second),
        "ss_network_module": "networks.lora",
        "ss_network_dim": "2",
        "ss_network_alpha": "1.0",
        "ss_output_name": "rex",
        "ss_resolution": "(512, 512)",
        "ss_steps": "300",
        "ss_seed": "7",
        "ss_num_train_images": "4",
    }
    text = json.dumps(found)
    assert str(tmp_path) not in text and str(Path.home()) not in text and ': "/' not in text
    assert not re.search(rf"\b{re.escape(getpass.getuser())}\b", text.replace("stable-diffusion", ""))
    write(tmp_path / "b.safetensors", adapter, header(adapter, model, about))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    with pytest.raises(ExistsError):
        write(tmp_path / "a.safetensors", adapter, {})


def test_a_header_says_no_more_than_is_known(tiny_sd2: Path, tmp_path: Path) -> None:
    model = load(str(tiny_sd2))
    assert isinstance(model, StableDiffusion)
    names = everything(model)[:2]
    one, other = random_lora(model, names[:1], rank=2), random_lora(model, names[1:], rank=4, alpha=4)
    mixed = Adapter({**one.modules, **other.modules})
    write_kohya(tmp_path / "a.safetensors", mixed, header(mixed, model, About("a")))
    found = validate(tmp_path / "a.safetensors")
    assert found["modelspec.architecture"] == "stable-diffusion-v2-768-v-other-size/lora"
    assert (
        found["modelspec.prediction_type"] == "v" and found["ss_network_dim"] == found["ss_network_alpha"] == "Dynamic"
    )
    assert not {"ss_base_model_version", "ss_v2", "ss_steps", "modelspec.date", "modelspec.license"} & set(found)


def test_16_bits_that_would_overflow_are_refused(tiny_sd1: Path, tmp_path: Path) -> None:
    model = load(str(tiny_sd1))
    name = "unet.mid_block.attentions.0.proj_in"
    adapter = random_lora(model, [name])  # type: ignore[arg-type]
    write_kohya(tmp_path / "half.safetensors", adapter, {}, torch.float16)
    half = load_file(tmp_path / "half.safetensors")
    assert {tensor.dtype for tensor in half.values()} == {torch.float16}
    adapter.modules[name]["lora_up"][0, 0] = 1e6
    with pytest.raises(ModelError, match="would hold NaN or infinite values"):
        write_kohya(tmp_path / "no.safetensors", adapter, {}, torch.float16)
    assert not (tmp_path / "no.safetensors").exists()
