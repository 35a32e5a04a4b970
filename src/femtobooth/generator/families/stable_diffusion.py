"""Stable Diffusion 1.x and 2.x: a UNet over a VAE's latents, told what to draw by one CLIP text encoder.

Every part is held as 32-bit floats; who computes with it chooses the format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from .family import Condition, TokenTable
from .unet_family import ADAPTED_IN_CLIP, ADAPTED_IN_UNET, UNetFamily, other_kind, refuse_unfit


@dataclass(kw_only=True)
class StableDiffusion(UNetFamily):
    """The five parts of a Stable Diffusion 1.x/2.x text-to-image model, and what is known about it."""

    PIPELINES = ("StableDiffusionPipeline",)
    NETWORKS = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    TEXT_ENCODERS = {"text_encoder": "tokenizer"}
    CELLS = 64
    NAME = "Stable Diffusion 1.x or 2.x"
    KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
    CLIPS = {"text_encoder": ("clip_l", "clip_h")}
    ADAPTED = {"unet": ADAPTED_IN_UNET, "text_encoder": ADAPTED_IN_CLIP}

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Turn prompts into token ids (B, L), cut and padded to the tokenizer's length."""
        return self.tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        ).input_ids

    def condition(self, tokens: Tensor) -> Condition:
        """Encode token ids (B, L) to the text encoder's last hidden states (B, L, D), which cross-attention reads."""
        ids = tokens.to(self.text_encoder.device, non_blocking=True)
        return Condition({"encoder_hidden_states": self.text_encoder(ids).last_hidden_state})

    def denoise(self, noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        return self.unet(noisy, timesteps, **condition.tensors).sample

    def token_tables(self) -> Sequence[TokenTable]:
        return [TokenTable(self.tokenizer, self.text_encoder, self.text_encoder.embeddings)]

    def pipeline(self) -> Any:
        from diffusers import StableDiffusionPipeline

        return StableDiffusionPipeline(
            **{name: getattr(self, name) for name in self.folders()},
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    @classmethod
    def refuse_misfits(cls, networks: Mapping[str, Any], where: object) -> None:
        """Raise ModelError where UNet, VAE and text encoder are of no text-to-image Stable Diffusion 1.x/2.x, naming
        what they are.
        """
        unet, vae, text = (networks[part].config for part in ("unet", "vae", "text_encoder"))
        is_xl = unet.addition_embed_type == "text_time"
        refuse_unfit(unet, vae, text.hidden_size, "a Stable Diffusion XL" if is_xl else other_kind(unet, vae), where)
