"""Rejection of unknown classes by embedding distance."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from femtobooth.recognizer import unknown


def clusters(count: int, seed: int, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (count * classes, 32) around class centres that share a large common part."""
    centres = np.random.default_rng(99).normal(size=(classes, 32)) * 2 + 10
    labels = np.repeat(np.arange(classes), count)
    return (centres[labels] + np.random.default_rng(seed).normal(size=(len(labels), 32))).astype(np.float32), labels


@pytest.mark.parametrize("held_out", [2, 5, 500])
def test_five_per_cent_of_known_pictures_are_rejected(held_out: int) -> None:
    """On average over many small calibration sets, and of pictures that had no part in them."""
    train, labels = clusters(50, 0)
    fresh, _ = clusters(2000, 1)
    model = unknown.centroids(train, labels, 4)
    rates = []
    for seed in range(60 if held_out < 100 else 3):
        limit, _ = unknown.threshold(unknown.similarity(clusters(held_out, seed + 2)[0], model))
        rates.append(unknown.is_unknown(fresh, model | {"threshold": limit}).mean())
    assert 0.02 < np.mean(rates) < 0.08


def test_other_classes_are_rejected() -> None:
    train, labels = clusters(20, 0)
    model = unknown.centroids(train, labels, 4)
    model["threshold"], how = unknown.threshold(unknown.similarity(clusters(20, 1)[0], model))
    assert how == "95% prediction bound from 80 held-out pictures"
    strange = np.random.default_rng(5).normal(size=(200, 32)) * 2 + 10
    assert unknown.is_unknown(strange, model).mean() > 0.95


def test_too_few_to_tell() -> None:
    limit, how = unknown.threshold(np.array([0.5]))
    assert limit == -1
    assert "nothing is called unknown" in how
    train, labels = clusters(3, 0)
    assert not unknown.is_unknown(train, unknown.centroids(train, labels, 4) | {"threshold": limit}).any()


def test_a_model_that_cannot_tell() -> None:
    assert unknown.is_unknown(np.zeros((3, 2)), None).tolist() == [False] * 3


def test_exported_models_need_neither_torch_nor_scipy() -> None:
    code = "import sys; import femtobooth.recognizer.unknown; sys.exit(any(name in sys.modules for name in ('torch', 'timm', 'scipy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
