"""What a teacher's answers and embeddings come to in the loss, and that it sees what the student sees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import binary_cross_entropy, kl_div, log_softmax, softmax

from femtobooth.core import config
from femtobooth.core.errors import SettingsError
from femtobooth.recognizer.finetuning import losses, teacher
from femtobooth.recognizer.finetuning.augmentation import TrainingPictures, is_fixed
from femtobooth.recognizer.finetuning.distillation import Distiller
from femtobooth.recognizer.finetuning.teacher import Lesson, Teacher
from femtobooth.recognizer.finetuning.unlabelled import Unlabelled
from femtobooth.recognizer.inference.runtimes import of_recognizer
from femtobooth.recognizer.model.backbone import Recognizer
from femtobooth.recognizer.model.labels import Labels
from femtobooth.recognizer.model.preprocess import Preprocess
from femtobooth.recognizer.settings import AugmentSettings, FinetuneSettings

STILL = {"crop": 1.0, "flip": False, "magnitude": 0, "mixup": 0.0}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(6):
        blocks = np.random.default_rng(index).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize((60, 44), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return sorted(folder.iterdir())


def settings(**changed: Any) -> FinetuneSettings:
    return config.resolve(
        FinetuneSettings, {"data": "x", "distill": {"teacher": "x"}, "training": {"batch_size": 4}}, changed
    )


@pytest.fixture(scope="module")
def other() -> Recognizer:
    """Knows the student's classes in another order, and one more; reads 48 pixels."""
    torch.manual_seed(5)
    made = Recognizer.create("test_efficientnet", Labels(("c", "x", "a", "b")), Preprocess((48, 48)))
    made.temperature = 2.0
    return made.freeze()


def student() -> Recognizer:
    torch.manual_seed(6)
    return Recognizer.create("test_convnext", Labels(("a", "b", "c")), Preprocess((32, 32)))


def distiller(other: Recognizer, files: list[Path], **changed: Any) -> Distiller:
    own = teacher.of_recognizer("other", other).with_classes([2, 3, 0])
    module = Distiller(
        student(),
        settings(**changed),
        files[:4],
        np.array([0, 1, 2, 0]),
        Lesson(own, Unlabelled(files[4:], ["4", "5"])),
    )
    module.trainer = type("Alone", (), {"world_size": 1, "global_rank": 0})()  # type: ignore[assignment]
    return module


def batches(module: Distiller, count: int) -> list[Any]:
    return [batch for batch, _ in zip(module.train_dataloader(), range(count), strict=False)]


def test_answers_are_compared_as_hinton_does() -> None:
    torch.manual_seed(0)
    own, said = torch.randn(5, 3), torch.randn(5, 3)
    expected = 9 * kl_div(log_softmax(own / 3, 1), softmax(said / 3, 1), reduction="batchmean")
    assert losses.taught(Labels(("a", "b", "c")), own, said, 3.0) == pytest.approx(float(expected), rel=1e-5)
    assert losses.taught(Labels(("a", "b", "c")), said + 7, said, 3.0) == pytest.approx(0, abs=1e-6)


def test_several_labels_are_compared_one_by_one() -> None:
    labels = Labels(("a", "b", "g=1", "g=2"), groups={"label": (0, 2), "g": (2, 4)}, free=("label",))
    own, said = torch.randn(5, 4), torch.randn(5, 4)
    p, q = torch.sigmoid(own[:, :2] / 2), torch.sigmoid(said[:, :2] / 2)
    free = binary_cross_entropy(p, q) - binary_cross_entropy(q, q)
    group = kl_div(log_softmax(own[:, 2:] / 2, 1), softmax(said[:, 2:] / 2, 1), reduction="batchmean")
    assert losses.taught(labels, own, said, 2.0) == pytest.approx(float(4 * (free + group)), rel=1e-4)


def test_a_teacher_says_calibrated_logits_of_the_students_classes(other: Recognizer, files: list[Path]) -> None:
    own = teacher.of_recognizer("other", other)
    with torch.no_grad():
        expected = other.outputs([Image.open(path).convert("RGB") for path in files])
    assert own.says_of(files).logits is None
    said = own.with_classes([2, 3, 0]).says_of(files, batch=4)
    assert said.logits is not None and said.embedding is not None
    assert torch.allclose(said.logits, expected["logits"][:, [2, 3, 0]] / 2, atol=1e-5)
    assert torch.allclose(said.embedding, expected["embedding"], atol=1e-5)
    engine = teacher.of_engine("export", of_recognizer(other)).with_classes([2, 3, 0]).says_of(files)
    assert engine.logits is not None and torch.allclose(engine.logits, said.logits, atol=1e-5)
    several = replace(own.described.labels, free=("class",), scales=(1.0, 1.0, 3.0, 1.0), offsets=(0.0, 0.0, 0.0, 5.0))
    shifted = Teacher("x", replace(own.described, labels=several), own.run, [2, 3]).says_of(files)
    assert shifted.logits is not None
    assert torch.allclose(shifted.logits[:, 0], 3 * expected["logits"][:, 2], atol=1e-4)
    assert torch.allclose(shifted.logits[:, 1], expected["logits"][:, 3] + 5, atol=1e-4)


