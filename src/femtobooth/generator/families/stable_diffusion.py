"""Stable Diffusion 1.x and 2.x: a UNet over a VAE's latents, told what to draw by one CLIP text encoder.

Every part is held as 32-bit floats; who computes with it chooses the format.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer


@dataclass
class StableDiffusion:
    """The five parts of a Stable Diffusion 1.x/2.x text-to-image model, and what is known about it."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler: SchedulerMixin
    """The noise schedule (betas, prediction type, timestep spacing) that the model was trained with."""
    source: str
    """Where it was loaded from, for people."""
    hash: str
    """SHA-256 over all files it was loaded from."""
    card: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The settings that its model card recommends, by command."""
    readme: str = ""
    """The whole model card."""
    subject: dict[str, Any] = field(default_factory=dict)
    """For a personalized model: token and class_noun, with provenance."""

    @property
    def vae_factor(self) -> int:
        """Pixels along one side of a latent cell."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def cells(self) -> int:
        """Native latent width and height; of a model that is not square the smaller one, of one that does not say
        64.
        """
        given = self.unet.config.sample_size
        return min(given) if isinstance(given, (list, tuple)) else int(given or 64)

    @property
    def size(self) -> int:
        """Native picture width and height in pixels."""
        return self.cells * self.vae_factor

    @property
    def prediction_type(self) -> str:
        """What the UNet predicts: epsilon, v_prediction or sample."""
        return str(self.scheduler.config.prediction_type)

    @property
    def device(self) -> torch.device:
        return self.unet.device

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> StableDiffusion:
        """Move text encoder, VAE and UNet; returns self."""
        for part in (self.text_encoder, self.vae, self.unet):
            part.to(device=device, dtype=dtype)
        return self

    def token_ids(self, prompts: list[str]) -> torch.Tensor:
        """(B, L) token ids, cut and padded to the tokenizer's length."""
        return self.tokenizer(
            prompts,
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        ).input_ids

    def text_states(self, prompts: list[str]) -> torch.Tensor:
        """(B, L, D) last hidden states of the text encoder, the UNet's cross-attention input."""
        ids = self.token_ids(prompts).to(self.text_encoder.device)
        return self.text_encoder(ids).last_hidden_state
