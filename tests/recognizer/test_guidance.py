"""What finetune says of its own worth follows from what was measured, and from its own validation."""

from __future__ import annotations

from typing import Any

import pytest

from femtobooth.recognizer.finetuning.guidance import Measured, after, before, measurements, nearest

KNOWN = [
    Measured("digits", 3, 0.57, (-0.01, -0.13, 0.11)),
    Measured("digits by a network", 12, 0.75, (0.15, 0.1, 0.2)),
    Measured("kinds", 12, 0.95, (-0.04, -0.08, -0.01)),
]


@pytest.mark.parametrize(
    ("pictures", "right", "expected"),
    [
        (3, 0.6, [0]),
        (4, 0.5, [0]),
        (10, 0.7, [1]),
        (20, 0.8, [1]),
        (10, 0.88, [1, 2]),
        (12, 1.0, [2]),
        (100, 0.75, []),
        (3, 0.95, []),
    ],
)
def test_the_nearest_measurements(pictures: float, right: float, expected: list[int]) -> None:
    """Of as many pictures a class and as good a probe, both within a factor; further away nothing is claimed, and
    each kind of data speaks once.
    """
    further = Measured("kinds", 20, 0.96, (0.5, 0.4, 0.6))
    assert nearest([further, *KNOWN], pictures, right) == [KNOWN[one] for one in expected]


def test_what_it_may_bring() -> None:
    worth, idle, both = (before(KNOWN, *where, passes=25) for where in ((11, 0.7), (3, 0.57), (12, 0.88)))
    assert worth == (
        "where pictures a class and the probe were about as here, fine-tuning brought +15.0 points (+10.0 to +20.0; "
        "digits by a network, 12 pictures a class, probe 75% right). It computes about 75 x as much as the probe"
    )
    assert idle is not None and "brought nothing that shows, -1.0 points (-13.0 to +11.0; digits" in idle
    assert both is not None and "brought +15.0 points (" in both and "; -4.0 points (-8.0 to -1.0; kinds" in both
    assert "leaves it out" in idle and "leaves it out" not in worth + both
    once = before([Measured("x", 12, 0.75, (0.2, 0.1, 0.3), 1)], 12, 0.75, 25)
    assert once is not None and "(+10.0 to +30.0; x, 12 pictures a class, probe 75% right, one training)" in once
    assert before(KNOWN, 500, 0.5, 25) is before([], 12, 0.5, 25) is None


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        ([0.1, 0.02, 0.2], "with 12 pictures a class fine-tuning was worth it: +10.0 points for 40 x the probe's time"),
        ([-0.1, -0.2, -0.02], "with 12 pictures a class the probe is better, and 40 x quicker: `probe_only=true`"),
        ([0.0, -0.03, 0.02], "with 12 pictures a class the probe is as good to within 3 points, and 40 x quicker:"),
        ([0.0, -0.4, 0.45], "with 12 pictures a class 45 points more or less"),
    ],
)
def test_what_it_was_worth(difference: list[float], said: str) -> None:
    costs = {"probe": {"seconds": 2.0}, "finetuned": {"seconds": 80.0}}
    found = after({"accuracy_difference": difference, "pictures": 50}, costs, 12)
    assert found is not None and found.startswith(said)


def test_nothing_is_said_without_a_comparison() -> None:
    facts: Any = {"probe": {"seconds": 2.0}}
    assert after({"accuracy_difference": [0, 0, 0]}, facts, 12) is None
    assert after({"verdict": "there is nothing to validate on"}, facts | {"finetuned": {"seconds": 1.0}}, 12) is None


def test_the_measurements_of_the_package() -> None:
    found = measurements()
    assert len({one.about for one in found}) >= 3
    assert all(one.gain[1] <= one.gain[0] <= one.gain[2] and 0 < one.probe <= 1 for one in found)
