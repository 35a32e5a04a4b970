"""The base of every training: steps that know their number, also after a resume, and an optimizer with its schedule."""

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
from . import optimizers, trainer
from .settings import TrainingSettings


class _MicroSteps(IterableDataset[int]):
    """The numbers of the micro-steps from `first` on: all that a step needs to know what to sample."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __iter__(self) -> Iterator[int]:
        return count(self.first)


class NumberedSteps(LightningModule):
    """Calls `training_step` with the number of the micro-step, so that what a step samples depends on nothing else.

    Loaders are made after a checkpoint was restored, and so begin where it was saved.
    """

    def __init__(self, regime: TrainingSettings) -> None:
        super().__init__()
        self.regime, self.resumed_step = regime, 0
        self.gradient_norm, self.loss = 0.0, 0.0
        """Of the last optimizer step that was read: before it was clipped, and the mean over its micro-steps."""
        self._loss: Tensor | None = None
        self._unread: list[tuple[int, Tensor]] = []  # optimizer step; gradient norm and loss (2,), on the device

    @property
    def first_micro_step(self) -> int:
        """The number of the first micro-step of this process."""
        return self.resumed_step * self.regime.accumulate

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """Give what the optimizer trains: dicts of `params` and `lr`, always in the same order."""
        raise NotImplementedError

    def on_before_backward(self, loss: Tensor) -> None:
        self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()

    def is_read(self, step: int) -> bool:
        """Tell whether numbers of this optimizer step are read from the device, which waits for it: every `log_every`
        steps, and after the last.
        """
        return step % self.regime.log_every == 0 or step == self.trainer.max_steps

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the gradient's norm; read it, before any weight is touched, in steps that are read. Raises
        NotFiniteError.
        """
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        loss, self._loss = self._loss, None
        step = self.trainer.global_step + 1
        self._unread.append((step, torch.stack([norm, norm.new_zeros(()) if loss is None else loss.to(norm)])))
        if self.is_read(step) or self._scaler:  # a scaler waits for the gradients of every step itself
            self.read()

    def read(self) -> None:
        """Read the gradient norms and losses of the steps since the last call: the one value that training waits for.

        Called by all processes in the same steps. Raises NotFiniteError for the first that is NaN or infinite.
        """
        if not self._unread:
            return
        steps, values = [step for step, _ in self._unread], torch.stack([values for _, values in self._unread])
        self._unread = []
        if self.trainer.world_size > 1:  # gradients are shared, losses are not, and all processes must agree
            values = self.all_gather(values).amax(dim=0)  # of which NaN is the greatest
        scale = self._scaler.get_scale() if self._scaler else 1.0  # below 1 it has given up on infinite gradients
        for step, (norm, loss) in zip(steps, values.tolist(), strict=True):
            self.gradient_norm, self.loss = norm, loss / scale
            finite = math.isfinite(norm) and math.isfinite(loss)
            if not finite and (self._scaler is None or scale < 1):  # else it leaves this step out and scales less
                what, value = ("gradient", norm) if math.isfinite(loss) else ("loss", loss)
                error = NotFiniteError(f"training: the {what} is {value} in step {step}")
                error.step = step
                raise error

    def refuse_not_finite(self, step: int) -> None:
        """Raise NotFiniteError where a gradient or a loss until now, or a weight that trains, is NaN or infinite."""
        self.read()
        trained = [parameter.detach() for parameter in self.parameters() if parameter.requires_grad]
        if not math.isfinite(float(torch.nn.utils.get_total_norm(trained))):
            raise NotFiniteError(f"training: weights are NaN or infinite after step {step}")

    @property
    def _scaler(self) -> Any:
        """What scales the loss of 16-bit passes, if anything does."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def configure_optimizers(self) -> Any:
        optimizer = optimizers.make(self.regime, self.optimizer_groups())
        return self.scheduled(optimizer, trainer.learning_rate_schedule(self.regime, optimizer))

    @staticmethod
    def scheduled(optimizer: Any, schedule: Any) -> dict[str, Any]:
        """Give an optimizer and its schedule, which moves with every optimizer step."""
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def train_dataloader(self) -> Any:
        return DataLoader(_MicroSteps(self.first_micro_step), batch_size=None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.resumed_step = int(checkpoint["global_step"])
