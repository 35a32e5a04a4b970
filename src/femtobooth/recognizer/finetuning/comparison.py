"""Did fine-tuning beat the linear probe?

Both on the same validation pictures, with intervals; and which becomes the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...core import metrics
from ...core.metrics import Interval
from .probe import calibrated

RULE = "more validation pictures right; of equals, the lower calibrated log loss"
FOLDS = 5


def measured(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Compute accuracy with its Wilson interval, log loss (nats) and calibration error of (N, C) logits, as plain JSON
    values.
    """
    probabilities = metrics.softmax(logits)
    right = int((logits.argmax(axis=1) == labels).sum())
    return {
        "pictures": len(labels),
        "right": right,
        "accuracy": list(metrics.wilson(right, len(labels))),
        "log_loss": metrics.negative_log_likelihood(probabilities, labels),
        "ece": metrics.ece(probabilities, labels),
    }


def calibrated_losses(logits: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Compute -ln p(true class) (N,) of (N, C) logits, each at a temperature fitted to the other folds of groups.

    Label smoothing makes a network timid and a probe is bold; a temperature undoes both, and both results carry one.
    """
    fold = np.unique(groups, return_inverse=True)[1] % FOLDS
    losses = np.empty(len(labels))
    for number in np.unique(fold):
        inside = fold == number
        fitted = calibrated(logits[~inside], labels[~inside]) if not inside.all() else 1.0
        true = metrics.softmax(logits[inside], fitted)[np.arange(inside.sum()), labels[inside]]
        losses[inside] = -np.log(np.maximum(true, np.finfo(np.float64).tiny))
    return losses


def told(logits: np.ndarray, labels: np.ndarray, groups: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Say for each picture the class it was taken for, and its calibrated log loss."""
    losses = calibrated_losses(logits, labels, groups)
    return [
        {"label": classes[best], "loss": float(loss)} for best, loss in zip(logits.argmax(axis=1), losses, strict=True)
    ]


def exact_mcnemar(before: np.ndarray, after: np.ndarray) -> float:
    """Compute the two-sided p of the exact McNemar test on paired successes, bool (N,): a sign test of the pictures on
    which the two differ.
    """
    from scipy.stats import binomtest

    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def compare(
    probe: np.ndarray, tuned: np.ndarray, labels: np.ndarray, groups: np.ndarray, wanted: str
) -> dict[str, Any]:
    """Compare fine-tuned with probe logits (N, C) on the same N pictures; `wanted` is better, finetuned or probe.

    Accuracy: the paired difference with Newcombe's interval and the exact McNemar test. Calibrated log loss: the paired
    difference with a bootstrap interval over groups of near-duplicates.
    """
    before, after = probe.argmax(axis=1) == labels, tuned.argmax(axis=1) == labels
    difference = metrics.paired_difference(before, after)
    losses = [calibrated_losses(logits, labels, groups) for logits in (probe, tuned)]
    loss = metrics.bootstrap(lambda change: float(change.mean()), losses[1] - losses[0], groups=groups)
    better = "finetuned" if (difference.value, -loss.value) > (0, 0) else "probe"
    return {
        "pictures": len(labels),
        "accuracy_difference": list(difference),
        "mcnemar_p": exact_mcnemar(before, after),
        "log_loss": {"probe": float(losses[0].mean()), "finetuned": float(losses[1].mean())},
        "log_loss_difference": list(loss),
        "verdict": verdict(difference, len(labels)),
        "better": better,
        "result": better if wanted == "better" else wanted,
        "rule": RULE if wanted == "better" else "as asked",
    }


def verdict(difference: Interval, pictures: int) -> str:
    """Put accuracy's difference in words."""
    points = (
        f"{100 * difference.value:+.1f} points (95% interval "
        f"{100 * difference.low:+.1f} to {100 * difference.high:+.1f})"
    )
    on = f"on {pictures} validation pictures"
    if difference.low > 0:
        return f"fine-tuning beat the linear probe: {points} {on}"
    if difference.high < 0:
        return f"fine-tuning did worse than the linear probe: {points} {on}"
    return f"fine-tuning did not show itself better or worse than the linear probe: {points} {on}"


def shares(values: Sequence[float]) -> str:
    """Compute a share with its interval, as a person reads it: `83 % (44 to 97)`."""
    value, low, high = values
    return f"{value:.1%} ({100 * low:.0f} to {100 * high:.0f})"
