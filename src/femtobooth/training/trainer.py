"""A Lightning Trainer built from settings, and the small pieces of the loop that both halves share."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger

from ..core.errors import SettingsError
from ..core.events import progress_bar
from ..core.machine import FloatPrecision, use_tensor_cores
from ..core.processes import rank, world
from . import optimizers
from .callbacks import StepCallback
from .checkpoints import StreamedFile
from .settings import TrainingSettings

warnings.filterwarnings("ignore", module="lightning.*")  # advice about defaults that are chosen here on purpose
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

LIGHTNING: dict[FloatPrecision, Any] = {"fp32": "32-true", "fp16": "16-mixed", "bf16": "bf16-mixed"}


def build(
    settings: TrainingSettings,
    folder: Path,
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger],
    deterministic: bool | Literal["warn"] = "warn",
) -> Trainer:
    """Build the Trainer; raises SettingsError where the hardware asked for is not there."""
    refuse_other_number(settings)
    use_tensor_cores()
    has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    if settings.precision == "fp16" and (settings.accelerator == "cpu" or not has_gpu):
        raise SettingsError("`training.precision=fp16`: a CPU cannot train with it", "use bf16 or fp32")
    try:
        return Trainer(
            default_root_dir=folder,
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.nodes,
            strategy=settings.strategy,
            precision=LIGHTNING[settings.precision],
            max_steps=settings.steps,
            accumulate_grad_batches=settings.accumulate,
            gradient_clip_val=settings.clip or None,
            deterministic=deterministic,
            callbacks=list(callbacks),
            logger=list(loggers),
            plugins=[StreamedFile()],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    except Exception as error:  # Lightning reports missing hardware and packages in several ways
        raise SettingsError(
            f"training: {' '.join(str(error).split())[:200]}",
            "check `training.accelerator`, `training.devices`, `training.strategy` and `training.precision`",
        ) from error


def refuse_other_number(settings: TrainingSettings) -> None:
    """Raise SettingsError where a launcher started more or fewer processes than the settings say."""
    started = os.environ.get("WORLD_SIZE", "") or (str(world()) if world() > 1 else "")
    wanted = settings.devices * settings.nodes
    if (started.isdigit() and int(started) != wanted) or rank() >= wanted:
        raise SettingsError(
            (
                f"`training.devices={settings.devices}` `training.nodes={settings.nodes}`: but this "
                f"is process {rank()} of {started or 'several'}"
            ),
            "give as many devices and nodes as were started, or unset RANK and WORLD_SIZE",
        )


def check(settings: TrainingSettings) -> None:
    """Raise now the SettingsError that missing hardware or packages would raise once training begins."""
    build(settings, Path(), [], [])
    optimizers.make(settings, [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 1.0}])


def release(trainer: Trainer, module: LightningModule) -> None:
    """Give back gradients and optimizer state after training; the weights stay."""
    module.zero_grad(set_to_none=True)
    trainer.strategy.optimizers, trainer.strategy.lr_scheduler_configs = [], []


def learning_rate_schedule(settings: TrainingSettings, of: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
    """Make the schedule of learning rates: warm-up, then constant, linear or cosine decay to 0, in optimizer steps."""

    def factor(step: int) -> float:
        if step < settings.warmup:
            return (step + 1) / settings.warmup
        done = min((step - settings.warmup) / max(settings.steps - settings.warmup, 1), 1.0)
        return {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}[
            settings.schedule
        ]

    return torch.optim.lr_scheduler.LambdaLR(of, factor)


class StepBar(StepCallback):
    """A progress bar over optimizer steps, with the loss that was read last."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._bar = progress_bar("training", int(trainer.max_steps), done=trainer.global_step)
        self._advance = self._bar.__enter__().advance

    def on_optimizer_step(self, trainer: Trainer, module: Any, step: int, outputs: Any) -> None:
        self._advance(1, note=f"loss {module.loss:.3f}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._bar.__exit__(None, None, None)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if hasattr(self, "_bar"):
            self._bar.__exit__(None, None, None)
