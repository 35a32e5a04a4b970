"""What the same tensor is called in a diffusers model and in a single file in the layout of the original code (LDM
keys).

The names are read off a module's own structure, so they fit any number of blocks and layers; the one table serves
writing and reading, so that what one does the other undoes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

UNET, VAE, CLIP, OPEN_CLIP = (
    "model.diffusion_model.",
    "first_stage_model.",
    "cond_stage_model.transformer.text_model.",
    "cond_stage_model.model.",
)
XL_CLIP, XL_OPEN_CLIP = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."
POSITION_IDS = "embeddings.position_ids"

_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_RESNET = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "conv_shortcut": "nin_shortcut"}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_STACKED = re.compile(r"(?:text_model\.)?encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)")


class Place(NamedTuple):
    """Where a tensor lies in a single file."""

    key: str
    third: int | None = None
    """OpenCLIP stacks query, key and value into one tensor: 0, 1, 2."""
    turned: bool = False
    """OpenCLIP's projection of text is the transposed one."""


def is_second(text_encoder: CLIPTextModel) -> bool:
    """Tell whether the text encoder is OpenCLIP's (Stable Diffusion 2.x): the activation tells the two apart."""
    return text_encoder.config.hidden_act == "gelu"


def places(part: nn.Module, tensors: Iterable[str] = (), xl: bool = False) -> dict[str, Place]:
    """Give, for each tensor of a UNet, VAE or CLIP text encoder, by its name there, its place in a single file, or in
    one with these tensors, as some name a 2.x text encoder as transformers does. `xl` says whether it is part of a
    Stable Diffusion XL.

    Raises KeyError naming a tensor that the single-file layout has no name for.
    """
    if isinstance(part, UNet2DConditionModel):
        root, modules = UNET, _unet_modules(part)
    elif isinstance(part, AutoencoderKL):
        root, modules = VAE, _vae_modules(part)
    elif isinstance(part, CLIPTextModelWithProjection):
        root, modules = XL_OPEN_CLIP, _open_clip_modules(part, "text_model.")
    elif is_second(part) and not xl and not any(key.startswith(CLIP) for key in tensors):
        root, modules = OPEN_CLIP, _open_clip_modules(part)
    else:
        return {key: Place((XL_CLIP if xl else CLIP) + key) for key in part.state_dict()}
    found: dict[str, Place] = {}
    for key in part.state_dict():
        stacked = _STACKED.fullmatch(key) if root in (OPEN_CLIP, XL_OPEN_CLIP) else None
        if key == "text_projection.weight":
            found[key] = Place(f"{root}text_projection", turned=True)
        elif stacked:
            layer, which, kind = stacked.groups()
            found[key] = Place(f"{root}transformer.resblocks.{layer}.attn.in_proj_{kind}", "qkv".index(which))
        else:
            found[key] = Place(root + _renamed(key, modules))
    return found


def unused(keys: Iterable[str], parts: Iterable[nn.Module]) -> list[str]:
    """List the keys of UNet and VAE that none of `parts` has a use for: signs of another architecture."""
    used = {place.key for part in parts for place in places(part).values()}
    harmless = (f"{VAE}loss.", f"{VAE}model_ema.")
    return [key for key in keys if key.startswith((UNET, VAE)) and key not in used and not key.startswith(harmless)]


def to_ldm(part: nn.Module, xl: bool = False) -> dict[str, Tensor]:
    """Give the tensors of a part under their single-file names. Raises KeyError as `places` does."""
    written: dict[str, Tensor] = {}
    stacked: dict[str, dict[int, Tensor]] = {}
    state = part.state_dict()
    for name, (key, third, turned) in places(part, xl=xl).items():
        tensor = state[name].T if turned else state[name]
        if ".mid.attn_1." in key and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]  # the original VAE's attention is made of 1x1 convolutions: (C, C, 1, 1)
        if third is None:
            written[key] = tensor
        else:
            stacked.setdefault(key, {})[third] = tensor
    return written | {key: torch.cat([thirds[i] for i in range(3)]) for key, thirds in stacked.items()}


def _renamed(key: str, modules: Mapping[str, str]) -> str:
    """Replace in `key` the longest module path that `modules` knows."""
    head, tail = key, ""
    while head not in modules:
        head, _, last = head.rpartition(".")
        tail = f".{last}{tail}"
        if not head:
            raise KeyError(key)
    return modules[head] + tail


def _inside(modules: dict[str, str], theirs: str, ours: str, inner: Mapping[str, str]) -> None:
    modules |= {f"{ours}.{name}": f"{theirs}.{renamed}" for name, renamed in inner.items()}


def _unet_modules(unet: Any) -> dict[str, str]:
    modules = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",  # of Stable Diffusion XL
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_in": "input_blocks.0.0",
        "mid_block.attentions.0": "middle_block.1",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    for i in range(2):
        _inside(modules, f"middle_block.{2 * i}", f"mid_block.resnets.{i}", _UNET_RESNET)
    place = 1
    for i, block in enumerate(unet.down_blocks):
        for j in range(len(block.resnets)):
            _inside(modules, f"input_blocks.{place}.0", f"down_blocks.{i}.resnets.{j}", _UNET_RESNET)
            modules[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{place}.1"
            place += 1
        if block.downsamplers:
            modules[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{place}.0.op"
            place += 1
    place = 0
    for i, block in enumerate(unet.up_blocks):
        for j in range(len(block.resnets)):
            _inside(modules, f"output_blocks.{place}.0", f"up_blocks.{i}.resnets.{j}", _UNET_RESNET)
            modules[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{place}.1"
            place += 1
        after = 2 if hasattr(block, "attentions") else 1  # the upsampler closes the level's last block
        modules[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{place - 1}.{after}.conv"
    return modules


def _vae_modules(vae: Any) -> dict[str, str]:
    modules = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for side in ("encoder", "decoder"):
        modules |= {f"{side}.{name}": f"{side}.{name}" for name in ("conv_in", "conv_out")}
        modules[f"{side}.conv_norm_out"] = f"{side}.norm_out"
        _inside(modules, f"{side}.mid.attn_1", f"{side}.mid_block.attentions.0", _VAE_ATTENTION)
        for i in range(2):
            _inside(modules, f"{side}.mid.block_{i + 1}", f"{side}.mid_block.resnets.{i}", _VAE_RESNET)
    for side, way, blocks in (("encoder", "down", vae.encoder.down_blocks), ("decoder", "up", vae.decoder.up_blocks)):
        for i, block in enumerate(blocks):
            theirs = (
                f"{side}.{way}.{i if way == 'down' else len(blocks) - 1 - i}"  # levels count from the largest pictures
            )
            ours = f"{side}.{way}_blocks.{i}"
            modules[f"{ours}.{way}samplers.0.conv"] = f"{theirs}.{way}sample.conv"
            for j in range(len(block.resnets)):
                _inside(modules, f"{theirs}.block.{j}", f"{ours}.resnets.{j}", _VAE_RESNET)
    return modules


def _open_clip_modules(text_encoder: Any, before: str = "") -> dict[str, str]:
    modules = {
        f"{before}embeddings.token_embedding": "token_embedding",
        f"{before}embeddings.position_embedding.weight": "positional_embedding",
        f"{before}final_layer_norm": "ln_final",
    }
    for i in range(text_encoder.config.num_hidden_layers):
        _inside(modules, f"transformer.resblocks.{i}", f"{before}encoder.layers.{i}", _OPEN_CLIP_LAYER)
    return modules
