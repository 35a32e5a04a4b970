"""What a classifier's outputs on labelled pictures say: accuracy, calibration, knowing when not to answer, mistakes.

Everything here is arithmetic on arrays; running the model, writing and drawing are the workflow's and the page's.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core import metrics
from ..core.errors import PhotoError
from ..core.metrics import Interval
from ..core.names import stored
from .model.labels import Labels
from .model.rejection import is_rejected, similarity

COVERAGES = (1.0, 0.9, 0.8, 0.7, 0.5)


@dataclass(frozen=True)
class Predictions:
    """A model's outputs on N pictures."""

    names: tuple[str, ...]
    """Class names by index (C of them)."""
    paths: tuple[Path, ...]
    labels: np.ndarray
    """True class index (N,)."""
    logits: np.ndarray
    """(N, C), as the network gives them."""
    embeddings: np.ndarray | None
    """(N, D) pooled, or None where the model has none."""
    temperature: float = 1.0
    """That of the model: its probabilities are softmax(logits / temperature)."""
    ood_paths: tuple[Path, ...] = ()
    ood_logits: np.ndarray | None = None
    """(U, C) for pictures of classes that the model does not know."""
    ood_embeddings: np.ndarray | None = None
    """(U, D)."""

    @property
    def probabilities(self) -> np.ndarray:
        return metrics.softmax(self.logits, self.temperature)


# --- whose class is it


def classes_of(labels: Labels, given: Sequence[str]) -> dict[str, int | None]:
    """Find for each given class name its index in the model's first group, or None where the model has no such class.

    A name as the model writes it goes first. Else it may differ in case, spaces and underscores where that fits one
    class only; be one of the names that a class lists with commas, as WordNet's do, or a synset such as n01494475, also
    in front of a name (n01494475_hammerhead); or, where all given names are whole numbers and none of the model's is,
    the index itself. Raises PhotoError for one that fits several classes.
    """
    main = labels.main
    names = labels.names[main]
    exact = [unicodedata.normalize("NFC", name) for name in names]
    whole = _index([[name] for name in names])
    parts = _index([name.split(",") for name in names])
    synsets = {synset: index for index, synset in enumerate(labels.synsets[main] if labels.synsets else ())}
    numbers = all(name.isdecimal() for name in given) and not any(name.isdecimal() for name in names)
    found: dict[str, int | None] = {}
    for name in given:
        synset = re.match(r"n\d{8}(?![0-9])", name)
        fits = whole.get(_plain(name)) or parts.get(_plain(name)) or set()
        if exact.count(as_written := unicodedata.normalize("NFC", name)) == 1:
            found[name] = exact.index(as_written)
        elif synset and synset[0] in synsets:
            found[name] = synsets[synset[0]]
        elif numbers:
            found[name] = int(name) if int(name) < len(names) else None
        elif len(fits) > 1:
            way_out = (
                "name the folder by the class's synset (n01234567)"
                if labels.synsets
                else "name the folder exactly as the class"
            )
            few = ", ".join(repr(names[index]) for index in sorted(fits)[:4])
            raise PhotoError(f"class {name!r} fits {len(fits)} classes of the model ({few})", way_out)
        else:
            found[name] = next(iter(fits), None)
    return found


def short_names(names: Sequence[str], synsets: Sequence[str] | None) -> list[str]:
    """Take the first of the names that WordNet's classes list with commas, where that still tells them apart; other
    classes as they are.
    """
    if not synsets:
        return list(names)
    first = [name.split(",")[0].strip() or name for name in names]
    count = Counter(first)
    return [short if count[short] == 1 else name for short, name in zip(first, names, strict=True)]


def _index(names: Sequence[Sequence[str]]) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for index, parts in enumerate(names):
        for part in parts:
            found.setdefault(_plain(part), set()).add(index)
    return found


def _plain(name: str) -> str:
    return " ".join(unicodedata.normalize("NFC", name).replace("_", " ").casefold().split())


# --- the measures


