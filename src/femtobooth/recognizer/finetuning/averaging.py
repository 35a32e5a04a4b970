"""How far to go from the probe to the fine-tuned network: a share of the way, chosen on validation pictures.

Weights between those that fine-tuning began with and those it ended with often do better than either, and less of them
is forgotten (WiSE-FT: Wortsman et al. 2022, arXiv 2109.01903). The probe, which is the beginning, is compared with the
result anyway, so it is no choice here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..model.backbone import Recognizer
from . import finetuner

SHARES = (0.25, 0.5, 0.75, 1.0)
"""Of the fine-tuned weights; the rest is the beginning's."""
FOLDS = 5

Losses = Callable[[np.ndarray], np.ndarray]
"""Of logits (N, C), the loss (N,) of each picture."""


@dataclass(frozen=True)
class Averaged:
    """What N validation pictures say of the shares."""

    share: float
    """Of the lowest loss on all of them: that of the weights that the network now has."""
    unchosen: np.ndarray
    """(N, C) by the share that the other folds of near-duplicate groups chose, so that no picture chose its own."""
    losses: dict[float, float]
    """Mean loss of each share."""


@torch.no_grad()
def average(
    start: Recognizer, tuned: Recognizer, paths: Sequence[Path], groups: np.ndarray, losses: Losses
) -> Averaged:
    """Put into `tuned` the share of its weights that is best on validation pictures; says what they say of all."""
    began = dict(start.model.named_parameters())
    parameters = dict(tuned.model.named_parameters())
    ended = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    def mix(share: float) -> None:
        for name, parameter in parameters.items():
            parameter.copy_(torch.lerp(began[name].to(parameter), ended[name], share))

    logits = []
    for share in SHARES:
        mix(share)
        logits.append(finetuner.outputs(tuned, paths)["logits"])
    every = np.stack(logits)  # (S, N, C)
    lost = np.stack([losses(one) if np.isfinite(one).all() else np.full(len(one), np.inf) for one in every])  # (S, N)
    best = int(lost.mean(axis=1).argmin())
    fold, unchosen = np.unique(groups, return_inverse=True)[1] % FOLDS, every[-1].copy()
    for number in np.unique(fold):
        inside = fold == number
        if not inside.all():
            unchosen[inside] = every[lost[:, ~inside].mean(axis=1).argmin(), inside]
    mix(SHARES[best])
    return Averaged(SHARES[best], unchosen, dict(zip(SHARES, lost.mean(axis=1).tolist(), strict=True)))
