"""Which files to look at: files, folders, globs and lists, as a stream that never holds more than one folder's
names.
"""

from __future__ import annotations

import codecs
import glob
import hashlib
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from ...core.errors import FemtoboothError, PhotoError, SettingsError, first_line
from ...core.names import shown
from ...core.text_encoding import wide_encoding
from ...pictures import archives
from ...pictures.images import find_pictures, natural_order
from . import addresses
from .addresses import is_address

STDIN = "-"
LONGEST = 1 << 15  # bytes of a path; no system takes more


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
    stamp: tuple[int, int] = (-1, -1)
    """Bytes, and the time of the last change (ns), when it was about to be read; -1 where nobody asked or there is no
    file.
    """
    cell: tuple[str, str, int] | None = None
    """The Parquet file, column and row that hold the picture itself."""
    member: archives.Member | None = None
    """Where it lies in an archive."""

    @property
    def is_far(self) -> bool:
        """Whether it is behind an address, in a column or in an archive: no file of this machine."""
        return self.cell is not None or self.member is not None or is_address(self.path)


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
            raise SettingsError(
                f"`shard={text}`: expected i/n with i from 1 to n",
                "for example `shard=1/4`, and 2/4, 3/4, 4/4 elsewhere",
            )
        return shard

    def holds(self, source: Source) -> bool:
        """Tell by the key alone whether a file is in this shard: files may come and go without moving others to another
        shard.
        """
        return fingerprint(source.key) % self.count == self.index - 1


def fingerprint(text: str) -> int:
    """Return 64 bits of a path's hash."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest())


def stamped(source: Source) -> Source:
    """Look at a file's size and time now; those behind an address are as they were listed."""
    if is_address(source.path):
        return source if source.stamp != (-1, -1) else replace(source, stamp=addresses.stamp(_file(source)))
    try:
        facts = os.stat(_file(source))  # noqa: PTH116
    except (OSError, ValueError):
        return replace(source, stamp=(-1, -1))
    return replace(source, stamp=(facts.st_size, facts.st_mtime_ns))


def _file(source: Source) -> str:
    if source.member:
        return source.member.archive
    return source.cell[0] if source.cell else source.path


def contents(source: Source) -> bytes | None:
    """Read what no path of this machine leads to; None for a file. Raises OSError."""
    if source.member:
        return archives.read(source.member)
    if source.cell:
        return addresses.value(*source.cell)
    return addresses.read(source.path) if is_address(source.path) else None


def check(paths: Sequence[str], listed: str | None, column: str | None = None) -> None:
    """Raise PhotoError for a named path that does not exist, or a list that is none, before any work is done."""
    if not paths and not listed:
        raise PhotoError(
            "no pictures named",
            f"give files, folders, globs, {STDIN} for a list on stdin, or a list as `from_file`",
        )
    if STDIN in (*paths, listed) and sys.stdin is None:
        raise PhotoError(f"{STDIN}: stdin is closed", "send it a list of paths, or name files and folders")
    for name in paths:
        if is_address(name):
            addresses.check(name)
        elif name != STDIN and not os.path.lexists(name) and not (glob.has_magic(name) and any(_matches(name))):
            raise PhotoError(f"{name or repr(name)}: no such file or folder", "check the path")
    if listed and listed != STDIN:
        _check_list(listed)
    if column is not None:
        next(find(paths, listed, column=column), None)  # which refuses a column that is not there


def _check_list(name: str) -> None:
    if not os.path.isfile(name):  # noqa: PTH113  (Path.is_file raises where a folder may not be searched)
        if not os.path.exists(name):  # noqa: PTH110
            raise PhotoError(f"`from_file={name}`: no such file", "check the path")
        raise PhotoError(f"`from_file={name}`: not a file", f"give `from_file={STDIN}` and send the list to stdin")
    if find_pictures([name])[0]:
        raise PhotoError(f"`from_file={name}`: is a picture, not a list of pictures", "name it without `from_file`")
    if next(_listed(name, lambda: None), None) is None:
        raise PhotoError(f"`from_file={name}`: names no file", "write one path on each line")


def find(
    paths: Sequence[str],
    listed: str | None = None,
    hidden: Callable[[], object] = lambda: None,
    column: str | None = None,
) -> Iterator[Source]:
    """Find files as they are named, folders in natural order, globs sorted, then the list; `hidden` is called for each
    hidden file. An archive that is named stands for the files in it, in its own order; with `column`, a Parquet file
    for what that column holds.
    """
    for source in _find(paths, listed, hidden):
        if column is None or source.problem or not source.path.endswith(".parquet"):
            yield source
            continue
        for row, name in addresses.values(source.path, column):
            if name is None:
                cell = (source.path, column, row)
                yield replace(source, path=f"{source.path}#{row}", key=f"{source.key}#{row}", found=False, cell=cell)
            else:
                yield from _named(name, hidden)


def _find(paths: Sequence[str], listed: str | None, hidden: Callable[[], object]) -> Iterator[Source]:
    for name in paths:
        if name == STDIN:
            yield from _listed(STDIN, hidden)
        elif is_address(name) or os.path.lexists(name) or not glob.has_magic(name):
            yield from _named(name, hidden)
        else:
            for match in sorted(_matches(name), key=natural_order):
                yield from _named(match, hidden)
    if listed:
        yield from _listed(listed, hidden)


