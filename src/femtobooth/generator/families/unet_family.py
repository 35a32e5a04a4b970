"""What families with a UNet over a VAE's latents share: noise process, sizes, places of adapters, what fits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel

from ...core.errors import ModelError
from ...core.tensors import DAMAGED
from ..process import DDPM
from . import known
from .family import Family

CLASS_EMBEDDINGS = {"projection": "an unCLIP", "timestep": "an upscaling", "simple_projection": "an audio"}
INPUT_CHANNELS = {9: "an inpainting", 5: "a depth-to-image", 8: "an editing (instruct-pix2pix)", 7: "an upscaling"}
# Layers by the ends of their names: the UNet's attention, its feed-forward, and what kohya's `conv_dim` adds besides;
# the text encoder's attention and its feed-forward.
_CROSS, _FF = r"attn[12]\.(to_[qkv]|to_out\.0)", r"ff\.net\.(0\.proj|2)"
_REST = r"proj_(in|out)|conv[12]|conv_shortcut|time_emb_proj|(down|up)samplers\.0\.conv"
_SELF, _MLP = r"self_attn\.(q|k|v|out)_proj", r"mlp\.fc[12]"


def _within(*ends: str) -> str:
    return rf".*\.({'|'.join(ends)})"


ADAPTED_IN_UNET = {
    "attention": _within(_CROSS),
    "attention+ff": _within(_CROSS, _FF),
    "all": _within(_CROSS, _FF, _REST),
}
ADAPTED_IN_CLIP = {"attention": _within(_SELF), **dict.fromkeys(("attention+ff", "all"), _within(_SELF, _MLP))}


@dataclass(kw_only=True)
class UNetFamily(Family):
    """A model whose denoiser is a UNet (arXiv 2112.10752), by whatever encoders it is told what to draw."""

    DENOISER = "unet"
    ATTENTION = (".attn1.", ".attn2.")
    CELLS: ClassVar[int]
    """Native latent width and height of a UNet whose config does not say."""

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler: SchedulerMixin

    @property
    def process(self) -> DDPM:
        return DDPM(self.scheduler)

    @property
    def latent_channels(self) -> int:
        return int(self.unet.config.in_channels)

    @property
    def cells(self) -> int:
        """Native latent width and height; of a UNet that is not square the smaller one."""
        given = self.unet.config.sample_size
        return min(given) if isinstance(given, (list, tuple)) else int(given or self.CELLS)

    @property
    def step(self) -> int:
        """Pixels that are one cell at the UNet's coarsest level: 64 in Stable Diffusion, 16 in the bundled base."""
        return int(self.vae_factor * 2 ** (len(self.unet.config.block_out_channels) - 1))


def refuse_unfit(unet: Any, vae: Any, text_width: int, other: str | None, where: object) -> None:
    """Raise ModelError where the configs of UNet and VAE do not fit each other or a text of this width, or where they
    are of a model of the kind `other`.
    """
    if other:
        reads = f": its UNet reads {unet.in_channels} channels, its VAE makes {vae.latent_channels}"
        raise ModelError(
            f"{where}: {other} model{reads if unet.in_channels != vae.latent_channels else ''}",
            f"{known.WAY_OUT} (generate has `mask` for inpainting)",
        )
    cells = unet.sample_size if isinstance(unet.sample_size, (list, tuple)) else [unet.sample_size or 1]
    if not cells or not all(isinstance(side, int) and side > 0 for side in cells):
        raise ModelError(f"{where}: sample_size {str(unet.sample_size)[:40]} is no size of a latent", DAMAGED)
    if not unet.in_channels == unet.out_channels == vae.latent_channels:
        channels = f"UNet ({unet.in_channels} channels to {unet.out_channels}) and VAE ({vae.latent_channels})"
        raise ModelError(f"{where}: {channels} do not fit together", "take all parts from one model")
    read = unet.cross_attention_dim
    widths = set(read) if isinstance(read, (list, tuple)) else {read}
    if widths != {text_width}:
        reads = " and ".join(map(str, sorted(widths, key=str)))
        raise ModelError(
            f"{where}: UNet ({reads}) and text encoder ({text_width}) do not fit together",
            "take all parts from one model",
        )
    scale = vae.scaling_factor
    if not isinstance(scale, (int, float)) or not math.isfinite(scale) or scale <= 0 or vae.shift_factor:
        raise ModelError(
            f"{where}: its VAE scales latents by {scale} and shifts them by {vae.shift_factor}", "give another base"
        )


def other_kind(unet: Any, vae: Any) -> str | None:
    """Name the kind of model that a UNet's config tells, where it is none of text to image."""
    if known := CLASS_EMBEDDINGS.get(str(unet.class_embed_type)):
        return known
    if unet.num_class_embeds is not None:
        return "an upscaling"
    if unet.addition_embed_type not in (None, "text_time") or unet.encoder_hid_dim_type is not None:
        return "a Kandinsky or DeepFloyd IF"
    if unet.time_cond_proj_dim is not None:
        return "a latent consistency (LCM)"
    return INPUT_CHANNELS.get(unet.in_channels, "another kind of") if unet.in_channels > vae.latent_channels else None
