"""What passes through the networks will need of memory beside weights, found by going through them without numbers.

The passes are the ones of training and sampling themselves, over tensors that have shapes and no memory (torch's meta
device): every tensor that an operation makes counts from then until nothing holds it any more, what the backward pass
saves, checkpointing recomputes and autocast copies included. Not counted is what kernels need for themselves and what
an allocator cannot use again.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import checkpoint

from ..core.machine import FloatPrecision, dtype
from . import adapter_layers, trainable
from .families.family import Condition, Family


class Counter(TorchDispatchMode):
    """Counts the bytes of tensors that are made inside and are still held, and the most that they came to."""

    def __init__(self, known: Iterator[Tensor]) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._known = {id(tensor.untyped_storage()): tensor.untyped_storage() for tensor in known}
        self._counted: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, Tensor):
                self._count(one.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self._counted or key in self._known:
            return
        self._counted[key] = storage.nbytes()
        self.held += self._counted[key]
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.held -= self._counted.pop(key)


class _Attention(torch.autograd.Function):
    """Attention as fused kernels have it, which keep no table of weights: (B, H, L, D), (B, H, S, D), (B, H, S, D)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        made = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, made, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return made

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        return tuple(map(torch.empty_like, ctx.saved_tensors[:3]))


class Kernels(TorchFunctionMode):
    """Computes as devices do, where torch's meta device would do otherwise: fused attention, and autocast.

    `reduced` is autocast's number format; None is without. Its lists are those of torch's CPU and CUDA that both have
    and that these networks use; a weight is cast once.
    """

    REDUCED = (functional.linear, functional.conv2d, torch.matmul, torch.bmm, torch.baddbmm)
    FULL = (functional.group_norm, functional.layer_norm, functional.softmax, functional.mse_loss)

    def __init__(self, reduced: torch.dtype | None) -> None:
        super().__init__()
        self.reduced = reduced
        self._cast: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        attention = func is functional.scaled_dot_product_attention
        if self.reduced and (attention or func in self.REDUCED):
            args, kwargs = tree_map(self._reduced, (args, kwargs))
        elif self.reduced and func in self.FULL:
            args, kwargs = tree_map(_full, (args, kwargs))
        if not attention:
            return func(*args, **kwargs)
        named = [kwargs[name] for name in ("query", "key", "value") if name in kwargs]
        return _Attention.apply(*args[:3], *named)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._cast.clear()

    def _reduced(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if not (value.is_leaf and value.requires_grad):
            return value.to(self.reduced)
        return self._cast.setdefault(id(value), value.to(self.reduced))


def _full(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _tensors(*models: Family | None) -> Iterator[Tensor]:
    networks = [getattr(model, name) for model in models if model for name in model.NETWORKS]
    return (one for network in networks for one in (*network.parameters(), *network.buffers()))


def _inputs(model: Family, rows: int, size: int) -> tuple[Tensor, Tensor, Condition]:
    """Make latents (B, c, h, w), timesteps (B,) and conditions of B prompts."""
    cells, device = size // model.vae_factor, model.device
    with torch.no_grad(), Kernels(None):
        condition = model.condition(_tokens(model, 1)).expand(rows)
    condition = Condition({name: tensor.clone() for name, tensor in condition.tensors.items()})
    latents = torch.empty(rows, model.latent_channels, cells, cells, dtype=model.denoiser.dtype, device=device)
    return latents, torch.empty(rows, dtype=torch.int64, device=device), condition


def _tokens(model: Family, rows: int) -> Tensor:
    return model.tokenize([""] * rows).to(model.device)


@dataclass(frozen=True)
class Pass:
    """The most bytes that a pass of training holds beside weights, gradients of earlier passes and optimizer."""

    forward: int
    """Until the loss is known: what the backward pass will read, and what is computed at the time."""
    backward: int
    """Until every gradient is there, gradients included."""


def training_pass(
    model: Family,
    teacher: Family | None,
    rows: int,
    taught: int,
    captions: int,
    size: int,
    precision: FloatPrecision,
    checkpointing: bool = False,
) -> Pass:
    """Go forward and back with `rows` pictures of `size` pixels, for `taught` of which the teacher says the target.

    `captions` of them are different, and go through the text encoders where those train; 0 says that the text states
    are kept. `model` and `teacher`, which were loaded without weights, are of no other use afterwards.
    """
    latents, timesteps, condition = _inputs(model, rows, size)
    kernels = Kernels(None if precision == "fp32" else dtype(precision))
    if checkpointing:
        _checkpoint(model, kernels)
    with Counter(_tensors(model, teacher)) as counter:
        with kernels:
            if captions:
                which = torch.arange(rows, device=model.device) % captions
                condition = model.condition(_tokens(model, captions))[which]
            prediction = model.denoise(latents, timesteps, condition)
            if teacher and taught:
                with torch.no_grad(), adapter_layers.switched_off(teacher):
                    teacher.denoise(latents[:taught], timesteps[:taught], condition[slice(taught)])
            loss = (prediction.float() - latents.float()).square().mean(dim=(1, 2, 3)).mean()
        del prediction, condition
        forward = counter.peak
        loss.backward()
    return Pass(forward, counter.peak)


def _checkpoint(model: Family, kernels: Kernels) -> None:
    """Turn gradient checkpointing on; no mode of torch's reaches what it computes again but one that is given to it."""
    trainable.checkpoint(model)
    again: Any = partial(checkpoint, use_reentrant=False, context_fn=lambda: (nullcontext(), kernels))
    for network in model.trainable.values():
        for part in network.modules():
            if hasattr(part, "_gradient_checkpointing_func"):
                part._gradient_checkpointing_func = again


def sampling_pass(model: Family, size: int) -> int:
    """Count the most bytes that the denoiser holds for a latent of a picture of `size` pixels, without gradients.

    Several latents take as much each.
    """
    latents, timesteps, condition = _inputs(model, 1, size)
    with torch.no_grad(), Counter(_tensors(model)) as counter, Kernels(None):
        model.denoise(latents, timesteps, condition)
    return counter.peak


def picture_passes(model: Family, size: int, tiles: bool = False) -> tuple[int, int]:
    """Count the most bytes that the VAE holds to encode a picture of `size` pixels, and to decode one, in tiles or not.

    Several pictures take as much each.
    """
    cells, device = size // model.vae_factor, model.device
    pixels, latents = (
        torch.empty(1, *shape, device=device) for shape in ((3, size, size), (model.latent_channels, cells, cells))
    )
    with torch.no_grad(), Counter(_tensors(model)) as encoding, Kernels(None):
        model.encode(pixels)
    with torch.no_grad(), Counter(_tensors(model)) as decoding, Kernels(None):
        model.decode(latents, tiles)
    return encoding.peak, decoding.peak
