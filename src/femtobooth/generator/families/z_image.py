"""Z-Image (Z-Image Team, arXiv 2511.22699): a transformer that text and picture go through as one sequence, and a
straight flow.

Text is the last hidden states but one of a language model that is asked as in a chat, as many as the prompt has tokens.
Guidance is femtobooth's everywhere, 1 + s for the scale s of diffusers' pipeline, which adds s times the difference to
what the prompt alone says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from torch import Tensor
from transformers import Qwen2Tokenizer, Qwen3Model

from ...core.errors import ModelError
from ..prompts import Reader
from .family import Condition, TokenTable
from .flow_family import TRANSFORMER, FlowFamily, refuse_unfit

STATES, THERE = "states", "there"
PADDED = -1
"""In the place of tokens after a prompt's end."""
TOKENS = 512
"""Tokens that are read, those of the chat around a prompt among them, as diffusers' pipeline has it."""
_ATTENTION, _FF = r"attention\.(to_[qkv]|to_out\.0)", r"feed_forward\.w[123]"


def _within(*ends: str) -> str:
    return rf"(noise_refiner|context_refiner|layers)\.\d+\.({'|'.join(ends)})"


@dataclass(kw_only=True)
class ZImage(FlowFamily):
    """The five parts of a Z-Image text-to-image model."""

    PIPELINES = ("ZImagePipeline",)
    NETWORKS = {TRANSFORMER: ZImageTransformer2DModel, "vae": AutoencoderKL, "text_encoder": Qwen3Model}
    TEXT_ENCODERS = {"text_encoder": "tokenizer"}
    TOKENIZERS = {"tokenizer": Qwen2Tokenizer}
    FROZEN = ("text_encoder",)
    ATTENTION = (".attention.",)
    EVENLY = True
    NAME = "Z-Image"
    architecture = "z-image"
    KOHYA = {TRANSFORMER: "lora_unet_"}
    ADAPTED = {
        TRANSFORMER: {
            "attention": _within(_ATTENTION),
            "attention+ff": _within(_ATTENTION, _FF),
            "all": _within(_ATTENTION, _FF, r"adaLN_modulation\.0"),
        }
    }

    tokenizer: Qwen2Tokenizer
    text_encoder: Qwen3Model

    def __post_init__(self) -> None:
        self.tokenizer.model_max_length = min(self.tokenizer.model_max_length, TOKENS)

    @property
    def patch(self) -> int:
        return int(self.transformer.config.all_patch_size[0])

    @property
    def reader(self) -> Reader:
        return Reader(self.tokenizer, TOKENS - len(self.tokenizer(self.chat("")).input_ids))

    def chat(self, prompt: str) -> str:
        """Put a prompt into the chat that the language model reads."""
        said = [{"role": "user", "content": prompt}]
        how = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": True}
        return str(self.tokenizer.apply_chat_template(said, **how))

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Turn prompts into token ids (B, L), with -1 after each prompt's end."""
        read = self.tokenizer(
            [self.chat(prompt) for prompt in prompts],
            padding="max_length",
            truncation=True,
            max_length=TOKENS,
            return_tensors="pt",
        )
        return read.input_ids.masked_fill(read.attention_mask == 0, PADDED)

    def last_place(self, prompt: str) -> int:
        before = self.chat("\0").partition("\0")[0]
        return len(self.tokenizer(before + prompt).input_ids) - 1

    def condition(self, tokens: Tensor) -> Condition:
        """Encode token ids (B, L): states (B, L, D), and where there are any (B, L), 1 or 0."""
        ids = tokens.to(self.text_encoder.device, non_blocking=True)
        there = ids != PADDED
        said = self.text_encoder(
            input_ids=ids.clamp(min=0), attention_mask=None if ids.is_meta else there, output_hidden_states=True
        )
        states = said.hidden_states[-2].to(self.denoiser.dtype)  # which may be held in another format
        return Condition({STATES: states, THERE: there.to(states.dtype)})

    def denoise(self, noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """Predict (B, c, h, w); the transformer is told how clean latents are, and predicts x_0 - noise."""
        states, there = condition.tensors[STATES], condition.tensors[THERE]
        length = states.shape[1]
        lengths = [length] * len(noisy) if there.is_meta else there.sum(dim=1, dtype=torch.int64).tolist()
        texts = [row[:count] for row, count in zip(states.expand(len(noisy), -1, -1), lengths, strict=True)]
        clean = (1000 - timesteps.expand(len(noisy))) / 1000
        found = self.transformer([*noisy.unsqueeze(2)], clean, texts, patch_size=self.patch, return_dict=False)[0]
        return -torch.stack([*found]).squeeze(2)

    def token_tables(self) -> Sequence[TokenTable]:
        """Give none: words of a language model are not trained here."""
        return []

    def pipeline(self) -> Any:
        from diffusers import ZImagePipeline

        return ZImagePipeline(**{name: getattr(self, name) for name in self.folders()})

    @classmethod
    def refuse_misfits(cls, networks: Mapping[str, Any], where: object) -> None:
        """Raise ModelError where networks are of another kind of Z-Image or do not fit together."""
        transformer, vae, text = (networks[name].config for name in cls.NETWORKS)
        if transformer.siglip_feat_dim is not None:
            raise ModelError(f"{where}: a Z-Image Omni, which also reads images", "give a text-to-image Z-Image")
        if tuple(transformer.all_f_patch_size) != (1,) or len(transformer.all_patch_size) != 1:
            raise ModelError(f"{where}: a Z-Image of several sizes of patches", "give another base")
        refuse_unfit(transformer.in_channels, vae, transformer.cap_feat_dim, text.hidden_size, where)
