"""One part's folder of a model in diffusers' layout: its config.json, and its weights as one file, as shards, or as a
variant.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from diffusers import ModelMixin
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, Qwen3Model, T5EncoderModel

from ...core import tensors as stored
from ...core.errors import ModelError
from ...core.machine import Precision
from ..families import known
from . import parts
from .ldm_keys import Place
from .weight_files import read_json, weight_files

TEXT_MODEL = "text_model."  # begins the names of a text encoder's tensors in every file but those of transformers 5
_HOLD = {  # classes that hold one
    "CLIPTextModel": ("CLIPTextModel", "CLIPTextModelWithProjection", "CLIPModel"),
    "Qwen3Model": ("Qwen3Model", "Qwen3ForCausalLM"),
}
_HARMLESS = re.compile(r"^(vision_model|visual_projection|text_projection)\.|^logit_scale$|(^|\.)position_ids$")


def build_part(folder: Path, kind: Any) -> Any:
    """Build a network of this class after its config.json, still without weights. Raises ModelError."""
    config = read_json(folder / "config.json")
    wanted = kind.__name__
    named = config.get("_class_name") or next(iter(config.get("architectures") or ()), wanted)
    if named not in _HOLD.get(wanted, (wanted,)):
        raise ModelError(f"{folder}: a {str(named)[:80]}, not a {wanted}", f"give a {known.NAMES}")
    if "quantization_config" in config:
        raise ModelError(f"{folder}: quantized weights", "quantized models cannot be trained; take the plain one")
    config = config["text_config"] if kind is CLIPTextModel and isinstance(config.get("text_config"), dict) else config
    return parts.build(kind, config, folder)


def fill_part(built: Any, folder: Path, precision: Precision = "fp32") -> None:
    """Give a part that was built the weights in its folder, held in this number format. Raises ModelError naming what
    is wrong with them.
    """
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder, "diffusion_pytorch_model" if isinstance(built, ModelMixin) else "model"):
        contents, _ = stored.read(path, weights=False)
        tensors |= stored.state_dict(path, contents)
    tensors = _renamed(built, tensors)
    places = {name: Place(name) for name in built.state_dict()}
    parts.fill(built, tensors, places, folder, precision)
    if isinstance(built, T5EncoderModel):
        built.tie_weights()
    extra = [name for name in tensors if name not in places and not _HARMLESS.search(name)]
    if extra:
        raise ModelError(
            f"{folder}: {extra[0]} has no place in what config.json describes",
            "put config.json and weights of one model there",
        )


def save_text_encoder(text_encoder: CLIPTextModel | CLIPTextModelWithProjection, folder: Path) -> None:
    """Write a text encoder's config and tensors, these under the names that transformers 4 and other programs read:

    `text_model.…`.
    """
    text_encoder.save_pretrained(folder)
    before = TEXT_MODEL if isinstance(text_encoder, CLIPTextModel) else ""
    named = {before + name: tensor.contiguous() for name, tensor in text_encoder.state_dict().items()}
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})


def _renamed(built: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors under the names that the libraries use today."""
    if isinstance(built, CLIPTextModel):
        return {name.removeprefix(TEXT_MODEL): tensor for name, tensor in tensors.items()}
    if isinstance(built, Qwen3Model):  # as a language model has it, whose head is no part of it
        return {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
    if isinstance(built, T5EncoderModel) and "shared.weight" in tensors:  # files hold one of the two
        return {"encoder.embed_tokens.weight": tensors["shared.weight"]} | tensors
    if isinstance(built, ModelMixin):
        built._fix_state_dict_keys_on_load(
            tensors
        )  # a VAE's attention as it was called until 2023: query, key, value, proj_attn
    return tensors
