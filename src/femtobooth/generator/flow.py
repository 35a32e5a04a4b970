"""Rectified flow (Liu et al., arXiv 2209.03003; Esser et al., arXiv 2403.03206): latents become noise on a line.

x_t = (1 - t) x_0 + t noise, with t from 0, clean, to 1; the denoiser is asked for the line's direction, noise - x_0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from ..core.errors import SettingsError
from .loss_settings import LossSettings
from .process import Scheduled, Solver
from .sampling_settings import SamplingSettings


def shifted(t: Tensor, shift: float) -> Tensor:
    """Move times in [0, 1] towards noise (shift > 1) as large pictures need it (arXiv 2403.03206, equation 23)."""
    return shift * t / (1 + (shift - 1) * t)


@dataclass(frozen=True)
class RectifiedFlow(Scheduled):
    """A straight flow, as diffusers' scheduler describes it: timesteps are t times its `num_train_timesteps`.

    Training draws t logit-normally and shifts it (arXiv 2403.03206, section 3.1): t = sigmoid(mean + std n), n standard
    normal.
    """

    scheduler: FlowMatchEulerDiscreteScheduler
    loss: LossSettings = field(default_factory=LossSettings)
    """Says how timesteps are drawn."""
    evenly: bool = False
    """Whether the pipeline walks from 1 to 1/n in n even steps before they are shifted, and not as its scheduler does
    by itself.
    """
    tokens: int = 4096
    """Patches of the latents, of whose number the shift is a function where it is dynamic."""

    @property
    def mu(self) -> float | None:
        """How far times are moved in the words of dynamic shifting: a line over the number of patches, as diffusers'
        pipelines have it; None where the shift is one number.
        """
        config = self.scheduler.config
        if not config.use_dynamic_shifting:
            return None
        slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
        return float(self.tokens * slope + (config.base_shift - slope * config.base_image_seq_len))

    @property
    def shift(self) -> float:
        """How far drawn times are moved towards noise."""
        if self.loss.timestep_shift is not None:
            return self.loss.timestep_shift
        if self.mu is None:
            return float(self.scheduler.config.shift)
        return self.mu if self.scheduler.config.time_shift_type == "linear" else math.exp(self.mu)

    @property
    def prediction_type(self) -> str:
        """Name what the denoiser predicts."""
        return "flow"

    def refuse(self, loss: LossSettings) -> None:
        if loss.snr_gamma is not None:
            raise SettingsError(
                f"`loss.snr_gamma={loss.snr_gamma:g}`: min-SNR weighs the errors of noise schedules, and this base is "
                "a rectified flow",
                "leave it out; `loss.timestep_mean` says which timesteps count more",
            )

    def draw_timesteps(self, count: int, random: torch.Generator) -> Tensor:
        drawn = self.loss.timestep_mean + self.loss.timestep_std * torch.randn(count, generator=random)
        return shifted(torch.sigmoid(drawn), self.shift) * self.steps

    def middles(self, count: int) -> Tensor:
        return (torch.arange(count) * 2 + 1) * self.steps / (2 * count)

    def noisiest(self, count: int) -> Tensor:
        return torch.linspace(0.75 * self.steps, self.steps, count)

    def buckets(self, timesteps: Tensor, count: int) -> Tensor:
        return (timesteps * count / self.steps).long().clamp(0, count - 1)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        t = (timesteps / self.steps).to(latents).view(-1, *[1] * (latents.ndim - 1))
        return t * noise + (1 - t) * latents

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Say what the denoiser should predict: noise - x_0, wherever on the line."""
        return noise - latents

    def weights(self, timesteps: Tensor, loss: LossSettings) -> Tensor:
        """Weigh all alike: which timesteps count more is said by how often they are drawn."""
        return torch.ones_like(timesteps, dtype=torch.float32)

    def solver(
        self, settings: SamplingSettings, strength: float = 1.0, group: str = "sampling"
    ) -> tuple[Solver, Tensor]:
        """Make a fresh Euler solver over the flow, on the CPU, and the timesteps that are left at this strength."""
        if settings.sampler != "euler":
            raise SettingsError(
                f"`{group}.sampler={settings.sampler}`: cannot sample this base, which is a rectified flow", "euler can"
            )
        scheduler = type(self.scheduler).from_config(self.scheduler.config)
        even = [1 - index / settings.steps for index in range(settings.steps)]
        scheduler.set_timesteps(settings.steps, sigmas=even if self.evenly else None, mu=self.mu)
        first = settings.steps - max(1, round(settings.steps * strength))
        scheduler.set_begin_index(first)
        return FlowEuler(self, scheduler), scheduler.timesteps[first:]


@dataclass
class FlowEuler:
    """A walk from noise to a latent in straight steps along what is predicted."""

    process: RectifiedFlow
    scheduler: FlowMatchEulerDiscreteScheduler
    init_noise_sigma: float = 1.0

    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor:
        """Give the sample as it is, which is what the denoiser reads."""
        return sample

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **options: Any) -> Any:
        """Take the next step."""
        return self.scheduler.step(model_output, timestep, sample, **options)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Make latents as noisy as timesteps (B,) say."""
        return self.process.add_noise(original_samples, noise, timesteps)
