"""What a command may write, and what `overwrite` may replace: one rule for every output.

An output folder is claimed by creating it: it is made aside, with what a command begins it with, and renamed to where
nothing is; a second command finds it there. Inside lies a marker, which says which command made it and what that
writes:

OUT/.femtobooth   {"command": "export", "files": ["model.onnx", ...]}; names, or patterns where a folder grows
    .lock         who writes there now (core.locks)

`overwrite` replaces a folder that the same command made and where every file is of that command or lies in a folder
with a marker of its own. It never goes through a link, never takes an input of the command nor a folder around one, and
never a folder in use.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import count
from pathlib import Path

from . import locks
from .errors import ExistsError, InUseError, StorageError
from .files import TEMPORARY, atomic_file, flush_folder, place_folder, read_object, short_name, write_json, writing
from .locks import LOCK
from .names import shown
from .paths import expanded

MARKER = ".femtobooth"
LITTER = (".DS_Store", "Thumbs.db", "desktop.ini")  # what file managers leave anywhere


@dataclass(frozen=True)
class Output:
    """A folder or a file that a command is to write."""

    path: Path
    command: str
    """Without `femtobooth`."""
    overwrite: bool = False
    inputs: Sequence[str | Path | None] = ()
    """What the command reads; a name that is no path does no harm."""
    owns: Sequence[str] = ()
    """Patterns of what the command, and others after it, write into a folder that grows."""
    known: Callable[[Path], bool] = lambda path: False
    """Whether a folder without a marker, or a file, is this command's all the same."""
    numbered: bool = False
    """Whether the name was made up here: where it is taken, name-2 will do, or name-3..."""
    option: str = "`out`"
    """The setting that decides the place."""

    @property
    def _another(self) -> str:
        return f"choose another {self.option}"

    def check(self) -> None:
        """Refuse, before any work is done, what could not be written or would lose something.

        Raises InputError kinds.
        """
        with writing(self.path):
            self.refuse_unwritable()
            if is_free(self.path):
                return
            if not self.numbered:
                self._refuse_loss()

    def refuse_unwritable(self) -> None:
        """Raise StorageError where nothing can be written to the path."""
        above = (
            self.path
            if self.path.is_dir()
            else next(parent for parent in self.path.absolute().parents if os.path.lexists(parent))
        )
        if not above.is_dir():
            raise StorageError(f"{self.path}: {above} is no folder", self._another)
        if not os.access(above, os.W_OK | os.X_OK):
            raise StorageError(f"{self.path}: {above} cannot be written to", self._another)

    def _refuse_loss(self) -> None:
        """Raise ExistsError unless what is at the path may be replaced."""
        path = self.path
        if path.is_symlink():
            raise ExistsError(
                f"{path} is a link, and is not replaced", f"{self._another}, or give the place it leads to"
            )
        if not path.is_dir():
            if not self.overwrite:
                raise ExistsError(f"{path} already exists", f"{self._another}, or add `overwrite=true` to replace it")
            self._refuse_input()
            if not self.known(path):
                problem = f"{path} is no file that femtobooth {self.command} writes, and is not replaced"
                raise ExistsError(problem, f"{self._another}, or remove it yourself")
            return
        self._refuse_held(path)
        made_by = _marker(path)[0] or (self.command if self.known(path) else None)
        if not self.overwrite:
            also = ", or add `overwrite=true` to replace it" if made_by == self.command else ""
            raise ExistsError(f"{path} already exists", f"{self._another}{also}")
        self._refuse_input()
        if made_by is None:
            problem = f"{path} does not say that femtobooth {self.command} made it, and is not replaced"
            raise ExistsError(problem, f"{self._another}, or remove it yourself")
        if made_by != self.command:
            problem = f"{path} was made by femtobooth {made_by}, not by {self.command}, and is not replaced"
            raise ExistsError(problem, f"{self._another}, or remove it yourself")
        if others := strangers(path, self.owns):
            some = ", ".join(map(shown, others[:3])) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
            problem = f"{path} holds what femtobooth did not write there ({some}), and is not replaced"
            raise ExistsError(problem, f"move it away, or {self._another}")
        for lock in path.rglob(f"*/{LOCK}"):
            self._refuse_held(lock.parent)

    def _refuse_held(self, folder: Path) -> None:
        """Raise InUseError where another process writes into a folder."""
        if locks.holder(folder):
            locks.acquire(folder, f"wait until it is done, or {self._another}")
            locks.release(folder)  # it has just ended

    def _refuse_input(self) -> None:
        there = self.path.stat()
        for name in (name for name in self.inputs if name):
            with suppress(OSError):
                real = expanded(name).resolve(strict=True)
                if any(os.path.samestat(part.stat(), there) for part in (real, *real.parents)):
                    where = (
                        "is what this command reads"
                        if real.samefile(self.path)
                        else f"holds {name}, which this command reads"
                    )
                    raise ExistsError(f"`overwrite=true`: {self.path} {where}, and is not replaced", self._another)

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """Yield a folder to fill; on success it is flushed and appears at the path, whole, with a marker that lists its
        files.
        """
        with self._staged() as (staging, path):
            yield staging
            self._mark(staging)
            place = self._put(staging, path)
        locks.release(place)

    @contextmanager
    def claimed(self, begin: Callable[[Path], None] = lambda folder: None) -> Iterator[Path]:
        """Create the folder with what `begin` writes into it, and hold its lock: yields where it is, which for a
        numbered one tells.
        """
        with self._staged() as (staging, path):
            begin(staging)
            self._mark(staging)
            place = self._put(staging, path)
        try:
            yield place
        finally:
            with suppress(OSError):
                if {part.name for part in place.iterdir()} <= {MARKER, LOCK}:  # it ended before anything was made
                    shutil.rmtree(place)
            locks.release(place)

    @contextmanager
    def file(self) -> Iterator[Path]:
        """Yield a path to write to; on success it is flushed and appears at the path of the output, whole."""
        self.check()
        with atomic_file(self.path, replace=self.overwrite) as temporary:
            yield temporary

    def _mark(self, folder: Path) -> None:
        files = self.owns or [glob.escape(part) for part in strangers(folder)]
        write_json(folder / MARKER, {"command": self.command, "files": list(files)})

    @contextmanager
    def _staged(self) -> Iterator[tuple[Path, Path]]:
        """Yield a locked folder to fill, and where it will go: beside that, or inside where an empty folder is there
        already.
        """
        for path in self._names():
            try:
                replace(self, path=path, numbered=False).check()
                with writing(path):
                    inside = path.is_dir() and is_free(path)
                    staging = path / f"{TEMPORARY}new" if inside else path.with_name(TEMPORARY + short_name(path.name))
                    staging.mkdir(parents=True, exist_ok=True)
                locks.acquire(staging, f"wait until it is done, or {self._another}")
            except (ExistsError, InUseError):
                if self.numbered:
                    continue
                raise
            break
        try:
            with writing(path):
                _empty(staging)  # of what a killed command left
                yield staging, path
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def free(self) -> Path:
        """Find the first name at which nothing is, of an output whose name was made up; else the path."""
        return next((name for name in self._names() if is_free(name)), self.path)

    def _names(self) -> Iterator[Path]:
        yield self.path
        if self.numbered:
            yield from (self.path.with_stem(f"{self.path.stem}-{number}") for number in count(2))

    def _put(self, staging: Path, path: Path) -> Path:
        """Move what is staged to its place, in which it is held; returns the place."""
        if staging.parent == path:
            locks.acquire(path, self._another)
            flush_folder(staging)
            if not is_free(path):
                raise ExistsError(f"{path} was written by someone else meanwhile", self._another)
            for part in sorted(staging.iterdir()):
                if part.name != LOCK:
                    part.rename(path / part.name)
            return path
        while True:
            replacing = self.overwrite and not is_free(path)
            if replacing:  # it may have changed while the new one was made
                self._refuse_loss()
                locks.acquire(path, self._another)
            try:
                place_folder(staging, path, replacing)
                return path
            except ExistsError:
                if not self.numbered:
                    raise
                path = self.free()


