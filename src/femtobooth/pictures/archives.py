"""Pictures in tar and zip archives, shards of WebDataset among them, without unpacking: found by their headers, and
read one at a time.

Nothing of an archive is written to disk, no link in it is followed, and no more of a member is read than a picture may
be large. What cannot be read has a row that says why.
"""

from __future__ import annotations

import functools
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import IO, Any

from ..core.bulk.store import file_system, is_address
from ..core.errors import first_line
from . import formats

ENDINGS = (".tar", ".zip")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
NAMED = (*ENDINGS, *COMPRESSED)
LARGEST = 2**29  # bytes of a member: what more claims to be is no picture
HEADER = 2**20  # bytes of a name, or of what else stands before a member


@dataclass(frozen=True, slots=True)
class Member:
    """Where a picture lies in an archive."""

    archive: str
    """Path or address."""
    packed: bool
    """In a zip, which may have compressed it; else it is a range of a tar's bytes."""
    start: int
    """Of its bytes in a tar, of its header in a zip."""
    size: int
    """Bytes of the picture."""


Found = tuple[str, Member | None, str | None]
"""A member's name, where it lies, and why it cannot be read."""


def is_archive(name: str) -> bool:
    """Tell by its name whether a file may be an archive; its content decides."""
    return name.lower().endswith(NAMED)


def find(archive: str, hidden: Callable[[], object] | None = None) -> Iterator[Found] | None:
    """List the files in an archive in its own order; None where the content is none. Raises OSError.

    With `hidden`, members whose name, or whose folder's, begins with a dot are left out, and it is called for each.
    """
    with _opened(archive) as file:
        start = file.read(tarfile.BLOCKSIZE)
    if start.startswith((b"PK\3\4", b"PK\5\6", b"PK\7\x08")):
        return _visible(_in_zip(archive), hidden)
    if _is_tar(start):
        return _visible(_in_tar(archive), hidden)
    if archive.lower().endswith(COMPRESSED) and start:
        raise OSError("compressed as a whole, so that no member can be found; decompress it to .tar, or use .zip")
    return None


def read(member: Member, other: bool = False, most: int | None = None) -> bytes:
    """Read a member's bytes, or the first `most`; of what is no picture only the first ones, unless that is what is
    meant (`other`). Raises OSError.
    """
    if member.size > LARGEST:
        raise OSError(f"more than {LARGEST >> 20} MiB")
    size = member.size if most is None else min(most, member.size)
    try:
        if member.packed:
            archive, members = _zip(member.archive)
            with archive.open(members[member.start]) as file:
                return _whole(file, size, other)
        with _opened(member.archive) as file:
            file.seek(member.start)
            return _whole(file, size, other)
    except OSError:
        raise
    except Exception as error:  # zipfile and zlib have errors of their own
        raise OSError(_why(error)) from None


def _whole(file: IO[bytes], size: int, other: bool) -> bytes:
    start = file.read(min(formats.START, size))
    if not other and _is_other(start):
        return start
    data = start + file.read(size - len(start))
    if len(data) < size:
        raise OSError("the archive ends within it")
    return data


def _is_other(start: bytes) -> bool:
    """Tell whether what begins so is no picture, whatever its name."""
    try:
        formats.identify(start, "")
    except formats.Unusable:
        return True
    return False


def _visible(found: Iterator[Found], hidden: Callable[[], object] | None) -> Iterator[Found]:
    for name, member, problem in found:
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        if hidden is not None and any(part.startswith(".") and part != ".." for part in parts):
            hidden()
        elif ".." in parts:
            yield name, None, "its name leads out of the archive"
        else:
            yield "/".join(parts), member, problem


def _in_tar(archive: str) -> Iterator[Found]:
    with _opened(archive) as file:
        try:
            with tarfile.open(fileobj=_Headers(file), mode="r:") as opened:
                while (found := opened.next()) is not None:
                    opened.members = []  # type: ignore[attr-defined]  # which would hold them all
                    if found.islnk() or found.issym():
                        yield found.name, None, "a link, which is not followed"
                    elif found.issparse():
                        yield found.name, None, "stored with holes (sparse), which is not read"
                    elif found.isreg():
                        yield found.name, Member(archive, False, found.offset_data, found.size), None
                _refuse_cut_off(file, opened.offset)
        except Exception as error:  # of what is cut off, damaged, or made to harm
            yield "", None, f"the archive cannot be read on ({_why(error)})"


def _refuse_cut_off(file: IO[bytes], end: int) -> None:
    """Raise OSError where a tar ends in something else than zeros or nothing, which tarfile takes for its end."""
    file.seek(end)
    if any(block := file.read(tarfile.BLOCKSIZE)):
        raise OSError("no member begins where one should" if len(block) == tarfile.BLOCKSIZE else "cut off")


def _in_zip(archive: str) -> Iterator[Found]:
    try:
        _, members = _zip(archive)
    except Exception as error:
        yield "", None, f"the archive cannot be read ({_why(error)})"
        return
    for start, info in members.items():
        if info.filename.endswith("/"):
            continue
        if stat.S_ISLNK(info.external_attr >> 16):
            yield info.filename, None, "a link, which is not followed"
        elif info.flag_bits & 1:
            yield info.filename, None, "encrypted; unpack it with its password"
        else:
            yield info.filename, Member(archive, True, start, info.file_size), None


def _zip(archive: str) -> tuple[zipfile.ZipFile, dict[int, zipfile.ZipInfo]]:
    return _zip_now(archive, stamp(archive), os.getpid())


@functools.lru_cache(16)
def _zip_now(archive: str, now: tuple[int, int], process: int) -> tuple[zipfile.ZipFile, dict[int, zipfile.ZipInfo]]:
    """Read the list of a zip's members, by the place of their headers: several may have one name.

    An open file has one position, which processes that were forked would move for each other: each opens its own.
    """
    opened = zipfile.ZipFile(_opened(archive))
    return opened, {info.header_offset: info for info in opened.infolist()}


def stamp(archive: str) -> tuple[int, int]:
    """Give size and time, by which an archive that was replaced is read again."""
    if is_address(archive):
        return -1, -1
    facts = os.stat(archive)  # noqa: PTH116
    return facts.st_size, facts.st_mtime_ns


def _opened(archive: str) -> Any:
    if is_address(archive):
        system, path = file_system(archive)
        return system.open(path, "rb")
    return Path(archive).open("rb")


def _is_tar(start: bytes) -> bool:
    if start == bytes(tarfile.BLOCKSIZE):
        return True  # an empty one
    with suppress(tarfile.HeaderError):
        tarfile.TarInfo.frombuf(start, "utf-8", "surrogateescape")
        return True
    return False


class _Headers(RawIOBase):
    """Reads what stands before the members of a tar, which is never long unless it means harm."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= HEADER:
            raise OSError(f"a header of {size} bytes")
        return bytes(self._file.read(size))

    def seek(self, place: int, whence: int = 0) -> int:
        return int(self._file.seek(place, whence))

    def tell(self) -> int:
        return int(self._file.tell())


def _why(error: Exception) -> str:
    return "nested without end" if isinstance(error, RecursionError) else first_line(error)
