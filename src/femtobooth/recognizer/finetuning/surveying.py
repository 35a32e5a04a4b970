"""Reading a set of labelled pictures: its groups of copies, its split, and what is wrong with it, before anything is
trained.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ...core.errors import PhotoError
from ...core.events import progress_bar
from ...pictures import duplicates
from ...pictures.archive_paths import sha256_of
from ...pictures.images import Skipped, decode, natural_order
from ...pictures.provenance import Origin, Provenance
from .. import multilabel
from ..model.labels import Labels
from . import dataset, splitting, stratification
from .dataset_report import Finding, dataset_report
from .examples import Example, Labelled
from .survey import NOTHING, Survey

FREE = "label"
"""Name of the group of labels of which a picture may have any number."""


def survey(
    read: Labelled,
    share: float,
    seed: int,
    set_aside: bool,
    synthesized: Sequence[Path] = (),
    copies: str = "group",
    multi_label: bool = False,
    taught: Collection[str] = (),
) -> tuple[Survey, list[Finding]]:
    """Check, group and split labelled pictures; `set_aside` also takes pictures from training for early stopping.

    `synthesized` are folders or files of the same kind whose pictures only train, whatever is known of them; `copies`
    is as in FinetuneSettings; `taught` are SHA-256 of pictures that a teacher has learned, which do not validate.
    Raises PhotoError where there is too little to train and validate on.
    """
    examples, skipped = read.to_train(), read.skipped
    if "test" in read.parts:
        count = len(read.examples) - len(examples)
        read.remarks.append(f"{count} test pictures were left alone: `femtobooth evaluate-classifier` measures them.")
    extra = _only_to_train(synthesized, examples, skipped, multi_label)
    provenance = Provenance()
    kept: list[Example] = []
    digests: list[str] = []
    hashes: list[np.ndarray | None] = []
    small: list[np.ndarray] = []
    origins: list[Origin | None] = []
    with progress_bar("reading pictures", len(examples) + len(extra)) as bar:
        for number, example in enumerate([*examples, *extra]):
            picture = decode(example.path)
            if isinstance(picture, Skipped):
                skipped.append(picture)
            else:
                kept.append(example)
                digests.append(sha256_of(example.path))
                hashes.append(duplicates.views(picture.image))
                small.append(duplicates.thumbnails(picture.image))
                origin = provenance.origin(example.path, hashes[-1])
                origins.append(origin or (Origin() if number >= len(examples) else None))
            bar.advance()
    labels = [example.label for example in kept]
    several = _label_groups(kept, read.groups) if multi_label else None
    classes = list(several.names) if several else sorted(set(labels), key=natural_order)
    truth = multilabel.matrix(several, [example.labels for example in kept]) if several else NOTHING
    if len(classes) < 2:
        of = f"only of {classes[0]}" if classes else "none"
        raise PhotoError(
            f"{read.source}: pictures {of} can be read",
            "a classifier needs two classes at least, each in a folder of its own",
        )
    with progress_bar("looking for copies", len(kept)) as bar:
        groups = duplicates.groups(
            [None] * len(kept) if copies == "keep" else hashes, digests, small, advance=bar.advance
        )
    given = [example.part for example in kept]
    known = [origin for origin in origins if origin]
    behind = frozenset().union(*(origin.photos for origin in known))
    generated = np.array([origin is not None for origin in origins])
    learned = np.array([digest in behind for digest in digests]) & ~generated
    groups, alike = (
        (groups, list[str]()) if "val" in given or several else _apart(labels, groups, digests, generated | learned)
    )
    made, seen = generated.tolist(), learned.tolist()
    divide = partial(stratification.split, truth, classes) if several else partial(splitting.split, labels)
    divide = partial(divide, groups, given, made, share, seed, leave_out=copies == "leave-out")
    parts, remarks = _not_by_taught(divide, seen, [digest in taught for digest in digests])
    if set_aside:
        parts = _set_aside(labels, groups, parts, (generated | learned).tolist(), share, seed, classes, truth)
    numbers = np.array([] if several else [classes.index(label) for label in labels], np.int64)
    judges = frozenset(origin.judge for origin in known if origin.judge)
    paths = [example.path.absolute() for example in kept]
    photos = tuple(sorted(behind))
    found = Survey(paths, classes, numbers, parts, generated, learned, groups, digests, photos, judges, several, truth)
    return found, dataset_report(found, given, skipped, [*read.remarks, *alike, *remarks])


def _not_by_taught(
    divide: Callable[..., tuple[list[str], list[str]]], learned: list[bool], taught: list[bool]
) -> tuple[list[str], list[str]]:
    """Split, and once more where pictures would validate that a teacher has learned, which then only train."""
    parts, remarks = divide(learned=learned)
    spoilt = sum(part == "val" and known for part, known in zip(parts, taught, strict=True))
    if not spoilt:
        return parts, remarks
    parts, remarks = divide(learned=[one or other for one, other in zip(learned, taught, strict=True)])
    remark = f"{spoilt} pictures that would have validated have trained the teacher, or a generator: they only train"
    return parts, [*remarks, remark]


def _apart(
    labels: Sequence[str], groups: np.ndarray, digests: Sequence[str], bound: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """Make groups in which the pictures of classes that are one group by their looks stand alone, unless they are one
    file; and remarks.

    Such classes could not be validated at all: a fixed camera before which nothing moves. Classes with pictures that
    are `bound` (N,) to train, and their copies with them, stay as they are.
    """
    apart, remarks = groups.copy(), []
    for label in sorted(set(labels), key=natural_order):
        own = [index for index, name in enumerate(labels) if name == label]
        files = {digests[i]: i for i in reversed(own)}
        if len(set(groups[own].tolist())) == 1 and len(files) > 1 and not bound[own].any():
            apart[own] = [files[digests[i]] for i in own]
            remarks.append(
                f"all {len(own)} pictures of {label} look like one shot (`copies=keep` says that they are not):"
                " what validates was as good as trained on, which flatters the result"
            )
    return apart, remarks


def _label_groups(kept: Sequence[Example], groups: Sequence[str]) -> Labels | None:
    """Order the labels of pictures that may have several: the free ones, then each group's. Raises PhotoError for a
    group of one label.
    """
    names = sorted({label for example in kept for label in example.labels}, key=natural_order)
    inside = {group: [name for name in names if name.startswith(f"{group}=")] for group in groups}
    if single := next((own for own in inside.values() if len(own) == 1), None):
        raise PhotoError(f"only {single[0]} in its group", "a group has two labels at least; or make it a free label")
    grouped = {name for own in inside.values() for name in own}
    blocks = {FREE: [name for name in names if name not in grouped]} | inside
    ordered, spans = list[str](), {}
    for group, own in blocks.items():
        if own:
            spans[group] = (len(ordered), len(ordered) + len(own))
            ordered += own
    if FREE not in spans:
        if not kept:
            return None
        raise PhotoError(
            "no free label: every column is a group", "use one group as the column `label`, without `multi_label`"
        )
    return Labels(tuple(ordered), groups=spans, free=(FREE,))


def _only_to_train(
    folders: Sequence[Path], examples: Sequence[Example], skipped: list[Skipped], multi_label: bool
) -> list[Example]:
    """Read the examples of further folders. Raises PhotoError where none of their classes is one of the data's."""
    part = "train" if any(example.part == "val" for example in examples) else None
    there, found = {example.path.resolve() for example in examples}, []
    for folder in folders:
        there_too = dataset.read(folder, multi_label)
        more = there_too.to_train()
        skipped += there_too.skipped
        known = {label for example in examples for label in example.labels or (example.label,)}
        if not known & {label for example in more for label in example.labels or (example.label,)}:
            names = ", ".join(sorted({example.label for example in more}, key=natural_order)[:4])
            raise PhotoError(
                f"`synthesized={folder}`: none of its classes ({names}) is one of the photos'",
                "name the class folders alike: the labels of `femtobooth synthesize` are the names",
            )
        found += [replace(example, part=part) for example in more if example.path.resolve() not in there]
    return found


def _set_aside(
    labels: list[str],
    groups: np.ndarray,
    parts: list[str],
    generated: list[bool],
    share: float,
    seed: int,
    names: Sequence[str],
    truth: np.ndarray,
) -> list[str]:
    """Set pictures aside: early stopping must not look at what later judges: it gets pictures of its own, split off
    from training.
    """
    train = [index for index, part in enumerate(parts) if part == "train"]
    try:
        rest, made = [None] * len(train), [generated[i] for i in train]
        own, _ = (
            stratification.split(truth[train], names, groups[train], rest, made, share, seed + 1, [False] * len(train))
            if len(truth)
            else splitting.split([labels[i] for i in train], groups[train], rest, made, share, seed + 1)
        )
    except PhotoError as error:
        raise PhotoError(
            f"`patience`: after the split, {error.problem}",
            "early stopping needs 3 different photos of each class, or `patience=0`",
        ) from None
    result = list(parts)
    for index, part in zip(train, own, strict=True):
        result[index] = "stop" if part == "val" else "train"
    return result
