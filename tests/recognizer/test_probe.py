"""The linear probe: cached embeddings, honest cross-validation, label issues, temperature."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from femtobooth.core.files import sha256_of
from femtobooth.core.metrics import negative_log_likelihood, softmax
from femtobooth.recognizer.finetuning import probe
from femtobooth.recognizer.finetuning.finetuner import with_classes
from femtobooth.recognizer.model.backbone import Recognizer
from femtobooth.recognizer.model.labels import Labels


@pytest.fixture
def network() -> Recognizer:
    torch.manual_seed(0)
    return Recognizer.create("test_convnext", Labels(tuple("abcd"))).freeze()


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    found = []
    for index in range(6):
        blocks = np.random.default_rng(index).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        found.append(tmp_path / f"{index}.png")
        Image.fromarray(blocks).resize((80, 80), Image.Resampling.BICUBIC).save(found[-1])
    return found


@pytest.mark.parametrize("classes", [2, 3])
def test_the_layer_is_read_back_as_it_was(tmp_path: Path, classes: int) -> None:
    """However its weights lie in memory; and of a version that wrote them as they lay, which is columns first."""
    random = np.random.default_rng(0)
    labels, values = np.arange(30) % classes, random.normal(size=(30, 7))
    head = probe.fit(values, labels, classes, balanced=False)
    assert head.weight.flags.f_contiguous is (classes > 2)
    head.save(tmp_path / "today.safetensors")
    save_file({"weight": head.weight, "bias": head.bias}, tmp_path / "older.safetensors")
    for name in ("today", "older"):
        read = probe.Head.load(tmp_path / f"{name}.safetensors")
        np.testing.assert_array_equal(read.weight, head.weight)
        np.testing.assert_array_equal(read.bias, head.bias)


def test_fine_tuning_starts_from_the_layer_as_bold_as_it_is_right(tmp_path: Path) -> None:
    """Noise leaves a probe sure of what it is wrong about; softened it names the same classes, and is read back so."""
    random = np.random.default_rng(0)
    labels, values = np.arange(60) % 3, random.normal(size=(60, 40))
    values[np.arange(60), labels] += 1
    fold = probe.folds(labels, np.arange(60), np.zeros(60, bool), 0)
    bold = probe.boldness(probe.cross_validate(values, labels, fold, 3), labels)
    assert 1.5 < bold < 20
    head = replace(probe.fit(values, labels, 3), temperature=bold)
    head.save(tmp_path / "probe.safetensors")
    soft = probe.Head.load(tmp_path / "probe.safetensors").softened()
    unseen, truth = random.normal(size=(600, 40)), np.arange(600) % 3
    unseen[np.arange(600), truth] += 1
    np.testing.assert_allclose(soft.logits(unseen) * bold, head.logits(unseen), atol=1e-4)
    losses = [negative_log_likelihood(softmax(one.logits(unseen)), truth) for one in (head, soft)]
    assert losses[1] < 0.8 * losses[0]
    sure = np.eye(3)[labels] * 9
    assert probe.boldness(sure, labels) == probe.boldness(sure[:0], labels[:0]) == 1


def test_embeddings_are_made_once(network: Recognizer, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    outputs = Recognizer.outputs
    monkeypatch.setattr(
        Recognizer, "outputs", lambda self, images, *rest: (seen.append(len(images)), outputs(self, images, *rest))[1]
    )
    digests = [sha256_of(path) for path in files]
    first = probe.embed(network, files[:4], digests[:4])
    again = probe.embed(network, files, digests)
    assert seen == [4, 2]
    assert np.array_equal(first.prelogits, again.prelogits[:4])
    (cache,) = (Path(__import__("os").environ["FEMTOBOOTH_CACHE"]) / "embeddings").glob(f"{network.hash[:16]}-*")
    cache.write_bytes(b"torn")
    assert np.allclose(probe.embed(network, files, digests).embedding, again.embedding, atol=1e-5)


def test_the_probe_becomes_the_last_layer(network: Recognizer, files: list[Path]) -> None:
    embedded = probe.embed(network, files, [sha256_of(path) for path in files])
    head = probe.fit(embedded.prelogits, np.array([0, 1, 2, 0, 1, 2]), 3)
    changed = with_classes(network, ["x", "y", "z"], head).freeze()
    with torch.no_grad():
        logits = changed(changed.batch([Image.open(path).convert("RGB") for path in files])).numpy()
    assert np.allclose(logits, head.logits(embedded.prelogits), atol=1e-3)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_fit_separates_and_generalizes(classes: int) -> None:
    random = np.random.default_rng(0)
    centres = random.normal(size=(classes, 20)) * 3
    labels = np.tile(np.arange(classes), 40)
    vectors = (centres[labels] + random.normal(size=(len(labels), 20)) + 50).astype(np.float32)
    head = probe.fit(vectors[:60], labels[:60], classes)
    assert (head.logits(vectors[60:]).argmax(axis=1) == labels[60:]).mean() > 0.95


class TestFolds:
    @pytest.mark.parametrize("seed", range(5))
    def test_groups_stay_together_and_classes_are_dealt_out(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        labels = random.permutation(np.repeat(np.arange(4), (30, 10, 3, 2)))
        groups = np.arange(len(labels))
        first, second = np.flatnonzero(labels == 0)[:2]
        groups[second] = groups[first]
        fold = probe.folds(labels, groups, np.zeros(len(labels), bool), seed)
        assert (fold >= 0).all()
        assert fold[first] == fold[second]
        for label in range(4):
            assert len(np.unique(fold[labels == label])) == min((labels == label).sum(), probe.FOLDS)

    def test_generated_pictures_and_lone_groups_are_never_predicted(self) -> None:
        labels, groups = np.array([0, 0, 0, 1, 1, 1, 2]), np.array([0, 1, 1, 3, 4, 5, 6])
        fold = probe.folds(labels, groups, np.array([0, 0, 1, 0, 0, 0, 0], bool), 0)
        assert (fold >= 0).tolist() == [True, False, False, True, True, True, False]


def test_a_picture_has_no_part_in_its_own_prediction() -> None:
    """With labels that mean nothing the accuracy is chance, though 200 dimensions could memorize every picture."""
    random = np.random.default_rng(0)
    vectors, labels = random.normal(size=(240, 200)).astype(np.float32), random.integers(0, 2, 240)
    fold = probe.folds(labels, np.arange(240), np.zeros(240, bool), 0)
    logits = probe.cross_validate(vectors, labels, fold, 2)
    assert 0.38 < (logits.argmax(axis=1) == labels).mean() < 0.62
    held = fold == 0
    other = np.where(held, 1 - labels, labels)
    assert np.array_equal(probe.cross_validate(vectors, other, fold, 2)[held], logits[held])


def test_a_planted_wrong_label_is_found() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 20)
    vectors = (random.normal(size=(3, 16))[labels] * 4 + random.normal(size=(60, 16))).astype(np.float32)
    given = labels.copy()
    given[7] = 2
    fold = probe.folds(given, np.arange(60), np.zeros(60, bool), 0)
    found = probe.label_issues(probe.cross_validate(vectors, given, fold, 3), given)
    assert [(index, other) for index, other, _ in found] == [(7, 0)]
    assert probe.label_issues(probe.cross_validate(vectors, labels, fold, 3), labels) == []


def test_temperature_of_many_pictures_is_the_true_one() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(5000, 4)) * 2
    labels = np.array([random.choice(4, p=row) for row in softmax(logits)])
    assert probe.calibrated(logits * 3, labels) == pytest.approx(3, rel=0.06)


def test_temperature_of_few_pictures_stays_near_one() -> None:
    labels = np.zeros(4, np.int64)
    assert 0.4 < probe.calibrated(np.tile([5.0, 0.0], (4, 1)), labels) < 1
    assert 1 < probe.calibrated(np.tile([0.0, 5.0], (4, 1)), labels) < 10
