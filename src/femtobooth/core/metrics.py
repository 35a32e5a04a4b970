"""Measures of a classifier and how sure they are: pure functions of arrays, each with its source.

Throughout, N pictures and C classes: `logits` and `probabilities` are (N, C), `labels` (N,) integers from 0 to C-1,
`confidence` (N,) the probability of the predicted class, `correct` (N,) booleans. Shares run from 0 to 1.
Every function raises ValueError for empty input.
"""

from __future__ import annotations

from collections.abc import Callable
from math import comb
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]


class Interval(NamedTuple):
    """A value with the ends of its confidence interval."""

    value: float
    low: float
    high: float


# --- probabilities and hits


def softmax(logits: ArrayLike, temperature: float | ArrayLike = 1.0) -> Floats:
    """Compute the probabilities (N, C) of logits divided by a temperature, one for all rows or one for each (N,)."""
    scaled = np.asarray(logits, np.float64) / np.reshape(np.asarray(temperature, np.float64), (-1, 1))
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def top_k(scores: ArrayLike, labels: ArrayLike, k: int = 1) -> Booleans:
    """Tell whether fewer than k classes score higher than the true one (N,); of equal scores the lower class counts as
    higher.
    """
    scores, labels = np.asarray(scores), _filled(labels)
    own = scores[np.arange(len(labels)), labels][:, None]
    before = np.arange(scores.shape[1]) < labels[:, None]
    return ((scores > own) | ((scores == own) & before)).sum(axis=1) < k


def negative_log_likelihood(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Compute the mean of -ln p(true class), in nats; the smallest positive float stands for p = 0."""
    labels = _filled(labels)
    true = np.asarray(probabilities, np.float64)[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(true, np.finfo(np.float64).tiny)).mean())


# --- calibration


class Reliability(NamedTuple):
    """One row for each bin of confidence (B,); mean values of an empty bin are nan."""

    edges: Floats
    """(B + 1,) from 0 to 1."""
    counts: Integers
    confidence: Floats
    accuracy: Floats


def reliability(confidence: ArrayLike, correct: ArrayLike, bins: int = 15) -> Reliability:
    """Compute the mean confidence and accuracy in equal-width bins ((i-1)/B, i/B] of confidence (Guo et al. 2017,
    section 2).
    """
    confidence, correct = _filled(confidence, np.float64), np.asarray(correct, np.float64)
    inside = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(inside, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(inside, weights=values, minlength=bins) / count for values in (confidence, correct)]
    return Reliability(np.linspace(0, 1, bins + 1), count, *means)


def calibration_error(confidence: ArrayLike, correct: ArrayLike, bins: int = 15) -> float:
    """Compute the expected calibration error: mean over pictures of their bin's |accuracy - confidence| (Guo et al.
    2017, eq. 3).
    """
    table = reliability(confidence, correct, bins)
    gaps = np.nan_to_num(np.abs(table.accuracy - table.confidence))
    return float((gaps * table.counts).sum() / table.counts.sum())


def ece(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Compute the expected calibration error of the most likely class (Guo et al. 2017, eq. 3)."""
    probabilities = np.asarray(probabilities, np.float64)
    return calibration_error(probabilities.max(axis=1), probabilities.argmax(axis=1) == np.asarray(labels), bins)


