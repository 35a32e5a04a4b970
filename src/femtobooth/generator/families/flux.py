"""FLUX.1 (Black Forest Labs, 2024): a transformer that text and picture go through together, at first each by its own
weights, and a straight flow.

Text is what T5 makes of the prompt, and beside it stands the end of a CLIP. FLUX.1-dev is told guidance as a number,
for which it was distilled (arXiv 2210.03142): one prediction a step, and no negative prompt. FLUX.1-schnell is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from ...core.errors import ModelError
from ..prompts import Reader
from .family import GUIDANCE, Condition, TokenTable
from .flow_family import TRANSFORMER, FlowFamily, refuse_unfit
from .unet_family import ADAPTED_IN_CLIP

STATES, POOLED = "encoder_hidden_states", "pooled_projections"
T5 = "text_encoder_2"
T5_TOKENS = 512
"""Tokens that T5 reads, as diffusers' pipeline has it."""
PATCH = 2
"""Cells along one side of a patch, whose numbers are channels to the transformer."""
TRAINED_AT = 1.0
"""The guidance that training tells, as diffusers' script does unless it is told another."""
_ATTENTION = r"attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
_FF = r"ff(_context)?\.net\.(0\.proj|2)|proj_mlp|proj_out"
_MODULATION = r"norm(1|1_context)?\.linear"


def _within(*ends: str) -> str:
    return rf"(single_)?transformer_blocks\.\d+\.({'|'.join(ends)})"


@dataclass(kw_only=True)
class Flux(FlowFamily):
    """The seven parts of a FLUX.1 text-to-image model."""

    PIPELINES = ("FluxPipeline",)
    NETWORKS = {
        TRANSFORMER: FluxTransformer2DModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        T5: T5EncoderModel,
    }
    TEXT_ENCODERS = {"text_encoder": "tokenizer", T5: "tokenizer_2"}
    TOKENIZERS = {"tokenizer_2": T5TokenizerFast}
    FROZEN = (T5,)
    ATTENTION = (".attn.",)
    EVENLY = True
    NAME = "FLUX.1"
    KOHYA = {TRANSFORMER: "lora_transformer_", "text_encoder": "lora_te1_"}
    CLIPS = {"text_encoder": ("clip_l",)}
    ADAPTED = {
        TRANSFORMER: {
            "attention": _within(_ATTENTION),
            "attention+ff": _within(_ATTENTION, _FF),
            "all": _within(_ATTENTION, _FF, _MODULATION),
        },
        "text_encoder": ADAPTED_IN_CLIP,
    }

    tokenizer: CLIPTokenizer
    tokenizer_2: T5TokenizerFast
    text_encoder: CLIPTextModel
    text_encoder_2: T5EncoderModel

    @property
    def architecture(self) -> str:
        return "flux-1-dev" if self.embeds_guidance else "flux-1-schnell"

    @property
    def embeds_guidance(self) -> bool:
        return bool(self.transformer.config.guidance_embeds)

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config.latent_channels)

    @property
    def patch(self) -> int:
        return PATCH

    @property
    def reader(self) -> Reader:
        """Say T5's reading; CLIP's ends after 75 word pieces."""
        return Reader(self.tokenizer_2, T5_TOKENS - 1)

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Turn prompts into token ids (B, L + 512), by CLIP's tokenizer and T5's side by side."""
        how: dict[str, Any] = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        clip = self.tokenizer(list(prompts), max_length=self.tokenizer.model_max_length, **how).input_ids
        return torch.cat([clip, self.tokenizer_2(list(prompts), max_length=T5_TOKENS, **how).input_ids], dim=1)

    def last_place(self, prompt: str) -> int:
        return len(self.tokenizer_2(prompt).input_ids) - 2

    def condition(self, tokens: Tensor) -> Condition:
        """Encode token ids (B, L + 512): T5's last states (B, 512, D), and CLIP's at the prompt's end (B, P)."""
        clip, t5 = tokens[:, :-T5_TOKENS], tokens[:, -T5_TOKENS:]
        states = self.text_encoder_2(t5.to(self.text_encoder_2.device, non_blocking=True))[0]
        pooled = self.text_encoder(clip.to(self.text_encoder.device, non_blocking=True)).pooler_output
        dtype = self.denoiser.dtype  # which T5 may not be held in
        return Condition({STATES: states.to(dtype), POOLED: pooled.to(dtype)})

    def denoise(self, noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """Predict (B, c, h, w), with each 2 x 2 cells as one token of 4 c channels; at the guidance of training where
        the condition says none.
        """
        rows, _, height, width = noisy.shape
        told = dict(condition.tensors)
        if self.embeds_guidance and GUIDANCE not in told:
            told[GUIDANCE] = noisy.new_full((rows,), TRAINED_AT)
        grid = torch.zeros(height // PATCH, width // PATCH, 3, device=noisy.device)
        grid[..., 1] += torch.arange(height // PATCH, device=noisy.device)[:, None]
        grid[..., 2] += torch.arange(width // PATCH, device=noisy.device)[None]
        found = self.transformer(
            hidden_states=functional.pixel_unshuffle(noisy, PATCH).flatten(2).transpose(1, 2).contiguous(),
            timestep=timesteps.expand(rows).to(noisy.dtype) / 1000,
            txt_ids=grid.new_zeros(told[STATES].shape[1], 3),
            img_ids=grid.flatten(0, 1),
            **told,
        ).sample
        return functional.pixel_shuffle(found.transpose(1, 2).unflatten(2, grid.shape[:2]).contiguous(), PATCH)

    def token_tables(self) -> Sequence[TokenTable]:
        """Give CLIP's table; T5 knows no word that is trained, as in other programs."""
        return [TokenTable(self.tokenizer, self.text_encoder, self.text_encoder.embeddings, reads_end=True)]

    def pipeline(self) -> Any:
        from diffusers import FluxPipeline

        return FluxPipeline(**{name: getattr(self, name) for name in self.folders()})

    @classmethod
    def refuse_misfits(cls, networks: Mapping[str, Any], where: object) -> None:
        """Raise ModelError where networks are of another kind of FLUX or do not fit together."""
        transformer, vae, clip, t5 = (networks[name].config for name in cls.NETWORKS)
        channels = transformer.out_channels or transformer.in_channels
        if transformer.in_channels != channels:
            raise ModelError(f"{where}: a FLUX.1 that also reads a picture", "give a text-to-image FLUX.1")
        refuse_unfit(channels // PATCH**2, vae, transformer.joint_attention_dim, t5.d_model, where)
        if transformer.patch_size != 1 or channels % PATCH**2:
            raise ModelError(f"{where}: a FLUX.1 of another size of patches", "give another base")
        if transformer.pooled_projection_dim != clip.hidden_size:
            raise ModelError(
                f"{where}: transformer ({transformer.pooled_projection_dim}) and CLIP ({clip.hidden_size}) do not fit "
                "together",
                "take all parts from one model",
            )
