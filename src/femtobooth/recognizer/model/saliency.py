"""Grad-CAM: which places of a picture speak for a class, for any timm network whose last map has two dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from ...core.errors import ModelError

# Dark to bright, growing evenly in lightness, told apart by colour-blind readers too (anchors in the manner of
# "inferno").
_COLOURS = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], np.float64)


def grad_cam(model: torch.nn.Module, batch: torch.Tensor, classes: Sequence[int]) -> np.ndarray:
    """Compute evidence for one class in each picture: float32 (B, h, w) at the size of the last stage's map, scaled to
    0..1.

    Selvaraju et al. 2017 (arXiv 1610.02391), eq. 1 and 2: the channels of the last map weighted by the mean gradient of
    the class's logit, summed, negative parts dropped; then divided by the map's maximum. All zero where nothing speaks
    for the class. `model` is timm's, `batch` normalized (B, 3, H, W), `classes` B logit indices. Weights get no
    gradients.

    Raises ModelError for a network without such a map (a plain vision transformer).
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            features = model.forward_features(batch)  # type: ignore[operator]
        if not isinstance(features, torch.Tensor) or features.ndim != 4:
            raise ModelError(
                f"{type(model).__name__} has no two-dimensional last map", "Grad-CAM needs a convolutional network"
            )
        with torch.enable_grad():
            features = features.detach().requires_grad_()
            logits = model.forward_head(features)  # type: ignore[operator]
            chosen = logits[torch.arange(len(batch)), torch.as_tensor(classes, device=logits.device)]
            (slopes,) = torch.autograd.grad(chosen.sum(), features)
    finally:
        model.train(was_training)
    features = features.detach()
    if (
        features.shape[1] != model.num_features and features.shape[3] == model.num_features
    ):  # (B, h, w, C), as Swin has it
        features, slopes = features.permute(0, 3, 1, 2), slopes.permute(0, 3, 1, 2)
    weights = slopes.mean(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
    maps = (weights * features).sum(dim=1).clamp(min=0)  # (B, h, w)
    highest = maps.amax(dim=(1, 2), keepdim=True)
    return (maps / highest.where(highest > 0, torch.ones_like(highest))).float().cpu().numpy()


def overlay(pixels: np.ndarray, evidence: np.ndarray, strength: float = 0.72) -> np.ndarray:
    """Lay a picture uint8 (H, W, 3) under its map (h, w) in colours: dark and grey where nothing speaks for
    the class.
    """
    height, width = pixels.shape[:2]
    smooth = Image.fromarray(evidence.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    heat = np.asarray(smooth).clip(0, 1)  # (H, W)
    places = heat * (len(_COLOURS) - 1)
    colours = np.stack(
        [np.interp(places, np.arange(len(_COLOURS)), _COLOURS[:, channel]) for channel in range(3)], axis=-1
    )
    grey = pixels.mean(axis=2, keepdims=True)
    part = (strength * heat)[..., None]
    return np.rint((1 - part) * 0.62 * grey + part * colours + 0.25 * part * grey).clip(0, 255).astype(np.uint8)
