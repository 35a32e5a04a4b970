"""Where the parts of a dataset lie: in a folder of this machine, or behind an address that fsspec understands."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..errors import FemtoboothError, SettingsError, StorageError, first_line
from ..files import atomic_file

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def is_address(name: str) -> bool:
    """Tell an address from a path."""
    return bool(_ADDRESS.match(name))


def file_system(address: str) -> tuple[Any, str]:
    """Give the file system of an address, and the path there. Raises SettingsError where its package is missing."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise SettingsError(
            f"{address}: cannot be opened here ({first_line(error)})", "install what it needs"
        ) from None


@dataclass(frozen=True)
class Folder:
    """A folder on a disk."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def opened(self, name: str) -> IO[bytes] | None:
        """Open a file to read; None where there is none."""
        path = self.path / name
        return path.open("rb") if path.is_file() else None

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yield a path to write to; the file then appears, whole."""
        with atomic_file(self.path / name) as temporary:
            yield temporary

    def names(self) -> list[str]:
        """List what is there."""
        return [path.name for path in self.path.iterdir()]

    def remove(self, name: str) -> None:
        """Remove a file."""
        (self.path / name).unlink()


@dataclass(frozen=True)
class Remote:
    """What an address leads to: an object store, where a file appears whole once it is sent. Nobody can lock it."""

    address: str
    overwrite: bool = False

    def __str__(self) -> str:
        return self.address

    @contextmanager
    def _system(self) -> Iterator[tuple[Any, str]]:
        """Yield the file system and the path in it. Raises StorageError for whatever it says."""
        import fsspec

        try:
            yield fsspec.core.url_to_fs(self.address.rstrip("/"))
        except FemtoboothError:
            raise
        except ImportError as error:
            raise SettingsError(
                f"{self.address}: cannot be opened here ({first_line(error)})", "install what it needs"
            ) from None
        except Exception as error:  # of every network
            raise StorageError(
                f"{self.address}: cannot be read or written ({first_line(error)})", "check address, keys and rights"
            ) from None

    def opened(self, name: str) -> IO[bytes] | None:
        """Open a file to read; None where there is none."""
        with self._system() as (system, path):
            try:
                found: IO[bytes] = system.open(f"{path}/{name}", "rb")
            except FileNotFoundError:
                return None
            return found

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yield a path to write to; the file is then sent."""
        with tempfile.TemporaryDirectory(prefix="femtobooth-") as folder:
            yield (temporary := Path(folder) / name)
            with self._system() as (system, path):
                try:
                    system.put_file(str(temporary), f"{path}/{name}")
                except FileNotFoundError:  # a file system with folders
                    system.makedirs(path, exist_ok=True)
                    system.put_file(str(temporary), f"{path}/{name}")

    def names(self) -> list[str]:
        """List what is there."""
        with self._system() as (system, path):
            system.invalidate_cache()
            try:
                found = [str(one).rstrip("/") for one in system.ls(path, detail=False)]
            except FileNotFoundError:
                return []
            own = path.rstrip("/").rpartition("/")[2]  # object stores list a folder's own mark in it
            return [one.rpartition("/")[2] for one in found if one.rpartition("/")[2] != own]

    def remove(self, name: str) -> None:
        """Remove a file."""
        with self._system() as (system, path):
            system.rm_file(f"{path}/{name}")


Store = Folder | Remote