def calibration_noise(
    confidence: ArrayLike, bins: int = 15, draws: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Compute the calibration error that these confidences would show if they were perfect: its mean and central range.

    With few pictures the measured error of a perfect model is well above 0; labels are drawn from the confidences
    themselves to see how far (consistency resampling: Broecker & Smith 2007, "Increasing the reliability of reliability
    diagrams").
    """
    confidence = _filled(confidence, np.float64)
    random = np.random.default_rng(seed)
    errors = [calibration_error(confidence, random.random(len(confidence)) < confidence, bins) for _ in range(draws)]
    low, high = np.quantile(errors, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(np.mean(errors)), float(low), float(high))


COLDEST, HOTTEST = 0.05, 20.0  # the temperatures between which one is looked for


def unsettled(temperature: float) -> str | None:
    """Say why a fitted temperature means nothing, where it ended at the coldest or the hottest that is tried; else
    None.
    """
    if temperature <= 1.01 * COLDEST:
        return (
            f"{temperature:.2f} is the lowest that is tried: all are right that it "
            "was fitted on, so nothing says how sure is too sure"
        )
    if temperature >= HOTTEST / 1.01:
        return (
            f"{temperature:.0f} is the highest that is tried: on the pictures it was "
            "fitted on, confidence says nothing of being right"
        )
    return None


def temperature(logits: ArrayLike, labels: ArrayLike, lowest: float = COLDEST, highest: float = HOTTEST) -> float:
    """Compute the temperature with the least negative log-likelihood (Guo et al. 2017, section 4.2), within [lowest,
    highest].

    The likelihood is convex in 1/T, so its slope, mean(E_p[z] - z_true), is halved down to its only zero. Where all
    pictures are right the best temperature is 0: `lowest` comes back.
    """
    logits, labels = np.asarray(logits, np.float64), _filled(labels)
    true = logits[np.arange(len(labels)), labels]

    def slope(t: float) -> float:
        return float(((softmax(logits, t) * logits).sum(axis=1) - true).mean())

    cold, hot = np.log(lowest), np.log(highest)
    for _ in range(60):
        middle = (cold + hot) / 2
        cold, hot = (middle, hot) if slope(np.exp(middle)) > 0 else (cold, middle)
    return float(np.exp((cold + hot) / 2))


def cross_fitted_temperature(
    logits: ArrayLike, labels: ArrayLike, folds: int = 2, seed: int = 0
) -> tuple[Floats, Integers]:
    """Compute a temperature for each picture (N,), fitted on the other folds only, and the fold of each picture (N,).

    Fitting and measuring on the same pictures would flatter the calibrated model; so no picture has a part in its own
    temperature.
    """
    logits, labels = np.asarray(logits, np.float64), _filled(labels)
    if len(labels) < folds:
        raise ValueError(f"{len(labels)} pictures cannot be cut into {folds} folds")
    fold = np.random.default_rng(seed).permutation(np.arange(len(labels)) % folds)
    fitted = np.array([temperature(logits[fold != i], labels[fold != i]) for i in range(folds)])
    return fitted[fold], fold


# --- knowing when not to answer


class RiskCoverage(NamedTuple):
    """Risk (share of errors among the answered) at each coverage (share answered), most confident first (N,)."""

    coverage: Floats
    risk: Floats
    area: float
    """AURC: the mean risk over all coverages (Geifman, Uziel & El-Yaniv 2019, eq. 3); lower is better."""
    excess: float
    """E-AURC: the area above that of a perfect ordering of the same errors; 0 is best."""


def risk_coverage(confidence: ArrayLike, correct: ArrayLike) -> RiskCoverage:
    """Compute the risk-coverage curve of answering only above a confidence (Geifman & El-Yaniv 2017, "Selective
    classification").

    Pictures of equal confidence count as answered in random order: each gets their mean error, so the order of files
    does not matter.
    """
    confidence, wrong = _filled(confidence, np.float64), 1.0 - np.asarray(correct, np.float64)
    _, inside, count = np.unique(-confidence, return_inverse=True, return_counts=True)
    mean = np.bincount(inside, weights=wrong) / count
    answered = np.arange(1, len(wrong) + 1)
    risk = np.cumsum(np.repeat(mean, count)) / answered
    best = np.cumsum(np.sort(wrong)) / answered
    return RiskCoverage(answered / len(wrong), risk, float(risk.mean()), float(risk.mean() - best.mean()))


def auroc(positive: ArrayLike, negative: ArrayLike) -> float:
    """Compute the probability that a positive scores above a negative, ties half (Hanley & McNeil 1982: the
    Mann-Whitney statistic).
    """
    positive, negative = np.sort(_filled(positive, np.float64)), np.sort(_filled(negative, np.float64))
    below = np.searchsorted(negative, positive, side="left")
    not_above = np.searchsorted(negative, positive, side="right")
    return float((below + not_above).sum() / (2 * len(positive) * len(negative)))


# --- intervals


def wilson(successes: int, total: int, level: float = 0.95) -> Interval:
    """Compute a share and its score interval (Wilson 1927), which stays within 0..1 and is honest for few pictures."""
    if not 0 <= successes <= total or total == 0:
        raise ValueError(f"{successes} of {total} is not a share")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * np.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    low, high = (
        min(max(centre - half, 0.0), share),
        max(min(centre + half, 1.0), share),
    )  # exact at 0 and 1, where rounding is not
    return Interval(share, float(low), float(high))


def paired_difference(before: ArrayLike, after: ArrayLike, level: float = 0.95) -> Interval:
    """Compute the change in the share of successes, after - before, on the same pictures (Newcombe 1998, paired data,
    method 10).

    Unlike a bootstrap it does not claim certainty where the two never differ. `before` and `after` are booleans (N,).
    """
    first, second = _filled(after, np.bool_), np.asarray(before, np.bool_)
    both, only_first, only_second = (
        int((first & second).sum()),
        int((first & ~second).sum()),
        int((~first & second).sum()),
    )
    total = len(first)
    neither = total - both - only_first - only_second
    one, two = wilson(both + only_first, total, level), wilson(both + only_second, total, level)
    product = float(both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    cross = float(both * neither - only_first * only_second)
    cross = max(cross - total / 2, 0.0) if cross > 0 else cross  # continuity correction of the correlation
    phi = cross / np.sqrt(product) if product else 0.0

    def reach(a: float, b: float) -> float:
        return float(np.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0)))

    difference = (only_first - only_second) / total
    low = difference - reach(one.value - one.low, two.high - two.value)
    high = difference + reach(one.high - one.value, two.value - two.low)
    return Interval(difference, low, high)


def median_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Take the median and its interval between two order statistics, whatever the distribution (Thompson 1936;
    sign-test interval).

    `values` (n,). Raises ValueError for fewer values than the level needs: 6 for 95 %.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    count, below, k = len(ordered), 0.0, 0
    while below + comb(count, k) / 2**count <= (1 - level) / 2:
        below += comb(count, k) / 2**count
        k += 1
    if k == 0:
        raise ValueError(f"{count} values are too few for an interval of {level:.0%}")
    return Interval(float(np.median(ordered)), float(ordered[k - 1]), float(ordered[count - k]))


def bootstrap(
    statistic: Callable[..., float],
    *arrays: ArrayLike,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    biased: bool = False,
) -> Interval:
    """Compute `statistic(*arrays)` and its percentile interval over resampled rows (Efron 1979; Efron & Tibshirani
    1993, chapter 13).

    Rows of all arrays are drawn together. With `groups` (N,), whole groups are drawn: near-duplicates are no
    independent evidence. A `biased` statistic, such as the calibration error, which grows by resampling alone, has its
    interval moved by the bootstrap's estimate of that bias (chapter 10); it stays on the statistic's side of 0.
    """
    rows = [np.asarray(array) for array in arrays]
    total = len(_filled(rows[0], None))
    blocks = (
        None
        if groups is None
        else [np.flatnonzero(np.asarray(groups) == name) for name in np.unique(np.asarray(groups))]
    )
    random = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        if blocks is None:
            chosen = random.integers(0, total, total)
        else:
            chosen = np.concatenate([blocks[i] for i in random.integers(0, len(blocks), len(blocks))])
        drawn.append(statistic(*(row[chosen] for row in rows)))
    value = float(statistic(*rows))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    if biased:
        low, high = (end - np.mean(drawn) + value for end in (low, high))
        low, high = (max(low, 0.0), high) if value >= 0 else (low, min(high, 0.0))
    return Interval(value, float(low), float(high))


def _filled(values: ArrayLike, dtype: Any = np.int64) -> NDArray[Any]:
    array = np.asarray(values, dtype)
    if array.size == 0:
        raise ValueError("nothing to measure: no values")
    return array
