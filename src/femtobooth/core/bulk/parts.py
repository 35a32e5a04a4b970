"""A dataset of parts: Parquet files that each appear whole, named by what they are of, and a `_SUCCESS` when all are
there.

DATASET/00000012-6f1d….parquet   rows of the 13th part; the name ends in a hash of its inputs' names
        _settings.json           what the rows are made with; the same command goes on, another one is refused
        _SUCCESS                 counts, written last
        .femtobooth  .lock       which command made the folder, and who writes there now

Nobody has to remember what was done: a part that is there under its name, of inputs that have not changed since, is
done. Two processes that make the same part write the same rows, and the second replaces the first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from .. import locks
from ..claims import Output
from ..errors import ExistsError
from ..files import sweep, write_json
from .store import Folder, Remote, Store

if TYPE_CHECKING:
    import pyarrow as pa

SUCCESS = "_SUCCESS"
SETTINGS = "_settings.json"
OWNS = ("*.parquet", SUCCESS, SETTINGS)
PARTS = "[0-9]*.parquet"
BYTES = 2**26  # of rows that are held before they are written
STAMP = "femtobooth.inputs"  # key of the hash of a part's inputs as they were, in its metadata
FAILED = "femtobooth.failed"

Item = TypeVar("Item")
Given_contra = TypeVar("Given_contra", contravariant=True)


@dataclass(frozen=True)
class Part(Generic[Item]):
    """Some inputs that follow each other, and the name under which their rows appear."""

    name: str
    items: tuple[Item, ...]


def parts_of(items: Iterable[Item], size: int, key: Callable[[Item], str]) -> Iterator[Part[Item]]:
    """Cut a stream into parts of `size` items, of which `key` says what each is called."""
    stream = iter(items)
    for index in range(10**8):
        chunk = tuple(islice(stream, size))
        if not chunk:
            return
        yield Part(f"{index:08}-{digest(map(key, chunk))}.parquet", chunk)


def digest(texts: Iterable[str]) -> str:
    """Hash texts in order: 32 hexadecimal digits."""
    found = hashlib.blake2b(digest_size=16)
    for text in texts:
        data = text.encode("utf-8", "surrogateescape")
        found.update(len(data).to_bytes(8, "little") + data)
    return found.hexdigest()


class Unit(Protocol[Given_contra]):
    """Makes the rows of parts; one is opened in every process that works."""

    @property
    def schema(self) -> pa.Schema:
        """Columns of the rows; `path` and `error` are among them."""
        ...

    def stamp(self, items: tuple[Given_contra, ...]) -> str:
        """Say in few letters what the inputs are now; others once one of them has changed."""
        ...

    def still_fails(self, items: tuple[Given_contra, ...], failed: list[str]) -> bool:
        """Tell whether the inputs of these names, which could not be read, still cannot."""
        ...

    def tables(self, items: tuple[Given_contra, ...]) -> Iterator[pa.Table]:
        """Make the rows, in order."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What became of a part."""

    name: str
    rows: int = 0
    failed: int = 0
    before: int = 0
    """Rows that were there before."""
    others: int = 0
    """Inputs that have no row: files in folders that are no pictures."""
    first_failure: str = ""


def make(place: Path | Store, part: Part[Item], unit: Unit[Item]) -> Outcome:
    """Make a part, unless it is there and its inputs have not changed since."""
    store = Folder(place) if isinstance(place, Path) else place
    stamp = unit.stamp(part.items)
    return _made_before(store, part, unit, stamp) or _made(store, part, unit, stamp)


def _made_before(store: Store, part: Part[Item], unit: Unit[Item], stamp: str) -> Outcome | None:
    import pyarrow.parquet as pq

    if (found := store.opened(part.name)) is None:
        return None
    with found as opened, pq.ParquetFile(opened) as file:
        known = file.metadata.metadata or {}
        if known.get(STAMP.encode()) != stamp.encode():
            return None
        rows, failed = file.metadata.num_rows, int(known[FAILED.encode()])
        first = ""
        if failed:
            told = [one for one in file.read(["path", "error"]).to_pylist() if one["error"]]
            if not unit.still_fails(part.items, [one["path"] for one in told]):
                return None
            first = f"{told[0]['path']}: {told[0]['error']}"
    return Outcome(part.name, 0, failed, rows - failed, len(part.items) - rows, first)


