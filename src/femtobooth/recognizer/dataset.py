"""Labelled pictures: class folders or a CSV file, what of them may be validated on, and the split into training and validation.

    folder/CLASS/**.jpg                    one folder a class (ImageFolder); pictures may lie deeper
    folder/train/CLASS, folder/val/CLASS   a split of the user's own (also valid or validation; test is left alone)
    labels.csv                             columns `path` and `label`, and `split` where the user has split; paths from the CSV's folder

Generated pictures train only (`provenance` tells which they are), and so do photos that their model was trained on or chosen by.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import PhotoError
from ..core.images import Skipped, find_pictures, natural_order
from ..core.names import shown, stored
from ..core.paths import expanded
from ..training.randomness import generator
from .provenance import MANIFEST

OWN_FILES = (MANIFEST, "labels.csv", "synthesized.json", "sheet.png", "rejected.png")  # they lie beside the class folders
PATH_COLUMNS = ("path", "file", "filename", "filepath", "image", "image_path")
LABEL_COLUMNS = ("label", "class", "class_name", "category", "wnid", "synset", "class_index")
VALIDATION_NAMES = ("val", "valid", "validation")


@dataclass(frozen=True)
class Example:
    """A file and its class."""

    path: Path
    label: str
    part: str | None = None
    """`train` or `val` where the user has split, else None."""


def read_folder(folder: Path) -> list[tuple[Path, str]]:
    """Every picture under the class folders of `folder`, with its class. Raises PhotoError."""
    return [(example.path, example.label) for example in read(folder)[0]]


def read_csv(file: Path) -> list[tuple[Path, str]]:
    """Every line of a CSV file of labels; files that do not exist are among them. Raises PhotoError."""
    return [(example.path, example.label) for example in _read_csv(file)[0]]


def read(source: Path) -> tuple[list[Example], list[Skipped]]:
    """Examples of a folder or CSV file in natural order, and what was left out, and why. Raises PhotoError."""
    source = expanded(source)
    if not source.exists():
        raise PhotoError(f"{shown(source)}: no such file or folder", "give a folder of class folders, or a CSV file")
    examples, skipped = _read_folder(source) if source.is_dir() else _read_csv(source)
    if not examples:
        why = f" ({shown(skipped[0].path)}: {skipped[0].reason})" if skipped else ""
        raise PhotoError(f"{shown(source)}: no labelled picture in it{why}", "one folder a class, pictures inside: FOLDER/CLASS/photo.jpg")
    return examples, skipped


def _read_folder(folder: Path) -> tuple[list[Example], list[Skipped]]:
    inside = {path.name.lower(): path for path in _folders(folder)}
    validation = next((inside[name] for name in VALIDATION_NAMES if name in inside), None)
    is_split = "train" in inside and (validation or "test" in inside) and _folders(inside["train"])
    if not is_split:
        return _classes(folder, None)
    examples, skipped = _classes(inside["train"], "train" if validation else None)
    if validation:
        more, also_skipped = _classes(validation, "val")
        examples, skipped = examples + more, skipped + also_skipped
    used = {inside["train"], validation}
    return examples, skipped + [Skipped(path, "neither train nor val; left alone") for path in inside.values() if path not in used]


def _folders(folder: Path) -> list[Path]:
    try:
        names = sorted(os.listdir(folder), key=natural_order)
    except OSError as error:
        raise PhotoError(f"{shown(folder)}: cannot be listed ({error.strerror})", "check its permissions") from None
    return [folder / name for name in names if (folder / name).is_dir() and not name.startswith(".")]


def _classes(folder: Path, part: str | None) -> tuple[list[Example], list[Skipped]]:
    examples: list[Example] = []
    skipped = [
        Skipped(path, "in no class folder")
        for name in sorted(os.listdir(folder), key=natural_order)
        if not (path := folder / name).is_dir() and not name.startswith(".") and name not in OWN_FILES
    ]
    for own in _folders(folder):
        pictures, left_out = find_pictures([own], recursive=True)
        examples += [Example(path, stored(own.name), part) for path in pictures]
        skipped += [one for one in left_out if one.path.name != MANIFEST]
    return examples, skipped


def _read_csv(file: Path) -> tuple[list[Example], list[Skipped]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            start = opened.read(4096)
            opened.seek(0)
            separator = max(",;\t", key=(start.splitlines() or [""])[0].count)
            reader = csv.DictReader(opened, delimiter=separator)
            columns = {name.strip().lower(): name for name in reader.fieldnames or () if name}
            path_column = next((columns[name] for name in PATH_COLUMNS if name in columns), None)
            label_column = next((columns[name] for name in LABEL_COLUMNS if name in columns), None)
            if path_column is None or label_column is None:
                raise PhotoError(
                    f"{shown(file)}: no column of {'paths' if path_column is None else 'labels'} (it has {', '.join(columns) or 'none'})",
                    f"name one of {', '.join(PATH_COLUMNS)} and one of {', '.join(LABEL_COLUMNS)} in its first line",
                )
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PhotoError(f"{shown(file)}: cannot be read as CSV ({error})", "save it as CSV in UTF-8") from None
    examples: list[Example] = []
    skipped: list[Skipped] = []
    seen: dict[Path, str] = {}
    for line, row in rows:
        name, label = (row[path_column] or "").strip(), (row[label_column] or "").strip()
        path = file.parent / expanded(name)
        if not name or not label or "\0" in name:
            skipped.append(Skipped(path, f"line {line}: no {'label' if name else 'path'}"))
        elif path in seen:
            other = "" if seen[path] == label else f", there as {seen[path]!r}, here as {label!r}"
            skipped.append(Skipped(path, f"line {line}: listed already{other}"))
        elif (part := _part((row[columns["split"]] if "split" in columns else "") or "", file, line)) == "test":
            skipped.append(Skipped(path, "neither train nor val; left alone"))
        else:
            seen[path] = label
            examples.append(Example(path, label, part))
    return examples, skipped


def _part(text: str, file: Path, line: int) -> str | None:
    text = text.strip().lower()
    if text in VALIDATION_NAMES:
        return "val"
    if text in ("", "train", "test"):
        return text or None
    raise PhotoError(f"{shown(file)}, line {line}: split is {text!r}", "train, val, test, or nothing to have it chosen")


def split(
    labels: Sequence[str],
    groups: np.ndarray,
    parts: Sequence[str | None],
    generated: Sequence[bool],
    share: float,
    seed: int,
    learned: Sequence[bool] | None = None,
) -> tuple[list[str], list[str]]:
    """The part of each of N pictures, `train`, `val` or `left out`, and remarks. No group of near-duplicates is on both sides.

    Without a split of the user's, each class gives about `share` of its pictures, at least one group and never all of
    them; the groups are drawn by `seed`. Groups of more than one class train, and those that hold a generated picture or
    a photo that the model behind one has `learned` from. A split of the user's stays as it is, less what would leak: a
    validation picture that is such a photo, or whose near-duplicate trains, is left out. Raises PhotoError for a
    generated picture in the user's validation part, and for a class that cannot be split.
    """
    learned = [False] * len(labels) if learned is None else learned
    members: dict[int, list[int]] = {}
    for index, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(index)
    if "val" in parts:
        return _given_split(labels, list(members.values()), parts, generated, learned)
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
            "a class needs 2 different photos at least, 3 to 5 are better: add some, or take the class out",
        )
    return result, _without(labels, result)


def _given_split(
    labels: Sequence[str],
    members: Sequence[list[int]],
    parts: Sequence[str | None],
    generated: Sequence[bool],
    learned: Sequence[bool],
) -> tuple[list[str], list[str]]:
    result = [part or "train" for part in parts]
    wrong = sum(part == "val" and made for part, made in zip(result, generated, strict=True))
    if wrong:
        raise PhotoError(f"{wrong} generated pictures in the validation part", "only real photos may validate: move them to train")
    for inside in members:
        if len({result[i] for i in inside}) > 1 or any(learned[i] for i in inside):
            for index in inside:
                result[index] = "train" if result[index] == "train" else "left out"
    untrained = sorted({*labels} - {label for label, part in zip(labels, result, strict=True) if part == "train"}, key=natural_order)
    if untrained:
        raise PhotoError(
            f"no picture to train on: {', '.join(untrained[:8])}", "put some of theirs under train, or take the class out of val"
        )
    leaking = result.count("left out")
    remarks = [f"{leaking} validation pictures are copies of what was trained on: left out"] if leaking else []
    return result, remarks + _without(labels, result)


def _without(labels: Sequence[str], parts: Sequence[str]) -> list[str]:
    """A remark that names the classes nothing validates."""
    none = sorted({*labels} - {label for label, part in zip(labels, parts, strict=True) if part == "val"}, key=natural_order)
    return [f"nothing to validate on: {', '.join(none)}"] if none else []


def _shuffled(length: int, seed: int, label: str) -> list[int]:
    import torch

    return torch.randperm(length, generator=generator(seed, "split", label)).tolist()


def write_split(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    """split.csv of a run: path, label, split (train, val or left out), group, generated, learned (known to a generator), sha256."""
    with file.open("w", newline="", encoding="utf-8", errors="surrogateescape") as opened:
        writer = csv.DictWriter(opened, ["path", "label", "split", "group", "generated", "learned", "sha256"])
        writer.writeheader()
        writer.writerows(rows)


def read_split(file: Path) -> list[dict[str, str]]:
    """What `write_split` wrote. Raises PhotoError."""
    try:
        with file.open(newline="", encoding="utf-8", errors="surrogateescape") as opened:
            return list(csv.DictReader(opened))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PhotoError(f"{shown(file)}: cannot be read ({error})", "start the run again") from None
