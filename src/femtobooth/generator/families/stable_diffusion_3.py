"""Stable Diffusion 3 and 3.5 (Esser et al., arXiv 2403.03206): a transformer that text and picture go through together,
and a straight flow.

Text is the last hidden states but one of two CLIPs side by side, and below them what T5 makes of the prompt; beside it
stand the projected ends of both CLIPs. T5 is left out where the folder has none: zeros are in its place then, as the
paper trained it to bear.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from ...core.errors import ModelError
from ..prompts import Reader
from .family import Condition, TokenTable
from .flow_family import TRANSFORMER, FlowFamily, refuse_unfit
from .unet_family import ADAPTED_IN_CLIP

STATES, POOLED = "encoder_hidden_states", "pooled_projections"
T5 = "text_encoder_3"
_JOINT = r"attn2?\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
_FF = r"ff(_context)?\.net\.(0\.proj|2)"
_MODULATION = r"norm1\.linear"  # that of text is turned in the last block of other programs


def _within(*ends: str) -> str:
    return rf"transformer_blocks\.\d+\.({'|'.join(ends)})"


@dataclass(kw_only=True)
class StableDiffusion3(FlowFamily):
    """The parts of a Stable Diffusion 3 or 3.5 text-to-image model, all three text encoders among them."""

    PIPELINES = ("StableDiffusion3Pipeline",)
    NETWORKS = {
        TRANSFORMER: SD3Transformer2DModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModelWithProjection,
        "text_encoder_2": CLIPTextModelWithProjection,
        T5: T5EncoderModel,
    }
    TEXT_ENCODERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2", T5: "tokenizer_3"}
    TOKENIZERS = {"tokenizer_3": T5TokenizerFast}
    FROZEN: ClassVar[Sequence[str]] = (T5,)
    T5_TOKENS: ClassVar[int] = 256
    """Tokens that T5 reads, as diffusers' pipeline has it, or zeros in their place."""
    ATTENTION = (".attn.", ".attn2.")
    NAME = "Stable Diffusion 3"
    architecture = "stable-diffusion-3"
    KOHYA = {TRANSFORMER: "lora_transformer_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
    CLIPS = {"text_encoder": ("clip_l",), "text_encoder_2": ("clip_g",)}
    ADAPTED = {
        TRANSFORMER: {
            "attention": _within(_JOINT),
            "attention+ff": _within(_JOINT, _FF),
            "all": _within(_JOINT, _FF, _MODULATION),
        },
        "text_encoder": ADAPTED_IN_CLIP,
        "text_encoder_2": ADAPTED_IN_CLIP,
    }

    tokenizer: CLIPTokenizer
    tokenizer_2: CLIPTokenizer
    text_encoder: CLIPTextModelWithProjection
    text_encoder_2: CLIPTextModelWithProjection
    tokenizer_3: T5TokenizerFast | None = None
    text_encoder_3: T5EncoderModel | None = None

    @classmethod
    def of_folder(cls, folder: Path, index: Mapping[str, Any]) -> type[StableDiffusion3]:
        """Say whether a folder holds T5, by its index and by what is there."""
        told = index.get(T5, ())
        return cls if (folder / T5).is_dir() or (told and told[0]) else StableDiffusion3WithoutT5

    @property
    def largest(self) -> int:
        """Pixels along a side for which the transformer knows positions."""
        return int(self.transformer.config.pos_embed_max_size) * self.step

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Turn prompts into token ids (B, L + L + 256), by both CLIPs' tokenizers and T5's side by side."""
        clips = (self.tokenizer, self.tokenizer_2)
        how: dict[str, Any] = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        ids = [one(list(prompts), max_length=self.clip_length, **how).input_ids for one in clips]
        if self.tokenizer_3 is not None:
            ids.append(self.tokenizer_3(list(prompts), max_length=self.T5_TOKENS, **how).input_ids)
        return torch.cat(ids, dim=1)

    @property
    def reader(self) -> Reader:
        """Say T5's reading, where it is there: CLIP's end after 75 word pieces, as diffusers' pipeline has it."""
        return super().reader if self.tokenizer_3 is None else Reader(self.tokenizer_3, self.T5_TOKENS - 1)

    @property
    def clip_length(self) -> int:
        """How many tokens both CLIPs read."""
        return int(min(self.tokenizer.model_max_length, self.tokenizer_2.model_max_length))

    def condition(self, tokens: Tensor) -> Condition:
        """Encode token ids (B, L + L + 256): states of both CLIPs (B, L, D1 + D2), with zeros up to T5's width, above
        those of T5 (B, 256, D); and the projected ends of both CLIPs (B, P1 + P2).
        """
        ids = tokens.split([self.clip_length, self.clip_length, tokens.shape[1] - 2 * self.clip_length], dim=1)
        clips = [
            encoder(own.to(encoder.device, non_blocking=True), output_hidden_states=True)
            for encoder, own in zip((self.text_encoder, self.text_encoder_2), ids, strict=False)
        ]
        states = torch.cat([one.hidden_states[-2] for one in clips], dim=-1)
        if self.text_encoder_3 is None:
            below = states.new_zeros(len(tokens), self.T5_TOKENS, int(self.transformer.config.joint_attention_dim))
        else:
            below = self.text_encoder_3(ids[2].to(self.text_encoder_3.device, non_blocking=True))[0]
        above = functional.pad(states, (0, below.shape[-1] - states.shape[-1]))
        pooled = torch.cat([one.text_embeds for one in clips], dim=-1)
        return Condition({STATES: torch.cat([above, below.to(above.dtype)], dim=1), POOLED: pooled})

    def denoise(self, noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        return self.transformer(hidden_states=noisy, timestep=timesteps.expand(len(noisy)), **condition.tensors).sample

    def token_tables(self) -> Sequence[TokenTable]:
        """Give both CLIPs' tables; T5 knows no word that is trained, as in other programs."""
        return [
            TokenTable(self.tokenizer, self.text_encoder, self.text_encoder.text_model.embeddings, True),
            TokenTable(self.tokenizer_2, self.text_encoder_2, self.text_encoder_2.text_model.embeddings, True),
        ]

    def pipeline(self) -> Any:
        from diffusers import StableDiffusion3Pipeline

        parts = {T5: None, "tokenizer_3": None} | {name: getattr(self, name) for name in self.folders()}
        return StableDiffusion3Pipeline(**parts)

    @classmethod
    def refuse_misfits(cls, networks: Mapping[str, Any], where: object) -> None:
        """Raise ModelError where networks do not fit together."""
        transformer, vae, *texts = (networks[name].config for name in cls.NETWORKS)
        reads, clips = transformer.joint_attention_dim, texts[0].hidden_size + texts[1].hidden_size
        refuse_unfit(transformer.in_channels, vae, reads, texts[2].d_model if len(texts) > 2 else reads, where)
        sizes = (transformer.sample_size, transformer.patch_size)
        if not all(isinstance(one, int) and one > 0 for one in sizes) or sizes[0] % sizes[1]:
            raise ModelError(f"{where}: latents of {sizes[0]} cells in patches of {sizes[1]}", "give another base")
        ends = texts[0].projection_dim + texts[1].projection_dim
        if clips > reads or ends != transformer.pooled_projection_dim:
            read = f"{reads} and {transformer.pooled_projection_dim}"
            raise ModelError(
                f"{where}: transformer ({read}) and CLIPs ({clips} and {ends}) do not fit together",
                "take all parts from one model",
            )


@dataclass(kw_only=True)
class StableDiffusion3WithoutT5(StableDiffusion3):
    """The same without its largest text encoder."""

    NETWORKS = {name: kind for name, kind in StableDiffusion3.NETWORKS.items() if name != T5}
    TEXT_ENCODERS = {name: own for name, own in StableDiffusion3.TEXT_ENCODERS.items() if name != T5}
    FROZEN = ()
