"""Pull what trains towards the base (`prior.weights`): class preservation without class images and without a pass.

    w <- w + lr * prior.weights * (base - w)        after every optimizer step

That is the L2 penalty on the offset from the base (L2-SP: Li et al. 2018, arXiv 1802.01483; for personalization: Kim et
al. 2025, arXiv 2505.19519, whose Lipschitz bound comes to it), decoupled from the gradient as AdamW decouples its decay
(Loshchilov and Hutter, arXiv 1711.05101; towards a base: Chen et al. 2020, arXiv 2004.12651). In the loss, Adam would
divide the pull by each weight's own gradient, and clipping would take it for a part of the gradient; so it means the
same for every optimizer, precision and accumulation.

Of an adapter's layers what starts at zero is pulled to zero, such as B of LoRA: that takes the same share off the whole
offset B A, and needs no values of the base.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..training.optimizers import effective_rate
from . import adapter_layers


class Anchor:
    """Where every parameter that trains began, and the pull towards it.

    To be made before the first step and before a checkpoint is read. What `teacher` holds anyway is not kept again; the
    rest is kept in main memory, 4 bytes a parameter.
    """

    def __init__(self, networks: Mapping[str, nn.Module], weight: float, teacher: Mapping[str, nn.Module]) -> None:
        self.weight, self.kept_bytes = weight, 0
        self.starts: dict[nn.Parameter, Tensor | None] = {}
        """Of each parameter that is pulled; None is zero."""
        for name, network in networks.items():
            held = dict(teacher[name].named_parameters()) if name in teacher and teacher[name] is not network else {}
            adapters = adapter_layers.parameters(network)
            for path, parameter in network.named_parameters():
                if not parameter.requires_grad:
                    continue
                if path not in adapters:
                    self.starts[parameter] = held[path] if path in held else self._keep(parameter)
                elif "magnitude" in path:  # of DoRA; other factors are free, as their partner starts at zero
                    self.starts[parameter] = self._keep(parameter)
                elif not parameter.is_meta and not parameter.detach().any():
                    self.starts[parameter] = None

    def _keep(self, parameter: nn.Parameter) -> Tensor:
        self.kept_bytes += parameter.numel() * parameter.element_size()
        return parameter.detach().to("meta" if parameter.is_meta else "cpu", copy=True)

    @torch.no_grad()
    def pull(self, optimizer: Any) -> None:
        """Take the share lr * weight off every offset from the start, with the rate of the step just taken."""
        for group in optimizer.param_groups:
            share = min(self.weight * effective_rate(group), 1.0)
            for parameter in group["params"]:
                if parameter not in self.starts:
                    continue
                # Schedule-free optimizers step on z and average it: both are pulled, and so is their average.
                moved = [parameter, *(value for key, value in optimizer.state[parameter].items() if key == "z")]
                start = self.starts[parameter]
                for value in moved:
                    if start is None:
                        value.mul_(1 - share)
                    else:
                        value.lerp_(start.to(value.device, value.dtype, non_blocking=True), share)
