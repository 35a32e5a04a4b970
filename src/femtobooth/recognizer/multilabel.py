"""What a model's outputs say where a picture may have several labels: average precision, F1 and their intervals.

Throughout, N pictures and C labels: `truth` is float (N, C), 1 where a picture has the label, 0 where not, nan where
nobody said (a group's labels of a picture without one); `probabilities` (N, C), `decided` booleans (N, C).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..core import metrics
from .model.labels import Labels

RESAMPLES, CHUNK = 1000, 100


def matrix(labels: Labels, given: Iterable[Sequence[str]]) -> np.ndarray:
    """Write the labels of N pictures as `truth`, float32 (N, C); names that are none of the model's are passed over."""
    index = {name: number for number, name in enumerate(labels.names)}
    rows = [[index[name] for name in own if name in index] for own in given]
    truth = np.zeros((len(rows), len(labels)), np.float32)
    for row, own in zip(truth, rows, strict=True):
        row[own] = 1
    for name, (start, end) in labels.groups.items():
        if name not in labels.free:
            truth[truth[:, start:end].sum(axis=1) != 1, start:end] = np.nan
    return truth


def free_mask(labels: Labels) -> np.ndarray:
    """Tell which labels have a sigmoid of their own, bool (C,)."""
    mask = np.zeros(len(labels), bool)
    for name in labels.free:
        mask[slice(*labels.groups[name])] = True
    return mask


