"""The cache: what can be made again, kept with its hash, checked at every use, and made again where it does not fit.

    a file      ends in a line with the SHA-256 of what is before it, which readers of pictures pass over
    a folder    holds cache.json, with the SHA-256 of each of its files

Nothing is flushed to disk, since what a crash leaves half written does not fit its hash. Where the cache cannot be
written (read-only, full) that is said once, and the work goes on without it.
"""

from __future__ import annotations

import atexit
import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

import platformdirs

from . import locks
from .errors import InUseError, StorageError
from .events import detail, note, warn
from .files import TEMPORARY, read_json, sha256_of

MANIFEST = "cache.json"
SEAL = b"\nsha256 "  # and 64 hexadecimal digits
SEALED = len(SEAL) + 64
LOOK = 0.5  # seconds between two looks at who holds a folder
WITHOUT = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def cache_folder() -> Path:
    """Find the folder in which things that can be made again are kept: $FEMTOBOOTH_CACHE (`~` is the home folder; empty
    counts as not set), else the user's cache folder.
    """
    given = os.environ.get("FEMTOBOOTH_CACHE", "")
    if given.strip():
        return Path(os.path.expanduser(given)).absolute()  # noqa: PTH111  (Path's own raises where there is no such user)
    if sys.platform in ("darwin", "win32"):
        return platformdirs.user_cache_path("femtobooth", appauthor=False)
    standard = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(standard if Path(standard).is_absolute() else os.path.expanduser("~/.cache"))  # noqa: PTH111
    return base / "femtobooth" if base.is_absolute() else _scratch()


@cache
def _scratch() -> Path:
    """Make a folder that goes with this process, for what the cache cannot take."""
    path = Path(tempfile.mkdtemp(prefix="femtobooth-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@cache
def _cannot_be_written(folder: Path, why: str) -> None:
    """Say that the cache cannot be written, once for each reason."""
    warn(
        f"{folder}: the cache cannot be written ({why}); the work goes on "
        "without it. FEMTOBOOTH_CACHE names another folder"
    )


# Files


def read(path: Path) -> bytes | None:
    """Read what `write` kept; None where there is nothing, or something that does not fit its hash."""
    try:
        stored = path.read_bytes()
    except OSError:
        return None
    data, seal = stored[:-SEALED], stored[-SEALED:]
    if seal != _seal(data):
        _damaged(path)
        return None
    detail(f"from the cache: {path}")
    return data


def write(path: Path, data: bytes) -> None:
    """Keep `data`, unless the cache cannot be written."""
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(sealed(data))
        os.replace(temporary, path)
    except OSError as error:
        _cannot_be_written(cache_folder(), error.strerror or type(error).__name__)
        try:
            temporary.unlink(missing_ok=True)
        except OSError:
            return


def sealed(data: bytes) -> bytes:
    """Make what `read` takes: the data and the line with its hash."""
    return data + _seal(data)


def _seal(data: bytes) -> bytes:
    return SEAL + hashlib.sha256(data).hexdigest().encode()


def _damaged(path: Path) -> None:
    note(f"{path}: what the cache kept here does not fit its hash; it is made again")


# Folders


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Wait while another process of this machine fills a folder, then hold it, so that what both need is made once.

    Where the folder cannot be held, or is by another machine, all make what they need: that costs time and no more.
    """
    told = False
    with ExitStack() as held:
        while True:
            if (found := locks.holder(path)) and not found.elsewhere:
                if not told:
                    note(f"waiting for process {found.pid}, which makes what is needed here too: {path}")
                    told = True
                time.sleep(LOOK)
                continue
            with suppress(StorageError, OSError):
                try:
                    held.enter_context(locks.held_place(path))
                except InUseError as error:
                    if not found:  # by someone who was quicker
                        continue
                    detail(f"{error}")
            break
        yield


def whole(path: Path) -> bool:
    """Tell whether a folder is as `folder` made it: the same files, with the same contents."""
    try:
        found = {
            file.name: sha256_of(file)
            for file in path.iterdir()
            if file.name != MANIFEST and not file.name.startswith(".")
        }
    except OSError:
        return False
    return bool(found) and read_json(path / MANIFEST) == found


def folder(path: Path, make: Callable[[Path], object]) -> Path:
    """Give a folder that `make` has filled, now or before: `path`, or one that goes with this process where the cache
    cannot be written.

    Several processes may ask for the same one at once: each makes it, the first to end leaves it there.
    """
    if found := kept(path, make):
        return found
    place = _scratch() / path.name
    return place if whole(place) else _made(place, make)


def kept(path: Path, make: Callable[[Path], object]) -> Path | None:
    """Give `folder`'s path; None where the cache cannot be written."""
    if whole(path):
        detail(f"from the cache: {path}")
        return path
    if path.exists():
        _damaged(path)
    try:
        return _made(path, make)
    except OSError as error:
        if error.errno not in WITHOUT and not isinstance(error, (FileExistsError, NotADirectoryError)):
            raise
        _cannot_be_written(cache_folder(), error.strerror or type(error).__name__)
    return None


def _made(path: Path, make: Callable[[Path], object]) -> Path:
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:8]}-{path.name}")
    temporary.mkdir(parents=True)
    try:
        make(temporary)
        listed = {file.name: sha256_of(file) for file in temporary.iterdir()}
        (temporary / MANIFEST).write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")
        for _ in range(3):
            try:
                temporary.rename(path)
                break
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
            if whole(path):  # another process was quicker
                break
            aside = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:8]}-{path.name}")
            try:
                path.rename(aside)
            except FileNotFoundError:
                continue
            shutil.rmtree(aside, ignore_errors=True) if aside.is_dir() else aside.unlink(missing_ok=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path
