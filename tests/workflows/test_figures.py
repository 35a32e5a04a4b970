"""What may be said of two models follows the stated rules: nothing within an interval, no choice by cost alone."""

from __future__ import annotations

import numpy as np
import pytest

from femtobooth.workflows.comparing import figures


def test_speed_needs_the_interval_and_five_percent() -> None:
    first = np.full(9, 2.0)
    assert figures.speed("x", first, first / 2).better is True
    assert figures.speed("x", first, first * 2).better is False
    assert "2.0x as fast" in figures.speed("x", first, first / 2).text
    assert "takes 2.0x as long" in figures.speed("x", first, first * 2).text
    assert figures.speed("x", first, first / 1.03).better is None, "certain, but too little to matter"
    noisy = first / np.array([0.5, 2, 0.6, 1.9, 0.7, 1.8, 1.5, 1.4, 1.3])
    assert figures.speed("x", first, noisy).better is None, "a large median, but the interval holds 1"


def test_speed_is_paired_by_round() -> None:
    """Noise that hits both models in the same round cancels."""
    noise = np.array([1, 3, 1, 5, 2, 1, 4, 2, 3.0])
    assert figures.speed("x", 1.2 * noise, noise).better is True


def test_accuracy_within_its_interval_is_no_difference() -> None:
    right = np.arange(200) < 170
    other = right.copy()
    other[:2] = False
    assert figures.accuracy("accuracy", right, other).better is None
    other[:40] = False
    assert figures.accuracy("accuracy", right, other).better is False
    assert figures.accuracy("accuracy", other, right).better is True


@pytest.mark.parametrize(
    ("first", "second", "higher", "better"),
    [
        ((0.5, 0.4, 0.6), (0.7, 0.65, 0.8), True, True),
        ((0.5, 0.4, 0.6), (0.7, 0.65, 0.8), False, False),
        ((0.5, 0.4, 0.66), (0.7, 0.65, 0.8), True, None),
        ((0.7, 0.65, 0.8), (0.5, 0.4, 0.6), True, False),
    ],
)
def test_intervals_that_touch_are_no_difference(
    first: tuple[float, ...], second: tuple[float, ...], higher: bool, better: bool | None
) -> None:
    assert figures.apart("x", first, second, higher).better is better


def test_a_gain_counts_where_its_interval_leaves_out_zero() -> None:
    assert figures.gain("x", [0.1, 0.05, 0.2], higher=True).better is True
    assert figures.gain("x", [-0.1, -0.05, -0.2], higher=True).better is False
    assert figures.gain("x", [0.1, -0.05, 0.2], higher=True).better is None


def test_sizes_are_exact_and_memory_is_not() -> None:
    assert figures.exact("size", "size", 107, 100).better is True
    assert figures.exact("size", "size", 104, 100).better is None
    assert figures.exact("memory", "memory", 107, 100).better is None
    assert figures.exact("memory", "memory", 100, 120).better is False


def test_cost_alone_makes_no_choice() -> None:
    cheap = [figures.Difference("size on disk", "2.0x smaller", True, quality=False)]
    told = figures.verdict("B", "A", cheap, "there were no pictures")
    assert "Choose" not in str(told["choose"])
    assert "there were no pictures" in str(told["choose"])
    assert "B is cheaper in size on disk" in str(told["choose"])


def test_choices() -> None:
    def choose(*better: bool | None) -> str:
        return str(
            figures.verdict("B", "A", [figures.Difference(f"d{i}", "+1", one) for i, one in enumerate(better)], "-")[
                "choose"
            ]
        )

    assert choose(True, None) == "Choose B: better in d0, and worse in nothing that was compared."
    assert choose(False, None) == "Choose A: B is worse in d0, and better in nothing that was compared."
    assert choose(True, False, True) == "Choose B when d0 and d2 count for more than d1; else A."
    assert choose(None) == "No difference between B and A is shown: labels, licence and formats decide."
