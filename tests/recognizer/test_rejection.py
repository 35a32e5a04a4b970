"""Rejection of out-of-distribution pictures by embedding distance."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from femtobooth.recognizer.model import rejection


def clusters(count: int, seed: int, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (count * classes, 32) around class centres that share a large common part."""
    centres = np.random.default_rng(99).normal(size=(classes, 32)) * 2 + 10
    labels = np.repeat(np.arange(classes), count)
    return (centres[labels] + np.random.default_rng(seed).normal(size=(len(labels), 32))).astype(np.float32), labels


@pytest.mark.parametrize("shape", ["normal", "heavy tail", "two modes"])
@pytest.mark.parametrize(
    ("count", "kept"), [(2, 2 / 3), (4, 0.8), (12, 12 / 13), (19, 0.95), (28, 28 / 29), (500, 0.95)]
)
def test_a_new_known_picture_is_kept_as_often_as_promised(count: int, kept: float, shape: str) -> None:
    """Whatever the distribution, on average over the held-out pictures."""
    random = np.random.default_rng(count)

    def similarities(*size: int) -> np.ndarray:
        if shape == "normal":
            return random.normal(0.6, 0.1, size)
        if shape == "heavy tail":
            return 0.9 - 0.02 * random.pareto(1.5, size)
        return np.where(random.random(size) < 0.2, random.normal(0.2, 0.02, size), random.normal(0.8, 0.02, size))

    found = [rejection.limit(similarities(count)) for _ in range(300)]
    assert all(one.kept == pytest.approx(kept, abs=1e-3) for one in found)
    shares = [(similarities(2000) >= one.threshold).mean() for one in found]
    assert np.mean(shares) > kept - 0.02


def test_other_classes_are_rejected() -> None:
    train, labels = clusters(20, 0)
    model = rejection.centroids(train, labels[:, None] == np.arange(4))
    limit = rejection.limit(rejection.similarity(clusters(20, 1)[0], model))
    assert limit.how == "keeps 95.1% of known pictures, by the quantile of 80 held-out ones"
    foreign = np.random.default_rng(5).normal(size=(200, 32)) * 2 + 10
    assert rejection.is_rejected(foreign, model | {"threshold": limit.threshold}).mean() > 0.95


def test_pictures_of_several_labels_have_a_centroid_for_each_and_one_for_none() -> None:
    truth = np.array([[1, 1, np.nan], [0, 1, 0], [0, 0, np.nan], [1, 0, 0]])
    assert rejection.members(truth).T.tolist() == [
        [True, False, False, True],
        [True, True, False, False],
        [False] * 4,
        [False, False, True, False],
    ]
    vectors = np.array([[2.0, 2.0], [0.0, 3.0], [-4.0, -4.0], [4.0, 0.0]])
    found = rejection.centroids(vectors, rejection.members(truth))
    means = np.array([[3.0, 1.0], [1.0, 2.5], [-4.0, -4.0]])  # the label that no picture has has none
    assert found["center"] == pytest.approx(means.mean(axis=0))
    directions = means - means.mean(axis=0)
    assert found["centroids"] == pytest.approx(directions / np.linalg.norm(directions, axis=1, keepdims=True))


def test_too_few_to_tell() -> None:
    limit = rejection.limit(np.array([0.5]))
    assert limit.threshold == -1
    assert "nothing is rejected" in limit.how
    train, labels = clusters(3, 0)
    assert not rejection.is_rejected(
        train, rejection.centroids(train, labels[:, None] == np.arange(4)) | {"threshold": limit.threshold}
    ).any()


def test_near_duplicates_are_one_piece_of_evidence() -> None:
    assert rejection.one_of_each(np.array([0.5, 0.9, 0.7, 0.6]), np.array([3, 3, 1, 1])).tolist() == [0.6, 0.5]


def test_a_model_that_cannot_tell() -> None:
    assert rejection.is_rejected(np.zeros((3, 2)), None).tolist() == [False] * 3


def test_exported_models_need_neither_torch_nor_scipy() -> None:
    code = (
        "import sys; import femtobooth.recognizer.model.rejection; sys.exit(any(name "
        "in sys.modules for name in ('torch', 'timm', 'scipy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
