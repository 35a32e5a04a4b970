"""Settings of the training loop, the same for both halves."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, Literal

from pydantic import Field

from ..core.config import Seed, Settings
from ..core.errors import SettingsError, needs
from ..core.fields import Flag
from ..core.machine import FloatPrecision, may_accelerate


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
    optimizer: Annotated[Literal["adamw", "adamw8bit"], Flag("--optimizer")] = "adamw"
    """adamw8bit keeps its state in 8 bits (CUDA; needs bitsandbytes)."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's decay of the gradient average."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """AdamW's decay of the squared-gradient average."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW's decoupled weight decay."""
    epsilon: float = Field(1e-8, gt=0)
    """AdamW's epsilon, which keeps its steps finite where gradients vanish."""
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

    def refuse_at_once(self) -> None:
        """Raise SettingsError for a package or an accelerator that is not here."""
        for wanted, setting, package, extra, otherwise in (
            (self.optimizer == "adamw8bit", "optimizer", "bitsandbytes", "8bit", "use adamw"),
            ("wandb" in self.trackers, "trackers", "wandb", "wandb", "leave it out"),
        ):
            if wanted and find_spec(package) is None:
                raise SettingsError(
                    f"`training.{setting}`: {package} is not installed", f"{needs(extra)}, or {otherwise}"
                )
        if self.accelerator in ("gpu", "mps") and not may_accelerate():
            raise SettingsError(
                f"`training.accelerator={self.accelerator}`: there is none here to train on", "use auto or cpu"
            )


class ResumeSettings(Settings):
    """What `personalize` and `finetune` take in place of their settings."""

    run: Annotated[str, Flag("--resume", common=True, names="run")] = Field(min_length=1)
    """Go on with an interrupted run; takes no other settings."""
