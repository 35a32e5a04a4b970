"""Noise processes: how latents become noise, what a denoiser is asked for, and how sampling goes back.

A family owns one. Everything about time is said here: which timesteps training draws, into which buckets their losses
go, how they weigh, and which solver walks through them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from ..core.errors import SettingsError
from .loss_settings import LossSettings
from .sampling_settings import SamplingSettings

SOLVERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {}),  # arXiv 2010.02502, eta = 0
    "plms": (PNDMScheduler, {"skip_prk_steps": True}),  # arXiv 2202.09778, linear multi-step alone
    "euler": (EulerDiscreteScheduler, {}),  # arXiv 2206.00364, algorithm 2 without churn
    "euler-a": (EulerAncestralDiscreteScheduler, {}),
    "dpmpp-2m": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 2}),  # arXiv 2211.01095
    "unipc": (UniPCMultistepScheduler, {}),  # arXiv 2302.04867
}
NO_SAMPLE_PREDICTION = ("plms", "euler-a")  # diffusers' versions know only epsilon and v
ZERO_SNR_CURE = "dpmpp-2m and unipc can"


class Solver(Protocol):
    """A walk from noise to a latent, in the words of diffusers' schedulers."""

    init_noise_sigma: Any

    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor: ...

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **options: Any) -> Any: ...

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor: ...


class NoiseProcess(ABC):
    """A noise process: from clean latents at its beginning to pure noise at its end."""

    @property
    @abstractmethod
    def prediction_type(self) -> str:
        """Name what the denoiser predicts, as diffusers calls it."""

    def refuse(self, loss: LossSettings) -> None:  # noqa: B027
        """Raise SettingsError for settings of the loss that have no meaning for this process."""

    @abstractmethod
    def draw_timesteps(self, count: int, random: torch.Generator) -> Tensor:
        """Draw the timesteps (count,) of a micro-batch, on the CPU."""

    @abstractmethod
    def middles(self, count: int) -> Tensor:
        """Give the timesteps (count,) in the middles of as many equal parts, on the CPU."""

    @abstractmethod
    def noisiest(self, count: int) -> Tensor:
        """Give timesteps (count,) of the noisiest quarter, where the prompt alone decides, to the last."""

    @abstractmethod
    def buckets(self, timesteps: Tensor, count: int) -> Tensor:
        """Tell which of `count` equal buckets each of the timesteps (B,) is in; int64 (B,)."""

    @abstractmethod
    def bucket_name(self, bucket: int, count: int) -> str:
        """Name a bucket of `count` in logs."""

    @abstractmethod
    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Make latents (B, c, h, w) as noisy as timesteps (B,) say."""

    @abstractmethod
    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Say what the denoiser should predict (B, c, h, w)."""

    @abstractmethod
    def weights(self, timesteps: Tensor, loss: LossSettings) -> Tensor:
        """Weigh the squared errors at timesteps (B,): (B,)."""

    @abstractmethod
    def solver(
        self, settings: SamplingSettings, strength: float = 1.0, group: str = "sampling"
    ) -> tuple[Solver, Tensor]:
        """Make a fresh solver, and the timesteps, on the CPU, that are left at this strength in (0, 1].

        Raises SettingsError, naming the setting by its `group`, where it cannot sample the process.
        """


@dataclass(frozen=True)
class Scheduled(NoiseProcess):
    """A noise process whose time a diffusers scheduler describes."""

    scheduler: Any

    @property
    def steps(self) -> int:
        """How many timesteps there are, or what time from 0 to 1 is multiplied by for the denoiser."""
        return int(self.scheduler.config.num_train_timesteps)

    def bucket_name(self, bucket: int, count: int) -> str:
        return f"t{bucket * self.steps // count:03d}-{(bucket + 1) * self.steps // count - 1:03d}"


