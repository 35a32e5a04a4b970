"""Settings of how pictures are sampled. The text under each field is its help on the command line."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from ..core.config import MaybeEmpty, Settings
from ..core.fields import Flag

Sampler = Literal["ddim", "plms", "euler", "euler-a", "dpmpp-2m", "unipc"]


class SamplingSettings(Settings):
    sampler: Annotated[Sampler, Flag("--sampler", common=True)] = "ddim"
    """Solver of the reverse diffusion: ddim, plms (not for zero-terminal-SNR models), euler, euler-a, dpmpp-2m or
    unipc; bases that flow take euler alone.
    """
    steps: Annotated[int, Field(ge=1, le=999), Flag("--steps", common=True, unit="steps")] = 30
    """Denoising steps for each picture."""
    guidance: Annotated[float, Field(ge=0), Flag("--guidance", common=True, unit="scale")] = 7.5
    """Classifier-free guidance scale; 1 and below turn guidance off. FLUX.1-dev reads it as one more input."""
    guidance_rescale: Annotated[float, Field(ge=0, le=1), Flag("--guidance-rescale", unit="share")] = 0.0
    """How far guided predictions are scaled back to the unguided contrast (arXiv 2305.08891, eq. 15-16), 0 to 1."""
    negative: Annotated[MaybeEmpty, Flag("--negative", common=True)] = None
    """What the pictures should not show; needs guidance above 1. Without it guidance starts from no prompt: for Stable
    Diffusion 1.x and 2.x from the empty one, for XL from zeros, which `""` is not.
    """
    tiles: Annotated[bool, Flag("--tiles")] = False
    """Decode pictures larger than 512 pixels in overlapping tiles of that size, as diffusers does: less memory, and
    slightly other colours.
    """

    @model_serializer(mode="wrap")
    def _without_tiles(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave `tiles` out where there are none, so that what was drawn before there were any keeps its keys."""
        return {name: value for name, value in plain(self).items() if name != "tiles" or value}

    def without_effect(self) -> dict[str, str]:
        """Name what guidance brings, where there is none."""
        if self.guidance > 1:
            return {}
        why = f"at guidance {self.guidance:g}, which turns guidance off; it starts above 1"
        return {name: why for name in ("negative", "guidance_rescale") if getattr(self, name)}

    def keyed(self, empty_is_none: bool) -> dict[str, Any]:
        """Give what of it decides what a picture shows, for the keys of caches: the same for the empty negative prompt
        and none, where the model says that they are.
        """
        return self.model_dump() | ({"negative": self.negative or ""} if empty_is_none else {})
