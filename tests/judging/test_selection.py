"""Which checkpoint is taken, and when training ends."""

from __future__ import annotations

import numpy as np
import pytest

from femtobooth.judging import selection
from femtobooth.judging.selection import Point


def curve(
    fidelity: list[float], drift: list[float], prompt: list[float] | None = None, pictures: int = 6
) -> list[Point]:
    """Points 50 steps apart whose pictures all differ by the same offsets, so that paired differences are sure."""
    offsets = np.linspace(-0.2, 0.2, pictures)
    prompt = prompt or [1.0] * len(fidelity)
    return [
        Point(50 * i, tuple(f + offsets), (p,) * pictures, d)
        for i, (f, d, p) in enumerate(zip(fidelity, drift, prompt, strict=True))
    ]


def noisy(point: Point, seed: int, size: float = 0.1) -> Point:
    change = np.random.default_rng(seed).normal(0, size, len(point.fidelity))
    return point._replace(fidelity=tuple(np.array(point.fidelity) + change - change.mean()))


def test_the_front_keeps_what_nothing_beats() -> None:
    points = curve([0.2, 0.5, 0.4, 0.6], [0.0, 0.2, 0.3, 0.4])
    assert [point.step for point in selection.pareto_front(points)] == [0, 50, 150]
    better_prompts = [*points[:2], points[2]._replace(prompt=(1.5,) * 6), points[3]]
    assert [point.step for point in selection.pareto_front(better_prompts)] == [0, 50, 100, 150]


def test_equals_beat_each_other_in_nothing() -> None:
    points = curve([0.5, 0.5], [0.1, 0.1])
    assert len(selection.pareto_front(points)) == 2


def test_who_left_the_front_never_comes_back() -> None:
    random = np.random.default_rng(0)
    points = curve(*(random.random(12).tolist() for _ in range(3)))
    beaten: set[int] = set()
    for count in range(1, len(points) + 1):
        front = {point.step for point in selection.pareto_front(points[:count])}
        assert not beaten & front
        beaten |= {point.step for point in points[:count]} - front


def test_a_surely_higher_fidelity_is_worth_its_drift() -> None:
    assert selection.choose(curve([0.2, 0.3, 0.5, 0.6], [0, 0.1, 0.2, 0.3])).step == 150


def test_what_is_no_surely_better_is_not_worth_more_drift() -> None:
    points = curve([0.2, 0.3, 0.59, 0.6], [0, 0.1, 0.2, 0.3])
    assert selection.choose(points).step == 150
    choice = selection.choose([*points[:3], noisy(points[3], 1)])
    assert choice.step == 100
    assert "within one standard error" in choice.reason
    assert choice.front == (50, 100, 150)


def test_overtrained_steps_lose_by_their_prompts() -> None:
    """Ever more alike and ever less obedient: as when it draws the photo again, whatever is asked for."""
    points = curve([0.2, 0.4, 0.6, 0.65], [0, 0.1, 0.2, 0.5], [1, 1, 0.9, 0.3])
    assert selection.choose(points).step == 100
    without = selection.choose([point._replace(prompt=(1.0,) * 6) for point in points])
    assert without.step == 150


def test_the_base_is_never_taken() -> None:
    points = curve([0.5, 0.3, 0.2], [0, 0.1, 0.2])
    assert selection.choose(points).step == 50
    with pytest.raises(ValueError, match="only the base"):
        selection.choose(points[:1])


@pytest.mark.parametrize("pictures", [1, 2])
def test_few_pictures_still_decide(pictures: int) -> None:
    assert selection.choose(curve([0.2, 0.4, 0.5], [0, 0.1, 0.2], pictures=pictures)).step == 100


RISING = [0.2, 0.3, 0.4, 0.5]


def ends_at(fidelity: list[float], drift: list[float] | None = None, patience: int = 3) -> int | None:
    """Index of the first point at which training would have ended."""
    points = curve(fidelity, drift or [0.05 * i for i in range(len(fidelity))])
    return next((i for i in range(len(points)) if selection.finished(points[: i + 1], patience)), None)


def test_it_ends_once_saturated() -> None:
    assert ends_at([*RISING, 0.5, 0.49, 0.5, 0.5, 0.5]) == 6
    assert ends_at([*RISING, 0.5, 0.49, 0.5, 0.5, 0.5], patience=5) == 8


def test_it_never_ends_while_rising() -> None:
    assert ends_at(np.linspace(0.2, 0.8, 20).tolist()) is None


