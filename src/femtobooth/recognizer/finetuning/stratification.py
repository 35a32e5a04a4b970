"""Pictures with several labels dealt out to parts, so that each part has its share of every label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ...core.errors import PhotoError
from ...training.randomness import generator
from .splitting import given_split, without_validation


def dealt(has: np.ndarray, shares: Sequence[float], seed: int, least: bool = False) -> np.ndarray:
    """Deal out G units with labels `has` (bool (G, C)) to parts of these shares: the part of each (G,).

    Iterative stratification (Sechidis, Tsoumakas & Vlahavas 2011, algorithm 1): the label with the fewest units left
    goes first, each to the part that lacks most of it. With `least`, a label with two units has one in the first two
    parts each, as far as others leave them.
    """
    units = len(has)
    random = generator(seed, "dealt", len(shares))
    order = torch.randperm(units, generator=random).numpy()
    wanted = np.outer(has.sum(axis=0), shares).astype(np.float64)  # (C, parts)
    if least:
        enough = has.sum(axis=0) > 1
        wanted[enough, 1] = np.maximum(wanted[enough, 1], 1)
        wanted[enough, 0] = has.sum(axis=0)[enough] - wanted[enough, 1:].sum(axis=1)
    room = units * np.asarray(shares, np.float64)
    part = np.full(units, -1)
    while (part < 0).any():
        left = (part < 0) & has.any(axis=1)
        counts = has[left].sum(axis=0)
        if not counts.any():
            rest = [unit for unit in order if part[unit] < 0]
            label = None
        else:
            label = int(np.where(counts > 0, counts, units + 1).argmin())
            rest = [unit for unit in order if part[unit] < 0 and has[unit, label]]
        for unit in rest:
            lack = room if label is None else wanted[label] + 1e-6 * room / units
            chosen = int(lack.argmax())
            part[unit] = chosen
            wanted[has[unit], chosen] -= 1
            room[chosen] -= 1
    return part


def split(
    truth: np.ndarray,
    names: Sequence[str],
    groups: np.ndarray,
    parts: Sequence[str | None],
    generated: Sequence[bool],
    share: float,
    seed: int,
    learned: Sequence[bool],
    leave_out: bool = False,
) -> tuple[list[str], list[str]]:
    """Choose the part of each of N pictures with labels `truth` (N, C), `train`, `val` or `left out`, and remarks.

    As `splitting.split` does for one label a picture: no group of near-duplicates is on both sides, what a generator
    made or learned from trains, and a split of the user's stays. Raises PhotoError for a label that cannot be split.
    """
    has = np.nan_to_num(truth) > 0
    numbers, inside = np.unique(groups, return_inverse=True)
    if "val" in parts:
        members = [np.flatnonzero(inside == number).tolist() for number in range(len(numbers))]
        result, remarks = given_split([""] * len(has), members, parts, generated, learned, leave_out)
        remarks = [remark for remark in remarks if "validate on" not in remark]
    else:
        of_group = np.zeros((len(numbers), has.shape[1]), bool)
        np.logical_or.at(of_group, inside, has)
        bound = np.zeros(len(numbers), bool)
        np.logical_or.at(bound, inside, np.asarray(generated, bool) | np.asarray(learned, bool))
        short = [names[i] for i in np.flatnonzero(of_group.sum(axis=0) < 2).tolist()]
        if short:
            raise PhotoError(
                f"too few pictures to train and validate: {', '.join(short[:8])}{' ...' if len(short) > 8 else ''}",
                "a label needs 2 different photos at least, better 20: add some, or take the label out",
            )
        chosen = np.zeros(len(numbers), np.int64)
        chosen[~bound] = dealt(of_group[~bound], [1 - share, share], seed, least=True)
        for label in range(len(names)):  # each must be learned
            own = np.flatnonzero(of_group[:, label])
            if chosen[own].all():
                chosen[own[0]] = 0
        result, remarks = ["val" if chosen[number] else "train" for number in inside], []
    trained = has[[part == "train" for part in result]].any(axis=0)
    if not trained.all():
        raise PhotoError(
            f"no picture to train on: {', '.join([names[i] for i in np.flatnonzero(~trained).tolist()][:8])}",
            "put some of theirs under train, or take the label out",
        )
    flat = [(name, part) for row, part in zip(has, result, strict=True) for name in np.asarray(names)[row]]
    return result, remarks + without_validation([name for name, _ in flat], [part for _, part in flat])


def folds(truth: np.ndarray, groups: np.ndarray, only_train: np.ndarray, seed: int, count: int) -> np.ndarray:
    """Choose the fold (N,) in which each picture is predicted, or -1 for those that only train; near-duplicates share
    one.
    """
    numbers, inside = np.unique(groups, return_inverse=True)
    of_group = np.zeros((len(numbers), truth.shape[1]), bool)
    np.logical_or.at(of_group, inside, np.nan_to_num(truth) > 0)
    barred = np.zeros(len(numbers), bool)
    np.logical_or.at(barred, inside, only_train)
    fold = np.full(len(numbers), -1)
    fold[~barred] = dealt(of_group[~barred], [1 / count] * count, seed)
    return fold[inside]
