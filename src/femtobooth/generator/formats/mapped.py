"""A base's weights once in memory for all processes of a machine: files in the cache, which each maps into its memory.

    cache/bases/HASH-PRECISION/unet.pt      every tensor of a network as it is held, each at a multiple of 64 bytes

The model's own files would not do: their tensors begin at any byte, where kernels round otherwise than where torch puts
tensors, may be in another number format, and may be written over while they are used. Nobody writes over these, and
what a process changes of what it has mapped becomes its own.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core import cache
from ...core.machine import Precision, give_back_freed_memory
from .. import frozen
from ..locate import SHARED


def fill(networks: Mapping[str, Any], base_hash: str, held: Precision, read: Callable[[], None]) -> None:
    """Give networks that were built the weights of a base, which `read` gives them, too: mapped, where that is wanted.

    Raises what `read` raises. Where the cache cannot be written, the weights are this process's alone.
    """
    if os.environ.get(SHARED) != "1":
        read()
        return
    give_back_freed_memory()  # what was read, once it is mapped
    place = cache.cache_folder() / "bases" / f"{base_hash[:32]}-{held}"

    once = functools.cache(read)

    def make(folder: Path) -> None:
        once()
        for name, network in networks.items():
            _save(_tensors(network), folder / f"{name}.pt")

    with nullcontext() if place.exists() else cache.in_turn(place.parent):
        found = cache.kept(place, make)
    if not found:
        once()
        return
    for name, network in networks.items():
        _give(network, torch.load(found / f"{name}.pt", mmap=True, weights_only=True))


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """Name all tensors of a network, those among them that no state dict has."""
    return {name: one.detach() for name, one in (*network.named_parameters(), *network.named_buffers())}


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a file of torch's. Raises the OSError of a full disk, which torch hides behind an error of its own."""
    try:
        with open(path, "wb") as file:
            torch.save(tensors, file)
    except RuntimeError as error:
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def _give(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors where `_tensors` found them, in a network of the same config."""
    for path in {path for path, _, kind in (name.rpartition(".") for name in tensors) if kind == "numbers"}:
        frozen.become(network.get_submodule(path), tensors[f"{path}.numbers"], tensors[f"{path}.scales"])
    made: dict[int, nn.Parameter] = {}  # by the one it takes the place of, which several modules may share
    for path, module in network.named_modules():
        for kind, one in module._parameters.items():
            name = f"{path}.{kind}".lstrip(".")
            if one is not None and name in tensors:
                made[id(one)] = nn.Parameter(tensors[name], requires_grad=False)
            if id(one) in made:
                module._parameters[kind] = made[id(one)]
        for kind in module._buffers:
            if (name := f"{path}.{kind}".lstrip(".")) in tensors:
                module._buffers[kind] = tensors[name]
