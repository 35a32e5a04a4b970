"""The interface of a family of models: all that femtobooth asks of a text-to-image latent diffusion model.

A new family is one file beside this one and a row in `known.FAMILIES`. Training, the teacher, sampling, the search for
an identifier and the deterministic loss know a model by this alone; none of them names a UNet or a text encoder.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from ...core.machine import Precision
from ..loss_settings import LossSettings
from ..process import NoiseProcess
from ..prompts import Reader

TILE = 512
"""Pixels along a side of the tiles that pictures are decoded in."""
GUIDANCE = "guidance"
"""In a condition: the scale of guidance (B,) that a denoiser is told."""


@dataclass(frozen=True)
class Condition:
    """What a denoiser is told beside noise and time: tensors by name, whose first axis is the batch."""

    tensors: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, rows: Tensor | slice) -> Condition:
        return Condition({name: tensor[rows] for name, tensor in self.tensors.items()})

    def expand(self, count: int) -> Condition:
        """Repeat the only row `count` times, without copying it."""
        return Condition({name: tensor.expand(count, *tensor.shape[1:]) for name, tensor in self.tensors.items()})

    def to(self, dtype: torch.dtype) -> Condition:
        """Cast every tensor."""
        return Condition({name: tensor.to(dtype) for name, tensor in self.tensors.items()})

    def guided(self, scale: float) -> Condition:
        """Say beside it the scale of guidance, in 32 bits."""
        known = next(iter(self.tensors.values()))
        return Condition({**self.tensors, GUIDANCE: known.new_full((len(self),), scale, dtype=torch.float32)})

    @staticmethod
    def cat(parts: Sequence[Condition]) -> Condition:
        """Put the rows of several conditions below each other."""
        return Condition({name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors})


class TokenTable(NamedTuple):
    """Where the embedding of a word lies: a tokenizer, its text encoder, and the module with `token_embedding`."""

    tokenizer: Any
    text_encoder: Any
    embeddings: Any
    reads_end: bool = False
    """Whether the state at a prompt's end is read by itself."""


