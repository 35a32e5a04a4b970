"""Measure LPIPS, how far apart two pictures look, by AlexNet's features and weights learned from people's judgements.

Zhang et al. 2018 (arXiv 1801.03924), eq. 1, version 0.1 with AlexNet. AlexNet's ImageNet weights are torchvision's,
from torch's hub cache; the linear weights come with torchmetrics, which Lightning brings. Nothing is ever fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import util
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..core import tensors as stored
from ..core.errors import ModelError

NAME = "lpips"
CUTS = (0, 2, 5, 8, 10, 12)  # of AlexNet's `features`: each part ends after a ReLU
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pixels from -1 to 1, for R, G, B
BATCH = 16  # pictures


def trunk_file() -> Path:
    """Say where torchvision keeps AlexNet's ImageNet weights, whether they are there or not."""
    from torchvision.models import AlexNet_Weights

    return Path(torch.hub.get_dir()) / "checkpoints" / AlexNet_Weights.IMAGENET1K_V1.url.rpartition("/")[2]


def heads_file() -> Path | None:
    """Find the linear weights in the installed packages; the packages themselves are not imported."""
    for package, part in (
        ("torchmetrics", "functional/image/lpips_models/alex.pth"),
        ("lpips", "weights/v0.1/alex.pth"),
    ):
        spec = util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            if (Path(folder) / part).is_file():
                return Path(folder) / part
    return None


def usable() -> bool:
    """Tell whether LPIPS can be measured here and now."""
    return trunk_file().is_file() and heads_file() is not None


def open_distances(device: torch.device) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    """Open, on a device, a function from N uint8 pictures (H, W, 3), 32 pixels or more, to their LPIPS (N, N).

    Distances are 0 or more, 0 on the diagonal, most below 1. Raises ModelError where the weights are missing or
    damaged.
    """
    from torchvision.models import alexnet

    heads = heads_file()
    if heads is None or not trunk_file().is_file():
        raise ModelError("lpips: AlexNet's or the linear weights are not on this machine", how_to_get())
    model = alexnet(weights=None)
    try:
        model.load_state_dict(stored.read(trunk_file())[0])
        linear = {name: tensor.flatten() for name, tensor in stored.read(heads)[0].items()}
        weights = [linear[f"lin{index}.model.1.weight"] for index in range(len(CUTS) - 1)]  # (C,) each
    except (KeyError, RuntimeError, AttributeError):
        raise ModelError(f"{trunk_file()}: not the weights of torchvision's AlexNet", stored.DAMAGED) from None
    parts = [model.features[start:stop].eval().requires_grad_(False) for start, stop in pairwise(CUTS)]
    parts = [part.to(device) for part in parts]
    weights = [weight.to(device) for weight in weights]
    return lambda pictures: _distances(pictures, parts, weights)


def how_to_get() -> str:
    fetch = "import torchvision; torchvision.models.alexnet(weights='DEFAULT')"
    return f'where there is a network run `python -c "{fetch}"` and copy what it fetches to {trunk_file()}'


@torch.inference_mode()
def _distances(pictures: Sequence[np.ndarray], parts: Sequence[nn.Module], weights: Sequence[Tensor]) -> np.ndarray:
    device = weights[0].device
    shift, scale = (torch.tensor(values, device=device)[:, None, None] for values in (SHIFT, SCALE))
    features: list[list[Tensor]] = [[] for _ in parts]
    for start in range(0, len(pictures), BATCH):
        pixels = torch.from_numpy(np.stack(pictures[start : start + BATCH])).to(device)
        x = pixels.permute(0, 3, 1, 2) / 127.5 - 1  # (B, 3, H, W)
        x = (x - shift) / scale
        for part, kept in zip(parts, features, strict=True):
            x = part(x)
            kept.append(x / (x.norm(dim=1, keepdim=True) + 1e-10))
    found = torch.zeros(len(pictures), len(pictures), device=device)
    for kept, weight in zip(features, weights, strict=True):
        maps = torch.cat(kept)  # (N, C, h, w), each place of length 1
        for row in range(len(maps)):
            apart = (maps - maps[row]) ** 2
            found[row] += (apart * weight[:, None, None]).sum(dim=1).mean(dim=(1, 2))
    return found.cpu().double().numpy()
