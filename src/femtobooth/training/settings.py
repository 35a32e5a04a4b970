"""Settings of the training loop, the same for both halves."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..core.bulk.settings import ClusterSettings
from ..core.config import Seed, Settings
from ..core.errors import SettingsError, needs
from ..core.fields import Flag
from ..core.machine import FloatPrecision, may_accelerate
from . import optimizers

Optimizer = Literal["adamw", "adamw8bit", "adafactor", "prodigy", "schedulefree"]


class TrainingSettings(Settings):
    steps: Annotated[int, Flag("--steps", common=True, unit="steps")] = Field(800, ge=1)
    """Optimizer steps to train for."""
    batch_size: Annotated[int, Flag("--batch-size", common=True, unit="photos")] = Field(1, ge=1)
    """Subject photos per process and micro-step."""
    accumulate: Annotated[int, Flag("--accumulate", unit="micro-steps")] = Field(1, ge=1)
    """Micro-steps whose gradients are averaged before one optimizer step."""
    precision: Annotated[FloatPrecision, Flag("--precision", common=True)] = "fp32"
    """Number format of the forward and backward pass; with fp16 and bf16, weights and optimizer state stay fp32."""
    gradient_checkpointing: Annotated[bool, Flag("--gradient-checkpointing")] = False
    """Recompute activations in the backward pass: about 30 % slower, far less memory."""
    clip: Annotated[float, Flag(unit="gradient norm")] = Field(1.0, ge=0)
    """Largest gradient norm over everything trained; 0 does not clip."""
    optimizer: Annotated[Optimizer, Flag("--optimizer")] = "adamw"
    """adamw; adamw8bit keeps its state in 8 bits (CUDA); adafactor keeps a part of it; prodigy finds the learning rate,
    which those given multiply; schedulefree averages its steps in place of a schedule.
    """
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the gradient average."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of the squared-gradient average."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay, times the learning rate."""
    epsilon: float = Field(1e-8, gt=0)
    """What keeps steps finite where gradients vanish."""
    schedule: Annotated[Literal["constant", "linear", "cosine"], Flag("--schedule")] = "constant"
    """How the learning rate falls after warm-up, counted in optimizer steps."""
    warmup: Annotated[int, Flag("--warmup", unit="steps")] = Field(0, ge=0)
    """Optimizer steps over which the learning rate rises from 0."""
    ema: Annotated[float, Flag("--ema", unit="decay")] = Field(0.0, ge=0, lt=1)
    """Decay of an exponential moving average of the weights, which then becomes the result; 0 keeps none."""
    seed: Annotated[Seed, Flag("--seed", common=True)] = 0
    """Seed of every random draw in training."""
    accelerator: Annotated[
        Literal["auto", "cpu", "gpu", "mps"], Flag("--accelerator", common=True, group="hardware")
    ] = "auto"
    """Hardware to train on, as Lightning names it."""
    devices: Annotated[int, Flag("--devices", unit="processes", group="hardware")] = Field(1, ge=1)
    """Processes (GPUs) on each node."""
    nodes: Annotated[int, Flag("--nodes", unit="machines", group="hardware")] = Field(1, ge=1)
    """Machines that train together."""
    strategy: Annotated[Literal["auto", "ddp"], Flag("--strategy", group="hardware")] = "auto"
    """How several processes share the work: each holds the whole model and they average their gradients (ddp)."""
    checkpoint_every: Annotated[int, Flag("--checkpoint-every", unit="steps", group="checkpoints and logs")] = Field(
        100, ge=0
    )
    """Optimizer steps between checkpoints; 0 writes one only when interrupted and at the end."""
    keep_checkpoints: Annotated[int, Flag(unit="checkpoints", group="checkpoints and logs")] = Field(2, ge=1)
    """Newest checkpoints that are kept."""
    log_every: Annotated[int, Flag(unit="steps", group="checkpoints and logs")] = Field(1, ge=1)
    """Optimizer steps between log lines."""
    trackers: Annotated[
        list[Literal["tensorboard", "csv", "wandb"]], Flag("--trackers", group="checkpoints and logs")
    ] = ["tensorboard", "csv"]
    """Where losses and pictures go; wandb needs the package of that name and works offline too."""

    @model_validator(mode="after")
    def _as_the_optimizer_wants(self) -> TrainingSettings:
        for name, value in optimizers.KINDS[self.optimizer].instead.items():
            if name not in self.model_fields_set:
                setattr(self, name, value)
        return self

    def without_effect(self) -> dict[str, str]:
        """Name the settings that the optimizer makes no use of."""
        idle = set(optimizers.KINDS[self.optimizer].unused) & self.model_fields_set
        return dict.fromkeys(sorted(idle), f"with {self.optimizer}")

    def refuse_at_once(self) -> None:
        """Raise SettingsError for a package or an accelerator that is not here, and for what makes no sense with the
        optimizer.
        """
        optimizers.refuse(self)
        if "wandb" in self.trackers and find_spec("wandb") is None:
            raise SettingsError("`training.trackers`: wandb is not installed", f"{needs('wandb')}, or leave it out")
        if self.accelerator in ("gpu", "mps") and not may_accelerate():
            raise SettingsError(
                f"`training.accelerator={self.accelerator}`: there is none here to train on", "use auto or cpu"
            )


class HostSettings(ClusterSettings):
    """Who starts the processes of a training on several machines."""

    executor: Annotated[Literal["local", "ray"], Flag("--executor", group="cluster")] = Field("local", exclude=True)
    """local: this process, and what a launcher starts; ray: this command starts the processes of `training.nodes`
    machines of a Ray cluster, of which this is one.
    """
    address: Annotated[str | None, Flag("--address", group="cluster")] = Field(None, exclude=True)
    """Cluster of Ray: auto is the one that this machine belongs to, host:port another."""

    def refuse_at_once(self) -> None:
        """Raise SettingsError where Ray is asked for and not installed, or it is not said which cluster."""
        super().refuse_at_once()
        if self.executor == "ray" and not self.address:
            raise SettingsError("`executor=ray`: does not say which cluster", "give `address`, such as auto")


class Resumable(Settings):
    run: Annotated[str, Flag("--resume", common=True, names="run")] = Field(min_length=1)
    """Go on with an interrupted run; takes no other settings, but where that is to be done."""


class ResumeSettings(HostSettings, Resumable):
    """What `personalize` and `finetune` take in place of their settings."""
