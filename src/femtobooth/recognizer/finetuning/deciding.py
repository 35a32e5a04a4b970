"""From multi-label logits to answers: a calibration and a threshold for each label, chosen on held-out pictures.

What is said of their quality comes from pictures that had no part in them: calibration and thresholds are fitted on
the other folds of near-duplicate groups, and only those that go into the model see all held-out pictures.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from .. import multilabel
from ..model.labels import Labels
from . import stratification
from .probe import calibrated

FOLDS = 5
RULE = "the higher mean average precision on validation pictures; of equals, the lower calibrated log loss"


def fitted(labels: Labels, logits: np.ndarray, truth: np.ndarray) -> Labels:
    """Return the labels with calibration and thresholds fitted to held-out logits (N, C) and truth (N, C).

    Each free label: Platt's sigmoid(a z + b) (Platt 1999), with normal priors about a = 1 (ln a, standard deviation
    0.5) and b = 0 (standard deviation 2), which dozens of pictures outweigh; then the threshold of the best F1. Each
    other group: one temperature.
    """
    count = len(labels)
    scales, offsets, thresholds = np.ones(count), np.zeros(count), np.full(count, 0.5)
    mask = multilabel.free_mask(labels)
    for i in np.flatnonzero(mask) if len(truth) else ():
        scales[i], offsets[i] = platt(logits[:, i], truth[:, i])
        thresholds[i] = best_threshold(0.5 * (1 + np.tanh((scales[i] * logits[:, i] + offsets[i]) / 2)), truth[:, i])
    for name, (start, end) in labels.groups.items():
        known = np.isfinite(truth[:, start:end]).all(axis=1)
        if name not in labels.free and known.any():
            scales[start:end] = 1 / calibrated(logits[known, start:end], truth[known, start:end].argmax(axis=1))
    return replace(labels, scales=tuple(scales), offsets=tuple(offsets), thresholds=tuple(map(float, thresholds)))


def boldness(labels: Labels, logits: np.ndarray, truth: np.ndarray) -> float:
    """Compute one temperature for held-out logits (N, C), the geometric mean of its labels' own, 1 at least."""
    scales = fitted(labels, logits, truth).scales
    return max(float(np.exp(-np.log(scales).mean())), 1.0)


