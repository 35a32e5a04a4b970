"""What passes through the networks will need of memory beside weights, found by going through them without numbers.

The passes are the ones of training and sampling themselves, over tensors that have shapes and no memory (torch's
FakeTensorMode): every tensor that an operation makes counts from then until nothing holds it any more, what the
backward pass saves, checkpointing recomputes and autocast copies included. Not counted is what kernels need for
themselves and what an allocator cannot use again.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
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


@contextmanager
def without_numbers(model: Family) -> Iterator[None]:
    """Let the networks of a model, which was loaded without weights, compute for the time inside, without numbers."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    networks: list[nn.Module] = [getattr(model, name) for name in model.NETWORKS]

    def fake(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")

    with FakeTensorMode(allow_non_fake_inputs=True):
        for network in networks:
            network._apply(fake)
        yield


def _tensors(*models: Family | None) -> Iterator[Tensor]:
    for model in models:
        for name in model.NETWORKS if model else ():
            yield from getattr(model, name).parameters()
            yield from getattr(model, name).buffers()
