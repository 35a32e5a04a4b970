"""Labels in files beside pictures, as WebDataset has them: KEY.jpg with KEY.cls, KEY.json or KEY.txt.

A key is the path up to the first dot of the file's name. One kind of file holds the labels of all pictures: `.cls`
wherever there is one, else, where no folder is a class, `.json` (of one key for all, such as `label`), else `.txt`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ...core.errors import PhotoError
from ...pictures.archive_paths import opened
from .label_lists import LABELS

ENDINGS = (".cls", ".json", ".txt")
LONGEST = 2**16  # bytes of a file that says a label

Read = list[tuple[Path, tuple[str, ...] | str]]
"""Pictures and their labels, or why they have none."""


def any_in(names: Iterable[str]) -> bool:
    """Tell whether files among these names hold labels beyond doubt, which `.txt` need not."""
    return any(name.lower().endswith(ENDINGS[:2]) and not name.startswith(".") for name in names)


def ending(others: Sequence[Path], has_classes: bool) -> str | None:
    """Find the ending of the files that hold the labels, among the files beside the pictures; None where none do."""
    there = {_ending(path) for path in others if not path.name.startswith(".")}
    return next((one for one in (ENDINGS[:1] if has_classes else ENDINGS) if one in there), None)


def read(pictures: Sequence[Path], others: Sequence[Path], ending: str) -> tuple[Read, str]:
    """Read the labels of pictures, and say what they were read from. Raises PhotoError where JSON has no known key."""
    files = {_key(path): path for path in others if _ending(path) == ending}
    beside: dict[Path, list[Path]] = {}
    for path in pictures:
        beside.setdefault(_key(path), []).append(path)
    chosen = {key: next((path for path in own if path.name.count(".") == 1), own[0]) for key, own in beside.items()}
    texts = {key: _text(files[key]) for key in chosen if key in files}
    by = f"{ending} files"
    if ending == ".json":
        objects = {key: _object(text) for key, text in texts.items() if isinstance(text, str)}
        name = _key_of_labels(list(objects.values()), next(iter(files.values())))
        by = f"`{name}` in {by}"
        labels = {key: _labels(value.get(name)) for key, value in objects.items()}
    else:
        labels = {key: _labels(text) for key, text in texts.items()}
    result: Read = []
    for path in pictures:
        key = _key(path)
        if path != chosen[key]:
            result.append((path, f"beside {chosen[key].name}, which has the same key"))
        else:
            own = labels.get(key)
            why = f"{key.name}{ending} says no label" if key in texts else f"no {ending} file beside it"
            result.append((path, why if own is None else own))
    return result, by


def _ending(path: Path) -> str:
    return path.name[len(_key(path).name) :].lower()


def _key(path: Path) -> Path:
    return path.with_name(path.name.partition(".")[0] or path.name)


def _text(file: Path) -> str | None:
    try:
        with opened(file, LONGEST) as found:
            return found.read(LONGEST).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return None


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _key_of_labels(objects: Sequence[dict[str, Any]], first: Path) -> str:
    """Find the key that holds the labels in most objects: of equals, the usual one."""
    counts = {name: sum(_labels(one.get(name)) is not None for one in objects) for name in LABELS.split()}
    name = max(counts, key=lambda name: counts[name])
    if not counts[name]:
        raise PhotoError(
            f"{first}: says no label (no such file has a key like {', '.join(LABELS.split()[:4])})",
            "give pictures in class folders, or a CSV file with the columns path and label",
        )
    return name


def _labels(value: Any) -> tuple[str, ...] | None:
    """Give the labels of a text, a number, or a list of these; None for anything else."""
    if isinstance(value, list):
        own = [None if isinstance(one, list) else _labels(one) for one in value]
        return None if None in own else tuple(label for one in own for label in one or ())
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        return None
    return (str(value).strip(),)
