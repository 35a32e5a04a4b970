"""Figures of the comparison, and what counts as a miss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from femtobooth.recognizer.exporting import parity
from femtobooth.recognizer.model.labels import Labels

ALL = Labels(tuple("abcdefghij"))
LOGITS = np.random.default_rng(0).normal(size=(60, 10)).astype(np.float32)
TRUTH = LOGITS.argmax(axis=1)


def outputs(logits: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {"logits": logits, "embedding": logits[:, :4]}


def missed(*given: Any) -> list[str]:
    return parity.judged(*given)[0]


def test_equal_outputs_have_no_error() -> None:
    figures = parity.compare(outputs(LOGITS), outputs(LOGITS), TRUTH, ALL)
    assert figures["agreement"][0] == 1
    assert figures["agreement"][1] < 0.96  # sixty photos cannot show that all others agree
    assert figures["logit_error"]["max"] == 0
    assert figures["accuracy"]["change"][0] == 0
    assert missed(figures, "fp32", None, 1.0) == []


@pytest.mark.parametrize(
    ("photos", "changed", "labelled", "max_drop", "verdict"),
    [
        (8, 0, False, 1.0, "not shown"),  # the interval of 8 out of 8 reaches to 32 points
        (8, 0, False, 32.0, "not shown"),
        (8, 0, False, 33.0, "within"),
        (380, 0, False, 1.0, "not shown"),
        (381, 0, False, 1.0, "within"),
        (381, 3, False, 1.0, "not shown"),
        (381, 4, False, 1.0, "exceeded"),
        (60, 0, True, 1.0, "not shown"),
        (600, 0, True, 1.0, "within"),
        (600, 12, True, 1.0, "exceeded"),
    ],
)
def test_what_few_photos_cannot_show_is_not_said(
    photos: int, changed: int, labelled: bool, max_drop: float, verdict: str
) -> None:
    before = np.random.default_rng(0).normal(size=(photos, 10)).astype(np.float32)
    after = before.copy()
    after[:changed] *= -1
    truth = before.argmax(axis=1) if labelled else np.full(photos, -1)
    figures = parity.compare(outputs(before), outputs(after), truth, ALL)
    worse, unshown = parity.judged(figures, "int8", None, max_drop)
    assert verdict == ("exceeded" if worse else "not shown" if unshown else "within"), (worse, unshown)
    if (photos, changed, max_drop) == (8, 0, 1.0):
        assert "up to 32.4" in unshown[0] and "381 photos" in unshown[0]


def test_accuracy_counts_only_known_classes() -> None:
    after = LOGITS.copy()
    after[:6] *= -1  # these labels change
    truth = TRUTH.copy()
    truth[40:] = -1
    figures = parity.compare(outputs(LOGITS), outputs(after), truth, ALL)
    assert figures["agreement"][0] == pytest.approx(0.9)
    assert figures["accuracy"]["pictures"] == 40
    assert figures["accuracy"]["change"][0] == pytest.approx(-0.15)
    assert parity.lost_points(figures)[0] == pytest.approx(15)
    assert "accuracy falls by 15.0 points" in missed(figures, "int8", None, 1.0)[0]


def test_without_labels_agreement_decides() -> None:
    after = LOGITS.copy()
    after[:3] *= -1
    figures = parity.compare(outputs(LOGITS), outputs(after), np.full(60, -1), ALL)
    assert figures["accuracy"] is None
    assert "labels differ" in missed(figures, "int8", None, 1.0)[0]
    assert missed(figures, "int8", None, 6.0) == []


def test_a_model_that_is_always_wrong_cannot_pass_by_accuracy() -> None:
    after = LOGITS.copy()
    after[:20] *= -1
    wrong = (TRUTH + 1) % 10
    figures = parity.compare(outputs(LOGITS), outputs(after), wrong, ALL)
    assert figures["accuracy"]["original"][0] == 0
    assert figures["judged_by"] == "agreement"
    assert "labels differ" in missed(figures, "int8", None, 1.0)[0]


def test_bfloat16_is_no_fp32_even_where_no_label_changes() -> None:
    rough = (LOGITS.view(np.uint32) & 0xFFFF0000).view(np.float32)
    figures = parity.compare(outputs(LOGITS), outputs(rough), TRUTH, ALL)
    assert figures["agreement"][0] == 1
    assert figures["cosine"]["logits"]["min"] > 0.9999  # which is why a cosine is not enough
    assert "logit errors" in missed(figures, "fp32", None, 1.0)[0]
    assert missed(figures, "fp32", 0.1, 1.0) == []


def test_numbers_that_are_not_finite_always_miss() -> None:
    after = LOGITS.copy()
    after[0, 0] = np.nan
    figures = parity.compare(outputs(LOGITS), outputs(after), TRUTH, ALL)
    assert missed(figures, "fp32", None, 1.0)
