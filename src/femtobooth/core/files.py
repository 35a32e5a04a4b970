"""Write files and folders atomically, read JSON, hash contents.

A file or folder appears under its final name whole or not at all: everything is written beside it under a
temporary name, flushed to disk, then renamed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import ExistsError, FemtoboothError, StorageError

TEMPORARY = ".tmp-"  # a prefix, so that every reader skips unfinished work the way it skips hidden files


def _flush(path: Path) -> None:
    windows = os.name == "nt"
    if windows and path.is_dir():
        return  # which cannot be opened there; a rename is on the disk when it returns
    handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)  # Windows flushes only what it may write to
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what a disk refuses inside into a StorageError that names `path`."""
    try:
        yield
    except (FemtoboothError, KeyboardInterrupt):
        raise
    except Exception as error:
        reason = _refusal(error, path)
        if reason is None:
            raise
        raise StorageError(
            f"{path}: cannot be written ({reason})", "make room or choose another place; what was finished is kept"
        ) from error


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)
DENIED = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EBUSY)


def _refusal(error: BaseException | None, path: Path) -> str | None:
    """Say what the disk said, where an error comes from writing; libraries in other languages hide it in their own
    words.
    """
    while error is not None:
        told = re.search(r"\(os error (\d+)\)", str(error))  # safetensors
        number = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
        named = getattr(error, "filename", None)
        ours = named is not None and Path(os.fsdecode(named)).is_relative_to(path.parent)
        if number in FULL or (number in DENIED and ours):
            return os.strerror(number or 0)
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def atomic_file(path: Path, replace: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed and takes `path`'s place.

    Raises ExistsError where something is there meanwhile that may not be replaced.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:8]}-{short_name(path.name)}")
        try:
            yield temporary
            _flush(temporary)
            if replace:
                os.replace(temporary, path)
            else:
                _place(temporary, path)
            _flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _place(temporary: Path, path: Path) -> None:
    """Rename a file to where nothing may be."""
    try:
        try:
            os.link(temporary, path)  # fails where something is, which a rename does not
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
            os.replace(temporary, path)
    except FileExistsError:
        raise ExistsError(f"{path} was written by someone else meanwhile", "choose another place") from None


@contextmanager
def atomic_folder(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success all of it is flushed and renamed to `path`.

    For folders inside what a command has claimed (core.claims). Raises ExistsError if `path` exists and `overwrite` is
    not set; with it, the old folder goes only after the new one is complete.
    """
    refuse_existing(path, overwrite)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:8]}-{short_name(path.name)}")
        temporary.mkdir()
        try:
            yield temporary
            place_folder(temporary, path, overwrite)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def place_folder(temporary: Path, path: Path, overwrite: bool = False) -> None:
    """Flush a finished folder, which is not empty, and rename it to `path`.

    Raises ExistsError where something came there meanwhile.
    """
    flush_folder(temporary)
    old = path.with_name(f"{TEMPORARY}old-{uuid.uuid4().hex[:8]}-{short_name(path.name)}")
    if overwrite and os.path.lexists(path):
        path.rename(old)
    try:
        temporary.rename(path)  # takes the place of nothing, or of an empty folder
    except OSError as error:
        if os.path.lexists(old):
            old.rename(path)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise ExistsError(f"{path} was written by someone else meanwhile", "choose another place") from None
        raise
    shutil.rmtree(old, ignore_errors=True)
    _flush(path.parent)


def flush_folder(folder: Path) -> None:
    """Bring all of a folder to the disk, readable to whom the user's umask lets read."""
    umask = 0o777 & ~folder.stat().st_mode  # a new folder's mode tells it
    for part in [*folder.rglob("*"), folder]:
        if part.is_file():  # safetensors shuts out everyone but the owner, whatever the umask says
            part.chmod(part.stat().st_mode | (0o666 & ~umask))
        _flush(part)


def short_name(name: str) -> str:
    """Shorten a name so that it leaves room for a prefix in the 255 bytes that a name may have."""
    return name if len(os.fsencode(name)) < 200 else hashlib.sha256(os.fsencode(name)).hexdigest()


def sweep(folder: Path) -> None:
    """Remove what killed writes left under `folder`."""
    for left in sorted(folder.rglob(f"{TEMPORARY}*")):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise ExistsError where writing to `path` would lose something."""
    if not overwrite and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ExistsError(f"{path} already exists", "choose another place, or add `overwrite=true` to replace it")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; names that are no UTF-8 become JSON's escapes, from which `read_json` makes them
    again.
    """
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read what a JSON file holds; None where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def read_object(path: Path) -> dict[str, Any]:
    """Read what a JSON file holds, if that is an object; else nothing."""
    found = read_json(path)
    return found if isinstance(found, dict) else {}


def sha256_of(path: Path) -> str:
    """Compute the SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(paths: Iterable[Path], root: Path) -> str:
    """Compute the SHA-256 over names (relative to `root`) and contents of files, in sorted order, hexadecimal."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.relative_to(root).as_posix()}\0{sha256_of(path)}\n".encode())
    return digest.hexdigest()


def timestamp() -> str:
    """Give the local time for folder names, to the second: 20260131-235959."""
    return time.strftime("%Y%m%d-%H%M%S")
