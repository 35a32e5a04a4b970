"""The measures of a classifier on made outputs whose answers are known."""

import json
from pathlib import Path

import numpy as np
import pytest

from femtobooth.core import metrics
from femtobooth.core.errors import PhotoError
from femtobooth.recognizer import evaluation
from femtobooth.recognizer.evaluation import Predictions, busiest, classes_of, short_names
from femtobooth.recognizer.model.labels import Labels

NAMES = ("great white shark, white shark", "crane", "crane", "maillot", "maillot, tank suit", "tench, Tinca tinca")
SYNSETS = ("n01484850", "n02012849", "n03126707", "n03710637", "n03710721", "n01440764")


@pytest.mark.parametrize(
    ("given", "index"),
    [
        ("great white shark, white shark", 0),
        ("Great_White_Shark", 0),
        ("  white   shark ", 0),
        ("n03126707", 2),
        ("n03126707_crane", 2),
        ("n03126707-anything", 2),
        ("maillot", 3),  # a whole name goes before a part of another
        ("tank suit", 4),
        ("n99999999", None),
        ("n014847720", None),  # nine digits are no synset
        ("icon", None),
        ("3", 3),
        ("17", None),
    ],
)
def test_names_find_their_class(given, index):
    assert classes_of(Labels(NAMES, SYNSETS), [given]) == {given: index}


def test_names_that_cannot_be_decided():
    with pytest.raises(PhotoError, match="fits 2 classes"):
        classes_of(Labels(NAMES, SYNSETS), ["crane"])
    assert classes_of(Labels(NAMES, SYNSETS), ["3", "tench"]) == {
        "3": None,
        "tench": 5,
    }  # not all are numbers: none is an index
    assert classes_of(Labels(("7", "3")), ["3", "7"]) == {"3": 1, "7": 0}  # the model's own names are numbers


def test_a_users_own_classes_that_look_alike_are_told_apart():
    """By case, space, underscore, comma or Unicode's form of the same letters; what is no class exactly must not be
    guessed.
    """
    own = Labels(("Cat", "cat", "big cat", "big_cat", "cat, big", "Caf\u00e9"))
    assert classes_of(own, list(own.names)) == {name: index for index, name in enumerate(own.names)}
    assert classes_of(own, ["Cafe\u0301", "CAFÉ", "bigger"]) == {"Cafe\u0301": 5, "CAFÉ": 5, "bigger": None}
    with pytest.raises(PhotoError, match=r"class 'CAT' fits 2 classes of the model \('Cat', 'cat'\)"):
        classes_of(own, ["CAT"])


def test_only_the_first_group_of_labels_is_classes():
    labels = Labels(("cat", "dog", "photo", "drawing"), None, {"concept": (0, 2), "style": (2, 4)})
    assert classes_of(labels, ["dog", "photo"]) == {"dog": 1, "photo": None}


def test_short_names_still_tell_classes_apart():
    assert short_names(("Smith, John", "Smith"), None) == ["Smith, John", "Smith"]  # a comma of the user's own
    assert short_names(NAMES, SYNSETS) == [
        "great white shark",
        "crane",
        "crane",
        "maillot",
        "maillot, tank suit",
        "tench",
    ]


