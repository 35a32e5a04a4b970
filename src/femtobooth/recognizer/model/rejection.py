"""Telling out-of-distribution pictures, which show no known class: by the cosine similarity of their embedding to the
nearest class centroid.

Nearest-class-mean rejection with cosine similarity (Mensink et al. 2013, "Distance-based image classification"; the
mean of all classes is taken off first, as in "simplified Mahalanobis" scores, so that what all pictures share does not
make everything alike). Importing it needs neither torch nor timm: exported models use it as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

REJECTED = 0.05
"""Share of pictures of known classes that may be rejected."""

Floats = NDArray[np.float32]


def members(truth: np.ndarray) -> NDArray[np.bool_]:
    """Tell which pictures show each label of several, bool (N, C + 1), from `truth` (N, C) of 0, 1 and nan; the last
    column is of pictures that show none of them, which are known too.
    """
    has = truth == 1
    return np.column_stack([has, ~has.any(axis=1)])


def centroids(embeddings: np.ndarray, of: np.ndarray) -> dict[str, Any]:
    """Compute `center` (D,) and unit `centroids` (C, D) of training embeddings (N, D), a picture in each class whose
    column of `of` (N, C) has it; a class without pictures has no centroid.
    """
    means = np.stack([embeddings[one].mean(axis=0) for one in of.T if one.any()]).astype(np.float64)
    center = means.mean(axis=0)
    return {"center": center.astype(np.float32), "centroids": _unit(means - center).astype(np.float32)}


def similarity(embeddings: np.ndarray, rejection: Mapping[str, Any]) -> NDArray[np.float64]:
    """Compute the cosine similarity (B,), -1 to 1, of embeddings (B, D) to the nearest centroid; lower than `threshold`
    is rejected.
    """
    centred = np.asarray(embeddings, np.float64) - np.asarray(rejection["center"], np.float64)
    return (_unit(centred) @ np.asarray(rejection["centroids"], np.float64).T).max(axis=1)


def is_rejected(embeddings: np.ndarray, rejection: Mapping[str, Any] | None) -> NDArray[np.bool_]:
    """Tell which pictures (B,) are out-of-distribution; all False where the model cannot tell."""
    if rejection is None or "threshold" not in rejection:
        return np.zeros(len(embeddings), bool)
    return similarity(embeddings, rejection) < rejection["threshold"]


class Limit(NamedTuple):
    """Where rejection begins, and what that promises."""

    threshold: float
    """Similarity below which a picture is rejected; -1 rejects nothing."""
    kept: float
    """Share of new pictures of known classes that is kept on average, at least; of those that come as the held-out ones
    did.
    """
    how: str
    """In words."""


def limit(held_out: np.ndarray) -> Limit:
    """Find the similarity that at most REJECTED of new pictures of known classes stay below.

    `held_out` (N,) are similarities of known pictures to centroids that they had no part in, one of each group of
    near-duplicates. The k-th lowest of them rejects k in N + 1 whatever their distribution (split conformal prediction:
    Vovk et al. 2005; Lei et al. 2018, theorem 2.2), k = floor(REJECTED (N + 1)). Where that is 0, the lowest one keeps
    N in N + 1, and the limit lies lower still, by a one-sided prediction bound of a normal distribution (Hahn & Meeker
    1991, section 4.6): mean - t s sqrt(1 + 1/N), t of Student's distribution with N - 1 degrees of freedom.
    """
    ordered = np.sort(np.asarray(held_out, np.float64))
    count = len(ordered)
    if count < 2:
        return Limit(-1.0, 1.0, "too few held-out pictures: nothing is rejected")
    if rank := int(REJECTED * (count + 1) + 1e-9):
        kept = 1 - rank / (count + 1)
        return Limit(
            float(ordered[rank - 1]),
            kept,
            f"keeps {kept:.1%} of known pictures, by the quantile of {count} held-out ones",
        )
    from scipy.stats import t as student

    factor = student.ppf(1 - REJECTED, count - 1) * np.sqrt(1 + 1 / count)
    bound = min(float(ordered.mean() - factor * ordered.std(ddof=1)), float(ordered[0]))
    kept = count / (count + 1)
    return Limit(
        max(bound, -1.0),
        kept,
        f"keeps {kept:.0%} of known pictures at least: only {count} were held out, so it lies below them all",
    )


def one_of_each(similarities: np.ndarray, groups: np.ndarray) -> NDArray[np.float64]:
    """Take the lowest similarity of each group of near-duplicates, which are no independent evidence."""
    names, inside = np.unique(groups, return_inverse=True)
    lowest = np.full(len(names), np.inf)
    np.minimum.at(lowest, inside, similarities)
    return lowest


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
