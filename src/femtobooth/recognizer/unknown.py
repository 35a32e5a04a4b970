"""Telling pictures of no known class: cosine similarity of their embedding to the nearest class centroid.

Nearest-class-mean rejection with cosine similarity (Mensink et al. 2013, "Distance-based image classification"; the
mean of all classes is taken off first, as in "simplified Mahalanobis" scores, so that what all pictures share does not
make everything alike). Importing it needs neither torch nor timm: exported models use it as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

REJECTED = 0.05
"""Share of pictures of known classes that may be called unknown."""
MANY = 100
"""From this many held-out similarities on, their own quantile is the threshold; below, a bound for few."""

Floats = NDArray[np.float32]


def centroids(embeddings: np.ndarray, labels: np.ndarray, classes: int) -> dict[str, Any]:
    """`center` (D,) and unit `centroids` (C, D) of training embeddings (N, D) with labels 0 to C-1, every class among them."""
    means = np.stack([embeddings[labels == index].mean(axis=0) for index in range(classes)]).astype(np.float64)
    center = means.mean(axis=0)
    return {"center": center.astype(np.float32), "centroids": _unit(means - center).astype(np.float32)}


def similarity(embeddings: np.ndarray, unknown: Mapping[str, Any]) -> NDArray[np.float64]:
    """Cosine similarity (B,), -1 to 1, of embeddings (B, D) to the nearest centroid; lower than `threshold` is unknown."""
    centred = np.asarray(embeddings, np.float64) - np.asarray(unknown["center"], np.float64)
    return (_unit(centred) @ np.asarray(unknown["centroids"], np.float64).T).max(axis=1)


def is_unknown(embeddings: np.ndarray, unknown: Mapping[str, Any] | None) -> NDArray[np.bool_]:
    """Whether each picture shows none of the known classes (B,); all False where the model cannot tell."""
    if unknown is None or "threshold" not in unknown:
        return np.zeros(len(embeddings), bool)
    return similarity(embeddings, unknown) < unknown["threshold"]


def threshold(held_out: np.ndarray) -> tuple[float, str]:
    """The similarity below which a new picture of a known class falls with 5 % chance, and how it was found.

    `held_out` (N,) are similarities of known pictures to centroids that they had no part in. With few of them the
    5 % quantile cannot be read off; the one-sided prediction bound of a normal distribution stands in for it (Hahn &
    Meeker 1991, section 4.6): mean - t s sqrt(1 + 1/N), t of Student's distribution with N - 1 degrees of freedom.
    """
    held_out = np.asarray(held_out, np.float64)
    count = len(held_out)
    if count >= MANY:
        return float(np.quantile(held_out, REJECTED)), f"{REJECTED:.0%} quantile of {count} held-out pictures"
    if count < 2:
        return -1.0, "too few held-out pictures: nothing is called unknown"
    from scipy.stats import t as student

    factor = student.ppf(1 - REJECTED, count - 1) * np.sqrt(1 + 1 / count)
    bound = held_out.mean() - factor * held_out.std(ddof=1)
    return float(max(bound, -1.0)), f"95% prediction bound from {count} held-out pictures"


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
