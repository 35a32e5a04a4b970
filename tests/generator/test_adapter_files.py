"""Files of adapters: what femtobooth writes goes through every reader's own rules, and what others write is read.

The readers' rules are written down here again, from their sources: kohya's `networks/lora.py` (which layers, what they
are called), AUTOMATIC1111's `extensions-builtin/Lora/networks.py` (its names of layers), ComfyUI's `comfy/lora.py` (its
map of keys), and the key tables of diffusers by running it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapter_readers import (
    a1111_layer,
    a1111_layers,
    assert_same_changes,
    changes,
    comfy_left_over,
    comfy_map,
    everything,
    kohya_names,
    published,
    random_lora,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from femtobooth.core.errors import ModelError, UnsafeFileError
from femtobooth.generator.adapters import Adapter, layers
from femtobooth.generator.families.stable_diffusion import StableDiffusion
from femtobooth.generator.formats import adapter_keys, ldm_keys
from femtobooth.generator.formats.adapter_reading import read
from femtobooth.generator.formats.adapter_writing import write_diffusers, write_kohya
from femtobooth.generator.load import load

GOLDEN = {  # of the published models: layers by kohya's default and with conv_dim, and the start of a hash of all names
    "1.x": (192, 86, 72, "44edcda39c262433"),
    "2.x": (192, 86, 138, "22bce914ca3c4d0c"),
}


@pytest.fixture(scope="module", params=["1.x", "2.x"])
def full(request: pytest.FixtureRequest) -> tuple[str, StableDiffusion]:
    """Stable Diffusion 1.5 and 2.1 at their own size, without weights."""
    return request.param, published(request.param)


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


@pytest.mark.parametrize(
    ("fixture", "alpha"), [("tiny_sd1", None), ("tiny_sd2", 1.0), ("tiny_sd1", 3.0), ("tiny_sd2", 3.0)]
)
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
        ("lora_unet_double_blocks_0_img_attn_proj.lora_up.weight", "FLUX.1 or a model like it"),
        ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "FLUX.1 or a model like it"),
        ("lora_unet_joint_blocks_0_x_block_attn_qkv.lora_up.weight", "Stable Diffusion 3"),
        ("diffusion_model.layers.0.attention.qkv.lora_A.weight", "Z-Image"),
        ("diffusion_model.blocks.0.self_attn.q.lora_A.weight", "a diffusion transformer"),
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
