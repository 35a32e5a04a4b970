"""Settings of the training loop, the same for both halves."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..core.config import Seed, Settings
from ..core.machine import FloatPrecision


class TrainingSettings(Settings):
    steps: int = Field(800, ge=1)
    """Optimizer steps to train for."""
    batch_size: int = Field(1, ge=1)
    """Subject photos per process and micro-step."""
    accumulate: int = Field(1, ge=1)
    """Micro-steps whose gradients are averaged before one optimizer step."""
    precision: FloatPrecision = "fp32"
    """Number format of the forward and backward pass: fp32, or fp16 or bf16 as mixed precision; weights and optimizer
    state stay fp32.
    """
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about 30 % slower, far less memory."""
    clip: float = Field(1.0, ge=0)
    """Largest gradient norm over everything trained; 0 does not clip."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """adamw8bit keeps its state in 8 bits (CUDA; needs bitsandbytes)."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's decay of the gradient average."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """AdamW's decay of the squared-gradient average."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW's decoupled weight decay."""
    epsilon: float = Field(1e-8, gt=0)
    """AdamW's epsilon, which keeps its steps finite where gradients vanish."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate falls after warm-up, counted in optimizer steps."""
    warmup: int = Field(0, ge=0)
    """Optimizer steps over which the learning rate rises from 0."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay of an exponential moving average of the weights, which then becomes the result; 0 keeps none."""
    seed: Seed = 0
    """Seed of every random draw in training."""
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    """Hardware to train on, as Lightning names it."""
    devices: int = Field(1, ge=1)
    """Processes (GPUs) on each node."""
    nodes: int = Field(1, ge=1)
    """Machines that train together."""
    strategy: Literal["auto", "ddp"] = "auto"
    """How several processes share the work: each holds the whole model and they average their gradients (ddp)."""
    checkpoint_every: int = Field(100, ge=0)
    """Optimizer steps between checkpoints; 0 writes one only when interrupted and at the end."""
    keep_checkpoints: int = Field(2, ge=1)
    """Newest checkpoints that are kept."""
    log_every: int = Field(1, ge=1)
    """Optimizer steps between log lines."""
    trackers: list[Literal["tensorboard", "csv", "wandb"]] = ["tensorboard", "csv"]
    """Where losses and pictures go; wandb needs the package of that name and works offline too."""
