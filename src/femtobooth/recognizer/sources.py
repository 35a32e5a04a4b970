"""Which files to look at: files, folders, globs and lists, as a stream that never holds more than one folder's names."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import PhotoError, SettingsError
from ..core.images import natural_order
from ..core.names import shown

STDIN = "-"


@dataclass(frozen=True, slots=True)
class Source:
    """A file to look at, or a place where files could not be found."""

    path: str
    """As the file system knows it; bytes that are no UTF-8 are surrogates (PEP 383)."""
    key: str
    """The path from the named folder on: the same on every machine, wherever the folder lies."""
    found: bool
    """Found in a folder, rather than named."""
    problem: str | None = None
    """Why nothing can be read there."""


@dataclass(frozen=True)
class Shard:
    """One of `count` disjoint parts that together are everything."""

    index: int
    """1 to `count`."""
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read `i/n`. Raises SettingsError."""
        numbers = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        shard = cls(int(numbers[1]), int(numbers[2])) if numbers else cls(0, 0)
        if not 1 <= shard.index <= shard.count:
            raise SettingsError(f"--shard {text}: expected i/n with i from 1 to n", "for example --shard 1/4, and 2/4, 3/4, 4/4 elsewhere")
        return shard

    def holds(self, source: Source) -> bool:
        """Decided by the key alone: files may come and go without moving others to another shard."""
        return fingerprint(source.key) % self.count == self.index - 1


def fingerprint(text: str) -> int:
    """64 bits of a path's hash."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(text), digest_size=8).digest())


def check(paths: Sequence[str], listed: str | None) -> None:
    """Raise PhotoError for a named path that does not exist, before any work is done."""
    if not paths and not listed:
        raise PhotoError("no pictures named", f"give files, folders, globs, {STDIN} for a list on stdin, or --from-file LIST")
    if listed and listed != STDIN and not Path(listed).is_file():
        raise PhotoError(f"--from-file {shown(listed)}: no such file", "check the path")
    for name in paths:
        if name != STDIN and not os.path.lexists(name) and not (glob.has_magic(name) and any(_matches(name))):
            raise PhotoError(f"{shown(name)}: no such file or folder", "check the path")


def find(paths: Sequence[str], listed: str | None = None, hidden: Callable[[], object] = lambda: None) -> Iterator[Source]:
    """Files as they are named, folders in natural order, globs sorted, then the list; `hidden` is called for each hidden file."""
    for name in paths:
        if name == STDIN:
            yield from _listed(STDIN, hidden)
        elif os.path.lexists(name) or not glob.has_magic(name):
            yield from _named(name, hidden)
        else:
            for match in sorted(_matches(name), key=natural_order):
                yield from _named(match, hidden)
    if listed:
        yield from _listed(listed, hidden)


def _matches(pattern: str) -> Iterator[str]:
    """A glob's matches as they are typed; ** is any number of folders."""
    return glob.iglob(pattern, recursive=True)  # noqa: PTH207  (Path.glob takes no absolute patterns)


def _listed(name: str, hidden: Callable[[], object]) -> Iterator[Source]:
    """Paths of a list: one a line, or ended by NUL as `find -print0` writes them."""
    with nullcontext(sys.stdin.buffer) if name == STDIN else Path(name).open("rb") as file:
        for path in _entries(iter(lambda: os.read(file.fileno(), 1 << 16), b"")):
            yield from _named(path, hidden)


def _entries(chunks: Iterable[bytes]) -> Iterator[str]:
    rest, end = b"", None
    for chunk in chunks:
        rest += chunk
        end = end or (b"\0" if b"\0" in rest else None)
        *whole, rest = rest.split(end or b"\n")
        yield from (os.fsdecode(line if end else line.removesuffix(b"\r")) for line in whole if line.strip(b"\r"))
    if rest.strip(b"\r\n"):
        yield os.fsdecode(rest.removesuffix(b"\r"))


def _named(name: str, hidden: Callable[[], object]) -> Iterator[Source]:
    if Path(name).is_dir():
        yield from _walk(name, hidden)
    else:
        yield Source(name, os.path.normpath(name), found=False)


def _walk(root: str, hidden: Callable[[], object]) -> Iterator[Source]:
    """A folder and those below it. A folder that was already searched is not searched again through a link."""
    seen: set[tuple[int, int]] = set()
    waiting = [(root, "")]
    while waiting:
        path, key = waiting.pop()
        if not Path(path).is_dir():
            yield Source(path, key, found=True)
            continue
        try:
            facts = Path(path).stat()
            if (facts.st_dev, facts.st_ino) in seen:
                continue
            seen.add((facts.st_dev, facts.st_ino))
            names = sorted(os.listdir(path), key=natural_order, reverse=True)
        except OSError as error:
            yield Source(path, key or ".", found=True, problem=f"cannot be listed ({error.strerror})")
            continue
        for name in names:
            if name.startswith("."):
                hidden()
            else:
                waiting.append((str(Path(path) / name), f"{key}/{name}" if key else name))
