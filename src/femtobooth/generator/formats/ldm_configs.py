"""What a foreign single file holds, told from the names and shapes of its tensors.

Sizes are in the tensors. What is not (attention heads, norm groups, noise schedule) is taken from the published Stable
Diffusion 1.x and 2.x, which all such files descend from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import count
from typing import Any

from torch import Tensor

from ..families.stable_diffusion_xl import NUMBERS, StableDiffusionXL
from . import ldm_keys
from .ldm_keys import CLIP, OPEN_CLIP, UNET, VAE, XL_CLIP, XL_OPEN_CLIP

Shapes = Mapping[str, Tensor]

# Noise schedule of Stable Diffusion 1.x and 2.x (the linear_start and linear_end of their published YAML files).
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
    "set_alpha_to_one": False,
}
GROUPS = 32  # of every GroupNorm
HEADS = 8  # of the UNet of 1.x, at every width
HEAD_WIDTH = 64  # of everything else
OPEN_CLIP_LAYERS = 23  # 2.x reads the last layer but one of 24

_DECISIVE = (  # of files that have all parts of a Stable Diffusion, and more
    (r"^conditioner\.embedders\.0\.model\.", "a Stable Diffusion XL refiner, which goes on from an image"),
    (r"^conditioner\.(?!embedders\.[01]\.)", "of the Stable Diffusion XL family, with other conditions"),
    (r"^(noise_augmentor|embedder)\.", "an unCLIP model, which also reads an image"),
    (r"^control_model\.", "a Stable Diffusion with a ControlNet"),
)
_KINDS = (  # the first pattern that any key matches decides
    (r"^lora_|\.lora_(up|down|[AB])\.|\.(lokr|hada)_", "a LoRA: additions to a model, not a model"),
    (r"joint_blocks\.", "Stable Diffusion 3"),
    (r"double_blocks\.", "a Flux model"),
    (r"motion_modules\.", "an AnimateDiff motion module"),
    (r"^control_model\.|input_hint_block\.|^controlnet_", "a ControlNet"),
    (r"^emb_params$|^string_to_param|^\*$", "a textual-inversion embedding: one word, not a model"),
    (r"^(down_blocks|mid_block|up_blocks)\.", "a UNet alone, out of a model folder"),
    (r"^((en|de)coder\.|(post_)?quant_conv\.)", "a VAE alone"),
    (r"^(text_model\.|embeddings\.|token_embedding)", "a text encoder alone"),
)
_PARTS = {"UNet": (UNET,), "VAE": (VAE,), "text encoder": (CLIP, OPEN_CLIP)}
_XL_PARTS = {"UNet": (UNET,), "VAE": (VAE,), "first text encoder": (XL_CLIP,), "second text encoder": (XL_OPEN_CLIP,)}
XL_PIXELS = 1024


def other_kind(keys: Iterable[str]) -> str | None:
    """Say what a file is if it is no whole Stable Diffusion 1.x, 2.x or XL, in words; None if it looks like one."""
    keys = list(keys)
    parts = _XL_PARTS if is_xl(keys) else _PARTS
    missing = [name for name, roots in parts.items() if not any(key.startswith(roots) for key in keys)]
    for pattern, kind in (*_DECISIVE, *(_KINDS if missing else ())):
        if any(re.search(pattern, key) for key in keys):
            return kind
    if not missing:
        return None
    if len(missing) < len(parts):
        return f"a Stable Diffusion{' XL' if parts is _XL_PARTS else ''} without its {' and '.join(missing)}"
    return f"something else; its first tensor is {keys[0]}" if keys else "empty"


def is_xl(keys: Iterable[str]) -> bool:
    """Tell whether the file is of Stable Diffusion XL's kind: by where its text encoders lie."""
    return any(key.startswith("conditioner.") for key in keys)


def is_second(tensors: Shapes) -> bool:
    """Tell whether the file is of the 2.x kind: its UNet's attention is projected by matrices, that of 1.x by 1x1
    convolutions.
    """
    projected = (
        tensor.ndim == 2
        for key, tensor in tensors.items()
        if key.startswith(UNET) and key.endswith(".1.proj_in.weight")
    )
    return next(projected, False)


def version(model: Any) -> str:
    """Name the version of Stable Diffusion that a model with a UNet is of: 1.x, 2.x or XL."""
    if isinstance(model, StableDiffusionXL):
        return "XL"
    return "2.x" if ldm_keys.is_second(model.text_encoder) else "1.x"


def is_published(model: Any) -> bool:
    """Tell whether a model has the sizes of the published 1.x, 2.x or XL, which other programs take for granted."""
    if model.FLOWS:  # a folder of diffusers', which says all that programs need
        return True
    unet, vae = model.unet.config, model.vae.config
    widths = (tuple(unet.block_out_channels), unet.layers_per_block, unet.in_channels, unet.cross_attention_dim)
    texts = [
        (text.vocab_size, text.max_position_embeddings, text.hidden_size, text.num_hidden_layers)
        for text in (encoder.config for encoder in model.text_encoders.values())
    ]
    known = {
        "1.x": (((320, 640, 1280, 1280), 2, 4, 768), [(49408, 77, 768, 12)]),
        "2.x": (((320, 640, 1280, 1280), 2, 4, 1024), [(49408, 77, 1024, OPEN_CLIP_LAYERS)]),
        "XL": (((320, 640, 1280), 2, 4, 2048), [(49408, 77, 768, 12), (49408, 77, 1280, 32)]),
    }
    latents = (tuple(vae.block_out_channels), vae.layers_per_block, vae.latent_channels)
    return (widths, texts) == known[version(model)] and latents == ((128, 256, 512, 512), 2, 4)


