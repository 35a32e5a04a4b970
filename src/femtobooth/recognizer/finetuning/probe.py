"""The linear probe: logistic regression on cached embeddings, cross-validated; the baseline that fine-tuning has to
beat.

Nothing in the network changes, so every picture is embedded once (and kept in the cache) and a fit takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save, save_file

from ...core import cache
from ...core.events import progress, progress_bar
from ...core.metrics import COLDEST, HOTTEST, softmax, temperature
from ...pictures.images import read_picture
from ...training.randomness import generator
from ..model.backbone import Recognizer
from ..model.labels import Labels
from .losses import label_weights

FOLDS = 5
ROWS_FIRST = {"order": "rows first"}  # metadata of probe.safetensors
STRENGTH = 1.0
"""sklearn's C, the inverse of the L2 penalty, for standardized embeddings; its default, tuned on nothing."""


@dataclass(frozen=True)
class Embedded:
    """What the frozen network says of N pictures."""

    prelogits: np.ndarray
    """float32 (N, P): what the last layer reads."""
    embedding: np.ndarray
    """float32 (N, D): pooled; distances are measured in it. The same array unless the head has a hidden layer."""


@dataclass(frozen=True)
class Head:
    """A linear layer over pre-logits."""

    weight: np.ndarray  # float32 (C, P)
    bias: np.ndarray  # float32 (C,)
    temperature: float = 1.0
    """What its logits are too bold by, on held-out pictures; 1 where they are not."""

    def logits(self, prelogits: np.ndarray) -> np.ndarray:
        """Compute logits, float64 (N, C)."""
        return prelogits.astype(np.float64) @ self.weight.T.astype(np.float64) + self.bias

    def softened(self) -> Head:
        """Return the layer that fine-tuning starts from: divided by the temperature, it says the same, less boldly.

        A logistic regression that fits its pictures has logits whose loss, once augmentation changes the pictures, is
        huge; its gradients destroyed what the network knew within the first steps.
        """
        return Head(self.weight / np.float32(self.temperature), self.bias / np.float32(self.temperature))

    def save(self, file: Path) -> None:
        """Write the layer as safetensors, which holds arrays as they lie in memory: rows first, as it says."""
        rows_first = {"weight": np.ascontiguousarray(self.weight), "bias": self.bias}
        save_file(rows_first, file, metadata=ROWS_FIRST | {"temperature": repr(self.temperature)})

    @classmethod
    def load(cls, file: Path) -> Head:
        """Read what `save` wrote.

        Before December 2026 nothing said how the weights of more than two classes lay: columns first.
        """
        with safe_open(file, "numpy") as opened:
            weight, bias = opened.get_tensor("weight"), opened.get_tensor("bias")
            told = opened.metadata() or {}
            if len(weight) > 2 and told.get("order") != ROWS_FIRST["order"]:
                weight = np.ascontiguousarray(weight.reshape(-1).reshape(weight.shape, order="F"))
        return cls(weight, bias, float(told.get("temperature", 1)))


def embed(recognizer: Recognizer, paths: Sequence[Path], digests: Sequence[str], batch: int = 16) -> Embedded:
    """Compute the outputs of the network for files, in order; those of files seen before come from the cache.

    `digests` are the files' SHA-256. Raises PhotoError for a file that can no longer be read.
    """
    file = cache.cache_folder() / "embeddings" / f"{recognizer.hash[:16]}-{recognizer.preprocess.hash[:16]}.safetensors"
    known = _read_cache(file)
    wanted = dict(zip(digests, paths, strict=True))
    missing = [digest for digest in wanted if digest not in known]
    was_training = recognizer.training
    recognizer.eval()
    if missing:
        with progress_bar("embedding", len(missing)) as bar, torch.inference_mode():
            for start in range(0, len(missing), batch):
                chunk = missing[start : start + batch]
                outputs = recognizer.outputs([read_picture(wanted[digest]).image for digest in chunk])
                prelogits, embedding = (outputs[name].float().cpu().numpy() for name in ("prelogits", "embedding"))
                known |= {digest: (prelogits[i], embedding[i]) for i, digest in enumerate(chunk)}
                bar.advance(len(chunk))
        _write_cache(file, known)
    recognizer.train(was_training)
    return Embedded(*(np.stack([known[digest][which] for digest in digests]) for which in (0, 1)))


