"""Layer-wise learning rates, freezing, losses, and training pictures that depend on nothing but their numbers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from femtobooth.core import config
from femtobooth.recognizer.finetuning.augmentation import TrainingPictures, blend, seeded
from femtobooth.recognizer.finetuning.finetuner import (
    Finetuner,
    class_weights,
    keep_statistics,
    layer_groups,
    soft_cross_entropy,
)
from femtobooth.recognizer.model.backbone import Recognizer
from femtobooth.recognizer.model.labels import Labels
from femtobooth.recognizer.model.preprocess import Preprocess
from femtobooth.recognizer.settings import AugmentSettings, FinetuneSettings
from femtobooth.training.trainer import build


def settings(**changed: Any) -> FinetuneSettings:
    return config.resolve(FinetuneSettings, {"data": "x", "training": {"steps": 40, "warmup": 4}}, changed)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(6):
        blocks = np.random.default_rng(index).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize((96, 72), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return sorted(folder.iterdir())


def pictures(files: list[Path], **changed: Any) -> TrainingPictures:
    options = {"batch_size": 4, "seed": 3} | changed
    return TrainingPictures(files, [0, 1, 2, 0, 1, 2], Preprocess((32, 32)), AugmentSettings(), **options)


def first(stream: Any, count: int) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
    return [item for item, _ in zip(stream, range(count), strict=False)]


@pytest.mark.parametrize("name", ["test_convnext", "test_efficientnet", "test_vit", "test_resnet"])
def test_each_layer_learns_slower_than_the_one_after_it(name: str) -> None:
    model = Recognizer.create(name, Labels(("a", "b"))).model
    groups = layer_groups(model, settings(learning_rate=1e-3, layer_decay=0.5, freeze=10, unfreeze_every=5))
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    head = next(group for group in groups if any(part is model.get_classifier().weight for part in group["params"]))
    assert (head["name"], head["lr"], head["starts"], head["weight_decay"]) == ("head", 1e-3, 0, 0.05)
    depths = sorted({round(float(np.log2(1e-3 / group["lr"]))) for group in groups})
    assert depths == list(range(len(depths)))
    assert len(depths) > 3
    for group in groups:
        depth = round(float(np.log2(1e-3 / group["lr"])))
        assert group["starts"] == (10 + 5 * (depth - 1) if depth else 0)
        assert all(part.ndim > 1 for part in group["params"]) == (group["weight_decay"] > 0)


def test_a_group_starts_at_its_step_with_a_warm_up_of_its_own() -> None:
    model = Recognizer.create("test_convnext", Labels(("a", "b")))
    module = Finetuner(model, settings(freeze=10), [Path("x")] * 2, np.array([0, 1]))
    late, early = module._factor(10), module._factor(0)
    assert [late(step) for step in (0, 9)] == [0, 0]
    assert late(10) == pytest.approx(early(10) / 4)
    assert late(13) == early(13)
    assert [early(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert early(40) == pytest.approx(0)


def test_frozen_layers_get_no_gradient(tmp_path: Path) -> None:
    model = Recognizer.create("test_convnext", Labels(("a", "b")))
    module = Finetuner(model, settings(freeze=10), [Path("x")] * 2, np.array([0, 1]))
    optimizer = module.configure_optimizers()["optimizer"]
    module.trainer = build(module.regime, tmp_path, [], [])
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    module.on_before_optimizer_step(optimizer)
    learning = {id(part) for group in optimizer.param_groups if group["lr"] for part in group["params"]}
    assert {id(part) for part in model.parameters() if part.grad is not None} == learning
    assert 0 < len(learning) < len(list(model.parameters()))
    assert all(part.requires_grad for part in model.parameters())


def test_batch_norm_keeps_its_statistics() -> None:
    model = Recognizer.create("test_efficientnet", Labels(("a", "b")))
    before = {name: value.clone() for name, value in model.named_buffers()}
    model.train()
    keep_statistics(model)
    model(torch.randn(4, 3, 64, 64))
    assert before
    assert all(torch.equal(before[name], value) for name, value in model.named_buffers())


def test_the_loss_is_torchs() -> None:
    logits, labels = torch.randn(8, 3), torch.tensor([0, 1, 2, 0, 1, 2, 0, 0])
    _, targets = blend(torch.zeros(8, 3, 4, 4), labels, AugmentSettings(mixup=0.0), 0.1, 3)
    assert torch.allclose(targets.sum(dim=1), torch.ones(8))
    assert torch.allclose(
        soft_cross_entropy(logits, targets, torch.ones(3)), cross_entropy(logits, labels, label_smoothing=0.1)
    )


def test_balanced_weights_average_to_one_over_the_pictures() -> None:
    labels = np.array([0] * 6 + [1] * 3 + [2])
    weights = class_weights(labels, 3, balanced=True)
    assert weights[labels].mean() == pytest.approx(1)
    assert weights.tolist() == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    assert class_weights(labels, 3, balanced=False).tolist() == [1, 1, 1]


@pytest.mark.parametrize("mixing", [{"mixup": 1.0}, {"cutmix": 1.0, "mixup": 0.0}])
def test_blending_is_decided_by_the_seed(mixing: dict[str, float]) -> None:
    images, labels = torch.randn(6, 3, 16, 16), torch.arange(6) % 3

    def once(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        with seeded(0, "step", step, 0):
            return blend(images.clone(), labels, AugmentSettings(**mixing), 0.1, 3)

    assert all(torch.equal(a, b) for a, b in zip(once(1), once(1), strict=True))
    assert not torch.equal(once(1)[0], once(2)[0])
    assert torch.allclose(once(1)[1].sum(dim=1), torch.ones(6))


def test_other_draws_are_left_as_they_were() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(()))

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with seeded(7, "x"):
        inside = draw()
    assert draw() == expected
    with seeded(7, "x"):
        assert draw() == inside


def test_pictures_depend_on_nothing_but_their_numbers(files: list[Path]) -> None:
    whole = first(pictures(files), 6)
    assert [step for step, _, _ in whole] == list(range(6))
    assert not torch.equal(whole[0][1], whole[3][1])  # the same files after two passes, changed in another way
    resumed = first(pictures(files, first=3), 3)
    torch.rand(5), np.random.random(5)
    for (_, pixels, labels), (_, others, also) in zip(whole[3:], resumed, strict=True):
        assert torch.equal(pixels, others)
        assert torch.equal(labels, also)
    with_workers = first(DataLoader(pictures(files), batch_size=None, num_workers=2), 6)
    assert [step for step, _, _ in with_workers] == list(range(6))
    assert all(torch.equal(a[1], b[1]) for a, b in zip(whole, with_workers, strict=True))


def test_processes_share_each_pass_without_overlap(files: list[Path]) -> None:
    """Of six files two processes take three each; every file is seen once."""
    seen = [first(pictures(files, batch_size=3, rank=rank, world=2), 1)[0] for rank in (0, 1)]
    assert sorted(torch.cat([labels for _, _, labels in seen]).tolist()) == [0, 0, 1, 1, 2, 2]
    assert not torch.equal(seen[0][1], seen[1][1])
    other = first(pictures(files, batch_size=3, rank=0, world=2, seed=4), 1)[0]
    assert not torch.equal(seen[0][1], other[1])


def test_an_odd_batch_cannot_be_blended() -> None:
    with pytest.raises(Exception, match="batch_size must be even"):
        settings(training={"batch_size": 3})
    settings(training={"batch_size": 3}, augment={"mixup": 0.0})