@pytest.mark.parametrize("dip", [[0.3], [0.2, 0.45], [0.1, 0.1]])
def test_a_dip_that_recovers_is_waited_for(dip: list[float]) -> None:
    assert ends_at([*RISING, *dip, 0.6, 0.7]) is None
    assert ends_at([*RISING, *dip, 0.6, 0.6, 0.6, 0.6]) == len(RISING) + len(dip) + 3


def test_small_gains_add_up() -> None:
    """Each is lost in the noise of its pictures, all together are not."""
    points = [
        noisy(point, i, 0.05)
        for i, point in enumerate(curve([0.3 + 0.012 * i for i in range(20)], [0.02 * i for i in range(20)]))
    ]
    assert not any(selection.finished(points[:count], 4) for count in range(1, 21))
    flat = [noisy(point, i, 0.05) for i, point in enumerate(curve([0.3] * 20, [0.02 * i for i in range(20)]))]
    assert any(selection.finished(flat[:count], 4) for count in range(1, 21))


def test_without_drift_there_is_no_hurry() -> None:
    assert ends_at([*RISING, 0.5, 0.5, 0.5, 0.5], [0, 0.1, 0.2, 0.3, 0.25, 0.2, 0.2, 0.2]) is None


def test_a_run_that_never_gains_ends_too() -> None:
    assert ends_at([0.5, 0.4, 0.4, 0.4, 0.4]) == 3


def test_dvar_calls_a_flat_tail_converged() -> None:
    losses = [*np.linspace(1.0, 0.3, 30), *([0.3] * 30)]
    found = selection.converged(losses, 20)
    assert found is not None
    assert 30 < found <= 50
    assert selection.variance_ratio(losses[:9], 10) == 1
    assert selection.variance_ratio(losses, 10) == pytest.approx(0)
    assert selection.variance_ratio([0.5] * 20, 10) == 1  # nothing ever moved: nothing has converged


def test_dvar_does_not_stop_a_falling_loss() -> None:
    assert selection.converged(np.linspace(1.0, 0.1, 40).tolist(), 20) is None


def pair(step: int, first: float, second: float, drift: float, prompt: float = 1.0) -> Point:
    """A step of two subjects, three pictures each: the first could go from 0.2 to 0.6, the second from 0.5 to 0.7."""
    offsets = np.array([-0.01, 0, 0.01])
    fidelity = (*(first + offsets), *(second + offsets))
    return Point(step, tuple(fidelity), (prompt,) * 6, drift, of=((3, 0.2, 0.4), (3, 0.5, 0.2)))


def test_of_several_subjects_the_worst_decides() -> None:
    base, one, both = pair(0, 0.2, 0.5, 0.0), pair(50, 0.6, 0.52, 0.1), pair(100, 0.4, 0.6, 0.2)
    assert one.goods[0] == pytest.approx(0.1) and both.goods[0] == pytest.approx(0.5)
    assert [float(part.mean()) for part in one.gains(base)] == pytest.approx([1.0, 0.1])
    assert np.mean(one.fidelity) > np.mean(both.fidelity) - 0.1  # by the mean of cosines the two are close
    choice = selection.choose([base, one, both])
    assert (choice.step, choice.front) == (100, (50, 100))
    # Less drift counts only where every subject is within one standard error.
    assert selection.choose([base, pair(50, 0.3, 0.6, 0.1), both]).step == 100
    assert selection.choose([base, pair(50, 0.4, 0.6, 0.1), both]).step == 50
    assert selection.choose([base, pair(50, 0.6, 0.7, 0.1), both]).front == (50,)


def test_training_of_several_subjects_is_done_when_none_gains() -> None:
    points = [pair(0, 0.2, 0.5, 0.0), pair(50, 0.4, 0.6, 0.1), pair(100, 0.4, 0.6, 0.2), pair(150, 0.39, 0.6, 0.3)]
    assert selection.finished(points, patience=2)
    assert not selection.finished([*points[:3], pair(150, 0.3, 0.7, 0.3)], patience=2)  # the second still does


def test_points_of_any_version_are_read_again() -> None:
    point = pair(50, 0.4, 0.6, 0.1)
    assert selection.point_of({**point._asdict(), "of": [list(one) for one in point.of]}) == point
    older = {"step": 0, "fidelity": [0.5], "prompt": [1.0], "drift": 0.0}
    assert selection.point_of(older) == Point(0, (0.5,), (1.0,), 0.0)
