"""Pictures with several labels: read, dealt out, learned, calibrated, decided and measured."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from femtobooth.core.errors import ModelError, PhotoError
from femtobooth.recognizer import multilabel
from femtobooth.recognizer.finetuning import deciding, losses, probe, stratification
from femtobooth.recognizer.finetuning.augmentation import blend_multi_label, seeded
from femtobooth.recognizer.finetuning.dataset import read
from femtobooth.recognizer.model.labels import Labels
from femtobooth.recognizer.settings import AugmentSettings

BOTH = Labels(("cat", "dog", "sky=blue", "sky=grey"), groups={"label": (0, 2), "sky": (2, 4)}, free=("label",))
FREE = Labels(("a", "b", "c"), groups={"label": (0, 3)}, free=("label",))
random = np.random.default_rng(0)


def pictures(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8 + number, 8), (9 * number, 0, 0)).save(folder / name)


def told(source: Path) -> dict[str, tuple[str, ...]]:
    return {one.path.name: tuple(sorted(one.labels)) for one in read(source, multi_label=True).examples}


@pytest.mark.parametrize(
    ("text", "third"),
    [
        ("path,labels,group:sky\n1.png,cat|dog,blue\n2.png,dog,\n3.png,,grey\n", ("sky=grey",)),
        ("path,label,group:sky\n1.png,cat,blue\n1.png,dog,blue\n2.png,dog,\n3.png,,grey\n", ("sky=grey",)),
        ("filename,cat,dog,group:sky\n1.png,1,1,blue\n2.png,0,1,\n3.png,0,0,grey\n", ("sky=grey",)),
        ('path;labels;group:sky\n1.png;"cat, dog";blue\n2.png;dog;\n3.png;;\n', ()),
    ],
)
def test_a_list_says_several_labels(tmp_path: Path, text: str, third: tuple[str, ...]) -> None:
    pictures(tmp_path, "1.png", "2.png", "3.png")
    (tmp_path / "labels.csv").write_text(text)
    assert told(tmp_path) == {"1.png": ("cat", "dog", "sky=blue"), "2.png": ("dog",), "3.png": third}
    assert read(tmp_path, multi_label=True).groups == ("sky",)


def test_one_picture_in_several_class_folders_has_all_their_labels(tmp_path: Path) -> None:
    pictures(tmp_path, "cat/1.png", "dog/2.png")
    shutil.copy(tmp_path / "cat" / "1.png", tmp_path / "dog" / "same.png")
    found = read(tmp_path, multi_label=True)
    assert told(tmp_path) == {"1.png": ("cat", "dog"), "2.png": ("dog",)}
    assert found.remarks == ["3 files are 2 pictures: one that lies in several places has all labels."]
    assert len(read(tmp_path).examples) == 3  # without multi_label they stay what they were


def test_truth_is_unknown_in_a_group_that_nobody_spoke_of() -> None:
    truth = multilabel.matrix(BOTH, [["cat", "sky=grey"], ["dog"], []])
    np.testing.assert_array_equal(truth, [[1, 0, 0, 1], [0, 1, np.nan, np.nan], [0, 0, np.nan, np.nan]])


def test_sigmoids_and_softmaxes_stand_together() -> None:
    logits = random.normal(size=(5, 4))
    calibrated = Labels(
        BOTH.names,
        None,
        BOTH.groups,
        BOTH.free,
        thresholds=(0.3, 0.9, 0.5, 0.5),
        scales=(2.0, 1, 1, 1),
        offsets=(1.0, 0, 0, 0),
    )
    p = calibrated.probabilities(logits)
    np.testing.assert_allclose(p[:, 0], 1 / (1 + np.exp(-2 * logits[:, 0] - 1)), rtol=1e-12)
    np.testing.assert_allclose(p[:, 2:].sum(axis=1), 1)
    decided = calibrated.decided(p)
    np.testing.assert_array_equal(decided[:, :2], p[:, :2] >= [0.3, 0.9])
    assert (decided[:, 2:].sum(axis=1) == 1).all()
    assert calibrated.said(p)[0] == sorted(((i, p[0, i]) for i in np.flatnonzero(decided[0])), key=lambda one: -one[1])
    assert Labels.from_dict(calibrated.to_dict()) == calibrated
    assert calibrated.to_dict()["activation"] == {"label": "sigmoid", "sky": "softmax"}
    assert "activation" not in Labels(("a", "b")).to_dict()  # a file of one label a picture is as it was
    with pytest.raises(ModelError, match="2 thresholds for 4 labels"):
        Labels.from_dict(calibrated.to_dict() | {"thresholds": [0.5, 0.5]})


def test_average_precision_and_f1_are_sklearns() -> None:
    scores = random.normal(size=(60, 3)).round(1)  # some are equal
    truth = (random.random((60, 3)) < 0.3).astype(np.float32)
    p = FREE.probabilities(scores)
    found = multilabel.measure(FREE, p, FREE.decided(p), truth)
    expected = [average_precision_score(truth[:, i], scores[:, i]) for i in range(3)]
    assert [one["average_precision"][0] for one in found["per_label"]] == pytest.approx(expected, abs=1e-12)
    assert found["map"][0] == pytest.approx(np.mean(expected))
    assert found["macro_f1"][0] == pytest.approx(f1_score(truth, p >= 0.5, average="macro"))
    assert found["micro_f1"][0] == pytest.approx(f1_score(truth, p >= 0.5, average="micro"))
    value, low, high = found["map"]
    assert 0 < low < value < high < 1
    again = np.concatenate([np.arange(60), np.arange(10)])  # a weight of two is a picture that is there twice
    twice = np.ones((1, 60)) + (np.arange(60) < 10)
    one = multilabel.average_precision(scores[:, 0], truth[:, 0], twice)[0]
    assert one == pytest.approx(average_precision_score(truth[again, 0], scores[again, 0]), abs=1e-12)


def test_every_part_has_its_share_of_every_label() -> None:
    has = np.zeros((100, 4), np.float32)
    has[:50, 0] = has[40:60, 1] = has[::10, 2] = 1
    has[[7, 93], 3] = 1
    groups = np.arange(100)
    groups[1] = 0  # copies
    none = [False] * 100
    parts, remarks = stratification.split(has, [*"abcd"], groups, [None] * 100, none, 0.2, 0, none)
    val = np.array(parts) == "val"
    assert has[val].sum(axis=0).tolist() == pytest.approx([10, 4, 2, 1], abs=1.01)
    assert (val[0], remarks) == (val[1], [])
    with pytest.raises(PhotoError, match="too few pictures to train and validate: d"):
        stratification.split(has[:90], [*"abcd"], groups[:90], [None] * 90, none[:90], 0.2, 0, none[:90])


def test_the_losses_are_those_of_the_papers() -> None:
    logits, truth = torch.randn(6, 4), torch.tensor([[1.0, 0, 0, 1], [0, 1, torch.nan, torch.nan]] * 3)
    targets, known = losses.smoothed(BOTH, truth, 0.0)
    ones = torch.ones(2, 4)
    found = losses.multi_label(BOTH, "binary", logits, targets, known, ones)
    group = cross_entropy(logits[::2, 2:], torch.ones(3, dtype=torch.long))
    assert float(found) == pytest.approx(
        float(binary_cross_entropy_with_logits(logits[:, :2], truth[:, :2]) + group), abs=1e-6
    )
    p = torch.sigmoid(torch.tensor([[0.7], [-4.0]]))
    asymmetric = losses.asymmetric(torch.tensor([[0.7], [-4.0]]), torch.zeros(2, 1), torch.ones(2, 1))
    assert float(asymmetric[0]) == pytest.approx(float(-((p[0] - 0.05) ** 4) * torch.log(1.05 - p[0])), rel=1e-5)
    assert float(asymmetric[1]) == 0  # as unlikely as the margin allows
    assert float(losses.asymmetric(torch.zeros(1, 1), torch.ones(1, 1), torch.ones(2, 1))) == pytest.approx(np.log(2))


def test_mixed_pictures_have_the_labels_of_both() -> None:
    images = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 3, 8, 8).contiguous()
    truth = torch.tensor([[1.0, 0, 0, 1], [0, 1, 1, 0], [0, 0, torch.nan, torch.nan], [1, 1, 0, 1]])
    targets, known = losses.smoothed(BOTH, truth, 0.0)
    with seeded(3, "blend"):
        mixed, soft, told_of = blend_multi_label(images, targets, known, AugmentSettings(mixup=1.0))
    share = mixed[0, 0, 0, 0] / 3  # the first picture (0) is mixed with the last (3)
    assert soft[0, 1] == pytest.approx(float(share), abs=1e-5)
    assert soft[0, 0] == pytest.approx(1.0)
    assert told_of.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]


def test_the_probe_is_a_logistic_regression_for_each_label() -> None:
    x = random.normal(size=(80, 5)).astype(np.float32) * [1, 2, 3, 4, 5]
    truth = np.zeros((80, 4), np.float32)
    truth[:, 0], truth[:, 1] = x[:, 0] > 0, x[:, 1] + x[:, 2] > 1
    truth[np.arange(80), 2 + (x[:, 3] > 0)] = 1
    truth[:10, 2:] = np.nan
    head = probe.fit_multi_label(x.astype(np.float32), truth, BOTH)
    standard = (x - x.mean(axis=0)) / x.std(axis=0)
    for label in (0, 1):
        sklearn = LogisticRegression(max_iter=2000, tol=1e-8).fit(standard, truth[:, label])
        np.testing.assert_allclose(
            head.logits(x.astype(np.float32))[:, label], sklearn.decision_function(standard), atol=2e-2
        )
    right = head.logits(x.astype(np.float32))[10:, 2:].argmax(axis=1) == (x[10:, 3] > 0)
    assert right.mean() > 0.95


def test_calibration_undoes_what_was_done_to_the_logits() -> None:
    z = random.normal(size=4000) * 2
    truth = (random.random(4000) < 1 / (1 + np.exp(-z))).astype(np.float32)
    scale, offset = deciding.platt(3 * z + 2, truth)
    assert (scale, offset) == pytest.approx((1 / 3, -2 / 3), abs=0.05)


def test_a_threshold_is_the_one_of_the_best_f1() -> None:
    p = np.array([0.9, 0.6, 0.4, 0.3, 0.1])
    assert deciding.best_threshold(p, np.array([1, 1, 0, 0, 0.0])) == pytest.approx(0.5)
    assert deciding.best_threshold(p, np.array([1, 0, 1, 0, 0.0])) == pytest.approx(0.35)
    assert deciding.best_threshold(p, np.zeros(5)) == 0.5


def test_what_is_measured_had_no_part_in_its_own_threshold() -> None:
    noise, truth = random.normal(size=(400, 3)), (random.random((400, 3)) < 0.3).astype(np.float32)
    found = deciding.measured(FREE, noise, truth, np.arange(400))
    assert found["map"][1] < 0.3 < found["map"][2] + 0.03  # what chance gives
    strong = 3 * (2 * truth - 1) + random.normal(size=(400, 3))
    compared = deciding.compare(FREE, noise, strong, truth, np.arange(400), "better")
    assert (compared["result"], compared["map_difference"][1] > 0.5) == ("finetuned", True)
    both = [deciding.measured(FREE, logits, truth, np.arange(400))["map"][0] for logits in (noise, strong)]
    assert compared["map_difference"][0] == pytest.approx(both[1] - both[0])
    issues = deciding.label_issues(FREE, strong, np.where(np.arange(400)[:, None] == 5, 1 - truth, truth))
    assert {5} == {index for index, _, sure in issues if sure > 0.9}
