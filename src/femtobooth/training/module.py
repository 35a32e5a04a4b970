"""The base of every training: steps that know their number, also after a resume, and AdamW with its schedule."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import count
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ..core.errors import NotFiniteError
from . import trainer
from .settings import TrainingSettings


class _MicroSteps(IterableDataset[int]):
    """The numbers of the micro-steps from `first` on: all that a step needs to know what to draw."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __iter__(self) -> Iterator[int]:
        return count(self.first)


class NumberedSteps(LightningModule):
    """Calls `training_step` with the number of the micro-step, so that what a step draws depends on nothing else.

    Loaders are made after a checkpoint was restored, and so begin where it was saved.
    """

    def __init__(self, regime: TrainingSettings) -> None:
        super().__init__()
        self.regime, self.resumed_step = regime, 0
        self.gradient_norm = 0.0
        """Of the last optimizer step, before it was clipped."""
        self._loss: Tensor | None = None

    @property
    def first_micro_step(self) -> int:
        """The number of the first micro-step of this process."""
        return self.resumed_step * self.regime.accumulate

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """What AdamW trains: dicts of `params` and `lr`."""
        raise NotImplementedError

    def on_before_backward(self, loss: Tensor) -> None:
        self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the gradient's norm.

        Raises NotFiniteError where it or a loss is NaN or infinite, before any weight is touched.
        """
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        loss, self._loss = self._loss, None
        values = torch.stack([norm, norm.new_zeros(()) if loss is None else loss.to(norm)])
        if self.trainer.world_size > 1:  # gradients are shared, losses are not, and all processes must agree
            values = self.all_gather(values).amax(dim=0)  # of which NaN is the greatest
        self.gradient_norm, total = values.tolist()  # the one value that each step waits for
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if math.isfinite(self.gradient_norm) and math.isfinite(total):
            return
        if scaler is None or scaler.get_scale() < 1:  # a scaler leaves such a step out and tries a smaller scale next
            what, value = ("gradient", self.gradient_norm) if math.isfinite(total) else ("loss", total)
            raise NotFiniteError(f"training: the {what} is {value} in step {self.trainer.global_step + 1}")

    def configure_optimizers(self) -> Any:
        optimizer = trainer.optimizer(self.regime, self.optimizer_groups())
        return self.scheduled(optimizer, trainer.learning_rate_schedule(self.regime, optimizer))

    @staticmethod
    def scheduled(optimizer: Any, schedule: Any) -> dict[str, Any]:
        """An optimizer and its schedule, which moves with every optimizer step."""
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def train_dataloader(self) -> Any:
        return DataLoader(_MicroSteps(self.first_micro_step), batch_size=None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.resumed_step = int(checkpoint["global_step"])
