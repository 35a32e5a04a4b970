"""The one preprocessing specification: from a decoded picture to what the network reads, equal to timm's to the last
bit.

Importing it needs neither torch nor timm, so that exported models can run without them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from ...core.errors import ModelError

INTERPOLATIONS = {mode.name.lower(): mode for mode in Image.Resampling}
CROP_MODES = ("center", "squash", "border")
# A resized picture of more pixels than this is never made whole; its crop is then resampled alone, within a level or
# two.
LARGEST = 2**26
LARGEST_SIDE = 4096  # of what a network reads, in pixels

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Preprocess:
    """Resize, crop and normalization as `timm.data.create_transform(**config)` does them for evaluation."""

    size: tuple[int, int]
    """Height and width that the network reads, in pixels."""
    crop_pct: float = 0.875
    """Side of the crop over that of the resized picture, 0 to 1."""
    interpolation: str = "bicubic"
    """PIL's filter: nearest, box, bilinear, hamming, bicubic or lanczos."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of red, green and blue in [0, 1]; subtracted."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Of red, green and blue in [0, 1]; divided by."""
    crop_mode: str = "center"
    """What the resize fits to the crop: the shorter side (center), both sides (squash) or the longer, padded (border).
    """

    def __post_init__(self) -> None:
        numbers = (self.crop_pct, *self.mean, *self.std)
        sound = (
            all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in numbers)
            and len(self.size) == 2
            and all(isinstance(side, int) and 0 < side <= LARGEST_SIDE for side in self.size)
            and 0.01 <= self.crop_pct <= 1
            and self.interpolation in INTERPOLATIONS
            and self.crop_mode in CROP_MODES
            and len(self.mean) == len(self.std) == 3
            and all(abs(value) <= 1e4 for value in self.mean)
            and all(1e-4 <= value <= 1e4 for value in self.std)
        )
        if not sound:
            raise ModelError(f"preprocessing cannot be done as described: {self.to_dict()}")

    @classmethod
    def from_timm(cls, config: Mapping[str, Any], size: int | tuple[int, int] | None = None) -> Preprocess:
        """Take over what `timm.data.resolve_data_config` gives; `size` (height and width) goes before its own.

        Raises ModelError.
        """
        try:
            channels, *own = config["input_size"]
            if channels != 3:
                raise ModelError(
                    f"a model that reads {channels} channels is not supported", "give one for RGB pictures"
                )
            height, width = own if size is None else (size, size) if isinstance(size, int) else size
            return cls(
                size=(int(height), int(width)),
                crop_pct=float(config["crop_pct"]),
                interpolation=config["interpolation"],
                mean=tuple(config["mean"]),
                std=tuple(config["std"]),
                crop_mode=config.get("crop_mode") or "center",
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ModelError(f"preprocessing is not described as timm does ({error})") from None

    def to_timm(self) -> dict[str, Any]:
        """Give the arguments of `timm.data.create_transform`."""
        config = asdict(self)
        return {"input_size": (3, *config.pop("size")), **config}

    def to_dict(self) -> dict[str, Any]:
        """Give plain JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Preprocess:
        """Read what `to_dict` gave. Raises ModelError."""
        try:
            fields: dict[str, Any] = {
                name: tuple(part) if isinstance(part, list) else part for name, part in value.items()
            }
            return cls(**fields)
        except (TypeError, AttributeError) as error:
            raise ModelError(f"preprocessing is not described as femtobooth does ({error})") from None

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON, hexadecimal."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def pixels(self, image: Image.Image) -> np.ndarray:
        """Resize and crop a picture of mode RGB: uint8 (H, W, 3), values 0 to 255."""
        target = self.size
        scaled = tuple(math.floor(side / self.crop_pct) for side in target)
        width, height = _resized(image.width, image.height, scaled, self.crop_mode)
        fill = tuple(round(255 * value) for value in self.mean) if self.crop_mode == "border" else (0, 0, 0)
        return _resize_and_crop(image, (width, height), target, INTERPOLATIONS[self.interpolation], fill)

    def normalize(self, batch: Batch) -> Batch:
        """Turn uint8 (B, H, W, 3), a torch tensor or a numpy array, to float32 (B, 3, H, W) of the same kind."""
        if isinstance(batch, np.ndarray):
            planes = batch.transpose(0, 3, 1, 2).astype(np.float32, order="C")
            mean, std = (np.asarray(values, np.float32).reshape(3, 1, 1) for values in (self.mean, self.std))
            planes /= np.float32(255)
            planes -= mean
            planes /= std
            return planes  # type: ignore[return-value]
        import torch

        tensor: Any = batch
        floats = tensor.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        constants = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        middle, spread = (one.to(floats.device, non_blocking=True) for one in constants)
        return floats.div_(255).sub_(middle).div_(spread)


def _resized(width: int, height: int, scaled: tuple[int, ...], crop_mode: str) -> tuple[int, int]:
    """Compute the width and height before the crop; each rounding is that of timm or torchvision."""
    if crop_mode == "squash":
        return scaled[1], scaled[0]
    if crop_mode == "center" and scaled[0] == scaled[1]:  # torchvision's Resize(int)
        longer = int(scaled[0] * max(width, height) / min(width, height))
        return (scaled[0], longer) if width <= height else (longer, scaled[0])
    ratios = height / scaled[0], width / scaled[1]  # timm's ResizeKeepRatio
    ratio = max(ratios) if crop_mode == "border" else min(ratios)
    return max(round(width / ratio), 1), max(round(height / ratio), 1)


def _resize_and_crop(
    image: Image.Image,
    resized: tuple[int, int],
    target: tuple[int, int],
    filter: Image.Resampling,
    fill: tuple[int, ...],
) -> np.ndarray:
    """Cut the middle `target` (height, width) of a picture of size `resized` (width, height), padded where that is
    smaller.

    The picture is resized whole and cropped then: PIL rounds between its passes, in an order that depends on the whole
    size (and on PIL's version), so that nothing less gives the same bits.
    """
    (left, x0, x1), (top, y0, y1) = (_middle(have, want) for have, want in zip(resized, reversed(target), strict=True))
    width, height = resized
    if width * height <= LARGEST:
        part = image.resize(resized, filter).crop((x0, y0, x1, y1))
    else:
        across, down = image.width / width, image.height / height
        part = image.resize((x1 - x0, y1 - y0), filter, box=(x0 * across, y0 * down, x1 * across, y1 * down))
    if part.size != (target[1], target[0]):
        canvas = Image.new("RGB", (target[1], target[0]), fill)
        canvas.paste(part, (x0 - left, y0 - top))
        part = canvas
    return np.array(part)


def _middle(have: int, want: int) -> tuple[int, int, int]:
    """Say where a crop of `want` out of `have` pixels starts (negative: padding), and which of its pixels exist: first,
    end.
    """
    start = round((have - want) / 2) if have >= want else -((want - have) // 2)
    return start, max(start, 0), min(start + want, have)
