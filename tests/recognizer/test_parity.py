"""Figures of the comparison, and what counts as a miss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from femtobooth.recognizer import parity

ALL = slice(0, 10)
LOGITS = np.random.default_rng(0).normal(size=(60, 10)).astype(np.float32)
TRUTH = LOGITS.argmax(axis=1)


def outputs(logits: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {"logits": logits, "embedding": logits[:, :4]}


def test_equal_outputs_have_no_error() -> None:
    figures = parity.compare(outputs(LOGITS), outputs(LOGITS), TRUTH, ALL)
    assert figures["agreement"][0] == 1
    assert figures["agreement"][1] < 0.96  # sixty photos cannot show that all others agree
    assert figures["logit_error"]["max"] == 0
    assert figures["accuracy"]["change"][0] == 0
    assert parity.misses(figures, "fp32", None, 1.0) == []


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
    assert "accuracy falls by 15.0 points" in parity.misses(figures, "int8", None, 1.0)[0]


def test_without_labels_agreement_decides() -> None:
    after = LOGITS.copy()
    after[:3] *= -1
    figures = parity.compare(outputs(LOGITS), outputs(after), np.full(60, -1), ALL)
    assert figures["accuracy"] is None
    assert "labels differ" in parity.misses(figures, "int8", None, 1.0)[0]
    assert parity.misses(figures, "int8", None, 6.0) == []


def test_a_model_that_is_always_wrong_cannot_pass_by_accuracy() -> None:
    after = LOGITS.copy()
    after[:20] *= -1
    wrong = (TRUTH + 1) % 10
    figures = parity.compare(outputs(LOGITS), outputs(after), wrong, ALL)
    assert figures["accuracy"]["original"][0] == 0
    assert figures["judged_by"] == "agreement"
    assert "labels differ" in parity.misses(figures, "int8", None, 1.0)[0]


def test_bfloat16_is_no_fp32_even_where_no_label_changes() -> None:
    rough = (LOGITS.view(np.uint32) & 0xFFFF0000).view(np.float32)
    figures = parity.compare(outputs(LOGITS), outputs(rough), TRUTH, ALL)
    assert figures["agreement"][0] == 1
    assert figures["cosine"]["logits"]["min"] > 0.9999  # which is why a cosine is not enough
    assert "logit errors" in parity.misses(figures, "fp32", None, 1.0)[0]
    assert parity.misses(figures, "fp32", 0.1, 1.0) == []


def test_numbers_that_are_not_finite_always_miss() -> None:
    after = LOGITS.copy()
    after[0, 0] = np.nan
    figures = parity.compare(outputs(LOGITS), outputs(after), TRUTH, ALL)
    assert parity.misses(figures, "fp32", None, 1.0)
