"""What a set of labelled pictures is worth before anything is trained: its faults, its groups of copies, and its
split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import PhotoError
from ...core.events import progress_bar
from ...core.files import sha256_of
from ...core.names import stored
from ...pictures import duplicates
from ...pictures.images import Skipped, decode, natural_order
from ...pictures.provenance import Origin, Provenance
from . import dataset, splitting
from .dataset import Example, Labelled

UNEVEN = 3.0
"""Largest class over smallest from which on a set is called unbalanced."""
FEW = 3
"""Different photos that a class should have at least."""


@dataclass
class Survey:
    """N readable pictures in order, and what is known of each."""

    paths: list[Path]
    classes: list[str]
    labels: np.ndarray  # int (N,), into `classes`
    parts: list[str]
    """train, val, stop (trains nothing; early stopping measures on it) or left out."""
    generated: np.ndarray  # bool (N,): drawn by a model, only ever trained on
    learned: (
        np.ndarray
    )  # bool (N,): photos that the model behind a generated picture was trained on or chosen by; they test nothing
    groups: np.ndarray  # int (N,): near-duplicates share a number
    digests: list[str]
    """SHA-256 of the files."""
    behind: tuple[str, ...] = ()
    """SHA-256 of all photos that the models behind the generated pictures were trained on or chosen by, here or not."""
    judges: frozenset[str] = frozenset()
    """Hashes of the recognizers that chose the generated pictures."""

    @property
    def only_train(self) -> np.ndarray:
        """bool (N,): pictures that must not be predicted by what trains on the others."""
        return self.generated | self.learned

    def part(self, *names: str) -> np.ndarray:
        """Return the indices of the pictures of some parts."""
        return np.array([index for index, part in enumerate(self.parts) if part in names], np.int64)

    def rows(self) -> list[dict[str, Any]]:
        """Make what split.csv holds."""
        return [
            {
                "path": str(path),
                "label": self.classes[label],
                "split": part,
                "group": int(group),
                "generated": int(made),
                "learned": int(seen),
                "sha256": digest,
            }
            for path, label, part, group, made, seen, digest in zip(
                self.paths,
                self.labels,
                self.parts,
                self.groups,
                self.generated,
                self.learned,
                self.digests,
                strict=True,
            )
        ]

    @classmethod
    def restored(cls, rows: Sequence[dict[str, str]], classes: Sequence[str], where: Path) -> Survey:
        """Restore it from split.csv. Raises PhotoError where pictures are gone or not what they were."""
        paths = [Path(row["path"]) for row in rows]
        changed = [
            path
            for path, row in zip(paths, rows, strict=True)
            if not path.is_file() or sha256_of(path) != row["sha256"]
        ]
        if changed:
            raise PhotoError(
                f"{changed[0]}: gone or changed since the run began ({len(changed)} pictures are)",
                f"put back the pictures that {where} lists, or start a new run",
            )
        return cls(
            paths,
            list(classes),
            np.array([classes.index(row["label"]) for row in rows]),
            [row["split"] for row in rows],
            np.array([row["generated"] == "1" for row in rows]),
            np.array([row.get("learned") == "1" for row in rows]),
            np.array([int(row["group"]) for row in rows]),
            [row["sha256"] for row in rows],
        )


@dataclass(frozen=True)
class Finding:
    """One thing that the dataset report says."""

    what: str
    count: int
    about: str
    """In words, with what is done about it."""
    files: list[list[str]]
    """The pictures it concerns, in groups that belong together; each as `path` or `path: remark`."""

    @property
    def example(self) -> str:
        """The first file with its remark, without its folder."""
        first = next((files[0] for files in self.files if files), "")
        path, colon, remark = first.rpartition(": ")
        return f"{Path(path).name}{colon}{remark}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def survey(
    read: Labelled, share: float, seed: int, set_aside: bool, synthesized: Sequence[Path] = (), copies: str = "group"
) -> tuple[Survey, list[Finding]]:
    """Check, group and split labelled pictures; `set_aside` also takes pictures from training for early stopping.

    `synthesized` are folders or files of the same kind whose pictures only train, whatever is known of them; `copies`
    is as in FinetuneSettings. Raises PhotoError where there is too little to train and validate on.
    """
    examples, skipped = read.to_train(), read.skipped
    if "test" in read.parts:
        count = len(read.examples) - len(examples)
        read.remarks.append(f"{count} test pictures were left alone: `femtobooth evaluate-classifier` measures them.")
    extra = _only_to_train(synthesized, examples, skipped)
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
    classes = sorted(set(labels), key=natural_order)
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
    groups, alike = (groups, list[str]()) if "val" in given else _apart(labels, groups, digests, generated | learned)
    parts, remarks = splitting.split(
        labels, groups, given, generated.tolist(), share, seed, learned.tolist(), leave_out=copies == "leave-out"
    )
    if set_aside:
        parts = _set_aside(labels, groups, parts, (generated | learned).tolist(), share, seed)
    numbers = np.array([classes.index(label) for label in labels])
    judges = frozenset(origin.judge for origin in known if origin.judge)
    paths = [example.path.absolute() for example in kept]
    found = Survey(paths, classes, numbers, parts, generated, learned, groups, digests, tuple(sorted(behind)), judges)
    return found, dataset_report(found, given, skipped, [*read.remarks, *alike, *remarks])


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


def _only_to_train(folders: Sequence[Path], examples: Sequence[Example], skipped: list[Skipped]) -> list[Example]:
    """Read the examples of further folders. Raises PhotoError where none of their classes is one of the data's."""
    part = "train" if any(example.part == "val" for example in examples) else None
    there, found = {example.path.resolve() for example in examples}, []
    for folder in folders:
        there_too = dataset.read(folder)
        more = there_too.to_train()
        skipped += there_too.skipped
        if not {example.label for example in more} & {example.label for example in examples}:
            names = ", ".join(sorted({example.label for example in more}, key=natural_order)[:4])
            raise PhotoError(
                f"`synthesized={folder}`: none of its classes ({names}) is one of the photos'",
                "name the class folders alike: the labels of `femtobooth synthesize` are the names",
            )
        found += [Example(example.path, example.label, part) for example in more if example.path.resolve() not in there]
    return found