def test_a_teacher_sees_the_same_part_of_the_same_picture_at_its_own_size(files: list[Path]) -> None:
    own, wide = Preprocess((32, 32)), Preprocess((64, 64), mean=(0.5,) * 3, std=(0.5,) * 3)
    stream = TrainingPictures(files, [0] * 6, own, AugmentSettings(), 6, seed=3, teacher=wide)
    plain = TrainingPictures(files, [0] * 6, own, AugmentSettings(), 6, seed=3)
    (_, view), (_, pixels, _) = next(stream.views()), next(iter(plain))
    assert torch.equal(view.pixels, pixels)  # the student's are as without a teacher
    assert view.teacher_pixels is not None
    assert view.teacher_pixels.shape == (6, 64, 64, 3)
    halved = view.teacher_pixels.float().reshape(6, 32, 2, 32, 2, 3).mean(dim=(2, 4))
    apart = (halved[:, None] - view.pixels.float()[None]).abs().mean(dim=(2, 3, 4))
    assert apart.argmin(dim=1).tolist() == list(range(6))
    assert apart.diagonal().max() < 15 < apart[~torch.eye(6, dtype=torch.bool)].min()


@pytest.mark.parametrize("mixup", [0.0, 0.8])
def test_the_loss_is_its_parts(other: Recognizer, files: list[Path], mixup: float) -> None:
    """By hand: labels on the first half, answers and embeddings on all, each blended with its neighbour alike."""
    module = distiller(other, files, augment={"mixup": mixup}, distill={"weight": 0.3, "features": 0.7})
    module.recognizer.eval()
    step, own, more = batches(module, 2)[1]
    loss = module.training_step((step, own, more))
    total, labels, answers, embeddings = module._losses[0]
    assert loss == total
    assert total == pytest.approx(float(0.7 * labels + 0.3 * answers + 0.7 * embeddings), rel=1e-5)
    with module.drawing(step):
        share = 1.0
        if mixup:
            assert np.random.rand() < 1  # timm asks first whether it blends at all
            share = float(np.random.beta(mixup, mixup))
    pixels = torch.cat([own.teacher_pixels, more.teacher_pixels]).float()
    if mixup:
        first = share * pixels[:4] + (1 - share) * pixels[:4].flip(0)
        assert (module._seen(step, [own])[0].float() - first).abs().max() <= 0.51
    else:
        said = module.teacher.says(pixels.to(torch.uint8))
        outputs = module.recognizer.outputs(
            module.recognizer.preprocess.normalize(torch.cat([own.pixels, more.pixels]))
        )
        expected = losses.taught(module.recognizer.labels, outputs["logits"], said.logits, 2.0)
        assert answers == pytest.approx(expected.item(), rel=1e-4)


def test_pictures_that_never_change_are_asked_about_once(other: Recognizer, files: list[Path]) -> None:
    module = distiller(other, files, augment=STILL)
    assert is_fixed(module.settings.augment)
    step, own, more = batches(module, 1)[0]
    assert own.teacher_pixels is more.teacher_pixels is None
    said = module._said(step, own, more)
    order = [files[i] for i in own.indices.tolist()] + [files[4 + i] for i in more.indices.tolist()]
    expected = module.teacher.says_of(order)
    assert said.logits is not None and torch.allclose(said.logits, expected.logits, atol=1e-5)
    module.teacher = replace(module.teacher, run=None)  # type: ignore[arg-type]
    module.training_step((step, own, more)).backward()


def test_pictures_of_several_labels_are_taught_too(files: list[Path]) -> None:
    labels = Labels(("a", "b", "g=1", "g=2"), groups={"label": (0, 2), "g": (2, 4)}, free=("label",))
    torch.manual_seed(8)
    wise, own = (
        Recognizer.create(name, labels, Preprocess((32, 32))) for name in ("test_efficientnet", "test_convnext")
    )
    taught = teacher.of_recognizer("wise", wise).with_classes(range(4))
    truth = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [1, 1, np.nan, np.nan], [0, 0, 1, 0]], np.float32)
    changed = settings(multi_label=True, augment={"mixup": 0.4})
    module = Distiller(own, changed, files[:4], truth, Lesson(taught, Unlabelled(files[4:], ["4", "5"])))
    module.trainer = type("Alone", (), {"world_size": 1, "global_rank": 0})()  # type: ignore[assignment]
    module.training_step(batches(module, 1)[0]).backward()
    total, *parts = module._losses[0]
    assert total == pytest.approx(float(0.5 * sum(parts)), rel=1e-5)
    assert all(part > 0 for part in parts)


def test_an_embedding_is_measured_in_standard_deviations(other: Recognizer, files: list[Path]) -> None:
    """A projection that says the mean loses 1, over the pictures by which the mean was taken."""
    module = distiller(other, files, augment=STILL)
    assert module.projection is not None and module.known is not None and module.known.embedding is not None
    torch.nn.init.zeros_(module.projection.weight), torch.nn.init.zeros_(module.projection.bias)
    wanted = (module.known.embedding - module.centre) / module.spread
    varies = module.known.embedding.std(dim=0) > 1e-5
    assert wanted[:, varies].square().mean() == pytest.approx(1, abs=1e-3)
    names = {name for name, _ in module.named_parameters()}
    assert {"projection.weight", "projection.bias"} < names
    assert not any("teacher" in name for name in module.state_dict())
    grouped = [part for group in module.optimizer_groups() for part in group["params"]]
    assert len(grouped) == len(names)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"distill": {"weight": 0.0, "features": 0.0}}, "would teach nothing"),
        ({"probe_only": True}, "leave out one of them"),
        ({"augment": {"cutmix": 0.5}}, "use augment.mixup"),
    ],
)
def test_what_makes_no_sense_with_a_teacher(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        settings(**changed)


def test_settings_of_a_teacher_without_one() -> None:
    alone = config.resolve(FinetuneSettings, {"data": "x", "distill": {"unlabelled": ["y"], "weight": 0.1}})
    assert alone.without_effect() == dict.fromkeys(
        ("distill.unlabelled", "distill.weight"), "without a `distill.teacher`"
    )
    quiet = settings(distill={"weight": 0.0, "temperature": 3.0})
    assert quiet.without_effect() == {"distill.temperature": "with `distill.weight=0`"}