def measure(
    predictions: Predictions, rejection: Mapping[str, Any] | None, bins: int = 15, seed: int = 0
) -> dict[str, Any]:
    """Measure all figures of the report, as plain JSON values; intervals are [value, low, high] at 95 %."""
    probabilities, labels, logits = predictions.probabilities, predictions.labels, predictions.logits
    five = min(5, logits.shape[1])
    right, among = metrics.top_k(logits, labels, 1), metrics.top_k(logits, labels, five)
    return {
        "pictures": len(labels),
        "classes": len(np.unique(labels)),
        "top1": list(metrics.wilson(int(right.sum()), len(right))),
        "top5": list(metrics.wilson(int(among.sum()), len(among))),
        "top5_is_top": five,
        "model_classes": logits.shape[1],
        "mean_class_accuracy": list(_mean_class_interval(right, labels, seed)),
        "calibration": _calibration(predictions, bins, seed),
        "selective": _selective(probabilities.max(axis=1), right, seed),
        "rejection": _rejection(predictions, rejection, right),
        "out_of_distribution": _out_of_distribution(predictions, rejection, seed),
        "per_class": _per_class(predictions, right, among),
        "confusions": _confusions(predictions),
        "mistakes": _mistakes(predictions, right),
    }


def _mean_class_accuracy(right: np.ndarray, labels: np.ndarray) -> float:
    _, inside = np.unique(labels, return_inverse=True)
    return float((np.bincount(inside, weights=right) / np.bincount(inside)).mean())


def _mean_class_interval(right: np.ndarray, labels: np.ndarray, seed: int) -> Interval:
    """Bootstrap the mean over classes; where all are right, or none is, it would claim certainty, and Wilson's interval
    of them all stands in.
    """
    if right.all() or not right.any():
        return metrics.wilson(int(right.sum()), len(right))
    return metrics.bootstrap(_mean_class_accuracy, right, labels, seed=seed)


def _calibration(predictions: Predictions, bins: int, seed: int) -> dict[str, Any]:
    """Measure calibration before and after scaling. Before: with the model's own temperature. After: with one fitted on
    the half that the picture is not in.
    """
    labels, logits = predictions.labels, predictions.logits
    result: dict[str, Any] = {
        "bins": bins,
        "temperature_before": predictions.temperature,
        "temperatures_after": None,
        "after": None,
    }
    result["before"] = _calibrated(predictions.probabilities, labels, bins, seed)
    result["unsettled"] = metrics.unsettled(predictions.temperature)
    result["not_scaled"] = "One picture is too few to fit a temperature on others." if len(labels) < 2 else None
    if len(labels) >= 2:
        fitted, fold = metrics.cross_fitted_temperature(logits, labels, seed=seed)
        why = [said for half in range(2) if (said := metrics.unsettled(float(fitted[fold == half][0])))]
        if why:
            result["not_scaled"] = f"No temperature was fitted on one half of the pictures: {why[0]}."
            return result
        result["temperatures_after"] = [float(fitted[fold == half][0]) for half in range(2)]
        result["after"] = _calibrated(metrics.softmax(logits, fitted), labels, bins, seed)
    return result


def _calibrated(probabilities: np.ndarray, labels: np.ndarray, bins: int, seed: int) -> dict[str, Any]:
    confidence, right = probabilities.max(axis=1), metrics.top_k(probabilities, labels, 1)
    return {
        "ece": list(
            metrics.bootstrap(
                lambda c, r: metrics.calibration_error(c, r, bins), confidence, right, seed=seed, biased=True
            )
        ),
        "ece_of_a_perfect_model": list(metrics.calibration_noise(confidence, bins, seed=seed)),
        "negative_log_likelihood": metrics.negative_log_likelihood(probabilities, labels),
        "mean_confidence": float(confidence.mean()),
    }