def _made(store: Store, part: Part[Item], unit: Unit[Item], stamp: str) -> Outcome:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    rows = failed = 0
    first = ""
    waiting: list[pa.Table] = []
    with (
        store.writing(part.name) as temporary,
        temporary.open("wb") as file,
        pq.ParquetWriter(file, unit.schema, compression="zstd") as writer,
    ):
        for table in unit.tables(part.items):
            waiting.append(table)
            rows += len(table)
            wrong = table.filter(pc.is_valid(table.column("error")))
            if len(wrong) and not first:
                first = f"{wrong.column('path')[0].as_py()}: {wrong.column('error')[0].as_py()}"
            failed += len(wrong)
            if sum(one.nbytes for one in waiting) > BYTES:
                writer.write_table(pa.concat_tables(waiting))
                waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting))
        writer.add_key_value_metadata({STAMP: stamp, FAILED: str(failed)})
    return Outcome(part.name, rows - failed, failed, 0, len(part.items) - rows, first)


@dataclass
class Dataset:
    """Parts that are being made, by one command at a time."""

    store: Store

    @classmethod
    @contextmanager
    def open(cls, out: Output | Remote, made_with: dict[str, Any]) -> Iterator[Dataset]:
        """Start, or go on where the same command was interrupted; `out.owns` is `OWNS`.

        Raises InUseError where another process writes there, which no address tells, and ExistsError where rows of
        something else would be lost or mixed in.
        """
        made_with = json.loads(json.dumps(made_with))
        store = out if isinstance(out, Remote) else Folder(out.path)
        begun = _read(store, SETTINGS)
        unfinished = begun is not None and SUCCESS not in store.names()
        if unfinished and begun != made_with and not out.overwrite:
            raise ExistsError(
                f"{store}: holds unfinished rows of another model or other settings",
                "finish them with the command that began them, choose another `out`, or add `overwrite=true`",
            )
        goes_on = unfinished and begun == made_with
        with ExitStack() as held:
            if isinstance(out, Remote):
                if not goes_on:
                    _emptied(out)
                    _write(out, SETTINGS, made_with)
            elif goes_on:
                held.enter_context(locks.held(out.path, "wait until it is done, or choose another `out`"))
                sweep(out.path)
            else:
                begin = partial(_begin, made_with)
                store = Folder(held.enter_context(out.claimed(begin)))
            yield cls(store)

    def finish(self, names: set[str], counts: dict[str, Any]) -> int:
        """Remove the parts of inputs that are no longer named, and write `_SUCCESS`; returns how many were removed."""
        stale = [name for name in self.store.names() if fnmatchcase(name, PARTS) and name not in names]
        for name in stale:
            self.store.remove(name)
        _write(self.store, SUCCESS, counts)
        return len(stale)


def _begin(made_with: dict[str, Any], folder: Path) -> None:
    write_json(folder / SETTINGS, made_with)


def _emptied(out: Remote) -> None:
    """Remove the parts at an address that are to be replaced. Raises ExistsError where more lies there, or without
    `overwrite`.
    """
    there = out.names()
    if there and not out.overwrite:
        raise ExistsError(f"{out} already exists", "choose another `out`, or add `overwrite=true` to replace it")
    if others := [name for name in there if not any(fnmatchcase(name, pattern) for pattern in OWNS)]:
        raise ExistsError(
            f"{out} holds what femtobooth did not write there ({', '.join(others[:3])}), and is not replaced",
            "choose another `out`",
        )
    for name in there:
        out.remove(name)


def _read(store: Store, name: str) -> Any:
    """Read a JSON file; None where there is none, or a damaged one."""
    if (found := store.opened(name)) is None:
        return None
    with found as file, suppress(ValueError):
        return json.load(file)
    return None


def _write(store: Store, name: str, value: Any) -> None:
    with store.writing(name) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
