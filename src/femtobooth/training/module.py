"""The base of every training: steps that know their number, also after a resume, and AdamW with its schedule."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader, IterableDataset

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

    @property
    def first_micro_step(self) -> int:
        """The number of the first micro-step of this process."""
        return self.resumed_step * self.regime.accumulate

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """What AdamW trains: dicts of `params` and `lr`."""
        raise NotImplementedError

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
