"""Every random draw is a function of (seed, what it is for, micro-step, rank), never of a generator's history.

So a run that is killed anywhere and resumed draws exactly what the unbroken run would have drawn, nothing that
looks on (samples, class images) can disturb it, and no two processes ever share their noise.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch


def generator(seed: int, *purpose: int | str) -> torch.Generator:
    """Make a fresh CPU generator for one purpose, such as ``generator(0, "noise", micro_step, rank)``.

    On the CPU because its stream is the same for every device the result is moved to.
    """
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def shuffled_indices(seed: int, purpose: str, length: int, first: int, count: int) -> list[int]:
    """Give entries `first` to `first + count` of an endless sequence of shuffled passes over ``range(length)``."""
    indices: list[int] = []
    while len(indices) < count:
        epoch, offset = divmod(first + len(indices), length)
        order = torch.randperm(length, generator=generator(seed, purpose, "order", epoch)).tolist()
        indices += order[offset : offset + count - len(indices)]
    return indices


def chosen_group(seed: int, purpose: str, counts: Sequence[int], turn: int) -> tuple[int, int]:
    """Choose the group whose turn it is (from 0), where groups take turns in proportion to `counts` (each >= 1), and
    count the turns that it has had before.

    The turns are an endless sequence of shuffled passes, each as short as the proportion allows: after sum(counts) /
    gcd(counts) turns every group has had its exact share. So if a group's turn is a batch of the next entries of a
    sequence of its own, as `shuffled_indices` gives it, all entries of all groups are seen equally often.
    """
    shares = [count // math.gcd(*counts) for count in counts]
    turns = [group for group, share in enumerate(shares) for _ in range(share)]
    passes, place = divmod(turn, len(turns))
    order = shuffled_indices(seed, f"{purpose} groups", len(turns), passes * len(turns), place + 1)
    *before, group = [turns[index] for index in order]
    return group, passes * shares[group] + before.count(group)
