"""What passes through the networks will need of memory beside weights, found by going through them without numbers.

The passes are the ones of training and sampling themselves, over tensors that have shapes and no memory (torch's
FakeTensorMode): every tensor that an operation makes counts from then until nothing holds it any more, what the
backward pass saves, checkpointing recomputes and autocast copies included. Not counted is what kernels need for
themselves and what an allocator cannot use again.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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


def _networks(*models: Family | None) -> list[Any]:
    found = {id(one): one for model in models if model for name in model.NETWORKS for one in [getattr(model, name)]}
    return list(found.values())


@contextmanager
def _without_numbers(*models: Family | None) -> Iterator[Counter]:
    """Let the networks of models that were loaded without weights compute for the time inside, without numbers."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    def fake(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")

    with FakeTensorMode(allow_non_fake_inputs=True):
        for network in _networks(*models):
            network._apply(fake)
        yield Counter(_tensors(*models))


def _tensors(*models: Family | None) -> Iterator[Tensor]:
    return (one for part in _networks(*models) for one in (*part.parameters(), *part.buffers()))


def _inputs(model: Family, rows: int, size: int) -> tuple[Tensor, Tensor, Condition]:
    """Make latents (B, c, h, w), timesteps (B,) and conditions of B prompts."""
    cells = size // model.vae_factor
    with torch.no_grad():
        condition = model.condition(torch.empty(1, *model.tokenize([""]).shape[1:], dtype=torch.int64)).expand(rows)
    condition = Condition({name: tensor.clone() for name, tensor in condition.tensors.items()})
    latents = torch.empty(rows, model.latent_channels, cells, cells, dtype=model.denoiser.dtype)
    return latents, torch.empty(rows, dtype=torch.int64), condition


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
    frozen: torch.dtype = torch.float32,
    checkpointing: bool = False,
) -> Pass:
    """Go forward and back with `rows` pictures of `size` pixels, for `taught` of which the teacher says the target.

    `captions` of them are different, and go through the text encoders where those train; 0 says that the text states
    are kept. `model` and `teacher`, which were loaded without weights, are of no other use afterwards.
    """
    if frozen != torch.float32:
        adapter_layers.cast_frozen(model, frozen)
    if checkpointing:
        trainable.checkpoint(model)
    reduced = torch.autocast("cpu", dtype(precision), enabled=precision != "fp32")
    with _without_numbers(model, teacher) as counter:
        latents, timesteps, condition = _inputs(model, rows, size)
        tokens = torch.empty(captions, *model.tokenize([""]).shape[1:], dtype=torch.int64)
        with counter:
            with reduced:
                if captions:
                    condition = model.condition(tokens)[torch.arange(rows) % captions]
                prediction = model.denoise(latents, timesteps, condition)
                if teacher and taught:
                    with torch.no_grad(), adapter_layers.switched_off(teacher):
                        teacher.denoise(latents[:taught], timesteps[:taught], condition[slice(taught)])
                loss = (prediction.float() - latents.float()).square().mean(dim=(1, 2, 3)).mean()
            del prediction, condition
            forward = counter.peak
            loss.backward()
    return Pass(forward, counter.peak)


def sampling_pass(model: Family, size: int) -> int:
    """Count the most bytes that the denoiser holds for a latent of a picture of `size` pixels, without gradients.

    Several latents take as much each. `model` is of no other use afterwards.
    """
    with _without_numbers(model) as counter, torch.no_grad():
        latents, timesteps, condition = _inputs(model, 1, size)
        with counter:
            model.denoise(latents, timesteps, condition)
    return counter.peak


def picture_passes(model: Family, size: int) -> tuple[int, int]:
    """Count the most bytes that the VAE holds to encode a picture of `size` pixels, and to decode one.

    Several pictures take as much each. `model` is of no other use afterwards.
    """
    cells = size // model.vae_factor
    with _without_numbers(model) as encoding, torch.no_grad():
        with encoding:
            model.encode(torch.empty(1, 3, size, size))
        with Counter(_tensors(model)) as decoding:
            model.decode(torch.empty(1, model.latent_channels, cells, cells))
    return encoding.peak, decoding.peak