def made(count=400, seed=0, **others):
    """Logits of 5 classes that are right about 60 % of the time."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 5, count)
    logits = random.normal(size=(count, 5))
    logits[np.arange(count), labels] += 1.2
    paths = tuple(Path(f"{index}.jpg") for index in range(count))
    return Predictions(tuple("abcde"), paths, labels, logits, None, **others)


def test_report_adds_up():
    predictions = made()
    report = evaluation.measure(predictions, None)
    right = predictions.logits.argmax(axis=1) == predictions.labels
    assert report["top1"][0] == pytest.approx(right.mean()) and report["top1"][1] < right.mean() < report["top1"][2]
    assert report["top5"][0] == 1 and report["top5_is_top"] == 5
    assert sum(row["pictures"] for row in report["per_class"]) == 400
    assert sum(entry["count"] for entry in report["confusions"]) == len(report["mistakes"]) == (~right).sum()
    shares = [row["accuracy"][0] for row in report["per_class"]]
    assert shares == sorted(shares) and report["mean_class_accuracy"][0] == pytest.approx(np.mean(shares))
    confidence = [entry["confidence"] for entry in report["mistakes"]]
    assert confidence == sorted(confidence, reverse=True)
    assert all(entry["rank_of_true"] > 1 and entry["true"] != entry["predicted"] for entry in report["mistakes"])
    at = report["selective"]["at"]
    assert (
        at[0]["coverage"] == 1 and at[0]["risk"] == pytest.approx(1 - right.mean()) and at[-1]["risk"] < at[0]["risk"]
    )
    assert report["out_of_distribution"] is None
    json.dumps(report)


def test_temperature_scaling_mends_a_model_that_is_too_sure():
    calm = made(1000)
    boastful = Predictions(calm.names, calm.paths, calm.labels, calm.logits * 6, None)
    calibration = evaluation.measure(boastful, None)["calibration"]
    before, after = calibration["before"], calibration["after"]
    assert before["ece"][0] > 0.2 and after["ece"][0] < 0.06
    assert after["negative_log_likelihood"] < before["negative_log_likelihood"]
    assert (
        before["ece"][0] > before["ece_of_a_perfect_model"][2] and after["ece"][0] < after["ece_of_a_perfect_model"][2]
    )
    for state in (before, after):
        assert state["ece"][1] <= state["ece"][0] <= state["ece"][2]
    again = evaluation.measure(
        Predictions(calm.names, calm.paths, calm.labels, calm.logits * 6, None, temperature=6.0), None
    )["calibration"]
    assert again["before"]["ece"][0] == pytest.approx(evaluation.measure(calm, None)["calibration"]["before"]["ece"][0])


def test_one_picture_is_enough_for_a_report():
    report = evaluation.measure(made(1), None)
    assert report["calibration"]["after"] is None and report["pictures"] == 1


def with_ood(shift):
    random = np.random.default_rng(2)
    known = made(60)
    centroids = np.eye(8)[:5]
    embeddings = centroids[known.labels] + 0.1 * random.normal(size=(60, 8))
    foreign = (
        shift * np.eye(8)[[6] * 30]
        + (1 - shift) * centroids[random.integers(0, 5, 30)]
        + 0.1 * random.normal(size=(30, 8))
    )
    rejection = {"center": np.zeros(8), "centroids": centroids, "threshold": 0.8}
    paths = tuple(Path(f"u{index}.jpg") for index in range(30))
    return Predictions(
        known.names,
        known.paths,
        known.labels,
        known.logits,
        embeddings,
        1.0,
        paths,
        random.normal(size=(30, 5)),
        foreign,
    ), rejection


def test_nothing_is_certain_because_all_is_right():
    """No interval of one point, and no temperature where there is no mistake to fit it to."""
    labels = np.arange(12) % 3
    predictions = Predictions(tuple("abc"), (Path("x"),) * 12, labels, 3.0 * np.eye(3)[labels], None)
    report = evaluation.measure(predictions, None)
    assert report["mean_class_accuracy"] == report["top1"] == [1, pytest.approx(0.757, abs=1e-3), 1]
    assert report["calibration"]["after"] is None and "all are right" in report["calibration"]["not_scaled"]


@pytest.mark.parametrize(
    ("temperature", "said"), [(0.05, "lowest that is tried"), (20.0, "highest that is tried"), (1.3, None)]
)
def test_a_temperature_at_the_end_of_what_is_tried_means_nothing(temperature: float, said: str | None) -> None:
    """As that of a model whose training knew no mistake: its calibration error of 0 is no praise."""
    found = metrics.unsettled(temperature)
    assert (said in found) if said and found else found is None
    right, labels = np.eye(4)[np.arange(40) % 4] * 0.2, np.arange(40) % 4
    assert metrics.unsettled(metrics.temperature(right, labels))
    assert metrics.unsettled(metrics.temperature(-right, labels))


def test_unseen_classes_are_told_by_distance():
    report = evaluation.measure(*with_ood(1.0))["out_of_distribution"]
    assert report["pictures"] == 30 and report["by_distance"]["auroc"][0] == 1
    assert report["by_distance"]["rejected_at_5_percent"][0] == 1
    assert report["at_threshold"]["rejected"][0] == 1
    same = evaluation.measure(*with_ood(0.0))["out_of_distribution"]["by_distance"]["auroc"]
    assert same[1] < 0.5 < same[2]  # pictures that are not foreign are not told apart


def test_without_centroids_only_confidence_is_left():
    predictions, _ = with_ood(1.0)
    report = evaluation.measure(predictions, None)["out_of_distribution"]
    assert report["by_distance"] is None and 0 < report["by_confidence"]["auroc"][0] < 1


def test_busiest_shows_whole_pairs_of_the_most_frequent_confusions():
    labels = np.array([0] * 5 + [1] * 3 + [7] * 2 + [9])
    said = np.array([3] * 5 + [4] * 3 + [7] * 2 + [8])
    predictions = Predictions(tuple("abcdefghij"), (Path("x"),) * 11, labels, np.eye(10)[said], None)
    counts, indices, present = busiest(predictions, most=4)
    assert indices == [0, 1, 3, 4] and present == 7
    assert counts.tolist() == [[0, 0, 5, 0], [0, 0, 0, 3], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert busiest(predictions)[0].sum() == 11