def is_free(path: Path) -> bool:
    """Tell whether nothing is at a path, or a folder, possibly behind a link, with nothing in it."""
    if not path.is_dir():
        return not os.path.lexists(path)
    return all(part.name.startswith(TEMPORARY) or part.name in (LOCK, *LITTER) for part in path.iterdir())


def _empty(folder: Path) -> None:
    for part in folder.iterdir():
        if part.is_dir() and not part.is_symlink():
            shutil.rmtree(part)
        elif part.name != LOCK:
            part.unlink()


def _marker(folder: Path) -> tuple[str | None, list[str]]:
    """Read which command made a folder, None where there is no telling, and patterns of what it writes there."""
    found = read_object(folder / MARKER)
    command, files = found.get("command"), found.get("files")
    return (command, [*map(str, files)]) if isinstance(command, str) and isinstance(files, list) else (None, [])


def strangers(folder: Path, owns: Sequence[str] = ()) -> list[str]:
    """List the files under a folder, relative to it, that neither its marker nor `owns` knows; a folder in it with a
    marker is judged by that.
    """
    patterns = [*owns, *_marker(folder)[1]]
    found: list[str] = []

    def look(place: Path) -> None:
        for part in sorted(place.iterdir()):
            name = part.relative_to(folder).as_posix()
            if part.name in (MARKER, LOCK, *LITTER) or part.name.startswith(TEMPORARY):
                continue
            if part.is_dir() and not part.is_symlink():
                if _marker(part)[0]:
                    found.extend(f"{name}/{other}" for other in strangers(part))
                else:
                    look(part)
            elif not any(fnmatchcase(name, pattern) for pattern in patterns):
                found.append(name)

    look(folder)
    return found
