"""Paths that may lead into an archive as into a folder, such as FOLDER/shard.tar/cats/1.jpg.

The path says it all, so that lists, splits and reports hold pictures in archives as they hold files, and whoever reads
them finds the same bytes that unpacking would have given. Only the outermost archive is looked into.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import stat
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import IO

from ..core import files
from ..core.errors import PhotoError, first_line
from . import archives
from .archives import Member

_ENDED = re.compile(f"(?:{'|'.join(map(re.escape, archives.NAMED))})(?={re.escape(os.sep)}|$)", re.IGNORECASE)
WAY_OUT = "make it or fetch it again, or unpack it"


@dataclass
class _Tree:
    """What is in an archive."""

    files: dict[str, Member] = field(default_factory=dict)
    folders: dict[str, dict[str, None]] = field(default_factory=lambda: {"": {}})
    """By the path of each folder what is in it, in the archive's order."""
    problems: list[tuple[str, str]] = field(default_factory=list)
    """Members that cannot be read, and why."""


def is_file(path: Path) -> bool:
    """Tell whether a path leads to a file, in an archive or not. Raises PhotoError for an archive that is damaged."""
    if (place := _inside(path)) is None:
        return path.is_file()
    return place[1] in place[0].files


def is_folder(path: Path) -> bool:
    """Tell whether a path leads to a folder, in an archive or not. Raises PhotoError as `is_file`."""
    if (place := _inside(path)) is None:
        return path.is_dir()
    return place[1] in place[0].folders


def is_archive(path: Path) -> bool:
    """Tell whether a path is an archive itself, by name and content. Raises PhotoError as `is_file`."""
    place = _inside(path, itself=True)
    return place is not None and not place[1]


def names(path: Path) -> list[str]:
    """List what is in a folder or an archive, in no order. Raises OSError, and PhotoError as `is_file`."""
    if (place := _inside(path, itself=True)) is None:
        return os.listdir(path)
    return list(place[0].folders[place[1]])


def opened(path: Path, most: int | None = None) -> IO[bytes]:
    """Open a file; of one in an archive, its first `most` bytes. Raises OSError, and PhotoError as `is_file`."""
    if (place := _inside(path)) is None:
        return path.open("rb")
    if place[1] not in place[0].files:
        raise FileNotFoundError(2, "no such file in the archive", str(path))
    return BytesIO(archives.read(place[0].files[place[1]], True, most))


def size(path: Path) -> int:
    """Find how many bytes a file has. Raises OSError, and PhotoError as `is_file`."""
    if (place := _inside(path)) is None:
        return path.stat().st_size
    return place[0].files[place[1]].size


def sha256_of(path: Path) -> str:
    """Compute the SHA-256 of a file's bytes, hexadecimal. Raises OSError, and PhotoError as `is_file`."""
    if not leads_inside(path):
        return files.sha256_of(path)
    with opened(path) as file:
        return hashlib.sha256(file.read()).hexdigest()


def problems(path: Path) -> list[tuple[Path, str]]:
    """List the files in an archive that cannot be read, and why; none for any other path."""
    place = _inside(path, itself=True)
    return [(path / name, why) for name, why in place[0].problems] if place and not place[1] else []


def leads_inside(path: Path) -> bool:
    """Tell whether a path leads into an archive. Raises PhotoError as `is_file`."""
    return _inside(path) is not None


def _inside(path: Path, itself: bool = False) -> tuple[_Tree, str] | None:
    """Find the archive that a path leads into, or with `itself` is, and the part of the path inside; None for any other
    path.
    """
    text = str(path)
    for found in _ENDED.finditer(text):
        if itself or found.end() < len(text):
            archive = text[: found.end()]
            try:
                facts = os.stat(archive)  # noqa: PTH116
            except (OSError, ValueError):
                continue
            if stat.S_ISREG(facts.st_mode) and (tree := _tree(archive, (facts.st_size, facts.st_mtime_ns))):
                return tree, text[found.end() + 1 :].replace(os.sep, "/")
    return None


@functools.cache
def _tree(archive: str, stamp: tuple[int, int]) -> _Tree | None:
    """Read what is in an archive that is as `stamp` says; None for a file that is none. Raises PhotoError."""
    tree = _Tree()
    try:
        found = archives.find(archive)
    except OSError as error:
        raise PhotoError(f"{archive}: cannot be read ({error.strerror or first_line(error)})", WAY_OUT) from None
    if found is None:
        return None
    for name, member, problem in found:
        if not name and problem:
            raise PhotoError(f"{archive}: {problem}", WAY_OUT)
        if member is None:
            tree.problems.append((name, problem or "not read"))
            continue
        if name in tree.files:
            tree.problems.append((name, "stored again further on in the archive, which counts"))
        tree.files[name] = member
        inner = name
        while inner:
            folder, _, own = inner.rpartition("/")
            known = folder in tree.folders
            tree.folders.setdefault(folder, {})[own] = None
            inner = "" if known else folder
    for name in tree.files.keys() & tree.folders.keys():
        tree.problems.append((name, "a file where the archive also has a folder"))
        del tree.files[name]
    return tree
