"""What training will need and what it took: parameters and bytes of every part."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from ..core import machine
from ..training.optimizers import state_bytes


def peak_memory(device: torch.device) -> int:
    """Read the most memory that this process has held on `device`, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return machine.peak_memory()


def estimate(
    modules: dict[str, tuple[torch.nn.Module, float | None]],
    optimizer: str,
    ema: bool,
    copied: set[str],
    frozen: Mapping[str, int] = {},
) -> list[dict[str, Any]]:
    """Estimate per part: trained and frozen parameters, and bytes for weights, gradients and optimizer state.

    `modules` maps a name to (module, learning rate or None); `copied` names the parts of which a
    frozen copy is kept (the prior's base); `frozen` gives the bytes of each number that does not train, where it is not
    4. Other weights, gradients and a moving average are 32-bit; what the optimizer keeps is in
    training/optimizers.py. Activations come on top: they depend on picture size and batch.
    """
    rows = []
    for name, (module, rate) in modules.items():
        shapes = [parameter.shape for parameter in module.parameters() if parameter.requires_grad]
        trained = sum(map(math.prod, shapes))
        total = sum(parameter.numel() for parameter in module.parameters())
        weights = 4 * trained + frozen.get(name, 4) * (total - trained)
        rows.append(
            {
                "part": name,
                "trained": trained,
                "frozen": total - trained,
                "learning_rate": rate,
                "weights": weights * (2 if name in copied else 1) + (4 * trained if ema else 0),
                "gradients": 4 * trained,
                "optimizer": state_bytes(optimizer, shapes),
            }
        )
    return rows
