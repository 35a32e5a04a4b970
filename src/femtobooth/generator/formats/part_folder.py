"""One part's folder of a model in diffusers' layout: its config.json, and its weights as one file, as shards, or as a
variant.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from diffusers import ModelMixin
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

from ...core import tensors as stored
from ...core.errors import ModelError
from ...core.events import note
from ...core.machine import FrozenPrecision
from ...core.tensors import DAMAGED
from ..families import known
from . import parts
from .ldm_keys import Place

TEXT_MODEL = "text_model."  # begins the names of a text encoder's tensors in every file but those of transformers 5
MAX_CONFIG_BYTES = 8 << 20
_HOLD = {"CLIPTextModel": ("CLIPTextModel", "CLIPTextModelWithProjection", "CLIPModel")}  # classes that hold one
_SHARD = re.compile(r"-\d+-of-\d+\.safetensors$")
_HARMLESS = re.compile(r"^(vision_model|visual_projection|text_projection)\.|^logit_scale$|(^|\.)position_ids$")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file's mapping. Raises ModelError where it is missing, damaged, or larger than any config."""
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ModelError(f"{path}: {path.stat().st_size / 1e6:.0f} MB, more than any config has", DAMAGED)
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ModelError(f"{path}: cannot be loaded ({error.strerror})", DAMAGED) from None
    except (ValueError, RecursionError):
        raise ModelError(f"{path}: cannot be loaded (no JSON)", DAMAGED) from None
    if not isinstance(content, dict):
        raise ModelError(f"{path}: holds a {type(content).__name__}, not a config", DAMAGED)
    return content


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


def fill_part(built: Any, folder: Path, precision: FrozenPrecision = "fp32") -> None:
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


def weight_files(folder: Path, stem: str) -> list[Path]:
    """Find the safetensors files of a part: the plain one, else shards, else those of a variant such as fp16, which is
    noted.
    """
    whole = folder / f"{stem}.safetensors"
    if whole.is_file():
        return [whole]
    indexes = sorted(
        folder.glob(f"{stem}*.index*.json"), key=lambda path: (path.name != f"{whole.name}.index.json", path.name)
    )
    variants = [path for path in sorted(folder.glob(f"{stem}.*.safetensors")) if not _SHARD.search(path.name)]
    plain = [path for path in indexes if path.name == f"{whole.name}.index.json"]
    chosen = sorted((*(plain or (*variants, *indexes)),), key=lambda path: ("non_ema" in path.name, path.name))
    if not chosen:
        others = sorted(path.name for path in folder.glob(f"*{stem}*") if path.is_file())
        held = f"only {others[0]}, which is not opened" if others else f"no {whole.name}"
        raise ModelError(
            f"{folder}: holds {held}",
            "take the model's safetensors files; pickled weights are read from single .ckpt files only",
        )
    if not plain:
        note(f"{folder}: takes {chosen[0].name}")
    return _shards(chosen[0]) if chosen[0].suffix == ".json" else [chosen[0]]


def _shards(index: Path) -> list[Path]:
    named = read_json(index).get("weight_map")
    names = sorted({str(name) for name in named.values()}) if isinstance(named, dict) else []
    if not names or any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
        raise ModelError(f"{index}: lists no .safetensors files of its folder", DAMAGED)
    for name in names:
        if not (index.parent / name).is_file():
            raise ModelError(f"{index.parent / name}: missing, though {index.name} lists it", DAMAGED)
    return [index.parent / name for name in names]


def _renamed(built: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors under the names that the libraries use today."""
    if isinstance(built, CLIPTextModel):
        return {name.removeprefix(TEXT_MODEL): tensor for name, tensor in tensors.items()}
    if isinstance(built, T5EncoderModel) and "shared.weight" in tensors:  # files hold one of the two
        return {"encoder.embed_tokens.weight": tensors["shared.weight"]} | tensors
    if isinstance(built, ModelMixin):
        built._fix_state_dict_keys_on_load(
            tensors
        )  # a VAE's attention as it was called until 2023: query, key, value, proj_attn
    return tensors
