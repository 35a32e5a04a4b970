"""Adapters read from the files of other programs, every tensor accounted for: kohya's layout and LyCORIS', diffusers'
of today and of 2023, peft's and ComfyUI's.

What has no place in the model is counted and named, and the file refused: a layer that is left out in silence is a
picture that its maker never saw.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core import tensors as stored
from ...core.errors import ModelError, UnsafeFileError, shortened
from ...core.files import sha256_of
from ..adapters import Adapter, apply, layers, refuse_misfit
from ..families.family import Family
from ..lora_reference import Lora, tensors_hash
from ..tokens import TokenEmbedding
from . import adapter_keys, word_files
from .adapter_writing import CONFIG

MOST_NAMED = 5


def read(path: Path, model: Family) -> Adapter:
    """Read an adapter for this model from a safetensors file; see the module for the layouts.

    Raises UnsafeFileError for a pickle, ModelError for a file of another family of models, naming that, and for one
    with tensors that have no place in the model or do not fit it, counting and naming these.
    """
    contents, metadata = _contents(path)
    known = {name: layer.weight for name, layer in layers(model)}
    tensors = _unfused(path, contents, adapter_keys.fused(model), known)
    modules, unknown = _sorted(path, tensors, adapter_keys.names(model))
    if unknown:
        _refuse_other_family(path, model, list(tensors), unknown, metadata)
    _refuse_other_width(path, model, modules, known)
    if unknown:
        _refuse(path, model, len(tensors), unknown)
    for name, held in modules.items():
        if "magnitude" in held:  # one norm an output, whatever its shape
            held["dora_scale"] = held.pop("magnitude").reshape(-1, *(1,) * (known[name].ndim - 1))
        try:
            refuse_misfit(held, known[name])
        except ValueError as error:
            raise ModelError(f"{path}: {name} {error}", f"it was made for another base than {model.source}") from None
    for name, alpha in _alphas(metadata, modules):
        modules[name].setdefault("alpha", alpha)
    return Adapter(modules, metadata, str(path), sha256_of(path), tensors_hash(path))


def add(model: Family, lora: Lora) -> None:
    """Draw with an adapter from now on: merge it into a model in memory, with the word that trained beside it.

    At strength 0 nothing changes. Raises what `read` raises.
    """
    if lora.strength:
        apply(model, read(lora.weights, model), lora.strength)
    for path in lora.words if lora.strength else ():
        contents, _ = _contents(path)
        for word, rows in word_files.words(path, contents).items():
            TokenEmbedding.teach(model, word, rows)
    model.subject = model.subject or dict(lora.subject or {})


def _contents(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with suppress(OSError), path.open("rb") as file:
        start = file.read(9)
        if start[8:] != b"{" and (start[:1] == b"\x80" or start[:2] == b"PK"):
            raise UnsafeFileError(
                f"{path}: is a pickle, which can hold code, and was not loaded",
                "take the .safetensors version of this adapter",
            )
    contents, metadata = stored.read(path)
    for key, tensor in contents.items():
        if not tensor.is_floating_point() and tensor.numel() != 1:
            raise ModelError(f"{path}: {shortened(key, 100)} holds {tensor.dtype}", "take the plain adapter")
        if not tensor.isfinite().all():
            raise ModelError(f"{path}: {shortened(key, 100)} holds NaN or infinite values", stored.DAMAGED)
    return contents, metadata


def _sorted(
    path: Path, tensors: Mapping[str, Tensor], names: Mapping[str, str]
) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """Sort tensors by layer and kind; also lists the keys that have no place."""
    modules: dict[str, dict[str, Tensor]] = {}
    unknown: list[str] = []
    for key, tensor in tensors.items():
        layer, kind = adapter_keys.split(key) or ("", "")
        if layer not in names:
            unknown.append(key)
            continue
        held = modules.setdefault(names[layer], {})
        if kind in held:
            raise ModelError(f"{path}: holds {kind} of {names[layer]} twice, under two names", stored.DAMAGED)
        held[kind] = tensor
    return modules, unknown


def _unfused(
    path: Path, tensors: Mapping[str, Tensor], fused: Mapping[str, tuple[str, ...]], known: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """Cut the LoRA of layers that are several of ours into one each, under our names, by the heights of their `known`
    weights. Raises ModelError for an adapter that cannot be cut.
    """
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        layer, kind = adapter_keys.split(key) or ("", "")
        if layer not in fused:
            found[key] = tensor
            continue
        ours = fused[layer]
        rows = [len(known[name]) for name in ours]
        if kind == "lora_up" and len(tensor) != sum(rows):  # of another width
            rows = [len(tensor) // len(ours)] * len(ours)
        if kind not in ("lora_down", "lora_up", "alpha") or (kind == "lora_up" and len(tensor) != sum(rows)):
            raise ModelError(
                f"{path}: {shortened(key, 100)} is of {len(ours)} layers together and cannot be cut",
                "give a plain LoRA",
            )
        cut = tensor.split(rows) if kind == "lora_up" else [tensor] * len(ours)
        found |= {name + adapter_keys.kohya_tensor(kind): one for name, one in zip(ours, cut, strict=True)}
    return found


def _refuse_other_family(
    path: Path, model: Family, keys: list[str], unknown: list[str], metadata: Mapping[str, str]
) -> None:
    """Raise ModelError where the names of tensors, or the header, say of what other family of models a file is."""
    if not any(adapter_keys.split(key) for key in keys):
        what = f"its first tensor is {shortened(keys[0], 80)}" if keys else "it is empty"
        raise ModelError(f"{path}: no adapter, {what}", "give a LoRA's .safetensors file")
    family = adapter_keys.other_family(unknown, model.NAME)
    if not family and len(unknown) == len(keys):
        family = shortened(metadata.get("modelspec.architecture") or metadata.get("ss_base_model_version") or "")
    if family:
        raise ModelError(f"{path}: an adapter for {family}, not for {model.source}", "give one that was made for it")


def _refuse(path: Path, model: Family, count: int, unknown: list[str]) -> None:
    """Say which of a file's tensors have no place. Raises ModelError."""
    named = [shortened(key, 120) for key in unknown[:MOST_NAMED]]
    more = [f"and {len(unknown) - MOST_NAMED} more"] if len(unknown) > MOST_NAMED else []
    raise ModelError(
        f"{path}: {len(unknown)} of its {count} tensors have no place in {model.source}:",
        "give an adapter that was made for this base",
        details=[*named, *more],
    )