def _selective(confidence: np.ndarray, right: np.ndarray, seed: int) -> dict[str, Any]:
    curve = metrics.risk_coverage(confidence, right)
    points = []
    for coverage in COVERAGES:
        answered = max(1, round(coverage * len(right)))
        order = np.sort(confidence)[::-1]
        points.append(
            {
                "coverage": answered / len(right),
                "risk": float(curve.risk[answered - 1]),
                "least_confidence": float(order[answered - 1]),
            }
        )
    area = metrics.bootstrap(lambda c, r: metrics.risk_coverage(c, r).area, confidence, right, seed=seed)
    return {"aurc": list(area), "excess_aurc": curve.excess, "at": points}


def ood_scores(predictions: Predictions, rejection: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Compute how foreign each known (N,) and ood (U,) picture looks, higher is more foreign: 1 -
    `rejection.similarity`.

    Raises ValueError without embeddings.
    """
    if predictions.embeddings is None or predictions.ood_embeddings is None:
        raise ValueError("these outputs have no embeddings")
    return 1 - similarity(predictions.embeddings, rejection), 1 - similarity(predictions.ood_embeddings, rejection)


def _out_of_distribution(
    predictions: Predictions, rejection: Mapping[str, Any] | None, seed: int
) -> dict[str, Any] | None:
    if predictions.ood_logits is None or not len(predictions.ood_logits):
        return None
    confidences = [
        metrics.softmax(part, predictions.temperature).max(axis=1)
        for part in (predictions.logits, predictions.ood_logits)
    ]
    result: dict[str, Any] = {
        "pictures": len(predictions.ood_logits),
        "by_confidence": _told_apart(1 - confidences[0], 1 - confidences[1], seed),
        "by_distance": None,
    }
    if predictions.embeddings is not None and predictions.ood_embeddings is not None and rejection is not None:
        known, ood = ood_scores(predictions, rejection)
        result["by_distance"] = _told_apart(known, ood, seed)
        if "threshold" in rejection:
            away = is_rejected(predictions.ood_embeddings, rejection)
            result["at_threshold"] = {"rejected": list(metrics.wilson(int(away.sum()), len(away)))}
    return result


def _rejection(
    predictions: Predictions, rejection: Mapping[str, Any] | None, right: np.ndarray
) -> dict[str, Any] | None:
    """Say what `classify` would say of pictures of known classes; None for a model that rejects nothing."""
    if rejection is None or "threshold" not in rejection or predictions.embeddings is None:
        return None
    away = is_rejected(predictions.embeddings, rejection)
    return {
        "threshold": float(rejection["threshold"]),
        "promise": str(rejection.get("how", "")),
        "rejected": list(metrics.wilson(int(away.sum()), len(away))),
        "right_and_kept": list(metrics.wilson(int((right & ~away).sum()), len(right))),
    }


def multi_label_rejection(
    known: np.ndarray, ood: np.ndarray, rejection: Mapping[str, Any], seed: int = 0
) -> dict[str, Any]:
    """Say which pictures a multi-label model rejects, by embeddings (N, D) of known and (U, D) of
    out-of-distribution ones.
    """
    away, foreign = is_rejected(known, rejection), is_rejected(ood, rejection)
    found: dict[str, Any] = {
        "threshold": float(rejection["threshold"]),
        "promise": str(rejection.get("how", "")),
        "rejected": list(metrics.wilson(int(away.sum()), len(away))),
        "out_of_distribution": None,
    }
    if len(ood):
        apart = _told_apart(1 - similarity(known, rejection), 1 - similarity(ood, rejection), seed)
        rejected = list(metrics.wilson(int(foreign.sum()), len(foreign)))
        found["out_of_distribution"] = {"pictures": len(ood), "rejected": rejected} | apart
    return found


def _told_apart(known: np.ndarray, ood: np.ndarray, seed: int) -> dict[str, Any]:
    """Compute the AUROC (ood = positive) with a bootstrap of both sides, and how many ood are rejected when 5 % of the
    known are.
    """
    random = np.random.default_rng(seed)
    drawn = [metrics.auroc(random.choice(ood, len(ood)), random.choice(known, len(known))) for _ in range(1000)]
    area = Interval(metrics.auroc(ood, known), *(float(q) for q in np.quantile(drawn, [0.025, 0.975])))
    limit = np.quantile(known, 0.95, method="higher")
    return {
        "auroc": list(area),
        "rejected_at_5_percent": list(metrics.wilson(int((ood > limit).sum()), len(ood))),
    }


# --- classes and mistakes


def _per_class(predictions: Predictions, right: np.ndarray, among: np.ndarray) -> list[dict[str, Any]]:
    """List the classes, the worst first."""
    predicted, confidence = predictions.logits.argmax(axis=1), predictions.probabilities.max(axis=1)
    rows = []
    for index in np.unique(predictions.labels).tolist():
        own = predictions.labels == index
        others = Counter(predicted[own & ~right].tolist()).most_common(3)
        rows.append(
            {
                "class": predictions.names[index],
                "index": index,
                "pictures": int(own.sum()),
                "accuracy": list(metrics.wilson(int(right[own].sum()), int(own.sum()))),
                "top5": float(among[own].mean()),
                "mean_confidence": float(confidence[own].mean()),
                "taken_for": [[predictions.names[other], count] for other, count in others],
            }
        )
    return sorted(rows, key=lambda row: (row["accuracy"][0], -row["pictures"], row["class"]))


def _confusions(predictions: Predictions) -> list[dict[str, Any]]:
    pairs = Counter(zip(predictions.labels.tolist(), predictions.logits.argmax(axis=1).tolist(), strict=True))
    wrong = [(true, other, count) for (true, other), count in pairs.items() if true != other]
    return [
        {"true": predictions.names[true], "predicted": predictions.names[other], "count": count}
        for true, other, count in sorted(wrong, key=lambda entry: (-entry[2], entry[0], entry[1]))
    ]


def _mistakes(predictions: Predictions, right: np.ndarray) -> list[dict[str, Any]]:
    """List mistakes, the most confident first: those are the ones that hurt."""
    probabilities, labels = predictions.probabilities, predictions.labels
    rows = []
    for index in np.flatnonzero(~right).tolist():
        row, true = probabilities[index], int(labels[index])
        rows.append(
            {
                "path": stored(predictions.paths[index]),
                "position": index,
                "true": predictions.names[true],
                "true_index": true,
                "predicted": predictions.names[int(row.argmax())],
                "predicted_index": int(row.argmax()),
                "confidence": float(row.max()),
                "probability_of_true": float(row[true]),
                "rank_of_true": int((row > row[true]).sum()) + 1,
            }
        )
    return sorted(rows, key=lambda entry: (-entry["confidence"], entry["position"]))


def busiest(predictions: Predictions, most: int = 24) -> tuple[np.ndarray, list[int], int]:
    """Count confusions among the classes that take part in most mistakes: the matrix (K, K), their indices, and
    how many there were.

    All classes that appear, true or predicted, if there are no more than `most`; in the order of the model's classes.
    """
    predicted = predictions.logits.argmax(axis=1)
    present, inside = np.unique(np.concatenate([predictions.labels, predicted]), return_inverse=True)
    true, other = np.split(inside, 2)
    wrong = true != other
    involved = np.bincount(true[wrong], minlength=len(present)) + np.bincount(other[wrong], minlength=len(present))
    pairs = Counter(zip(true[wrong].tolist(), other[wrong].tolist(), strict=True))
    chosen = set(range(len(present)) if len(present) <= most else ())
    for a, b in sorted(pairs, key=lambda pair: (-pairs[pair], -involved[list(pair)].sum(), pair)):
        if (
            len(chosen | {a, b}) <= most
        ):  # whole pairs, the most frequent first, so that each class is shown with its partner
            chosen |= {a, b}
    kept = sorted(chosen)
    counts = np.zeros((len(kept), len(kept)), np.int64)
    place = {index: position for position, index in enumerate(kept)}
    for a, b in zip(true.tolist(), other.tolist(), strict=True):
        if a in place and b in place:
            counts[place[a], place[b]] += 1
    return counts, [int(present[index]) for index in kept], len(present)
