"""Stable Diffusion XL (Podell et al., arXiv 2307.01952): a UNet that reads two text encoders, and how its picture was
framed.

Text is the last hidden states but one of CLIP's and OpenCLIP's encoder, side by side, and the projection of the second.
Beside it the UNet is told six numbers, the paper's micro-conditioning (sections 2.2 and 2.3): the original height and
width of a picture, the top and left of its crop, and its height and width now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ...core.errors import ModelError
from .family import Condition, TokenTable
from .unet_family import ADAPTED_IN_CLIP, ADAPTED_IN_UNET, UNetFamily, other_kind, refuse_unfit

ABSENT = -1
"""In the place of every token where there is no prompt at all."""
FORCE_ZEROS = "force_zeros_for_empty_prompt"
"""Whether no prompt is zeros, in model_index.json."""
STATES, POOLED, FRAMING = "encoder_hidden_states", "text_embeds", "time_ids"
NUMBERS = 6
"""How many numbers say how a picture was framed; the refiner is told 5."""


@dataclass(kw_only=True)
class StableDiffusionXL(UNetFamily):
    """The seven parts of a Stable Diffusion XL text-to-image model, and what is known about it."""

    PIPELINES = ("StableDiffusionXLPipeline",)
    NETWORKS = {
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
    }
    TEXT_ENCODERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
    CELLS = 128
    NAME = "Stable Diffusion XL"
    KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
    IN_ORIGINAL_NAMES = True
    CLIPS = {"text_encoder": ("clip_l",), "text_encoder_2": ("clip_g",)}
    ADAPTED = {"unet": ADAPTED_IN_UNET, "text_encoder": ADAPTED_IN_CLIP, "text_encoder_2": ADAPTED_IN_CLIP}

    tokenizer: CLIPTokenizer
    tokenizer_2: CLIPTokenizer
    text_encoder: CLIPTextModel
    text_encoder_2: CLIPTextModelWithProjection
    force_zeros: bool = True
    """Whether no prompt at all is zeros, as in the published base; else it is the empty prompt."""

    @classmethod
    def of_index(cls, index: Mapping[str, Any]) -> dict[str, Any]:
        return {"force_zeros": bool(index.get(FORCE_ZEROS, True))}

    def index(self) -> dict[str, Any]:
        return {FORCE_ZEROS: self.force_zeros}

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """Move all networks; the VAE stays in 32 bits, as it overflows in 16. Returns self."""
        super().to(device, dtype)
        self.vae.float()
        return self

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Turn prompts into token ids (B, 2, L), by both tokenizers; the second pads with zeros."""
        both = (self.tokenizer, self.tokenizer_2)
        how = {"max_length": min(one.model_max_length for one in both), "return_tensors": "pt"}
        ids = [one(list(prompts), padding="max_length", truncation=True, **how).input_ids for one in both]
        return torch.stack(ids, dim=1)

    def no_prompt(self) -> Tensor:
        """Give the tokens (1, 2, L) of no prompt: the empty prompt's, or what `condition` makes zeros of."""
        empty = self.tokenize([""])
        return torch.full_like(empty, ABSENT) if self.force_zeros else empty

    def condition(self, tokens: Tensor) -> Condition:
        """Encode token ids (B, 2, L): the last states but one of both encoders (B, L, D1 + D2), without the final norm,
        and the projected end of the second (B, P).
        """
        said = [
            encoder(ids.clamp(min=0).to(encoder.device, non_blocking=True), output_hidden_states=True)
            for encoder, ids in zip(self.text_encoders.values(), tokens.unbind(1), strict=True)
        ]
        found = {STATES: torch.cat([one.hidden_states[-2] for one in said], dim=-1), POOLED: said[1].text_embeds}
        absent = (tokens == ABSENT).flatten(1).all(dim=1)  # (B,), on the CPU
        if not absent.is_meta and absent.any():
            there = (~absent).to(self.text_encoder_2.device, non_blocking=True)
            found = {
                name: torch.where(there.view(-1, *[1] * (tensor.ndim - 1)), tensor, torch.zeros_like(tensor))
                for name, tensor in found.items()
            }
        return Condition(found)

    def framed(self, condition: Condition, framing: Tensor) -> Condition:
        told = framing.to(self.device, torch.float32, non_blocking=True)
        return Condition({**condition.tensors, FRAMING: told})

    def unread(self) -> tuple[str, ...]:
        """Name the first text encoder's last layer and its norm: its states before them are read."""
        last = self.text_encoder.config.num_hidden_layers - 1
        return (f"text_encoder.encoder.layers.{last}.", "text_encoder.final_layer_norm.")

    def denoise(self, noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """Predict (B, c, h, w); what does not say how its pictures were framed is of whole ones of this size."""
        told = dict(condition.tensors)
        if FRAMING not in told:
            height, width = (side * self.vae_factor for side in noisy.shape[-2:])
            told[FRAMING] = noisy.new_tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
        added = {POOLED: told[POOLED], FRAMING: told[FRAMING].expand(len(noisy), NUMBERS)}
        return self.unet(noisy, timesteps, told[STATES], added_cond_kwargs=added).sample

    def token_tables(self) -> Sequence[TokenTable]:
        second = self.text_encoder_2
        return [
            TokenTable(self.tokenizer, self.text_encoder, self.text_encoder.embeddings),
            TokenTable(self.tokenizer_2, second, second.text_model.embeddings, reads_end=True),
        ]

    def pipeline(self) -> Any:
        from diffusers import StableDiffusionXLPipeline

        return StableDiffusionXLPipeline(
            **{name: getattr(self, name) for name in self.folders()},
            **self.index(),
            add_watermarker=False,
        )

    @classmethod
    def refuse_misfits(cls, networks: Mapping[str, Any], where: object) -> None:
        """Raise ModelError where networks are of no text-to-image Stable Diffusion XL, naming what they are, or do not
        fit together.
        """
        unet, vae, first, second = (networks[name].config for name in cls.NETWORKS)
        kind = other_kind(unet, vae)
        read, numbers = unet.projection_class_embeddings_input_dim, unet.addition_time_embed_dim
        told = (read or 0) - second.projection_dim
        if not kind and unet.addition_embed_type != "text_time":
            kind = "a Stable Diffusion without Stable Diffusion XL's conditions, another kind of"
        if not kind and numbers and told == (NUMBERS - 1) * numbers:
            kind = "a Stable Diffusion XL refiner, an image-to-image"
        refuse_unfit(unet, vae, first.hidden_size + second.hidden_size, kind, where)
        if told != NUMBERS * (numbers or 0):
            said = f"{second.projection_dim} + {NUMBERS} x {numbers}"
            raise ModelError(
                f"{where}: UNet ({read}) and text_encoder_2 ({said}) do not fit together",
                "take all parts from one model",
            )
        if first.max_position_embeddings != second.max_position_embeddings:
            lengths = f"{first.max_position_embeddings} and {second.max_position_embeddings}"
            raise ModelError(f"{where}: its text encoders read {lengths} tokens", "take all parts from one model")
        if vae.latents_mean is not None or vae.latents_std is not None:
            raise ModelError(f"{where}: its VAE scales each channel of latents by itself", "give another base")