def _read_cache(file: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    kept = cache.read(file)
    if kept is None:
        return {}
    try:
        stored = load(kept)
        names = [row.tobytes().hex() for row in stored["sha256"]]
        return dict(zip(names, zip(stored["prelogits"], stored["embedding"], strict=True), strict=True))
    except (KeyError, ValueError, SafetensorError):  # of another version
        return {}


def _write_cache(file: Path, known: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    known = _read_cache(file) | known  # another run may have added to it meanwhile
    arrays = {
        "sha256": np.stack([np.frombuffer(bytes.fromhex(digest), np.uint8) for digest in known]),
        "prelogits": np.stack([pair[0] for pair in known.values()]),
        "embedding": np.stack([pair[1] for pair in known.values()]),
    }
    cache.write(file, save(arrays))


def fit(
    prelogits: np.ndarray, labels: np.ndarray, classes: int, balanced: bool = False, strength: float = STRENGTH
) -> Head:
    """Fit multinomial logistic regression on standardized pre-logits (N, P) with labels 0 to C-1, every class among
    them.

    The standardization is folded into the layer. `balanced` weighs each class alike.
    """
    from sklearn.linear_model import LogisticRegression

    mean, deviation = prelogits.mean(axis=0, dtype=np.float64), prelogits.std(axis=0, dtype=np.float64)
    deviation[deviation < 1e-6] = 1.0
    model = LogisticRegression(C=strength, max_iter=2000, class_weight="balanced" if balanced else None)
    model.fit((prelogits - mean) / deviation, labels)
    weight, bias = model.coef_, model.intercept_
    if classes == 2:  # sklearn gives the difference of the two logits
        weight, bias = np.concatenate([-weight / 2, weight / 2]), np.concatenate([-bias / 2, bias / 2])
    weight = weight / deviation
    return Head(weight.astype(np.float32), (bias - weight @ mean).astype(np.float32))


def fit_multi_label(
    prelogits: np.ndarray,
    truth: np.ndarray,
    labels: Labels,
    balanced: bool = False,
    strength: float = STRENGTH,
) -> Head:
    """Fit the same where a picture may have several labels: `truth` (N, C) with nan where nobody said; all sigmoids and
    softmaxes of `labels` at once, by L-BFGS.
    """
    from scipy.optimize import minimize

    mean, deviation = prelogits.mean(axis=0, dtype=np.float64), prelogits.std(axis=0, dtype=np.float64)
    deviation[deviation < 1e-6] = 1.0
    x = np.column_stack([(prelogits - mean) / deviation, np.ones(len(prelogits))])
    known, (negative, positive) = np.isfinite(truth), label_weights(labels, truth, balanced).double().numpy()
    yes = np.where(known, truth, 0.0)
    weights = strength * known * np.where(yes > 0, positive, negative)
    penalty = np.append(np.ones(prelogits.shape[1]), 1e-3)[:, None]  # next to none on the bias

    def cost(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(x.shape[1], -1)
        z, loss, error = x @ w, 0.0, np.zeros_like(yes)
        for name, (start, end) in labels.groups.items():
            one, true, weight = z[:, start:end], yes[:, start:end], weights[:, start:end]
            if name in labels.free:
                loss += float((weight * (np.logaddexp(0, one) - true * one)).sum())
                error[:, start:end] = weight * (0.5 * (1 + np.tanh(one / 2)) - true)
            else:
                p, whole = softmax(one), (weight * true).sum(axis=1, keepdims=True)
                loss -= float((whole[:, 0] * np.log(np.maximum((p * true).sum(axis=1), 1e-300))).sum())
                error[:, start:end] = whole * (p - true)
        return loss + 0.5 * float((penalty * w * w).sum()), (x.T @ error + penalty * w).ravel()

    start_at = np.zeros(x.shape[1] * truth.shape[1])
    options = {"maxiter": 2000, "maxcor": 10}
    found: Any = minimize(cost, start_at, jac=True, method="L-BFGS-B", options=options)
    w = found.x.reshape(x.shape[1], -1)
    weight = (w[:-1] / deviation[:, None]).T
    return Head(np.ascontiguousarray(weight, np.float32), (w[-1] - weight @ mean).astype(np.float32))


def cross_validate_multi_label(
    prelogits: np.ndarray, truth: np.ndarray, fold: np.ndarray, labels: Labels, balanced: bool = False
) -> np.ndarray:
    """Compute logits (N, C) of each picture by a probe that never saw its fold; nan for pictures of fold -1."""
    logits = np.full(truth.shape, np.nan)
    for number in progress(np.unique(fold[fold >= 0]).tolist(), "linear probe"):
        inside = fold == number
        head = fit_multi_label(prelogits[~inside], truth[~inside], labels, balanced)
        logits[inside] = head.logits(prelogits[inside])
    return logits


def folds(labels: np.ndarray, groups: np.ndarray, only_train: np.ndarray, seed: int, count: int = FOLDS) -> np.ndarray:
    """Compute the fold in which each of N pictures is predicted, 0 to count-1, or -1 for those that only train.

    Near-duplicates share a fold, the groups of each class are dealt out evenly, and no fold holds all of a class: a
    class of one group is never predicted.
    """
    result = np.full(len(labels), -1)
    barred = {int(group) for group in groups[only_train]}
    dealt: set[int] = set()
    for label in np.unique(labels):
        own = [group for group in np.unique(groups[labels == label]).tolist() if group not in barred | dealt]
        if len(np.unique(groups[labels == label])) < 2:
            continue
        order = torch.randperm(len(own), generator=generator(seed, "folds", int(label))).tolist()
        for turn, index in enumerate(order):
            result[groups == own[index]] = (turn + int(label)) % count
        dealt |= set(own)
    return result


def cross_validate(
    prelogits: np.ndarray,
    labels: np.ndarray,
    fold: np.ndarray,
    classes: int,
    balanced: bool = False,
    strength: float = STRENGTH,
) -> np.ndarray:
    """Compute logits (N, C) of each picture by a probe that never saw its fold; nan for pictures of fold -1."""
    logits = np.full((len(labels), classes), np.nan)
    for number in progress(np.unique(fold[fold >= 0]).tolist(), "linear probe"):
        inside = fold == number
        present = np.unique(labels[~inside])
        if len(present) < classes:  # a class whose groups of several classes all fell into this fold
            continue
        logits[inside] = fit(prelogits[~inside], labels[~inside], classes, balanced, strength).logits(prelogits[inside])
    return logits


def label_issues(logits: np.ndarray, labels: np.ndarray) -> list[tuple[int, int, float]]:
    """Find pictures whose label looks wrong: (index, likelier class, its probability), the surest first.

    Confident learning (Northcutt et al. 2021, eq. 2): another class is likelier than the given one, and at least as
    likely as it is on average for its own pictures. `logits` (N, C) are out-of-fold; rows of nan are passed over.
    """
    rows = np.flatnonzero(np.isfinite(logits).all(axis=1))
    if not len(rows):
        return []
    probabilities, given = softmax(logits[rows], temperature(logits[rows], labels[rows])), labels[rows]
    classes = logits.shape[1]
    usual = np.array([probabilities[given == c, c].mean() if (given == c).any() else 1.0 for c in range(classes)])
    other = np.where(probabilities >= usual, probabilities, -1.0)
    other[np.arange(len(rows)), given] = -1.0
    likelier = other.argmax(axis=1)
    best = other.max(axis=1)
    found = [
        (int(rows[i]), int(likelier[i]), float(best[i]))
        for i in range(len(rows))
        if best[i] > max(probabilities[i, given[i]], 0.0)
    ]
    return sorted(found, key=lambda one: -one[2])


def calibrated(logits: np.ndarray, labels: np.ndarray) -> float:
    """Compute the temperature for (N, C) held-out logits: the one of least log loss, drawn towards 1 where pictures are
    few.

    With N pictures that are all right the best temperature would be 0; so ln T has a normal prior of standard deviation
    0.5 about 0, which hundreds of pictures outweigh: argmin N * loss(T) + (ln T)^2 / (2 * 0.5^2).
    """
    from scipy.optimize import minimize_scalar

    from ...core.metrics import negative_log_likelihood

    def cost(log_t: float) -> float:
        return len(labels) * negative_log_likelihood(softmax(logits, float(np.exp(log_t))), labels) + 2 * log_t**2

    found: Any = minimize_scalar(
        cost, bounds=(np.log(COLDEST), np.log(HOTTEST)), method="bounded", options={"xatol": 1e-6}
    )
    return float(np.exp(found.x))


def boldness(logits: np.ndarray, labels: np.ndarray) -> float:
    """Compute the temperature of held-out logits (N, C), 1 at least: a probe that is timid stays as it is."""
    return max(calibrated(logits, labels), 1.0) if len(labels) else 1.0