def _matches(pattern: str) -> Iterator[str]:
    """Find a glob's matches as they are typed; ** is any number of folders."""
    return glob.iglob(pattern, recursive=True)  # noqa: PTH207  (Path.glob takes no absolute patterns)


def _named(name: str, hidden: Callable[[], object]) -> Iterator[Source]:
    if is_address(name):
        yield from _far(name, hidden)
    elif _is_folder(name):
        yield from _walk(name, hidden)
    else:
        yield from _opened(Source(name, os.path.normpath(name), found=False), hidden)


def _opened(source: Source, hidden: Callable[[], object]) -> Iterator[Source]:
    """Find the files in an archive that is named; other files as they are."""
    inside = None
    if archives.is_archive(source.path):
        try:
            inside = archives.find(source.path, hidden)
        except FemtoboothError:
            raise
        except Exception as error:  # of every network, too
            known = isinstance(error, OSError) and error.errno  # reading it says the same as of any other file
            yield source if known else replace(source, problem=f"cannot be read ({first_line(error)})")
            return
    if inside is None:
        yield source
        return
    for name, member, problem in inside:
        path, key = (f"{place}/{name}" if name else place for place in (source.path, source.key))
        yield replace(source, path=path, key=key, found=True, member=member, problem=problem)


def _far(address: str, hidden: Callable[[], object]) -> Iterator[Source]:
    try:
        for name, key, stamp in addresses.find(address, hidden):
            source = Source(name, key, found=name != address, stamp=stamp)
            yield from _opened(source, hidden) if name == address or addresses.has_magic(address) else [source]
    except FemtoboothError:
        raise
    except Exception as error:  # of every network
        yield Source(address, address, found=False, problem=f"cannot be listed ({first_line(error)})")


def _is_folder(name: str) -> bool:
    return os.path.isdir(name)  # noqa: PTH112  (Path.is_dir raises for a name that is too long or may not be looked at)


def _walk(root: str, hidden: Callable[[], object]) -> Iterator[Source]:
    """Find a folder and those below it. A folder that was already searched is not searched again through a link."""
    seen: set[tuple[int, int]] = set()
    waiting = [(root, "", True)]
    while waiting:
        path, key, is_folder = waiting.pop()
        if not is_folder:
            yield Source(path, key, found=True)
            continue
        try:
            facts = os.stat(path)  # noqa: PTH116
            if (facts.st_dev, facts.st_ino) in seen:
                continue
            seen.add((facts.st_dev, facts.st_ino))
            with os.scandir(path) as entries:
                inside = [(entry.name, _leads_to_folder(entry)) for entry in entries]
        except OSError as error:
            yield Source(path, key or ".", found=True, problem=f"cannot be listed ({error.strerror})")
            continue
        base = Path(path)
        for name, leads in sorted(inside, key=lambda entry: natural_order(entry[0]), reverse=True):
            if name.startswith("."):
                hidden()
            else:
                waiting.append((str(base / name), f"{key}/{name}" if key else name, leads))


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, a name too long
        return False


# Lists of paths


def _listed(name: str, hidden: Callable[[], object]) -> Iterator[Source]:
    """Read the paths of a list: one a line, as they are, or ended by NUL as `find -print0` writes them; UTF-8, or
    UTF-16 and -32 with their mark.
    """
    try:
        with nullcontext(sys.stdin.buffer) if name == STDIN else Path(name).open("rb") as file:
            for entry in _entries(_plain(iter(lambda: os.read(file.fileno(), 1 << 16), b""))):
                if len(entry) > LONGEST:
                    start = os.fsdecode(entry[:100])
                    yield Source(
                        f"{shown(start)}…", start, found=False, problem=f"no path: a line of more than {LONGEST} bytes"
                    )
                elif b"\0" in entry:
                    text = shown(os.fsdecode(entry))
                    yield Source(text, text, found=False, problem="no path: holds a NUL byte")
                elif os.path.normpath(entry) in (b"/", b"//"):
                    yield Source("/", "/", found=False, problem="the whole disk; name it without a list if it is meant")
                else:
                    yield from _named(os.fsdecode(entry), hidden)
    except OSError as error:
        raise PhotoError(
            f"{'stdin' if name == STDIN else name}: cannot be read ({error.strerror})", "give a list of paths"
        ) from None


def _plain(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Decode the bytes of a list without a byte order mark, and those of UTF-16 and UTF-32 as UTF-8."""
    start = b""
    for chunk in chunks:
        start += chunk
        if len(start) >= 4:
            break
    encoding, mark = wide_encoding(start)
    start = start.removeprefix(mark)
    if encoding is None:
        yield from itertools.chain([start], chunks)
        return
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    for chunk in itertools.chain([start], chunks):
        yield decoder.decode(chunk).encode("utf-8", "replace")


def _entries(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Say what stands between the ends of lines (or NULs, where these are as many), cut a little after LONGEST bytes;
    nothing empty.
    """
    rest, end = b"", b""
    for chunk in chunks:
        rest += chunk
        if not end and (b"\n" in rest or b"\0" in rest):
            end = b"\0" if rest.count(b"\0") >= rest.count(b"\n") else b"\n"
        if end:
            *whole, rest = rest.split(end)
            yield from filter(None, (_line(line, end) for line in whole))
        rest = rest[: LONGEST + 2]
    if last := _line(rest, end):
        yield last


def _line(line: bytes, end: bytes) -> bytes:
    return line if end == b"\0" else line.rstrip(b"\r")
