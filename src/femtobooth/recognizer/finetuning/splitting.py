"""The split of labelled pictures into training and validation, without leaks, and its file in a run."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import PhotoError
from ...pictures.images import natural_order
from ...training.randomness import generator


def split(
    labels: Sequence[str],
    groups: np.ndarray,
    parts: Sequence[str | None],
    generated: Sequence[bool],
    share: float,
    seed: int,
    learned: Sequence[bool] | None = None,
    leave_out: bool = False,
) -> tuple[list[str], list[str]]:
    """Choose the part of each of N pictures, `train`, `val` or `left out`, and remarks. No group of near-duplicates is
    on both sides.

    Without a split of the user's, each class gives about `share` of its pictures, at least one group and never all of
    them; the groups are drawn by `seed`. Groups of more than one class train, and those that hold a generated picture
    or a photo that the model behind one has `learned` from. A split of the user's stays as it is, less validation
    pictures that a generator has learned, and with `leave_out` those whose near-duplicate trains. Raises PhotoError for
    a generated picture in the user's validation part, and for a class that cannot be split.
    """
    learned = [False] * len(labels) if learned is None else learned
    members: dict[int, list[int]] = {}
    for index, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(index)
    if "val" in parts:
        return given_split(labels, list(members.values()), parts, generated, learned, leave_out)
    bound = np.asarray(generated, bool) | np.asarray(learned, bool)
    fixed = {g for g, inside in members.items() if bound[inside].any() or len({labels[i] for i in inside}) > 1}
    result = ["train"] * len(labels)
    short = []
    for label in sorted(set(labels), key=natural_order):
        own = sorted({int(groups[i]) for i, name in enumerate(labels) if name == label})
        if len(own) < 2:
            count = sum(name == label for name in labels)
            short.append(f"{label} ({count} {'picture' if count == 1 else 'pictures, all copies of one'})")
            continue
        free = [group for group in own if group not in fixed]
        wanted = max(1, round(share * sum(len(members[group]) for group in free)))
        order = [free[i] for i in _shuffled(len(free), seed, label)]
        if len(free) == len(own):
            order = order[:-1]  # one group stays to train on
        taken: list[int] = []
        for group in order:  # a group larger than what is still wanted would leave too little to train on
            if len(members[group]) <= wanted:
                taken.append(group)
                wanted -= len(members[group])
        for group in taken or sorted(order, key=lambda group: len(members[group]))[:1]:
            for index in members[group]:
                result[index] = "val"
    if short:
        raise PhotoError(
            f"too few pictures to train and validate: {'; '.join(short[:8])}{' ...' if len(short) > 8 else ''}",
            (
                "a class needs 2 different photos at least, 3 to 5 are better: add "
                "some; `copies=keep` if they are different shots"
            ),
        )
    return result, without_validation(labels, result)


def given_split(
    labels: Sequence[str],
    members: Sequence[list[int]],
    parts: Sequence[str | None],
    generated: Sequence[bool],
    learned: Sequence[bool],
    leave_out: bool,
) -> tuple[list[str], list[str]]:
    """Keep a split of the user's, less what must not validate, and say what was left out; as `split` says. `members`
    are the pictures of each group. Raises PhotoError.
    """
    result = [part or "train" for part in parts]
    wrong = sum(part == "val" and made for part, made in zip(result, generated, strict=True))
    if wrong:
        raise PhotoError(
            f"{wrong} generated pictures in the validation part", "only real photos may validate: move them to train"
        )
    for inside in members:
        if (leave_out and len({result[i] for i in inside}) > 1) or any(learned[i] for i in inside):
            for index in inside:
                result[index] = "train" if result[index] == "train" else "left out"
    untrained = sorted(
        {*labels} - {label for label, part in zip(labels, result, strict=True) if part == "train"}, key=natural_order
    )
    if untrained:
        raise PhotoError(
            f"no picture to train on: {', '.join(untrained[:8])}",
            "put some of theirs under train, or take the class out of val",
        )
    leaking = result.count("left out")
    remarks = (
        [f"{leaking} validation pictures show what was trained on, here or behind generated pictures: left out"]
        if leaking
        else []
    )
    return result, remarks + without_validation(labels, result)


def without_validation(labels: Sequence[str], parts: Sequence[str]) -> list[str]:
    """Return a remark that names the classes nothing validates."""
    none = sorted(
        {*labels} - {label for label, part in zip(labels, parts, strict=True) if part == "val"}, key=natural_order
    )
    return [f"nothing to validate on: {', '.join(none)}"] if none else []


def _shuffled(length: int, seed: int, label: str) -> list[int]:
    import torch

    return torch.randperm(length, generator=generator(seed, "split", label)).tolist()


def write_split(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write split.csv of a run: path, label, split (train, val or left out), group, generated, learned (known to a
    generator), sha256.
    """
    with file.open("w", newline="", encoding="utf-8", errors="surrogateescape") as opened:
        writer = csv.DictWriter(opened, ["path", "label", "split", "group", "generated", "learned", "sha256"])
        writer.writeheader()
        writer.writerows(rows)


def read_split(file: Path) -> list[dict[str, str]]:
    """Read what `write_split` wrote. Raises PhotoError."""
    try:
        with file.open(newline="", encoding="utf-8", errors="surrogateescape") as opened:
            return list(csv.DictReader(opened))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PhotoError(f"{file}: cannot be read ({error})", "start the run again") from None
