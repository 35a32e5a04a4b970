"""A Lightning Trainer built from settings, and the small pieces of the loop that both halves share."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger

from ..core.errors import SettingsError, needs
from ..core.events import progress_bar
from ..core.machine import FloatPrecision, use_tensor_cores
from ..core.processes import rank
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
    started = os.environ.get("WORLD_SIZE", "")
    wanted = settings.devices * settings.nodes
    if (started.isdigit() and int(started) != wanted) or rank() >= wanted:
        raise SettingsError(
            (
                f"`training.devices={settings.devices}` `training.nodes={settings.nodes}`: but this "
                f"is process {rank()} of {started or 'several'}"
            ),
            "give as many devices and nodes as were started, or unset RANK and WORLD_SIZE",
        )
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


def check(settings: TrainingSettings) -> None:
    """Raise now the SettingsError that missing hardware or packages would raise once training begins."""
    build(settings, Path(), [], [])
    optimizer(settings, [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 1.0}])


def release(trainer: Trainer, module: LightningModule) -> None:
    """Give back gradients and optimizer state after training; the weights stay."""
    module.zero_grad(set_to_none=True)
    trainer.strategy.optimizers, trainer.strategy.lr_scheduler_configs = [], []


def optimizer(settings: TrainingSettings, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Make AdamW over parameter groups, each with its own `lr`."""
    options: dict[str, Any] = {
        "betas": (settings.beta1, settings.beta2),
        "eps": settings.epsilon,
        "weight_decay": settings.weight_decay,
    }
    if settings.optimizer == "adamw8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError:
            raise SettingsError(
                "training.optimizer: adamw8bit is not installed", f"{needs('8bit')}, or use adamw"
            ) from None
        return AdamW8bit(groups, **options)
    fused = _can_fuse(settings, groups)
    made = torch.optim.AdamW(groups, **options, fused=fused)
    if fused:  # without a loss scaler it unscales nothing, so that Lightning may clip what it steps with
        made._step_supports_amp_scaling = False
    return made


def _can_fuse(settings: TrainingSettings, groups: list[dict[str, Any]]) -> bool | None:
    """Tell whether AdamW takes its step in one kernel, which rounds otherwise; None leaves it as torch has it.

    Not on a CPU, whose results are to stay what they are, nor in fp16, where clipping needs unscaled gradients.
    """
    kinds = {parameter.device.type for group in groups for parameter in group["params"]}
    return True if kinds == {"cuda"} and settings.precision != "fp16" else None


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


class MovingAverage(StepCallback):
    """Exponential moving average of the trained weights, warmed up as min(decay, (1 + n) / (10 + n))."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: dict[str, torch.Tensor] = {}

    @staticmethod
    def _trained(module: LightningModule) -> dict[str, torch.nn.Parameter]:
        return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        for name, parameter in self._trained(pl_module).items():
            self.average[name] = self.average.get(name, parameter).detach().clone().to(parameter.device)

    def on_optimizer_step(self, trainer: Trainer, module: LightningModule, step: int, outputs: Any) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        trained = self._trained(module)
        torch._foreach_lerp_(
            [self.average[name] for name in trained], [value.detach() for value in trained.values()], 1 - decay
        )

    @contextmanager
    def applied(self, module: LightningModule) -> Iterator[None]:
        """Put the averages into the module for the time inside."""
        trained = self._trained(module)
        kept = {name: parameter.detach().clone() for name, parameter in trained.items()}
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(self.average[name])
            try:
                yield
            finally:
                for name, parameter in trained.items():
                    parameter.copy_(kept[name])

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average = state_dict["average"]


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
