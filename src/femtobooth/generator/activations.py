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


def networks(*models: Family | None) -> list[Any]:
    """List the different networks of models."""
    found = {id(one): one for model in models if model for name in model.NETWORKS for one in [getattr(model, name)]}
    return list(found.values())


@contextmanager
def without_numbers(*models: Family | None) -> Iterator[None]:
    """Let the networks of models that were loaded without weights compute for the time inside, without numbers."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    def fake(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")

    with FakeTensorMode(allow_non_fake_inputs=True):
        for network in networks(*models):
            network._apply(fake)
        yield


def _counter(*models: Family | None) -> Counter:
    tensors = (one for part in networks(*models) for one in (*part.parameters(), *part.buffers()))
    return Counter(tensors)


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
    model: Family, teacher: Family | None, rows: int, taught: int, captions: int, size: int, precision: FloatPrecision
) -> Pass:
    """Go forward and back with `rows` pictures of `size` pixels, for `taught` of which the teacher says the target.

    `captions` of them are different, and go through the text encoders where those train; 0 says that the text states
    are kept. To be called inside of `without_numbers`.
    """
    latents, timesteps, condition = _inputs(model, rows, size)
    tokens = torch.empty(captions, *model.tokenize([""]).shape[1:], dtype=torch.int64)
    reduced = torch.autocast("cpu", dtype(precision), enabled=precision != "fp32")
    with _counter(model, teacher) as counter:
        with reduced:
            if captions:
                condition = model.condition(tokens)[torch.arange(rows) % captions]
            prediction = model.denoise(latents, timesteps, condition)
            if teacher and taught:
                with torch.no_grad():
                    teacher.denoise(latents[:taught], timesteps[:taught], condition[:taught])
            loss = (prediction.float() - latents.float()).square().mean(dim=(1, 2, 3)).mean()
        del prediction, condition
        forward = counter.peak
        loss.backward()
    return Pass(forward, counter.peak)


def sampling_pass(model: Family, rows: int, size: int) -> int:
    """Count the most bytes that the denoiser holds for `rows` latents of pictures of `size` pixels, without gradients.

    Guidance takes two rows a picture. To be called inside of `without_numbers`.
    """
    latents, timesteps, condition = _inputs(model, rows, size)
    with torch.no_grad(), _counter(model) as counter:
        model.denoise(latents, timesteps, condition)
    return counter.peak + sum(one.nbytes for one in (latents, *condition.tensors.values()))


def picture_passes(model: Family, size: int) -> tuple[int, int]:
    """Count the most bytes that the VAE holds to encode one picture of `size` pixels, and to decode one."""
    cells = size // model.vae_factor
    with torch.no_grad(), _counter(model) as encoding:
        model.encode(torch.empty(1, 3, size, size))
    with torch.no_grad(), _counter(model) as decoding:
        model.decode(torch.empty(1, model.latent_channels, cells, cells))
    return encoding.peak, decoding.peak
