"""What training holds, part by part and to the byte, whether its networks have numbers or shapes alone; and what it
took.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core import machine
from ..training.optimizers import state_bytes
from ..training.settings import TrainingSettings
from .families.family import Family
from .frozen import count


def peak_memory(device: torch.device) -> int:
    """Read the most memory that this process has held on `device`, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return machine.peak_memory()


@dataclass(frozen=True)
class Part:
    """A network and all that training holds because of it: numbers, and bytes."""

    name: str
    trained: int
    frozen: int
    learning_rate: float | None
    weights: int
    gradients: int
    optimizer: int
    average: int
    """Of the moving average."""
    teacher: int
    """Of the teacher's copy."""

    @property
    def total(self) -> int:
        """All its bytes."""
        return self.weights + self.gradients + self.optimizer + self.average + self.teacher


def parts(
    model: Family,
    teacher: Family | None,
    groups: Sequence[Mapping[str, Any]],
    training: TrainingSettings,
) -> list[Part]:
    """Count what training holds of each network: those that can train, then all others.

    `groups` are the optimizer's. A teacher's networks count where they are copies.
    """
    rates = {group["name"]: group["lr"] for group in groups}
    found = []
    for name in dict.fromkeys([*model.can_train(), *model.can_be_rounded(), *model.NETWORKS]):
        network = getattr(model, name)
        trained = [one for one in network.parameters() if one.requires_grad]
        copy = getattr(teacher, name) if teacher else network
        found.append(
            Part(
                name=name,
                trained=(numbers := sum(one.numel() for one in trained)),
                frozen=count(network) - numbers,
                learning_rate=rates.get(name),
                weights=held([*network.parameters(), *network.buffers()]),
                gradients=held(trained),
                optimizer=state_bytes(training.optimizer, [one.shape for one in trained]),
                average=held(trained) if training.ema else 0,
                teacher=held([*copy.parameters(), *copy.buffers()]) if copy is not network else 0,
            )
        )
    return found


def held(tensors: Iterable[Tensor]) -> int:
    """Count the bytes of tensors."""
    return sum(one.numel() * one.element_size() for one in tensors)


def told(count: float) -> str:
    """Write bytes as people read them."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:.1f} MiB"
