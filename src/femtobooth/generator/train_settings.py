"""Settings of what trains and how fast, and of an adapter that trains beside frozen weights."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, Literal, TypeVar

from pydantic import Field, model_validator

from ..core.config import Settings
from ..core.errors import SettingsError, needs
from ..core.fields import Flag
from ..core.machine import Precision

ROUNDING = "bitsandbytes"
"""What rounds frozen weights."""
RATE = "_learning_rate"
"""What the names of learning rates end with."""


class TrainSettings(Settings):
    parts: Annotated[
        list[Literal["unet", "attention", "text_encoder", "token", "lora"]], Flag("--train", common=True)
    ] = Field(["unet", "text_encoder"], min_length=1)
    """What trains: unet (or transformer), attention (its attention layers only), text_encoder, token (only the new
    word's embedding), lora (an adapter of a few MB beside frozen weights; with token it is pivotal tuning).
    """
    unet_learning_rate: Annotated[float, Flag("--unet-lr", unit="rate")] = Field(2e-6, gt=0)
    """Learning rate of the UNet or its attention layers."""
    text_encoder_learning_rate: Annotated[float, Flag("--text-encoder-lr", unit="rate")] = Field(2e-6, gt=0)
    """Learning rate of the text encoder."""
    text_encoder_2_learning_rate: Annotated[float | None, Flag("--text-encoder-2-lr", unit="rate")] = Field(None, gt=0)
    """Learning rate of a second text encoder, as Stable Diffusion XL has one; the first's if not given."""
    token_learning_rate: Annotated[float, Flag("--token-lr", unit="rate")] = Field(5e-3, gt=0)
    """Learning rate of the token embedding."""
    frozen_precision: Annotated[Precision, Flag("--frozen-precision")] = "fp32"
    """Number format of the weights beside a LoRA, which do not train: fp16 and bf16 take half the memory, int8 a
    quarter and nf4 an eighth (extra 8bit); the LoRA itself stays fp32.
    """

    @property
    def held(self) -> Precision:
        """What the weights of the networks that can train are held in."""
        return self.frozen_precision if "lora" in self.parts else "fp32"

    @model_validator(mode="after")
    def _consistent(self) -> TrainSettings:
        if {"unet", "attention"} <= set(self.parts):
            raise ValueError("unet already trains the attention layers; name one of them")
        if {"text_encoder", "token"} <= set(self.parts):
            raise ValueError("text_encoder already trains the token; name one of them")
        whole = {"unet", "attention", "text_encoder"} & set(self.parts)
        if whole and "lora" in self.parts:
            raise ValueError(f"lora trains beside frozen weights, {sorted(whole)[0]} trains those; name one of them")
        return self

    def refuse_at_once(self) -> None:
        """Raise SettingsError where the package is missing that rounds weights to 8 or 4 bits."""
        super().refuse_at_once()
        if self.held in ("int8", "nf4") and find_spec(ROUNDING) is None:
            raise SettingsError(
                f"`train.frozen_precision={self.held}`: {ROUNDING} is not installed", f"{needs('8bit')}, or use bf16"
            )

    def without_effect(self) -> dict[str, str]:
        """Name the learning rates of what does not train."""
        users = {"unet": {"unet", "attention"}, "text_encoder": {"text_encoder"}, "token": {"token"}}
        users["text_encoder_2"] = users["text_encoder"]
        idle = [f"{part}{RATE}" for part, needed in users.items() if not needed & set(self.parts)]
        rates = " (`lora` has rates of its own)" if "lora" in self.parts else ""
        found = {
            name: f"as only {' and '.join(self.parts)} is trained{rates}"
            for name in idle
            if name in self.model_fields_set
        }
        if "lora" not in self.parts:
            found |= dict.fromkeys({"frozen_precision"} & self.model_fields_set, "without lora in train.parts")
        return found


class LoraSettings(Settings):
    kind: Annotated[Literal["lora", "dora", "loha", "lokr", "oft"], Flag("--lora-kind")] = "lora"
    """What carries the change: lora, which every program reads; dora (A1111 draws it wrongly); loha or lokr (A1111,
    Forge and ComfyUI read them, diffusers does not); oft, of Linear layers alone (ComfyUI and OneTrainer read it).
    """
    rank: Annotated[int, Flag("--rank", unit="rank")] = Field(16, ge=1)
    """Rank of each layer's change: more holds more, in a larger file; the size of a block for oft."""
    alpha: Annotated[float | None, Flag("--alpha", unit="alpha")] = Field(None, gt=0)
    """The change is scaled by alpha / rank; the rank itself if not given."""
    rank_stabilised: Annotated[bool, Flag("--rank-stabilised")] = False
    """Scale by alpha / sqrt(rank) instead, so that a large rank learns as fast as a small one (arXiv 2312.03732)."""
    targets: Annotated[Literal["attention", "attention+ff", "all"], Flag("--lora-targets")] = "attention"
    """Which layers get one: attention, attention and feed-forward, or also the UNet's projections and convolutions."""
    text_encoder: Annotated[bool, Flag("--lora-text-encoder")] = True
    """Whether the text encoder gets one too."""
    unet_learning_rate: Annotated[float, Flag("--lora-unet-lr", unit="rate")] = Field(1e-4, gt=0)
    """Learning rate of the UNet's."""
    text_encoder_learning_rate: Annotated[float, Flag("--lora-text-encoder-lr", unit="rate")] = Field(5e-5, gt=0)
    """Learning rate of the text encoder's."""
    text_encoder_2_learning_rate: Annotated[float | None, Flag("--lora-text-encoder-2-lr", unit="rate")] = Field(
        None, gt=0
    )
    """Learning rate of a second text encoder's; the first's if not given."""

    def without_effect(self) -> dict[str, str]:
        """Name what the other settings leave without a use."""
        found: dict[str, str] = {}
        if not self.text_encoder:
            names = ("text_encoder_learning_rate", "text_encoder_2_learning_rate")
            found |= dict.fromkeys(names, "without lora.text_encoder")
        if self.kind == "oft":
            found |= dict.fromkeys(("alpha", "rank_stabilised"), "with oft, which turns weights and scales nothing")
        return {name: why for name, why in found.items() if name in self.model_fields_set}


Rates = TypeVar("Rates", TrainSettings, LoraSettings)


def with_rates(settings: Rates, value: float) -> Rates:
    """Give settings in which the learning rates that nobody gave are `value`."""
    rates = {name for name in type(settings).model_fields if name.endswith(RATE)}
    free = {name for name in rates - settings.model_fields_set if getattr(settings, name) is not None}
    return settings.model_copy(update=dict.fromkeys(free, value))


def learning_rates(train: TrainSettings, lora: LoraSettings) -> dict[str, float]:
    """Give the learning rates of what trains, by their dotted names."""
    of = {"attention": ["train.unet"], "lora": ["lora.unet", *["lora.text_encoder"] * lora.text_encoder]}
    names = [f"{name}{RATE}" for part in train.parts for name in of.get(part, [f"train.{part}"])]
    groups = {"train": train, "lora": lora}
    names += [name.replace("text_encoder", "text_encoder_2") for name in names if "text_encoder" in name]
    found = {name: getattr(groups[name.partition(".")[0]], name.partition(".")[2]) for name in dict.fromkeys(names)}
    return {name: rate for name, rate in found.items() if rate is not None}
