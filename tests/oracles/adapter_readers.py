"""The rules of those who read and write adapters, written down again from their sources.

kohya's `networks/lora.py` (which layers, what they are called) and its hashes, AUTOMATIC1111's
`extensions-builtin/Lora/networks.py` (its names of layers), ComfyUI's `comfy/lora.py` (its map of keys), and
Stability-AI's ModelSpec 1.0.1.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from femtobooth.generator.adapters import Adapter, delta, layers
from femtobooth.generator.families.family import Family
from femtobooth.generator.families.stable_diffusion import StableDiffusion
from femtobooth.generator.families.stable_diffusion_xl import StableDiffusionXL
from femtobooth.generator.formats import adapter_keys, ldm_keys

KOHYA_UNET, KOHYA_CONV = ("Transformer2DModel",), ("ResnetBlock2D", "Downsample2D", "Upsample2D")
KOHYA_TEXT = ("CLIPAttention", "CLIPMLP", "CLIPSdpaAttention")
FULL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "1.x": ({"cross_attention_dim": 768, "attention_head_dim": 8}, {"hidden_size": 768, "num_hidden_layers": 12}),
    "2.x": (
        {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
        {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "hidden_act": "gelu"},
    ),
}


def published_xl() -> StableDiffusionXL:
    """Stable Diffusion XL at its own size, without weights."""
    texts = ({"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
             {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
              "hidden_act": "gelu", "projection_dim": 1280})  # fmt: skip
    first, second = (CLIPTextConfig(vocab_size=49408, **text) for text in texts)
    with torch.device("meta"):
        return StableDiffusionXL(
            tokenizer=None,
            tokenizer_2=None,
            text_encoder=CLIPTextModel(first),
            text_encoder_2=CLIPTextModelWithProjection(second),
            vae=AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),
                layers_per_block=2,
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                scaling_factor=0.13025,
                sample_size=1024,
            ),
            unet=UNet2DConditionModel(
                sample_size=128,
                block_out_channels=(320, 640, 1280),
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                transformer_layers_per_block=(1, 2, 10),
                attention_head_dim=(5, 10, 20),
                cross_attention_dim=2048,
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=2816,
            ),
            scheduler=DDIMScheduler(prediction_type="epsilon"),
            source="XL",
            hash="",
        )


def published(version: str) -> StableDiffusion:
    """Stable Diffusion 1.5 or 2.1 at its own size, without weights."""
    unet, text = FULL[version]
    with torch.device("meta"):
        return StableDiffusion(
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
            source=version,
            hash="",
        )


# The readers, by their own rules


def kohya_names(model: StableDiffusion, conv: bool = False) -> dict[str, nn.Module]:
    """The layers that kohya's trainer wraps, by its names; in transformers 4 a CLIPTextModel has `text_model`."""
    unet = _inside(model.unet, KOHYA_UNET + (KOHYA_CONV if conv else ()), "lora_unet")
    return unet | _inside(model.text_encoder, KOHYA_TEXT, "lora_te.text_model")


def _inside(root: nn.Module, kinds: tuple[str, ...], prefix: str) -> dict[str, nn.Module]:
    return {
        f"{prefix}.{name}.{child}".replace(".", "_"): layer
        for name, module in root.named_modules()
        if type(module).__name__ in kinds
        for child, layer in module.named_modules()
        if type(layer).__name__ in ("Linear", "Conv2d", "LoRACompatibleLinear", "LoRACompatibleConv")
    }


def kohya_names_of_xl(model: StableDiffusionXL, conv: bool = False) -> dict[str, nn.Module]:
    """The same of Stable Diffusion XL, whose UNet kohya has in the original code's names: by the rules of where blocks
    lie there, not by a table.
    """
    unet = _inside(model.unet, KOHYA_UNET + (KOHYA_CONV if conv else ()), "lora_unet")
    found = {
        a1111_layer(name, second=False)
        .replace("diffusion_model_", "lora_unet_")
        .replace("output_blocks_2_1_conv", "output_blocks_2_2_conv"): layer
        for name, layer in unet.items()
    }
    found |= _inside(model.text_encoder, KOHYA_TEXT, "lora_te1.text_model")
    return found | _inside(model.text_encoder_2, KOHYA_TEXT, "lora_te2")


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


def random_lora(model: Family, names: Iterable[str], rank: int = 2, alpha: float | None = 1.0) -> Adapter:
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


def adapted(model: Family, targets: str = "all") -> list[str]:
    """List the layers of a family that training would adapt."""
    return [
        name
        for name, _ in layers(model)
        if re.fullmatch(model.ADAPTED[name.partition(".")[0]][targets], name.partition(".")[2])
    ]


def changes(model: Family, adapter: Adapter) -> dict[str, Tensor]:
    weights = {name: layer.weight for name, layer in layers(model)}
    return {name: delta(tensors, weights[name]) for name, tensors in adapter.modules.items()}


def assert_same_changes(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert set(found) == set(wanted) and all(torch.equal(found[name], wanted[name]) for name in wanted)


# Headers


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
