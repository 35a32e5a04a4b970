"""What families with a transformer that flows share: noise process, sizes, what adapters change in CLIP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler

from ...core.errors import ModelError
from ..flow import RectifiedFlow
from ..loss_settings import LossSettings
from .family import Family

TRANSFORMER = "transformer"


@dataclass(kw_only=True)
class FlowFamily(Family):
    """A model whose denoiser is a transformer over patches of a VAE's latents, and whose noise process is a straight
    flow.
    """

    DENOISER = TRANSFORMER
    FLOWS = True
    EVENLY: ClassVar[bool] = False
    """Whether its pipeline walks in even steps before they are shifted (`RectifiedFlow.evenly`)."""

    vae: AutoencoderKL
    transformer: Any
    scheduler: FlowMatchEulerDiscreteScheduler

    @property
    def process(self) -> RectifiedFlow:
        return self.process_for(self.cells, self.cells)

    def process_for(self, height: int, width: int) -> RectifiedFlow:
        tokens = (height // self.patch) * (width // self.patch)
        return RectifiedFlow(self.scheduler, self.loss or LossSettings(), self.EVENLY, tokens)

    @property
    def latent_channels(self) -> int:
        return int(self.transformer.config.in_channels)

    @property
    def cells(self) -> int:
        """Latent width and height of the size that it was published for; the VAE's where the transformer says none."""
        own = self.transformer.config.get("sample_size")
        return int(own or self.vae.config.sample_size // self.vae_factor)

    @property
    def patch(self) -> int:
        """Cells along one side of a patch."""
        return int(self.transformer.config.patch_size)

    @property
    def step(self) -> int:
        """Pixels along one side of a patch."""
        return self.vae_factor * self.patch

    @property
    def block(self) -> int:
        return self.step


def refuse_unfit(channels: int, vae: Any, reads: int, text: int, where: object) -> None:
    """Raise ModelError where a transformer of latents with as many `channels` does not fit a VAE's config, or where it
    `reads` text of one width and gets it in another.
    """
    if channels != vae.latent_channels:
        told = f"transformer ({channels} channels) and VAE ({vae.latent_channels})"
        raise ModelError(f"{where}: {told} do not fit together", "take all parts from one model")
    if reads != text:
        raise ModelError(
            f"{where}: transformer ({reads}) and text encoders ({text}) do not fit together",
            "take all parts from one model",
        )
    if vae.latents_mean is not None or vae.latents_std is not None:
        raise ModelError(f"{where}: its VAE scales each channel of latents by itself", "give another base")
