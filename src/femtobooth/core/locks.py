"""One writer a folder: a lock file says who writes there, and counts for nothing once that process is gone.

FOLDER/.lock   JSON: process id, when that process began, host, command, since when

A process that is killed leaves its lock behind; the next one sees that no such process runs and takes it over.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from .errors import InUseError
from .files import writing
from .processes import typed

LOCK = ".lock"


@dataclass(frozen=True)
class Holder:
    """A process that writes into a folder."""

    pid: int
    began: str
    """When the process began, as its system counts; another process of the same number began at another time."""
    host: str
    boot: str
    """Of the host; nothing from before it was started anew is running."""
    since: str
    command: str

    @property
    def elsewhere(self) -> bool:
        """Whether it runs where this process cannot see it: on another machine, or in another container."""
        return self.host != _host()

    @property
    def gone(self) -> bool:
        """Whether it certainly runs no more."""
        return not self.elsewhere and (self.boot != _boot() or _began(self.pid) != self.began)


def own() -> Holder:
    """Describe this process."""
    return described(os.getpid(), typed())


def described(pid: int, command: str) -> Holder:
    """Describe a process of this machine that was started by `command`."""
    return Holder(pid, _began(pid), _host(), _boot(), time.strftime("%Y-%m-%d %H:%M:%S"), command[:200])


def _host() -> str:
    """Name this machine, and the process namespace, in which a number means the same process."""
    with suppress(OSError):
        return f"{platform.node()} {Path('/proc/self/ns/pid').readlink()}"
    return platform.node()


def _boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def _began(pid: int) -> str:
    """Tell when a running process began; "" where it runs no more, "?" where the system does not tell."""
    if Path("/proc/self/stat").exists():
        with suppress(OSError, IndexError):
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
            return "" if fields[0] in "ZX" else fields[19]  # a zombie writes no more
        return ""
    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.NoSuchProcess:
        return ""
    except psutil.Error:
        return "?"


def _contents(handle: int) -> str:
    os.lseek(handle, 0, os.SEEK_SET)
    return os.read(handle, 65536).decode("utf-8", errors="replace")


def _write(handle: int, contents: bytes) -> None:
    os.ftruncate(handle, 0)
    os.lseek(handle, 0, os.SEEK_SET)
    os.write(handle, contents)
    os.fsync(handle)


def _wait_for(handle: int) -> None:
    """Wait until no other process guards the open file, and guard it until it is closed."""
    try:
        import fcntl
    except ImportError:  # Windows, where nobody could read what is guarded: a byte far behind it is
        import msvcrt

        os.lseek(handle, 2**30, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_LOCK, 1)  # type: ignore[attr-defined, unused-ignore]
        return
    fcntl.flock(handle, fcntl.LOCK_EX)


def _read(text: str) -> Holder | None:
    """Read whom a lock file names; None for one that was cut off in the middle."""
    try:
        return Holder(**json.loads(text))
    except (ValueError, TypeError):
        return None


def holder(folder: Path) -> Holder | None:
    """Find the process that writes into `folder`; None where there is none, or none any more."""
    try:
        found = _read((folder / LOCK).read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return None if found is None or found.gone else found


def acquire(folder: Path, instead: str = "wait until it is done") -> None:
    """Take the lock of a folder that exists. Raises InUseError, which names the holder; `instead` is the way out."""
    with writing(folder), _guarded(folder) as handle:
        found = _read(_contents(handle))
        if found and not found.gone:
            host, _, container = found.host.partition(" ")
            where = f" on {host} ({container})" if found.elsewhere else ""
            raise InUseError(
                f"{folder}: in use by process {found.pid}{where} since {found.since}: {found.command}",
                f"{instead}; if it runs no more, remove {folder / LOCK}" if found.elsewhere else instead,
            )
        _write(handle, json.dumps(asdict(own())).encode())


def release(folder: Path) -> None:
    """Give the lock of a folder back, if it is this process's."""
    with suppress(OSError), _guarded(folder, create=False) as handle:
        found = _read(_contents(handle))
        if found and (found.pid, found.host) == (os.getpid(), _host()):
            _write(handle, b"")  # which frees it too, where an open file cannot be removed
            (folder / LOCK).unlink()


@contextmanager
def held(folder: Path, instead: str = "wait until it is done") -> Iterator[None]:
    """Hold the lock of a folder that exists. Raises InUseError, which names the holder; `instead` is the way out."""
    acquire(folder, instead)
    try:
        yield
    finally:
        release(folder)


@contextmanager
def held_place(place: Path, instead: str = "wait until it is done") -> Iterator[None]:
    """Hold the lock of a folder that is made where it is missing, and goes again where nothing came into it."""
    with writing(place):
        place.mkdir(parents=True, exist_ok=True)
    try:
        with held(place, instead):
            yield
    finally:
        with suppress(OSError):
            place.rmdir()  # which takes only empty ones


@contextmanager
def _guarded(folder: Path, create: bool = True) -> Iterator[int]:
    """Yield the open lock file, looked at and changed by no other process meanwhile."""
    path = folder / LOCK
    while True:
        flags = os.O_RDWR | (os.O_CREAT if create else 0)
        for name in ("O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"):  # no system has all three
            flags |= getattr(os, name, 0)
        handle = os.open(path, flags, 0o644)
        try:
            with suppress(OSError):  # some network file systems have none; the lock is then as good as its contents
                _wait_for(handle)
            there = False  # it may have been given back, and removed, since it was opened
            with suppress(FileNotFoundError):
                there = os.path.samestat(os.fstat(handle), path.lstat())
            if there:
                yield handle
                return
        finally:
            os.close(handle)  # which also lifts the guard
