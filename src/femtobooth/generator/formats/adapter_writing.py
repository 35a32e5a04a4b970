"""Adapters written to files: in kohya's layout, which every program reads, and in diffusers'.

Both begin with a header that says what it is (`adapter_header`), with hashes that can be computed again from the file.
The same adapter and header give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from ...core.errors import ModelError
from ...core.files import atomic_file, refuse_existing
from .. import lora_reference
from ..adapters import Adapter, Tensors
from . import adapter_keys
from .adapter_header import diffusers_config

DIFFUSERS_NAME = lora_reference.DIFFUSERS_NAME
CONFIG = "lora_adapter_metadata"
"""Where diffusers puts rank and alpha of its adapters, in the header."""


def write_kohya(
    path: Path,
    adapter: Adapter,
    metadata: Mapping[str, str],
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
    names: Mapping[str, str] | None = None,
) -> None:
    """Write an adapter in kohya's layout, with an `alpha` of each layer, under the names that the model's layers have
    there (`adapter_keys.kohya_names`); those of Stable Diffusion 1.x and 2.x if not given.

    Raises ExistsError where `path` exists, ModelError where a tensor does not fit `dtype`.
    """
    tensors = {
        (names[name] if names else adapter_keys.kohya(name)) + adapter_keys.kohya_tensor(kind): tensor
        for name, held in adapter.modules.items()
        for kind, tensor in _with_alpha(held).items()
    }
    _write(path, tensors, metadata, dtype, overwrite)


def write_diffusers(
    path: Path,
    adapter: Adapter,
    metadata: Mapping[str, str],
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
) -> None:
    """Write a LoRA in diffusers' layout: alpha / r is folded into `lora_B`, and the header says alpha = r.

    Raises ExistsError where `path` exists, ModelError where a tensor does not fit `dtype` or the layout.
    """
    tensors: dict[str, Tensor] = {}
    for name, held in adapter.modules.items():
        if not {"lora_down", "lora_up"} <= set(held) <= {"lora_down", "lora_up", "alpha"}:
            raise ModelError(f"{path}: diffusers' layout has no place for {name}", "write it in kohya's layout")
        key = adapter_keys.in_files(name)
        tensors[f"{key}.lora_A.weight"] = held["lora_down"]
        scale = held["alpha"].item() / held["lora_down"].shape[0] if "alpha" in held else 1.0
        tensors[f"{key}.lora_B.weight"] = held["lora_up"].float() * scale
    _write(path, tensors, {**metadata, CONFIG: diffusers_config(adapter), "format": "pt"}, dtype, overwrite)


def _with_alpha(held: Tensors) -> Tensors:
    if "alpha" in held or "lora_down" not in held:
        return held
    return {**held, "alpha": torch.tensor(float(held["lora_down"].shape[0]))}


def _write(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], dtype: torch.dtype, overwrite: bool
) -> None:
    """Write tensors and metadata as a safetensors file whose header is always in one order, which the library's own is
    not.
    """
    refuse_existing(path, overwrite)
    cast = {key: tensor.detach().to("cpu", dtype).contiguous().clone() for key, tensor in tensors.items()}
    for key, tensor in cast.items():
        if not tensor.isfinite().all():
            raise ModelError(
                f"{path}: {key} would hold NaN or infinite values as {dtype}", "write it with precision fp32"
            )
    with atomic_file(path, replace=overwrite) as temporary, temporary.open("wb") as file:
        for part in _encoded(cast, dict(metadata)):
            file.write(part)


def _encoded(tensors: dict[str, Tensor], metadata: dict[str, str]) -> Iterator[bytes | memoryview]:
    """Give the parts of a safetensors file: header and tensors, in the library's order."""
    plain = safetensors.torch.save(tensors)
    (length,) = struct.unpack("<Q", plain[:8])
    data = memoryview(plain)[8 + length :]
    digest = hashlib.sha256(data).hexdigest()
    metadata |= {"modelspec.hash_sha256": f"0x{digest}", "sshs_model_hash": digest}
    kohyas = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    with_kohyas = safetensors.torch.save(tensors, kohyas) if kohyas else plain
    metadata["sshs_legacy_hash"] = hashlib.sha256(with_kohyas[0x100000:0x110000]).hexdigest()[:8]
    listed = json.loads(plain[8 : 8 + length])
    header = json.dumps({"__metadata__": dict(sorted(metadata.items())), **listed}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    yield struct.pack("<Q", len(header)) + header
    yield data