def log_loss(labels: Labels, probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Compute the loss of each picture (N,), in nats: the mean over its free labels of the binary cross-entropy, plus
    -ln p of the true label of each other group.
    """
    tiny = np.finfo(np.float64).tiny
    mask, result = free_mask(labels), np.zeros(len(truth))
    if mask.any():
        p, y = probabilities[:, mask], truth[:, mask]
        result -= (y * np.log(np.maximum(p, tiny)) + (1 - y) * np.log(np.maximum(1 - p, tiny))).mean(axis=1)
    for name, (start, end) in labels.groups.items():
        if name not in labels.free:
            own = np.nan_to_num(truth[:, start:end])
            result -= (own * np.log(np.maximum(probabilities[:, start:end], tiny))).sum(axis=1)
    return result


def average_precision(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Compute the area under the precision-recall steps, sum_n (R_n - R_n-1) P_n, of scores (N,): float (B,), one for
    each row of weights (B, N), all 1 unless given; equal scores count as one step. nan without a positive.
    """
    weights = np.ones((1, len(scores))) if weights is None else weights
    order = np.argsort(-scores, kind="stable")
    ends = np.append(scores[order][1:] != scores[order][:-1], True)
    last = np.flatnonzero(ends)[np.cumsum(np.append(False, ends[:-1]))]  # of the pictures that score the same
    drawn = weights[:, order].astype(np.float64)
    hits = drawn * truth[order]
    seen, found = drawn.cumsum(axis=1)[:, last], hits.cumsum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(seen > 0, found[:, last] / seen, 0.0)
        return (hits * precision).sum(axis=1) / found[:, -1]


def draws(groups: np.ndarray | None, count: int, seed: int = 0) -> Iterable[np.ndarray]:
    """Draw how often each of N pictures is in a bootstrap sample, (CHUNK, N) at a time; whole groups where given."""
    random = np.random.default_rng(seed)
    inside = np.arange(count) if groups is None else np.unique(groups, return_inverse=True)[1]
    blocks = int(inside.max()) + 1
    for _ in range(RESAMPLES // CHUNK):
        yield random.multinomial(blocks, np.full(blocks, 1 / blocks), size=CHUNK)[:, inside]


def measure(
    labels: Labels,
    probabilities: np.ndarray,
    decided: np.ndarray,
    truth: np.ndarray,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure all figures, as plain JSON values; intervals are [value, low, high] at 95 %, by a bootstrap of pictures,
    or of `groups` (N,) of near-duplicates.

    Labels without a positive have no average precision and are no part of means; so have those that nobody lacks. F1
    over all (micro) counts every label of every picture; the mean (macro) counts each label alike.
    """
    known, free = np.isfinite(truth), free_mask(labels)
    yes, said = (np.nan_to_num(truth) * known).astype(np.float64), (decided & known).astype(np.float64)
    there = yes.sum(axis=0) > 0
    names = np.flatnonzero(there)

    def f1(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # (B, C) and (B,)
        hit, named, has = weights @ (yes * said), weights @ said, weights @ yes
        with np.errstate(invalid="ignore"):
            each = np.where(named + has > 0, 2 * hit / np.maximum(named + has, 1e-12), np.nan)
        return each, 2 * hit.sum(axis=1) / np.maximum((named + has).sum(axis=1), 1e-12)

    def precise(weights: np.ndarray) -> np.ndarray:  # (B, C)
        result = np.full((len(weights), len(labels)), np.nan)
        for i in names:
            own = known[:, i]
            result[:, i] = average_precision(probabilities[own, i], yes[own, i], weights[:, own])
        return result

    def figures(weights: np.ndarray) -> np.ndarray:  # (B, 2 C + 3)
        ap, (each, micro) = precise(weights), f1(weights)
        means = [_mean(ap[:, there & free]), _mean(each[:, there & free]), micro]
        return np.column_stack([ap, each, *means])

    values = figures(np.ones((1, len(truth))))[0]
    drawn = np.concatenate([figures(weights) for weights in draws(groups, len(truth), seed)])
    with np.errstate(all="ignore"):
        low, high = _quantiles(drawn)

    def interval(column: int) -> list[float] | None:
        return None if np.isnan(values[column]) else [float(part[column]) for part in (values, low, high)]

    count, rows = len(labels), []
    for i, name in enumerate(labels.names):
        hit, named, has = int((yes * said)[:, i].sum()), int(said[:, i].sum()), int(yes[:, i].sum())
        rows.append(
            {
                "label": name,
                "group": None if free[i] else next(g for g, (a, b) in labels.groups.items() if a <= i < b),
                "pictures": has,
                "said": named,
                "right": hit,
                "average_precision": interval(i),
                "f1": interval(count + i) if there[i] else None,
                "precision": hit / named if named else None,
                "recall": hit / has if has else None,
                "threshold": (labels.thresholds or (0.5,) * count)[i] if free[i] else None,
            }
        )
    exact = int(((yes == said) | ~known).all(axis=1).sum())
    told = {}
    for name, (start, end) in labels.groups.items():
        if name not in labels.free and (rated := known[:, start]).any():
            right = int((yes * said)[rated, start:end].sum())
            told[name] = list(metrics.wilson(right, int(rated.sum())))
    return {
        "pictures": len(truth),
        "labels": count,
        "labels_measured": int((there & free).sum()),
        "map": interval(2 * count),
        "macro_f1": interval(2 * count + 1),
        "micro_f1": interval(2 * count + 2),
        "exact": list(metrics.wilson(exact, len(truth))),
        "groups": told,
        "log_loss": float(log_loss(labels, probabilities, truth).mean()),
        "per_label": rows,
    }


def map_difference(labels: Labels, before: np.ndarray, after: np.ndarray, truth: np.ndarray, groups: np.ndarray) -> Any:
    """Compute the change in mean average precision over the free labels that are there, from scores (N, C) `before` to
    `after`, and its paired bootstrap interval: (value, low, high).
    """
    yes = [i for i in np.flatnonzero(free_mask(labels)).tolist() if truth[:, i].any()]

    def change(weights: np.ndarray) -> np.ndarray:
        both = []
        for scores in (after, before):
            own = [np.isfinite(truth[:, i]) for i in yes]
            ap = [average_precision(scores[k, i], truth[k, i], weights[:, k]) for i, k in zip(yes, own, strict=True)]
            both.append(_mean(np.column_stack(ap)))
        return both[0] - both[1]

    if not yes:
        return metrics.Interval(0.0, -1.0, 1.0)
    drawn = np.concatenate([change(weights) for weights in draws(groups, len(truth))])
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return metrics.Interval(float(change(np.ones((1, len(truth))))[0]), float(low), float(high))


def _mean(values: np.ndarray) -> np.ndarray:
    """Take the mean of each row over what is no nan; nan where all is."""
    finite = np.isfinite(values)
    return np.where(finite, values, 0).sum(axis=1) / np.where(finite.any(axis=1), finite.sum(axis=1), np.nan)


def _quantiles(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    result = np.full((2, drawn.shape[1]), np.nan)
    for column, values in enumerate(drawn.T):
        if (finite := values[np.isfinite(values)]).size:
            result[:, column] = np.quantile(finite, [0.025, 0.975])
    return result[0], result[1]
