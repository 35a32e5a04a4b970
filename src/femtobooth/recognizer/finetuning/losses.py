"""Losses of pictures with several labels: binary cross-entropy or the asymmetric loss, beside a softmax a group."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax, logsigmoid

from ..model.labels import Labels

FOCUS, MARGIN = 4.0, 0.05
"""gamma of negatives and the probability m under which they count as 0 (Ridnik et al. 2021, section 3: with gamma of
positives 0)."""


def asymmetric(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Compute the asymmetric loss (B, C) of logits and targets (B, C), 0 to 1, by weights (2, C) of negatives and
    positives.

    Ridnik et al. 2021 (arXiv 2009.14119), eq. 7: easy negatives weigh less, by the power of their probability, and
    none at all below the margin.
    """
    shifted = (torch.sigmoid(logits) - MARGIN).clamp(min=0)
    negative = -(shifted**FOCUS) * torch.log1p(-shifted)
    return weights[1] * targets * -logsigmoid(logits) + weights[0] * (1 - targets) * negative


def binary(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Compute the binary cross-entropy (B, C) by weights (2, C) of negatives and positives."""
    balance = weights[1] * targets + weights[0] * (1 - targets)
    return balance * binary_cross_entropy_with_logits(logits, targets, reduction="none")


def multi_label(labels: Labels, kind: str, logits: Tensor, targets: Tensor, known: Tensor, weights: Tensor) -> Tensor:
    """Average the losses of logits (B, C), in float32: the mean over free labels, plus the cross-entropy of each group
    over the pictures whose label of it is `known` (B, C).
    """
    logits, total = logits.float(), logits.new_zeros((), dtype=torch.float32)
    for name, (start, end) in labels.groups.items():
        own, true, count = logits[:, start:end], targets[:, start:end], known[:, start:end]
        if name in labels.free:
            each = asymmetric if kind == "asymmetric" else binary
            total = total + each(own, true, weights[:, start:end]).mean()
        else:
            each_row = -(true * weights[1, start:end] * log_softmax(own, dim=1)).sum(dim=1)
            total = total + (each_row * count[:, 0]).sum() / count[:, 0].sum().clamp(min=1)
    return total


def taught(labels: Labels, logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Average how far logits (B, C) are from a teacher's (B, C), at a temperature T: T^2 KL(teacher || student) of each
    group's softmax, or, of free labels, the mean over them of that of their sigmoids, in float32.

    Hinton et al. 2015 (arXiv 1503.02531), section 2: T^2 keeps gradients of one size whatever T is.
    """
    logits, teacher = logits.float() / temperature, teacher.float() / temperature
    total = logits.new_zeros(())
    for name, (start, end) in labels.groups.items():
        own, said = logits[:, start:end], teacher[:, start:end]
        if name in labels.free:
            cross = binary_cross_entropy_with_logits(own, torch.sigmoid(said))
            total = total + cross - binary_cross_entropy_with_logits(said, torch.sigmoid(said))
        else:
            sure = log_softmax(said, dim=1)
            total = total + (sure.exp() * (sure - log_softmax(own, dim=1))).sum(dim=1).mean()
    return total * temperature**2


def label_weights(labels: Labels, truth: np.ndarray, balanced: bool) -> Tensor:
    """Compute weights (2, C) of negatives and positives: 1, or such that both sides of a free label, and all labels of
    a group, weigh alike (N / (2 N_side), N / (C N_label)).
    """
    weights = np.ones((2, len(labels)))
    for name, (start, end) in labels.groups.items() if balanced else ():
        own = truth[:, start:end]
        positive = np.maximum(np.nansum(own, axis=0), 1)
        total = np.isfinite(own).sum(axis=0)
        if name in labels.free:
            weights[1, start:end] = total / (2 * positive)
            weights[0, start:end] = total / (2 * np.maximum(total - positive, 1))
        else:
            weights[1, start:end] = total / ((end - start) * positive)
    return torch.tensor(weights, dtype=torch.float32)


def smoothed(labels: Labels, truth: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Give soft targets (B, C) and what is known (B, C) of `truth` with nan: the share is spread over a group, or
    between yes and no.
    """
    known = torch.isfinite(truth)
    targets = torch.where(known, truth, 0.0)
    for name, (start, end) in labels.groups.items():
        among = 2 if name in labels.free else end - start
        targets[:, start:end] = targets[:, start:end] * (1 - smoothing) + smoothing / among
    return torch.where(known, targets, 0.0), known.float()
