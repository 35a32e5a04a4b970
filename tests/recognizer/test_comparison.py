"""Whether fine-tuning beat the probe, said honestly."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from femtobooth.recognizer.finetuning.comparison import compare, exact_mcnemar, measured


def logits(right: np.ndarray, sureness: float = 4.0) -> np.ndarray:
    """Two classes, true class 0."""
    return np.stack([np.where(right, sureness, -sureness), np.zeros(len(right))], axis=1)


def judged(
    before: list[bool], after: list[bool], wanted: str = "better", sureness: tuple[float, float] = (4, 4)
) -> dict[str, object]:
    labels = np.zeros(len(before), np.int64)
    return compare(
        logits(np.array(before), sureness[0]),
        logits(np.array(after), sureness[1]),
        labels,
        np.arange(len(before)),
        wanted,
    )


def test_a_clear_win() -> None:
    found = judged([False] * 40 + [True] * 60, [True] * 100)
    assert found["result"] == "finetuned"
    assert str(found["verdict"]).startswith("fine-tuning beat the linear probe: +40.0 points")
    assert found["mcnemar_p"] == pytest.approx(2 * 0.5**40)


def test_a_clear_loss() -> None:
    found = judged([True] * 100, [False] * 40 + [True] * 60)
    assert found["result"] == "probe"
    assert "did worse" in str(found["verdict"])


def test_few_pictures_never_settle_it() -> None:
    """Six right of six on both sides is no proof that there is no difference, nor is one more right."""
    found = judged([True] * 6, [True] * 6)
    value, low, high = found["accuracy_difference"]  # type: ignore[misc]
    assert value == 0
    assert low < -0.3
    assert high > 0.3
    assert "did not show itself better or worse" in str(judged([True] * 5 + [False], [True] * 6)["verdict"])


def test_ties_are_broken_by_calibrated_log_loss() -> None:
    """By what a network knows, not by how loud it says so: a temperature would undo a factor of all its logits."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 60)
    vague = random.normal(size=(60, 3)) * 0.5
    vague[np.arange(60), labels] = vague.max(axis=1) + 0.1
    clear = vague.copy()
    clear[np.arange(60), labels] += 2
    groups = np.arange(60)
    assert compare(vague, clear * 0.2, labels, groups, "better")["result"] == "finetuned"
    assert compare(clear * 0.2, vague, labels, groups, "better")["result"] == "probe"
    assert compare(vague, vague, labels, groups, "better")["result"] == "probe"  # equal in all: the simpler


def test_the_user_decides() -> None:
    for wanted in ("probe", "finetuned"):
        found = judged([False] * 40 + [True] * 60, [True] * 100, wanted)
        assert (found["result"], found["better"]) == (wanted, "finetuned")


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (3, 1), (10, 2), (4, 4)])
def test_mcnemar(gained: int, lost: int) -> None:
    before = np.array([False] * gained + [True] * lost + [True] * 5)
    after = np.array([True] * gained + [False] * lost + [True] * 5)
    count = gained + lost
    tail = sum(comb(count, k) for k in range(min(gained, lost) + 1)) / 2**count
    assert exact_mcnemar(before, after) == pytest.approx(min(1.0, 2 * tail))


def test_measured() -> None:
    facts = measured(logits(np.array([True, True, False, True])), np.zeros(4, np.int64))
    assert (facts["right"], facts["pictures"]) == (3, 4)
    assert facts["accuracy"][0] == 0.75
    assert facts["accuracy"][1] < 0.4