@dataclass(frozen=True)
class DDPM(Scheduled):
    """Denoising diffusion over whole-numbered timesteps (arXiv 2006.11239), as a diffusers scheduler describes it:

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise.
    """

    @property
    def prediction_type(self) -> str:
        """Name what the denoiser predicts: epsilon, v_prediction or sample."""
        return str(self.scheduler.config.prediction_type)

    def refuse(self, loss: LossSettings) -> None:
        for name in loss.of_flows():
            raise SettingsError(
                f"`loss.{name}={getattr(loss, name):g}`: says how a rectified flow draws timesteps; this base is none",
                "leave it out; `loss.snr_gamma` weighs them",
            )

    def draw_timesteps(self, count: int, random: torch.Generator) -> Tensor:
        return torch.randint(self.steps, (count,), generator=random)

    def middles(self, count: int) -> Tensor:
        return (torch.arange(count) * 2 + 1) * self.steps // (2 * count)

    def noisiest(self, count: int) -> Tensor:
        last = self.steps - 1
        return torch.tensor([last * (3 * (count - 1) + part) // (4 * (count - 1)) for part in range(count)])

    def buckets(self, timesteps: Tensor, count: int) -> Tensor:
        return timesteps * count // self.steps

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return self.scheduler.add_noise(latents, noise, timesteps)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Say what the denoiser should predict: the noise, v = sqrt(abar) noise - sqrt(1 - abar) x_0, or x_0."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "v_prediction":
            return self.scheduler.get_velocity(latents, noise, timesteps)
        return latents

    def weights(self, timesteps: Tensor, loss: LossSettings) -> Tensor:
        snr = signal_to_noise(self.scheduler.alphas_cumprod, timesteps)
        return min_snr_weights(snr, self.prediction_type, loss.snr_gamma, loss.snr_floor)

    def solver(
        self, settings: SamplingSettings, strength: float = 1.0, group: str = "sampling"
    ) -> tuple[Solver, Tensor]:
        """Make a fresh scheduler over the model's own noise schedule, and the timesteps left at this strength.

        Both stay on the CPU, where schedulers look numbers up: on an accelerator every look would be waited for.
        """
        kind, options = SOLVERS[settings.sampler]
        config, name, steps = self.scheduler.config, settings.sampler, settings.steps
        if self.prediction_type == "sample" and name in NO_SAMPLE_PREDICTION:
            raise SettingsError(
                f"{group}.sampler: {name} cannot sample a model that predicts the picture itself", "ddim can"
            )
        if config.get("rescale_betas_zero_snr"):
            if (
                name == "plms"
            ):  # extrapolates what it then divides by the signal's share, here 0 at first: colours run away
                raise SettingsError(
                    f"{group}.sampler: plms cannot start from the pure noise this zero-terminal-SNR model starts from",
                    ZERO_SNR_CURE,
                )
            options = {
                **options,
                "timestep_spacing": "trailing",
            }  # the other spacings never visit pure noise (arXiv 2305.08891, 3.3)
        if steps >= config.num_train_timesteps:
            raise SettingsError(
                f"{group}.steps: {steps}, but this model knows {config.num_train_timesteps} noise levels",
                "20 to 50 are usual",
            )
        solver = kind.from_config(config, **options)
        solver.set_timesteps(steps)
        timesteps = solver.timesteps
        if timesteps[-1] < 0:  # trailing spacing by float steps: 61 and some others gain a step at -1
            timesteps = solver.timesteps = timesteps[:-1]
            if hasattr(solver, "sigmas"):
                solver.sigmas = torch.cat([solver.sigmas[:-2], solver.sigmas[-1:]])
        first = steps - max(1, round(steps * strength))
        timesteps = timesteps[first + 1 :] if name == "plms" and first else timesteps[first:]
        if name == "plms" and first:  # it takes its first step twice, whichever that is
            timesteps = torch.cat([timesteps[:2], timesteps[1:]])
        if hasattr(solver, "set_begin_index"):
            solver.set_begin_index(first)
        return solver, timesteps


def min_snr_weights(snr: Tensor, prediction_type: str, gamma: float | None, floor: float = 0.0) -> Tensor:
    """Compute the Min-SNR-gamma weights (arXiv 2303.09556, sec. 3.4), (B,) from signal-to-noise ratios (B,).

    The paper weighs the error of x0 by min(SNR, gamma); the same weighting of the error that is measured here is
    min(SNR, gamma) / SNR for epsilon, / (SNR + 1) for v, / 1 for x0. `floor` keeps the last step of a
    zero-terminal-SNR schedule training, where the v and x0 weights vanish; it holds where noise prevails (SNR < 1),
    not for almost clean steps, whose small weights are the point. `gamma` None weighs all alike.
    """
    if gamma is None:
        return torch.ones_like(snr)
    clipped = snr.clamp(max=gamma)
    if prediction_type == "epsilon":  # 0/0 at zero SNR, whose limit is 1
        weights = torch.where(snr > 0, clipped / snr.clamp(min=1e-20), torch.ones_like(snr))
    elif prediction_type == "v_prediction":
        weights = clipped / (snr + 1)
    else:
        weights = clipped
    return torch.where(snr < 1, weights.clamp(min=floor), weights)


def signal_to_noise(alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """Compute SNR(t) = abar_t / (1 - abar_t), (B,)."""
    abar = alphas_cumprod.to(timesteps.device)[timesteps]
    return abar / (1 - abar).clamp(min=1e-20)
