"""Labelled pictures, read in one way by every command: class folders, split or not, or a list of them.

    folder/CLASS/**.jpg                    one folder a class (ImageFolder); pictures may lie deeper
    folder/train/CLASS, folder/val/CLASS   a split of the user's own, and test; other spellings and languages are in
                                           `split_names`
    folder/CLASS/train, folder/CLASS/val   the same inside out
    folder/labels.csv, or a file           columns `path` and `label`, and `split` where the user has split; paths from
                                           the file's folder
    folder/KEY.jpg, folder/KEY.cls         labels beside the pictures, as WebDataset has them (`sidecars`)
    folder/*.tar, or one archive           any of these in it, as if it were unpacked (`pictures.archive_paths`)

Where a picture may have several labels, they stand in one cell, in several rows, in columns of 0 and 1, in columns
`group:NAME` (one of a group), or the same picture lies in several class folders.

A tree whose folders are neither classes nor known parts is refused rather than guessed.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ...core.errors import PhotoError
from ...core.names import stored
from ...core.paths import expanded
from ...pictures import archive_paths, archives
from ...pictures.archive_paths import is_file, is_folder, sha256_of
from ...pictures.images import Skipped, find_pictures, natural_order
from ...pictures.provenance import MANIFEST
from . import label_lists, sidecars, split_names
from .examples import NAMES, Example, Labelled

LIST = "labels.csv"
OWN_FILES = (MANIFEST, LIST, "synthesized.json", "sheet.png", "rejected.png")  # they lie beside the class folders
JUNK = {"__macosx", "@eadir", "lost+found", "system volume information", "$recycle.bin"}  # made by archives and systems
MISSING = "no such file"
LIST_ENDINGS = (".csv", ".tsv", ".txt")
ALIKE = 0.5
"""Share of subfolders that first-level folders have in common from which on they are no classes."""


def read(source: Path | str, multi_label: bool = False) -> Labelled:
    """Read the examples of a folder or list in natural order, and what was left out, and why. Raises PhotoError.

    With `multi_label`, each picture has all labels that it is listed or filed under.
    """
    source = expanded(source)
    if archive_paths.is_archive(source) or is_folder(source):
        found = _read_shards(source, multi_label) or _read_folder(source, multi_label)
    elif archives.is_archive(source.name) and is_file(source):
        raise PhotoError(f"{source}: no tar or zip, though it is called so", archive_paths.WAY_OUT)
    elif is_file(source):
        found = _read_list(source, multi_label=multi_label)
    else:
        raise PhotoError(f"{source}: no such file or folder", "give a folder of class folders, or a CSV file")
    found = _together(found) if multi_label else _only_one(found)
    if not found.examples:
        why = f" ({found.skipped[0].path}: {found.skipped[0].reason})" if found.skipped else ""
        raise PhotoError(
            f"{source}: no labelled picture in it{why}", "one folder a class, pictures inside: FOLDER/CLASS/photo.jpg"
        )
    return found


def _only_one(found: Labelled) -> Labelled:
    """Leave out pictures of several labels, or of none."""
    wrong = [one for one in found.examples if len(one.labels) > 1 or not one.label]
    why = [Skipped(one.path, "several labels (`multi_label=true`)" if one.label else "no label") for one in wrong]
    kept = [one for one in found.examples if one.label and len(one.labels) < 2]
    return replace(found, examples=kept, skipped=found.skipped + why)


def _together(found: Labelled) -> Labelled:
    """Join the rows and files of one picture, by its bytes: it has the labels of them all, and trains if one does."""
    sizes = Counter(archive_paths.size(path) for path in {example.path for example in found.examples})
    joined: dict[str | Path, Example] = {}
    for one in found.examples:
        key = sha256_of(one.path) if sizes[archive_paths.size(one.path)] > 1 else one.path
        before = joined.get(key, one)
        labels = tuple(dict.fromkeys([*before.labels, *(one.labels or ((one.label,) if one.label else ()))]))
        part = one.part if before.part == one.part else "train"
        joined[key] = Example(before.path, "; ".join(labels) or "no label", part, labels)
    files = len({example.path for example in found.examples})
    if files > len(joined):
        found.remarks.append(
            f"{files} files are {len(joined)} pictures: one that lies in several places has all labels."
        )
    return replace(found, examples=list(joined.values()))


def is_labelled(source: Path) -> bool:
    """Tell whether a path looks like labelled pictures: a list, a folder or archive with one, or with folders."""
    if is_folder(source) or archive_paths.is_archive(source):
        return is_file(source / LIST) or bool(_folders(source) or _shards(source)) or sidecars.any_in(_listed(source))
    return source.suffix.lower() in LIST_ENDINGS


# --- folders


def _read_folder(source: Path, multi_label: bool = False) -> Labelled:
    remarks = []
    if is_file(source / LIST):
        found = _read_list(source / LIST, not _folders(source), multi_label)
        if found.examples:
            beside = " in the place of the class folders beside it" if _folders(source) else ""
            found.remarks.insert(0, f"{LIST} was read{beside}.")
            return found
        remarks = found.remarks
    folder = _inner(source)
    inside = {path.name: path for path in _folders(folder)}
    parts = split_names.parts_of(list(inside))
    split = {
        name: part for name, part in parts.items() if _folders(inside[name]) or sidecars.any_in(_listed(inside[name]))
    }
    others = [path for name, path in inside.items() if name not in parts]
    if split and (
        ("train" in split.values() and len({*parts.values()}) > 1) or not find_pictures(others, recursive=True)[0]
    ):
        found = _split(folder, inside, split)
    elif not split and len({*parts.values()}) > 1 and not find_pictures(others, recursive=True)[0]:
        raise PhotoError(
            f"{folder}: {_few(list(parts))} are parts of a split, and no class folders are in them",
            f"FOLDER/train/CLASS/photo.jpg; if they are classes, list them in {LIST} with the columns path and label",
        )
    else:
        found = _inside_out(folder, inside) or _classes(folder, None)
    if split or folder != source:
        counts = Counter(example.part for example in found.examples)
        held = ", ".join(f"{counts[part]} {NAMES[part]}" for part in found.parts)
        remarks.append(f"{folder.name} was read as {f'a split: {held}' if held else 'the folder of the classes'}.")
    found.skipped += [Skipped(*one) for one in archive_paths.problems(source)]
    return replace(found, source=source, remarks=remarks + found.remarks)


def _inner(folder: Path) -> Path:
    """Find the folder that holds the classes, where archives have packed it into others: the only one, of a name that
    says nothing new.
    """
    while True:
        inside = _folders(folder)
        if len(inside) != 1 or not _folders(inside[0]) or _has_pictures(folder):
            return folder
        name, own = inside[0].name, folder.name
        part = split_names.part_of(name)
        if not (
            archive_paths.is_archive(folder)
            or split_names.is_neutral(name)
            or name.casefold() == own.casefold()
            or (part and part == split_names.part_of(own))
        ):
            return folder
        folder = inside[0]


def _split(folder: Path, inside: Mapping[str, Path], parts: Mapping[str, str]) -> Labelled:
    """Read FOLDER/PART/CLASS."""
    found = Labelled(folder, [], [])
    for name, path in inside.items():
        if name in parts:
            one = _classes(_inner(path), parts[name])
            found = _added(found, one)
        else:
            found.skipped.append(Skipped(path, "none of train, val and test with class folders; left alone"))
    return found


def _inside_out(folder: Path, inside: Mapping[str, Path]) -> Labelled | None:
    """Read FOLDER/CLASS/PART; None where the folders hold something else."""
    parts = {label: {path: split_names.part_of(path.name) for path in _folders(own)} for label, own in inside.items()}
    known = [part for own in parts.values() for part in own.values()]
    if (
        len(inside) < 2
        or None in known
        or "train" not in known
        or len({*known}) < 2
        or any(map(_has_pictures, inside.values()))
    ):
        return None
    found = Labelled(folder, [], _loose(folder))
    for label, own in parts.items():
        for path, part in own.items():
            pictures, left_out = find_pictures([path], recursive=True)
            found.examples += [Example(one, class_name(label), part) for one in pictures]
            found.skipped += left_out
    found.remarks.append("Each class folder holds a split of its own.")
    return found


def _classes(folder: Path, part: str | None) -> Labelled:
    """Read FOLDER/CLASS/**, or labels beside pictures where there are any.

    Raises PhotoError where the folders hold what looks like the same classes each.
    """
    loose = _loose(folder)
    found = Labelled(folder, [], list(loose))
    own_folders = _folders(folder)
    _refuse_repeated(folder, own_folders)
    for own in own_folders:
        pictures, left_out = find_pictures([own], recursive=True)
        found.examples += [Example(path, class_name(own.name), part) for path in pictures]
        found.skipped += [one for one in left_out if one.path.name != MANIFEST]
        if not pictures:
            found.skipped.append(Skipped(own, "no picture in it: not a class"))
    others = [one.path for one in found.skipped]
    if ending := sidecars.ending(others, bool(found.examples)):
        pictures = [
            *(find_pictures([folder], archives=True)[0] if loose else ()),
            *(one.path for one in found.examples),
        ]
        return _beside(folder, pictures, others, ending, part)
    return found


def _beside(folder: Path, pictures: Sequence[Path], others: Sequence[Path], ending: str, part: str | None) -> Labelled:
    """Read labels that lie beside pictures, in files of one ending."""
    found, by = sidecars.read(pictures, others, ending)
    examples = [
        Example(path, "; ".join(own), part, own)
        for path, labels in found
        if not isinstance(labels, str)
        for own in [tuple(map(class_name, labels))]
    ]
    skipped = [Skipped(path, labels) for path, labels in found if isinstance(labels, str)]
    return Labelled(folder, examples, skipped, [f"labels were read from {by} beside the pictures."], by)


def _added(one: Labelled, other: Labelled) -> Labelled:
    """Join what was read of two places. Raises PhotoError where their labels come from different things."""
    if one.examples and other.examples and one.by != other.by:
        raise PhotoError(
            f"{other.source}: its labels are {other.by}, those of {one.source} {one.by}",
            f"give them apart, or list pictures and classes in {LIST}",
        )
    remarks = list(dict.fromkeys(one.remarks + other.remarks))
    by = other.by if other.examples else one.by
    groups = tuple(dict.fromkeys(one.groups + other.groups))
    return Labelled(one.source, one.examples + other.examples, one.skipped + other.skipped, remarks, by, groups)


def _shards(folder: Path) -> dict[Path, str | None]:
    """Find the archives in a folder that holds them in the place of pictures, and their parts of a split: by their
    names, or by those of the folders that they lie in.
    """
    if is_file(folder / LIST) or archive_paths.is_archive(folder) or archive_paths.leads_inside(folder):
        return {}
    inside = {path.name: path for path in _folders(folder)}
    if not inside:
        names = {Path(path.name).stem: path for path in _archives(folder)}
        parts = split_names.parts_of(list(names))
        return {path: parts.get(name) for name, path in names.items()}
    parts = split_names.parts_of(list(inside))
    if parts.keys() != inside.keys() or any(map(_folders, inside.values())):
        return {}
    return {path: parts[name] for name, own in inside.items() for path in _archives(own)}


def _archives(folder: Path) -> list[Path]:
    return [path for name in _listed(folder) if archive_paths.is_archive(path := folder / name)]


def _read_shards(folder: Path, multi_label: bool) -> Labelled | None:
    """Read FOLDER/*.tar or FOLDER/PART/*.tar; None where there are none, or pictures beside them."""
    shards = _shards(folder)
    if not shards or any(map(_has_pictures, {path.parent for path in shards})):
        return None
    found = Labelled(folder, [], [])
    for path, part in shards.items():
        one = _read_folder(path, multi_label)
        examples = [replace(example, part=example.part or part) for example in one.examples]
        found = _added(found, replace(one, examples=examples))
    return replace(found, remarks=[f"{len(shards)} archives were read as one.", *found.remarks])


def _loose(folder: Path) -> list[Skipped]:
    return [
        Skipped(path, "in no class folder")
        for name in _listed(folder)
        if not is_folder(path := folder / name) and not name.startswith(".") and name not in OWN_FILES
    ]


def _refuse_repeated(folder: Path, inside: Sequence[Path]) -> None:
    """Raise PhotoError where all first-level folders hold nothing but subfolders, and much the same ones."""
    below = [{own.name.casefold() for own in _folders(path) if not split_names.is_neutral(own.name)} for path in inside]
    if len(below) < 2 or not all(below):
        return
    shared = set.intersection(*below)
    if len(shared) < ALIKE * len(set.union(*below)) or any(map(_has_pictures, inside)):
        return
    names = [path.name for path in inside]
    raise PhotoError(
        (
            f"{folder}: {_few(names)} hold the same folders "
            f"({_few(sorted(shared, key=natural_order))}): which are the classes?"
        ),
        (
            "name a split's parts train, val and test, or give one of them "
            f"({inside[0]}); or list pictures and classes in {LIST}"
        ),
    )


def class_name(text: str) -> str:
    """Name a class: as it is written, in Unicode's composed form."""
    return unicodedata.normalize("NFC", stored(text))


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(archive_paths.names(folder), key=natural_order)
    except OSError as error:
        raise PhotoError(f"{folder}: cannot be listed ({error.strerror})", "check its permissions") from None


def _folders(folder: Path) -> list[Path]:
    return [
        path
        for name in _listed(folder)
        if not name.startswith(".") and name.casefold() not in JUNK and is_folder(path := folder / name)
    ]


def _has_pictures(folder: Path) -> bool:
    return bool(find_pictures([folder], archives=True)[0])


def _few(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(name for name in names[:most]) + (", ..." if len(names) > most else "")


# --- lists


def _read_list(file: Path, refuse: bool = True, multi_label: bool = False) -> Labelled:
    """Read the examples of a list; files that are not there are left out. Raises PhotoError.

    Where the list cannot be used and `refuse` is not set, a remark says why, and there are no examples.
    """
    found = Labelled(file, [], [])
    try:
        listing = label_lists.read(file, multi_label)
        if listing.predicted:
            raise PhotoError(
                f"{file}: holds guesses of `femtobooth classify`, which are no labels",
                "where they are right nevertheless, keep only the columns path and label",
            )
    except PhotoError as error:
        if refuse:
            raise
        return Labelled(file, [], [], [f"{error.problem}; it was not read."])
    seen: dict[Path, str] = {}
    found.groups = listing.groups
    for row in listing.rows:
        path, label = label_lists.resolved(file, row.path), class_name(row.label)
        if row.split and not split_names.part_of(row.split):
            raise PhotoError(
                f"{file}, line {row.line}: split is {row.split!r}", "train, val, test, or nothing to have it chosen"
            )
        own = tuple(map(class_name, row.labels))
        fault = _fault(row, path, label or multi_label, None if multi_label else seen.get(path))
        if not fault and (
            twice := [group for group in found.groups if sum(x.startswith(f"{group}=") for x in own) > 1]
        ):
            fault = f"several labels of the group {twice[0]}"
        if fault:
            found.skipped.append(Skipped(path, f"line {row.line}: {fault}"))
        elif multi_label:
            found.examples.append(Example(path, "; ".join(own), split_names.part_of(row.split), own))
        else:
            seen[path] = label
            found.examples.append(Example(path, label, split_names.part_of(row.split)))
    missing = sum(one.reason.endswith(MISSING) for one in found.skipped)
    if missing and not found.examples:
        raise PhotoError(
            f"{file}: none of its {missing} files is there; the first: {found.skipped[0].path}",
            f"paths count from the list's folder, {file.parent}, unless they are absolute",
        )
    if missing:
        found.remarks.append(
            f"{file.name} lists {missing} {'files that are' if missing > 1 else 'file that is'} not there."
        )
    if listing.encoding == "cp1252":
        found.remarks.append(f"{file.name} is not UTF-8 and was read as Windows-1252: check the names of the classes.")
    return found


def _fault(row: label_lists.Row, path: Path, label: str | bool, before: str | None) -> str | None:
    """Say why a row is no example; None where it is one. `before` is the label of an earlier row of the same path."""
    if not row.path or not label or "\0" in row.path:
        return f"no {'label' if row.path else 'path'}"
    if before is not None:
        return "listed already" + ("" if before == label else f", there as {before!r}, here as {label!r}")
    return None if is_file(path) else "a folder" if is_folder(path) else MISSING
