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

from .ldm_keys import CLIP, OPEN_CLIP, UNET, VAE

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

_KINDS = (  # the first pattern that any key matches decides
    (r"^lora_|\.lora_(up|down|[AB])\.|\.(lokr|hada)_", "a LoRA: additions to a model, not a model"),
    (r"^conditioner\.", "of the Stable Diffusion XL family"),
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


def other_kind(keys: Iterable[str]) -> str | None:
    """What a file is if it is no whole Stable Diffusion 1.x/2.x, in words; None if it looks like one."""
    keys = list(keys)
    missing = [name for name, roots in _PARTS.items() if not any(key.startswith(roots) for key in keys)]
    if not missing:
        return None
    for pattern, kind in _KINDS:
        if any(re.search(pattern, key) for key in keys):
            return kind
    if len(missing) < len(_PARTS):
        return f"a Stable Diffusion without its {' and '.join(missing)}"
    return f"something else; its first tensor is {keys[0]}" if keys else "empty"


def infer(tensors: Shapes, prediction: str) -> dict[str, dict[str, Any]]:
    """Configs for diffusers and transformers, by part, of a file that `other_kind` passes. Raises KeyError.

    `prediction` is epsilon or v_prediction; in 2.x it also tells the picture size (512 or 768).
    """
    second = not any(key.startswith(CLIP) for key in tensors)
    vae = _vae(tensors)
    pixels = 768 if second and prediction == "v_prediction" else 512
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    return {
        "unet": _unet(tensors, second) | {"sample_size": pixels // factor},
        "vae": vae | {"sample_size": pixels},
        "text_encoder": _open_clip(tensors) if second else _clip(tensors),
        "scheduler": SCHEDULE | {"prediction_type": prediction},
    }


def _blocks(tensors: Shapes, pattern: str) -> int:
    """How many numbers in a row, from 0, make `pattern` a key."""
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
    attended = next((key.removesuffix(".norm1.weight") for key in tensors if key.startswith(UNET) and key.endswith(".norm1.weight")), "")
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
        "attention_head_dim": [max(1, width // HEAD_WIDTH) for width in widths] if second else HEADS,  # diffusers means: heads
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


def _clip(tensors: Shapes) -> dict[str, Any]:
    vocabulary, width = tensors[f"{CLIP}embeddings.token_embedding.weight"].shape
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "max_position_embeddings": tensors[f"{CLIP}embeddings.position_embedding.weight"].shape[0],
        "intermediate_size": tensors[f"{CLIP}encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": _blocks(tensors, CLIP + "encoder.layers.{}.mlp.fc1.weight"),
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "hidden_act": "quick_gelu",
        "projection_dim": width,
    }


def _open_clip(tensors: Shapes) -> dict[str, Any]:
    vocabulary, width = tensors[f"{OPEN_CLIP}token_embedding.weight"].shape
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "max_position_embeddings": tensors[f"{OPEN_CLIP}positional_embedding"].shape[0],
        "intermediate_size": tensors[f"{OPEN_CLIP}transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "num_hidden_layers": min(OPEN_CLIP_LAYERS, _blocks(tensors, OPEN_CLIP + "transformer.resblocks.{}.mlp.c_fc.weight")),
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "hidden_act": "gelu",
        "projection_dim": width,
    }
