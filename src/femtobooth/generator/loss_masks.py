"""How much each latent cell of a picture counts in the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..pictures.regions import subject_masks

Region = Literal["all", "subject", "background"]
MAX_WEIGHT = 5.0  # of a cell of a subject that was found: a smaller one is likely to be something else


def loss_mask(
    pictures: np.ndarray,
    factor: int,
    region: Region,
    masks: Sequence[np.ndarray | None] = (),
    outside: float = 0.0,
    subjects: Sequence[np.ndarray] | None = None,
) -> Tensor:
    """Weigh the latent cells of uint8 (N, H, W, 3) pictures, of which only `region` is to count; float32 (N, 1, H /
    factor, W / factor).

    The subject is what `pictures.regions` finds in all of them and what touches it; the background is everything else.
    The mean is 1, so that a smaller subject is learned as fast as a large one; but no cell counts more than
    `MAX_WEIGHT` times. Outside of a subject, cells count `outside` (0..1) of what they do inside.

    `subjects`, bool (H, W) each, is what was found among more pictures than these, if it was.

    A picture whose mask of `masks`, uint8 (H, W), is not None counts as that says, whatever `region` is: `masked`.
    """
    weights = torch.ones(len(pictures), 1, pictures.shape[1] // factor, pictures.shape[2] // factor)
    if region != "all":
        subjects = subject_masks(list(pictures)) if subjects is None else subjects
        found = torch.from_numpy(np.stack(subjects)).float()[:, None]  # (N, 1, H, W)
        subject = functional.max_pool2d(functional.max_pool2d(found, factor), 3, stride=1, padding=1)
        wanted = outside + (1 - outside) * subject if region == "subject" else 1 - subject
        weights = wanted / wanted.mean(dim=(1, 2, 3), keepdim=True).clamp(min=1 / MAX_WEIGHT)
    for index, mask in enumerate(masks):
        if mask is not None:
            weights[index] = masked(mask, factor, outside)
    return weights


def masked(mask: np.ndarray, factor: int, outside: float = 0.0) -> Tensor:
    """Weigh latent cells by a mask, uint8 (H, W) with 255 where all counts; float32 (1, H / factor, W / factor).

    A cell counts as the highest of its pixels, not as their mean, by which a strap or a whisker would hardly count. The
    mean is 1 whatever the area, so that the loss of a constant error does not depend on it. Of an empty mask all cells
    count alike, and not at all where `outside` is 0.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(mask)).float()[None] / 255  # (1, H, W)
    cells = outside + (1 - outside) * functional.max_pool2d(pixels, factor)
    mean = cells.mean()
    return cells / mean if mean > 0 else cells
