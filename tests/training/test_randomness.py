"""Draws depend on what they are for, and on nothing else."""

from __future__ import annotations

from collections import Counter

import torch

from femtobooth.training.randomness import chosen_group, generator, shuffled_indices


def _numbers(*purpose: int | str) -> list[float]:
    return torch.randn(4, generator=generator(*purpose)).tolist()  # type: ignore[arg-type]


def test_same_purpose_same_draw_whatever_happened_before() -> None:
    first = _numbers(0, "noise", 3, 1)
    torch.manual_seed(99)
    torch.randn(1000)
    assert _numbers(0, "noise", 3, 1) == first


def test_every_part_of_the_purpose_counts() -> None:
    purposes = [
        (0, "noise", 3, 1),
        (1, "noise", 3, 1),
        (0, "prior", 3, 1),
        (0, "noise", 4, 1),
        (0, "noise", 3, 0),
        (0, "noise", 31),
    ]
    assert len({tuple(_numbers(*purpose)) for purpose in purposes}) == len(purposes)  # type: ignore[arg-type]


def test_global_state_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    shuffled_indices(0, "order", 7, 3, 20)
    _numbers(0, "x")
    assert torch.equal(torch.randn(3), expected)


def test_each_pass_sees_every_picture_once() -> None:
    order = shuffled_indices(0, "instance", 5, 0, 20)
    passes = [order[start : start + 5] for start in range(0, 20, 5)]
    assert all(sorted(one) == [0, 1, 2, 3, 4] for one in passes)
    assert len({tuple(one) for one in passes}) > 1


def test_any_window_is_a_piece_of_the_same_order() -> None:
    order = shuffled_indices(3, "instance", 5, 0, 40)
    for first in range(0, 30, 3):
        assert shuffled_indices(3, "instance", 5, first, 9) == order[first : first + 9]


def test_groups_have_their_share_of_the_turns_after_every_pass() -> None:
    turns = [chosen_group(3, "shape", [6, 2, 4], turn)[0] for turn in range(60)]
    for first in range(0, 60, 6):  # 3 + 1 + 2
        assert Counter(turns[first : first + 6]) == {0: 3, 1: 1, 2: 2}
    assert len({tuple(turns[first : first + 6]) for first in range(0, 60, 6)}) > 1


def test_a_group_counts_its_own_turns() -> None:
    had = Counter[int]()
    for turn in range(50):
        group, before = chosen_group(1, "shape", [3, 2], turn)
        assert before == had[group]
        had[group] += 1
    assert [chosen_group(1, "shape", [7], turn) for turn in (0, 1, 50)] == [(0, 0), (0, 1), (0, 50)]


def test_all_entries_of_uneven_groups_are_seen_equally_often() -> None:
    groups, size = [["a", "b", "c", "c"], ["d"]], 3  # c is to be seen twice as often
    seen = Counter[str]()
    for turn in range(5):
        group, before = chosen_group(0, "shape", [4, 1], turn)
        seen.update(groups[group][index] for index in shuffled_indices(0, "x", len(groups[group]), before * size, size))
    assert seen == {"a": 3, "b": 3, "c": 6, "d": 3}