def platt(logits: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Compute scale and offset (a, b) for one label's logits (N,)."""
    from scipy.optimize import minimize

    def cost(x: np.ndarray) -> tuple[float, np.ndarray]:
        a = np.exp(x[0])
        z = a * logits + x[1]
        p = 0.5 * (1 + np.tanh(z / 2))
        loss = float((np.logaddexp(0, z) - truth * z).sum() + 2 * x[0] ** 2 + x[1] ** 2 / 8)
        return loss, np.array([((p - truth) * logits).sum() * a + 4 * x[0], (p - truth).sum() + x[1] / 4])

    found: Any = minimize(cost, np.zeros(2), jac=True, method="L-BFGS-B", bounds=[(-3, 3), (-20, 20)])
    return float(np.exp(found.x[0])), float(found.x[1])


def best_threshold(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Find the threshold of the highest F1 for one label: midway between two pictures; of equals the one nearest 0.5,
    which stays where nothing is there to choose by.
    """
    if not truth.any() or truth.all():
        return 0.5
    order = np.argsort(-probabilities, kind="stable")
    sorted_, hits = probabilities[order], np.cumsum(truth[order])
    f1 = 2 * hits / (np.arange(1, len(truth) + 1) + truth.sum())
    middle = np.append((sorted_[:-1] + sorted_[1:]) / 2, sorted_[-1] / 2)
    f1[:-1][sorted_[:-1] == sorted_[1:]] = -1  # no threshold parts them
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    return float(middle[best[np.abs(middle[best] - 0.5).argmin()]])


def cross_fitted(
    labels: Labels, logits: np.ndarray, truth: np.ndarray, groups: np.ndarray, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Compute probabilities and decisions, both (N, C), each by what was fitted to the other folds of groups."""
    fold = stratification.folds(truth, groups, np.zeros(len(truth), bool), seed, FOLDS)
    probabilities, decided = np.empty(logits.shape), np.zeros(logits.shape, bool)
    for number in np.unique(fold):
        inside = fold == number
        own = fitted(labels, logits[~inside], truth[~inside])
        probabilities[inside] = own.probabilities(logits[inside])
        decided[inside] = own.decided(probabilities[inside])
    return probabilities, decided


def measured(labels: Labels, logits: np.ndarray, truth: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """Measure what calibrated answers are worth, by calibration and thresholds of other folds; ranks are as the logits
    have them.
    """
    probabilities, decided = cross_fitted(labels, logits, truth, groups)
    facts = multilabel.measure(labels, labels.probabilities(logits), decided, truth, groups)
    return facts | {"log_loss": float(multilabel.log_loss(labels, probabilities, truth).mean())}


def compare(
    labels: Labels, probe: np.ndarray, tuned: np.ndarray, truth: np.ndarray, groups: np.ndarray, wanted: str
) -> dict[str, Any]:
    """Compare fine-tuned with probe logits (N, C) on the same pictures; `wanted` is better, finetuned or probe."""
    change = multilabel.map_difference(labels, probe, tuned, truth, groups)
    losses = [
        float(multilabel.log_loss(labels, cross_fitted(labels, logits, truth, groups)[0], truth).mean())
        for logits in (probe, tuned)
    ]
    better = "finetuned" if (change.value, losses[0] - losses[1]) > (0, 0) else "probe"
    points = (
        f"{100 * change.value:+.1f} points of mAP (95% interval {100 * change.low:+.1f} to {100 * change.high:+.1f})"
    )
    how = (
        "beat"
        if change.low > 0
        else "did worse than"
        if change.high < 0
        else "did not show itself better or worse than"
    )
    return {
        "pictures": len(truth),
        "map_difference": list(change),
        "log_loss": {"probe": losses[0], "finetuned": losses[1]},
        "verdict": f"fine-tuning {how} the linear probe: {points} on {len(truth)} validation pictures",
        "better": better,
        "result": better if wanted == "better" else wanted,
        "rule": RULE if wanted == "better" else "as asked",
    }


def label_issues(labels: Labels, logits: np.ndarray, truth: np.ndarray) -> list[tuple[int, str, float]]:
    """Find free labels that look wrong: (picture, what it looks like, how sure that is), the surest first.

    Confident learning for each label (Northcutt et al. 2021, eq. 2): the other answer is likelier, and at least as
    likely as it is on average where it is given. `logits` (N, C) are out-of-fold; rows of nan are passed over.
    """
    rows = np.flatnonzero(np.isfinite(logits).all(axis=1))
    if not len(rows):
        return []
    p = fitted(labels, logits[rows], truth[rows]).probabilities(logits[rows])
    found = []
    for i in np.flatnonzero(multilabel.free_mask(labels)):
        has = truth[rows, i] == 1
        for given, sure, what in ((False, p[:, i], "also "), (True, 1 - p[:, i], "without ")):
            here, there = has == given, has != given
            if here.any() and there.any():
                wrong = here & (sure > 0.5) & (sure >= sure[there].mean())
                found += [(int(rows[k]), what + labels.names[i], float(sure[k])) for k in np.flatnonzero(wrong)]
    return sorted(found, key=lambda one: -one[2])


def wrong(labels: Labels, decided: np.ndarray, truth: np.ndarray) -> list[tuple[list[str], list[str]]]:
    """Say for each picture the labels that are missing from the answer, and those that are too many in it."""
    yes, known, names = np.nan_to_num(truth) > 0, np.isfinite(truth), np.array(labels.names, object)
    return [
        (names[has & ~said].tolist(), names[said & ~has & asked].tolist())
        for has, said, asked in zip(yes, decided, known, strict=True)
    ]
