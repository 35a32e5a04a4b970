"""Settings of what training minimizes: the loss, and class preservation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ..core.config import Seed, Settings, Words
from ..core.fields import Flag, Flags
from .sampling_settings import SamplingSettings


class PriorSettings(Settings):
    weight: Annotated[float, Flag("--prior-weight", unit="weight")] = Field(1.0, ge=0)
    """Weight of the class-prior loss (lambda in the paper, eq. 2); 0 trains without it and makes no class images."""
    images: Annotated[int, Flag("--class-images", common=True, unit="pictures")] = Field(100, ge=1)
    """Class images for each prompt."""
    folder: Annotated[str | None, Flag("--class-folder", names="folder")] = None
    """Folder of your own class images, instead of generated ones; captions beside them are used."""
    prompt: str = "a photo of a {class}"
    """Prompt of the class images; `{class}` stands for the class noun."""
    other_classes: Annotated[Words, Flag("--other-classes")] = []
    """Further classes to keep as they are: their images are made and trained on in the same way."""
    target: Annotated[Literal["noise", "base", "photos"], Flag("--prior-target")] = "noise"
    """What the prior loss asks for: the true noise of class images (noise, the paper), what the teacher, the frozen
    base, predicts for them (base), or what it predicts for the photos under captions of their class (photos), which
    needs no class images.
    """
    weights: Annotated[float, Flag("--prior-pull", unit="rate")] = Field(0.0, ge=0)
    """How strongly weights are pulled back to the base's: every step takes learning rate x this off the way they have
    gone. It needs no class images; 0 does not pull.
    """
    batch_size: Annotated[int | None, Flag(unit="pictures")] = Field(None, ge=1)
    """Class images per process and micro-step; as many as photos if not given."""
    seed: Seed = 0
    """Seed of the first class image; image i has seed + i."""
    sampling_batch: Annotated[int, Flag(unit="pictures")] = Field(8, ge=1)
    """Class images sampled at a time; does not change them."""
    sampling: Annotated[SamplingSettings, Flags("class images", none=True)] = SamplingSettings()

    @property
    def uses_images(self) -> bool:
        """Whether there are class images."""
        return self.weight > 0 and self.target != "photos"

    def without_effect(self) -> dict[str, str]:
        """Name everything about class images, where there are none."""
        of_images = {"images", "folder", "other_classes", "seed", "sampling_batch"}
        if self.weight == 0:
            idle = (of_images | {"target", "batch_size"}) & self.model_fields_set
            return dict.fromkeys(sorted(idle), "at prior weight 0, which makes no class images")
        if self.target == "photos":
            idle = (of_images | {"sampling"}) & self.model_fields_set
            return dict.fromkeys(sorted(idle), "with prior target photos, which takes no class images")
        return super().without_effect()


class LossSettings(Settings):
    snr_gamma: Annotated[float | None, Flag("--snr-gamma", unit="gamma")] = Field(None, gt=0)
    """Gamma of min-SNR weighting (arXiv 2303.09556; 5 is usual); none weighs all timesteps alike."""
    snr_floor: float = Field(0.05, ge=0)
    """Least min-SNR weight, so that the last step of a zero-terminal-SNR schedule still trains."""
    timestep_mean: Annotated[float, Flag("--timestep-mean", unit="logit")] = Field(0.0, ge=-10, le=10)
    """For rectified flows: mean of the logit-normal distribution that times are drawn from (arXiv 2403.03206, section
    3.1); above 0 there is more noise.
    """
    timestep_std: Annotated[float, Flag("--timestep-std", unit="logit")] = Field(1.0, gt=0, le=10)
    """For rectified flows: standard deviation of the same; 1 leaves out the ends, 1.6 is nearly even."""
    timestep_shift: Annotated[float | None, Flag("--timestep-shift", unit="factor")] = Field(None, gt=0)
    """For rectified flows: how far drawn times are shifted towards noise, for large pictures (the same, equation 23);
    as the base's own scheduler shifts them if not given.
    """
    background: Annotated[Literal["photos", "class"], Flag("--background")] = "photos"
    """What teaches the background: the photos (the paper), which then leak into every picture, or the base,
    on class images.
    """
    unmasked_weight: Annotated[float, Flag("--unmasked-weight", unit="weight")] = Field(0.0, ge=0, le=1)
    """Weight of the loss on a photo outside of its mask; 0 learns nothing there, 1 as much as inside."""

    def of_flows(self) -> list[str]:
        """Name what is set of how a rectified flow's timesteps are drawn."""
        names = ("timestep_mean", "timestep_std", "timestep_shift")
        return [name for name in names if getattr(self, name) != type(self).model_fields[name].default]

    def without_effect(self) -> dict[str, str]:
        """Name the floor of a weighting that is off."""
        return (
            dict.fromkeys({"snr_floor"} & self.model_fields_set, "without snr_gamma") if self.snr_gamma is None else {}
        )
