"""A callback that is called once for each finished optimizer step, whatever the accumulation."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class StepCallback(Callback):
    """Calls `on_optimizer_step` after each optimizer step; Lightning's own hook also comes in the middle of an
    accumulation.
    """

    _step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any = None, *_: Any) -> None:
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            self.on_optimizer_step(trainer, pl_module, self._step, outputs)

    def on_optimizer_step(self, trainer: Trainer, module: LightningModule, step: int, outputs: Any) -> None:
        """Act on an optimizer step: `step` of them are done; `outputs` is what `training_step` returned last."""
        raise NotImplementedError
