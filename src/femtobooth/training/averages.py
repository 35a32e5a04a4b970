"""What is sampled, validated and written in the place of the weights that gradients move: their average.

A moving average is kept beside training. Schedule-free AdamW averages its own steps: gradients are taken at y, and the
result is x, which follows from y and its state z (arXiv 2405.15682, eq. 3-5). This is the only place that knows:
callers look through `applied` while training goes on, and `result` reads what a checkpoint comes to.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from .callbacks import StepCallback
from .settings import TrainingSettings

if TYPE_CHECKING:
    from .module import NumberedSteps


def trained(module: LightningModule) -> dict[str, torch.nn.Parameter]:
    """List the parameters that train, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


class Average(StepCallback):
    """Weights to look at in the place of those that train."""

    def weights(self, module: LightningModule) -> Iterator[tuple[str, Tensor]]:
        """Give the average of each parameter that trains, by name, one after the other."""
        raise NotImplementedError

    @contextmanager
    def applied(self, module: LightningModule) -> Iterator[None]:
        """Put the averages into the module for the time inside; training goes on from the same bits."""
        parameters = trained(module)
        kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        with torch.no_grad():
            for name, value in self.weights(module):
                parameters[name].copy_(value)
            try:
                yield
            finally:
                for name, parameter in parameters.items():
                    parameter.copy_(kept[name])


class MovingAverage(Average):
    """Exponential moving average of the trained weights, warmed up as min(decay, (1 + n) / (10 + n))."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        for name, parameter in trained(pl_module).items():
            self.average[name] = self.average.get(name, parameter).detach().clone().to(parameter.device)

    def on_optimizer_step(self, trainer: Trainer, module: LightningModule, step: int, outputs: Any) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        parameters = trained(module)
        torch._foreach_lerp_(
            [self.average[name] for name in parameters], [value.detach() for value in parameters.values()], 1 - decay
        )

    def weights(self, module: LightningModule) -> Iterator[tuple[str, Tensor]]:
        return ((name, self.average[name]) for name in trained(module))

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average = state_dict["average"]


class ScheduleFree(Average):
    """The average of schedule-free AdamW's steps; has no state beside the optimizer's."""

    def on_optimizer_step(self, trainer: Trainer, module: LightningModule, step: int, outputs: Any) -> None:
        pass

    def weights(self, module: LightningModule) -> Iterator[tuple[str, Tensor]]:
        optimizer: Any = module.optimizers(use_pl_optimizer=False)
        names = {id(parameter): name for name, parameter in trained(module).items()}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                z = optimizer.state[parameter].get("z")
                yield names[id(parameter)], _x(parameter.detach(), z, group["betas"][0])


def _x(y: Tensor, z: Tensor | None, beta1: float) -> Tensor:
    """Compute the average x from y = (1 - beta1) z + beta1 x; there is no z before a parameter's first step."""
    return y if z is None else torch.lerp(y, z, 1 - 1 / beta1)


def average_of(settings: TrainingSettings) -> MovingAverage | ScheduleFree | None:
    """Make the average that these settings train with."""
    if settings.optimizer == "schedulefree":
        return ScheduleFree()
    return MovingAverage(settings.ema) if settings.ema else None


def result(state: dict[str, Any], module: NumberedSteps) -> dict[str, Tensor]:
    """Give what a checkpoint's state comes to: its weights by name, the average in place of those that trained."""
    weights: dict[str, Tensor] = dict(state["state_dict"])
    if module.regime.optimizer == "schedulefree":
        weights |= _schedulefree(state, module)
    elif module.regime.ema:
        weights |= state["callbacks"][MovingAverage.__name__]["average"]
    return weights


def _schedulefree(state: dict[str, Any], module: NumberedSteps) -> dict[str, Tensor]:
    """Compute x from a checkpoint, in which the optimizer's state goes by the number of the parameter."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    order = [names[id(parameter)] for group in module.optimizer_groups() for parameter in group["params"]]
    (optimizer,) = state["optimizer_states"]
    found = {}
    for group in optimizer["param_groups"]:
        for number in group["params"]:
            z = optimizer["state"].get(number, {}).get("z")
            found[order[number]] = _x(state["state_dict"][order[number]], z, group["betas"][0])
    return found