@dataclass(kw_only=True)
class Family(ABC):
    """A model of a family in memory, and what is known about it."""

    PIPELINES: ClassVar[Sequence[str]]
    """Its pipelines' names, `_class_name` in model_index.json."""
    NETWORKS: ClassVar[Mapping[str, Any]]
    """The class of each network, by the folder it lies in; also the names of the fields that hold them."""
    DENOISER: ClassVar[str]
    """The network that predicts."""
    TEXT_ENCODERS: ClassVar[Mapping[str, str]]
    """The networks that read prompts, each with the folder of its tokenizer; also the names of the fields."""
    ATTENTION: ClassVar[Sequence[str]]
    """What the names of the denoiser's attention layers hold: what `attention` trains."""
    NAME: ClassVar[str] = ""
    """What people call it."""
    FLOWS: ClassVar[bool] = False
    """Whether its noise process is a straight flow."""
    TOKENIZERS: ClassVar[Mapping[str, Any]] = {}
    """The class of each tokenizer that is not CLIP's, by its folder."""
    FROZEN: ClassVar[Sequence[str]] = ()
    """The text encoders that never train."""
    KOHYA: ClassVar[Mapping[str, str]] = {}
    """How the names of each network's layers begin in kohya's adapter files; a family without has no such files."""
    IN_ORIGINAL_NAMES: ClassVar[bool] = False
    """Whether the denoiser's layers are called as in the original code there."""
    CLIPS: ClassVar[Mapping[str, Sequence[str]]] = {}
    """What ComfyUI calls each text encoder; by the first, files of words do too where there are several."""
    ADAPTED: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    """Where adapters sit: by network and choice of `lora.targets`, a regular expression over whole names of layers."""

    tokenizer: Any
    """Cuts prompts into tokens for the first text encoder."""
    vae: Any
    """Encodes pictures to latents and back: `encode(x).latent_dist` with `mean` and `logvar`, `decode(z).sample`."""
    scheduler: Any
    """The noise schedule that the model was trained with, as diffusers' scheduler."""
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
    held: Precision = "fp32"
    """What the weights of the networks that can train are held in (`frozen`)."""
    states: Callable[[Tensor], Condition] | None = None
    """What knows the conditions of captions, while text encoders that do not train are away (`text_states`)."""
    loss: LossSettings | None = None
    """What training minimizes, where that says how timesteps are drawn."""

    # What a family has of its own

    @classmethod
    def of_folder(cls, folder: Path, index: Mapping[str, Any]) -> type[Family]:
        """Give the class of what lies in a folder of this family: itself, but for families with parts that may be left
        out.
        """
        return cls

    @classmethod
    def of_index(cls, index: Mapping[str, Any]) -> dict[str, Any]:
        """Read from a folder's model_index.json what no part of it says: fields of the family, none of most."""
        return {}

    def index(self) -> dict[str, Any]:
        """Give what `of_index` reads."""
        return {}

    def no_prompt(self) -> Tensor:
        """Give the tokens (1, ...) that stand for no prompt at all, from which guidance starts: the empty prompt's."""
        return self.tokenize([""])

    def unread(self) -> tuple[str, ...]:
        """Name the beginnings, `NETWORK.path`, of parameters that `condition` and `denoise` never compute with."""
        return ()

    @property
    def architecture(self) -> str:
        """Say what modelspec calls it; empty where that depends on the model."""
        return ""

    @property
    def embeds_guidance(self) -> bool:
        """Whether its denoiser is told the scale of guidance (`Condition.guided`), and predicts once for it."""
        return False

    @property
    def empty_is_none(self) -> bool:
        """Whether the empty prompt is the same as none."""
        return torch.equal(self.no_prompt(), self.tokenize([""]))

    @property
    @abstractmethod
    def process(self) -> NoiseProcess:
        """How its latents become noise, and what its denoiser predicts."""

    def process_for(self, height: int, width: int) -> NoiseProcess:
        """Give the noise process of latents of this size in cells: of most families that of any."""
        return self.process

    @property
    def reader(self) -> Reader:
        """Say what reads most of a prompt: of several text encoders the one that cuts it off last."""
        return Reader(self.tokenizer, int(self.tokenizer.model_max_length) - 2)

    @property
    @abstractmethod
    def latent_channels(self) -> int:
        """Channels of a latent."""

    @property
    @abstractmethod
    def cells(self) -> int:
        """Width and height of a latent of its native size."""

    @abstractmethod
    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Turn prompts into token ids (B, ...), int64 on the CPU; only `condition` knows what the other axes mean."""

    @abstractmethod
    def condition(self, tokens: Tensor) -> Condition:
        """Encode what `tokenize` returned for B prompts, on the text encoders' device."""

    def framed(self, condition: Condition, framing: Tensor) -> Condition:
        """Add to the condition of B pictures how they were framed, int64 (B, 6) on the CPU: original height and width,
        top and left of the crop, height and width now, in pixels. Most families are not told.
        """
        return condition

    @abstractmethod
    def denoise(self, noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """Predict (B, c, h, w) from noisy latents (B, c, h, w) at timesteps (B,) or (): the denoiser's only call."""

    def last_place(self, prompt: str) -> int:
        """Say where in the first tensor of its condition the last token of a prompt is."""
        return len(self.tokenizer(prompt).input_ids) - 2  # before the mark of the end

    @abstractmethod
    def token_tables(self) -> Sequence[TokenTable]:
        """Give the table of word embeddings of every text encoder."""

    @abstractmethod
    def pipeline(self) -> Any:
        """Put its parts into the pipeline of diffusers that draws with it."""

    @classmethod
    @abstractmethod
    def refuse_misfits(cls, networks: Mapping[str, Any], where: object) -> None:
        """Raise ModelError where networks, built by their configs, are of another kind or do not fit together."""

    # What all families share

    @property
    def denoiser(self) -> Any:
        """The network that predicts."""
        return getattr(self, self.DENOISER)

    @property
    def text_encoders(self) -> dict[str, Any]:
        """The networks that read prompts, by name."""
        return {name: getattr(self, name) for name in self.TEXT_ENCODERS}

    @property
    def trainable(self) -> dict[str, nn.Module]:
        """The networks that can train, by name: denoiser and text encoders, never the VAE."""
        return {name: getattr(self, name) for name in self.can_train()}

    @classmethod
    def can_train(cls) -> tuple[str, ...]:
        """Name the networks that can train."""
        return (cls.DENOISER, *(name for name in cls.TEXT_ENCODERS if name not in cls.FROZEN))

    @classmethod
    def can_be_rounded(cls) -> tuple[str, ...]:
        """Name the networks that can be held in fewer bits beside an adapter: all but the VAE."""
        return (cls.DENOISER, *cls.TEXT_ENCODERS)

    @classmethod
    def held_in(cls, network: str, precision: Precision) -> Precision:
        """Say what a network's weights are held in where `precision` is asked for: the VAE's in 32 bits, and those of
        large language models, which overflow in fp16, in bf16 in its place.
        """
        if network not in cls.can_be_rounded():
            return "fp32"
        return "bf16" if network in cls.FROZEN and precision == "fp16" else precision

    @classmethod
    def folders(cls) -> tuple[str, ...]:
        """List the folders of diffusers' layout that hold the model."""
        return (*cls.TEXT_ENCODERS.values(), *reversed([*cls.NETWORKS]), "scheduler")

    @property
    def vae_factor(self) -> int:
        """Pixels along one side of a latent cell."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def step(self) -> int:
        """Pixels that sides of pictures are multiples of, so that nothing is left over at any level of the networks."""
        return self.vae_factor

    @property
    def block(self) -> int:
        """Pixels that sides of pictures have to be multiples of, to be drawn at all."""
        return self.vae_factor

    @property
    def largest(self) -> int | None:
        """Pixels along a side that it can draw at the most; None where nothing says."""
        return None

    @property
    def size(self) -> int:
        """Native picture width and height in pixels."""
        return self.cells * self.vae_factor

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return self.denoiser.device

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """Move all networks; returns self."""
        for name in self.NETWORKS:
            getattr(self, name).to(device=device, dtype=dtype)
        return self

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Encode pixels (B, 3, H, W) in [-1, 1]: mean and log-variance (B, c, h, w) of the posterior, unscaled."""
        posterior = self.vae.encode(pixels).latent_dist
        return posterior.mean, posterior.logvar

    def scaled(self, latents: Tensor) -> Tensor:
        """Shift and scale what the VAE encodes to what the denoiser sees."""
        shift = self.vae.config.shift_factor
        return (latents - shift if shift else latents) * self.vae.config.scaling_factor

    def drop_encoder(self) -> None:
        """Free the half of the VAE that encodes: what is left of the model draws and trains, and cannot be written."""
        self.vae.encoder = self.vae.quant_conv = None

    def decode(self, latents: Tensor, tiles: bool = False) -> Tensor:
        """Decode scaled latents (B, c, h, w) to pixels (B, 3, H, W), about [-1, 1]; larger ones than `TILE` piece by
        piece, where `tiles` are asked for.
        """
        shift = self.vae.config.shift_factor
        unscaled = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        unscaled = unscaled + shift if shift else unscaled
        if not tiles:
            return self.vae.decode(unscaled).sample
        self.vae.enable_tiling()
        self.vae.tile_sample_min_size, self.vae.tile_latent_min_size = TILE, TILE // self.vae_factor
        try:
            return self.vae.decode(unscaled).sample
        finally:
            self.vae.disable_tiling()

    def condition_once(self, tokens: Tensor) -> Condition:
        """Encode what `tokenize` returned (B, ...), each different prompt once: class images all share theirs.

        `tokens` are on the CPU, where looking for equal ones makes nobody wait for an accelerator.
        """
        if self.states is not None:
            return self.states(tokens)
        different, which = torch.unique(tokens, dim=0, return_inverse=True)
        return self.condition(different)[which.to(self.device, non_blocking=True)]

    def teacher(self) -> Self:
        """Make the teacher: this model as it is now, frozen, which shares the networks in which nothing trains."""
        frozen: dict[str, Any] = {
            name: copy.deepcopy(network).eval().requires_grad_(False)
            for name, network in self.trainable.items()
            if any(parameter.requires_grad for parameter in network.parameters())
        }
        return replace(self, **frozen)
