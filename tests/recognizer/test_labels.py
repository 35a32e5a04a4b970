"""Labels, their groups, and probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from femtobooth.core.errors import ModelError
from femtobooth.recognizer.model.labels import Labels, imagenet

GROUPED = Labels(("cat", "dog", "fox", "flat", "round"), groups={"concept": (0, 3), "style": (3, 5)})


def test_probabilities_are_torchs_softmax_over_the_temperature() -> None:
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 50
    ours = Labels(tuple("abcde")).probabilities(logits.numpy(), temperature=1.7)
    assert np.allclose(ours, torch.softmax(logits / 1.7, dim=1).numpy(), atol=1e-15)


def test_each_group_sums_to_one() -> None:
    probabilities = GROUPED.probabilities(np.array([[1000.0, 0, 0, 3, 3]], np.float32))
    assert probabilities.tolist() == [[1, 0, 0, 0.5, 0.5]]


def test_top_is_of_one_group() -> None:
    probabilities = np.array([[0.2, 0.5, 0.3, 0.1, 0.9], [0.4, 0.2, 0.4, 0.6, 0.4]])
    indices, values = GROUPED.top(probabilities, 2)
    assert indices.tolist() == [[1, 2], [0, 2]]  # of equal ones the lower first
    assert values.tolist() == [[0.5, 0.3], [0.4, 0.4]]
    assert GROUPED.top(probabilities, 9, "style")[0].tolist() == [[4, 3], [3, 4]]


def test_there_and_back() -> None:
    for labels in (GROUPED, Labels(("a", "b"), synsets=("n1", "n2"))):
        assert Labels.from_dict(labels.to_dict()) == labels


def test_imagenet_is_in_the_usual_order() -> None:
    labels = imagenet()
    assert len(labels) == 1000
    assert labels.synsets is not None
    assert (labels.synsets[0], labels.synsets[4], labels.synsets[999]) == ("n01440764", "n01494475", "n15075141")
    assert "hammerhead" in labels.names[4]


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"names": []},
        {"names": "abc"},
        {"names": [1, 2]},
        {"names": None},
        {"names": ["a", "b"], "synsets": ["n1"]},
        {"names": ["a", "b"], "groups": {"x": [0, 1]}},
        {"names": ["a", "b"], "groups": {"x": [0, 1], "y": [0, 2]}},
        {"names": ["a", "b"], "groups": {"x": [0, 0], "y": [0, 2]}},
        {"names": ["a", "b"], "groups": {"x": 2}},
        {"names": ["a", "b"], "groups": ["x"]},
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="label"):
        Labels.from_dict(wrong)