def _refuse_other_width(
    path: Path, model: Family, modules: Mapping[str, Mapping[str, Tensor]], known: Mapping[str, Tensor]
) -> None:
    """Raise ModelError where an adapter's cross-attention reads text of another width than the model's."""
    width = adapter_keys.text_width(modules)
    own = next((weight.shape[1] for name, weight in known.items() if name.endswith(".attn2.to_k")), width)
    if width is not None and width != own:
        raise ModelError(
            f"{path}: an adapter for {adapter_keys.family_of_width(width)}, not for {model.source}, "
            f"whose text is {own} wide",
            "give one that was made for it",
        )


def _alphas(metadata: Mapping[str, str], modules: Mapping[str, Mapping[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Give the alpha of each layer for which the header has one, as diffusers writes it."""
    try:
        config = json.loads(metadata.get(CONFIG, "{}"))
    except (ValueError, RecursionError):
        return
    if not isinstance(config, dict):
        return
    for name, held in modules.items():
        network, _, path = name.partition(".")
        own = {key.partition(".")[2]: value for key, value in config.items() if key.startswith(f"{network}.")}
        alpha = _patterned(own.get("alpha_pattern"), path, own.get("lora_alpha"))
        if "lora_down" in held and isinstance(alpha, (int, float)) and math.isfinite(alpha):
            stabilised = own.get("use_rslora") is True
            yield name, torch.tensor(float(alpha) * (len(held["lora_down"]) ** 0.5 if stabilised else 1))


def _patterned(patterns: Any, path: str, default: Any) -> Any:
    """Look a layer up in peft's exceptions, by the end of its name."""
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        end = str(pattern).lstrip("^").removesuffix("$").replace("\\.", ".").removeprefix("text_model.")
        if path == end or path.endswith(f".{end}"):
            return value
    return default