def _set_aside(
    labels: list[str], groups: np.ndarray, parts: list[str], generated: list[bool], share: float, seed: int
) -> list[str]:
    """Set pictures aside: early stopping must not look at what later judges: it gets pictures of its own, split off
    from training.
    """
    train = [index for index, part in enumerate(parts) if part == "train"]
    try:
        own, _ = splitting.split(
            [labels[i] for i in train],
            groups[train],
            [None] * len(train),
            [generated[i] for i in train],
            share,
            seed + 1,
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


def dataset_report(
    found: Survey, given: Sequence[str | None], skipped: Sequence[Skipped], remarks: Sequence[str]
) -> list[Finding]:
    """Make the dataset report, but for label issues, which take embeddings."""
    by_group: dict[int, list[int]] = {}
    for index, group in enumerate(found.groups.tolist()):
        by_group.setdefault(group, []).append(index)
    copies = [inside for inside in by_group.values() if len(inside) > 1]

    def named(inside: Sequence[int]) -> list[str]:
        return [f"{stored(found.paths[i])}: {found.classes[found.labels[i]]}" for i in inside]

    exact = [same for inside in copies for same in _same_bytes(inside, found.digests)]
    near = [inside for inside in copies if len({found.digests[i] for i in inside}) > 1]
    torn = [inside for inside in copies if len({int(found.labels[i]) for i in inside}) > 1]
    leaks = [inside for inside in copies if len({given[i] == "val" for i in inside}) > 1] if "val" in given else []
    made, known = np.flatnonzero(found.generated), np.flatnonzero(found.learned)
    unread = [one for one in skipped if one.reason not in ("hidden", "unfinished file")]
    counts = Counter(found.labels.tolist())
    most, least = max(counts, key=lambda c: counts[c]), min(counts, key=lambda c: counts[c])
    ratio = counts[most] / counts[least]
    distinct = {c: len(set(found.groups[found.labels == c].tolist())) for c in range(len(found.classes))}
    few = [c for c, count in distinct.items() if count < FEW]
    sizes = f"{found.classes[most]} has {counts[most]} pictures, {found.classes[least]} {counts[least]}"
    if ratio == 1:
        sizes = f"{counts[most]} pictures in every class"
    side = "" if "val" in given else "; each stays on one side of the split"
    flattered = "which flatters the result: `copies=leave-out` takes them out of validation"
    kept = (
        "left out of validation" if any(found.parts[i] == "left out" for inside in leaks for i in inside) else flattered
    )
    rows = [
        Finding(
            "not used",
            len(unread),
            "left out; everything else is used",
            [[f"{stored(one.path)}: {one.reason}" for one in unread]],
        ),
        Finding("same file twice", len(exact), "groups of identical files" + side, [named(i) for i in exact]),
        Finding("near-duplicates", len(near), "groups that show one shot" + side, [named(i) for i in near]),
        Finding(
            "one picture, two classes",
            len(torn),
            "one label must be wrong; such groups only train",
            [named(i) for i in torn],
        ),
        Finding("train in val", len(leaks), "groups on both sides of your split, " + kept, [named(i) for i in leaks]),
        Finding("generated", len(made), "drawn by a model: only ever trained on", [named(made.tolist())]),
        Finding(
            "known to the generator",
            len(known),
            "photos that its model learned from or was chosen by: they only train",
            [named(known.tolist())],
        ),
        Finding(
            "imbalance",
            int(ratio >= UNEVEN),
            sizes + ("; consider `class_weights=balanced`" if ratio >= UNEVEN else ""),
            [],
        ),
        Finding(
            "few photos", len(few), f"classes of fewer than {FEW} different photos", [[found.classes[c] for c in few]]
        ),
    ]
    rows += [Finding("split", 1, remark, []) for remark in remarks if not remark.endswith("left out")]
    return rows


def _same_bytes(inside: Sequence[int], digests: Sequence[str]) -> list[list[int]]:
    by_digest: dict[str, list[int]] = {}
    for index in inside:
        by_digest.setdefault(digests[index], []).append(index)
    return [same for same in by_digest.values() if len(same) > 1]


def label_issues(found: Survey, issues: Sequence[tuple[int, int, float]]) -> Finding:
    """Report the label issues that the cross-validated probe found; the labels are kept as they are."""
    files = [
        [f"{stored(found.paths[i])}: {found.classes[found.labels[i]]}, looks like {found.classes[other]} ({sure:.0%})"]
        for i, other, sure in issues
    ]
    return Finding("label issues", len(files), "look more like another class; have a look, nothing is changed", files)