def infer(tensors: Shapes, process: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Infer the configs for diffusers and transformers, by part, of a file that `other_kind` passes. Raises KeyError.

    `process` is what `noise_markers.told` returns: the scheduler's settings, and the picture size in `pixels`.
    """
    second, xl = is_second(tensors), is_xl(tensors)
    vae = _vae(tensors)
    pixels = int(process["pixels"])
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    unet = _unet(tensors, second)
    if xl:
        vae["scaling_factor"] = 0.13025
        projected = tensors[f"{XL_OPEN_CLIP}text_projection"].shape[1]
        read = tensors[f"{UNET}label_emb.0.0.weight"].shape[1]
        unet |= {
            "upcast_attention": False,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": (read - projected) // NUMBERS or 1,
            "projection_class_embeddings_input_dim": read,
        }
        texts = {
            "text_encoder": _text_encoder(tensors, XL_CLIP, open_clip=False),
            "text_encoder_2": _text_encoder(tensors, XL_OPEN_CLIP, open_clip=True) | {"projection_dim": projected},
        }
    else:
        root = CLIP if any(key.startswith(CLIP) for key in tensors) else OPEN_CLIP
        text = _text_encoder(tensors, root, open_clip=second)
        most = OPEN_CLIP_LAYERS if second else text["num_hidden_layers"]
        texts = {"text_encoder": text | {"num_hidden_layers": min(most, text["num_hidden_layers"])}}
    return {
        "unet": unet | {"sample_size": pixels // factor},
        "vae": vae | {"sample_size": pixels},
        **texts,
        "scheduler": SCHEDULE | {key: value for key, value in process.items() if key != "pixels"},
    }


def _blocks(tensors: Shapes, pattern: str) -> int:
    """Count how many numbers in a row, from 0, make `pattern` a key."""
    return next(i for i in count() if pattern.format(i) not in tensors)


def _unet(tensors: Shapes, second: bool) -> dict[str, Any]:
    widths: list[int] = []
    layers: list[int] = []
    depths: list[int] = []
    for i in count(1):
        block = f"{UNET}input_blocks.{i}"
        depth = _blocks(tensors, block + ".1.transformer_blocks.{}.norm1.weight")
        opens_level = not widths or f"{UNET}input_blocks.{i - 1}.0.op.weight" in tensors
        if f"{block}.0.out_layers.3.weight" in tensors:
            if opens_level:
                widths.append(tensors[f"{block}.0.out_layers.3.weight"].shape[0])
                layers.append(0)
                depths.append(depth)
            layers[-1] += 1
        elif f"{block}.0.op.weight" not in tensors:
            break
    attended = next(
        (
            key.removesuffix(".norm1.weight")
            for key in tensors
            if key.startswith(UNET) and key.endswith(".norm1.weight")
        ),
        "",
    )
    projection = attended.partition(".transformer_blocks.")[0] + ".proj_in.weight"
    return {
        "in_channels": tensors[f"{UNET}input_blocks.0.0.weight"].shape[1],
        "out_channels": tensors[f"{UNET}out.2.weight"].shape[0],
        "block_out_channels": widths,
        "layers_per_block": layers[0] if len(set(layers)) == 1 else layers,
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)],
        "transformer_layers_per_block": [depth or 1 for depth in depths] if max(depths) > 1 else 1,
        "cross_attention_dim": tensors[f"{attended}.attn2.to_k.weight"].shape[1],
        "use_linear_projection": tensors[projection].ndim == 2,
        "attention_head_dim": [max(1, width // HEAD_WIDTH) for width in widths]
        if second
        else HEADS,  # diffusers means: heads
        "norm_num_groups": GROUPS,
        "upcast_attention": second,  # 2.1's attention overflows 16 bits
    }


def _vae(tensors: Shapes) -> dict[str, Any]:
    levels = _blocks(tensors, VAE + "encoder.down.{}.block.0.conv2.weight")
    return {
        "in_channels": tensors[f"{VAE}encoder.conv_in.weight"].shape[1],
        "out_channels": tensors[f"{VAE}decoder.conv_out.weight"].shape[0],
        "latent_channels": tensors[f"{VAE}decoder.conv_in.weight"].shape[1],
        "block_out_channels": [tensors[f"{VAE}encoder.down.{i}.block.0.conv2.weight"].shape[0] for i in range(levels)],
        "layers_per_block": _blocks(tensors, VAE + "encoder.down.0.block.{}.conv2.weight"),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "mid_block_add_attention": f"{VAE}encoder.mid.attn_1.q.weight" in tensors,
        "norm_num_groups": GROUPS,
        "scaling_factor": 0.18215,
    }


def _text_encoder(tensors: Shapes, root: str, open_clip: bool) -> dict[str, Any]:
    if root in (CLIP, XL_CLIP):  # as transformers has it, which may be OpenCLIP's all the same
        layer, table, positions = "encoder.layers.{}.mlp.fc1", "embeddings.token_embedding", "position_embedding.weight"
        positions = f"embeddings.{positions}"
    else:
        layer, table, positions = "transformer.resblocks.{}.mlp.c_fc", "token_embedding", "positional_embedding"
    vocabulary, width = tensors[f"{root}{table}.weight"].shape
    layer = f"{root}{layer}.weight"
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "max_position_embeddings": tensors[f"{root}{positions}"].shape[0],
        "intermediate_size": tensors[layer.format(0)].shape[0],
        "num_hidden_layers": _blocks(tensors, layer),
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "hidden_act": "gelu" if open_clip else "quick_gelu",
        "projection_dim": width,
    }
