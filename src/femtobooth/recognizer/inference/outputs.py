"""Where rows go: text as it is made, or a file that grows in parts beside its place and appears there when it is whole.

labels.csv.part/settings.json   what the rows were made with; the same command goes on, another one is refused
                000000.parquet  rows, each part written atomically, and with them size and time of the files that they
                are of
labels.csv                      all of them, in any format; then the parts are gone

The file is what one uninterrupted command would have written: a file that has changed since is read again, one that
could not be read is tried again, and one that is no longer among what was named has no row.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from ...core import locks
from ...core.claims import Output
from ...core.errors import ExistsError, SettingsError
from ...core.files import atomic_file, read_json, short_name, sweep, write_json, writing
from ...core.names import shown
from ..settings import ReadingSettings
from .sources import fingerprint

if TYPE_CHECKING:
    import pyarrow as pa


class Guess(TypedDict):
    """One of the likeliest classes."""

    label: str
    synset: str | None
    confidence: float
    """Between 0 and 1."""


class Row(TypedDict):
    """What is said of one file; all but `path` and `error` is None where it could not be read."""

    path: str
    """As files hold it (`core.names.stored`)."""
    label: str | None
    """The likeliest, also where the picture is out-of-distribution."""
    synset: str | None
    confidence: float | None
    """Between 0 and 1."""
    rejected: bool | None
    """Whether it is out-of-distribution."""
    top: list[Guess] | None
    """The likeliest classes, in order."""
    error: str | None
    """Why it could not be read."""


STAMP = ("_size", "_mtime_ns")  # columns of the parts only
LAYOUT = 3  # of the parts
UNREAD = 0  # key of a row with an error: it is tried again
SECONDS = 10.0  # of work that a kill may lose
BYTES = 2**26  # of rows held before they are written


NONE = "none of its labels"


def table_lines(rows: Iterable[Row], width: int) -> Iterator[str]:
    """Write one line a picture: path, then the labels that matter, cut to `width` columns (0: not cut)."""
    for row in rows:
        if row["error"]:
            said = f"-- {row['error']}"
        else:
            top = row["top"] or []
            best = [_guess(guess) for guess in top if guess is top[0] or guess["confidence"] >= 0.01]
            said = " | ".join(["rejected, at most", *best] if row["rejected"] else best) or NONE
        line = shown(f"{row['path']:<36} {said}")
        yield f"{line if not width or len(line) <= width else line[: width - 1] + '…'}\n"


def _guess(guess: Guess) -> str:
    synset = f" ({guess['synset']})" if guess["synset"] else ""
    name = guess["label"].partition(",")[0] if synset else guess["label"]  # WordNet lists synonyms
    return f"{100 * guess['confidence']:5.1f} % {name}{synset}"


def jsonl_lines(rows: Iterable[Row]) -> Iterator[str]:
    """Write one JSON object a line."""
    return (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def json_lines(rows: Iterable[Row]) -> Iterator[str]:
    """Write one JSON array of objects."""
    before = "[\n"
    for row in rows:
        yield f"{before}  {json.dumps(row, ensure_ascii=False)}"
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


def csv_lines(
    rows: Iterable[Mapping[str, Any]], top_k: int, safe: bool = False, multi_label: bool = False
) -> Iterator[str]:
    """Write a header and one line a picture; the second likeliest label and so on are label_2, synset_2,
    confidence_2...

    With `safe` no spreadsheet takes a cell for a formula. `multi_label` has all labels in a column `labels`, with |
    between them, as `finetune` reads it.
    """
    parts = ("label", "synset", "confidence")
    later = [f"{part}_{rank}" for rank in range(2, top_k + 1) for part in parts]
    columns = ["path", *parts, "rejected", "error", *later, *(["labels"] if multi_label else [])]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, extrasaction="ignore")  # which quotes what its own line end (CR LF) holds
    named: list[Mapping[str, Any]] = [dict(zip(columns, columns, strict=True))]
    for row in itertools.chain(named, rows):
        guesses = {
            f"{part}_{rank}": guess[part] for rank, guess in enumerate(row.get("top") or [], 1) for part in parts
        }
        cells = {**row, **guesses}
        if multi_label and row is not named[0]:
            cells["labels"] = "|".join(guess["label"] for guess in row.get("top") or [])
        writer.writerow({name: inert(cell) for name, cell in cells.items()} if safe else cells)
        yield buffer.getvalue().removesuffix("\r\n") + "\n"
        buffer.seek(0)
        buffer.truncate()


_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def inert(cell: Any) -> Any:
    """Make a cell that no spreadsheet runs: with an apostrophe before what it would take for a formula, or for such an
    apostrophe.
    """
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell


def write_text(path: Path, pieces: Iterable[str]) -> None:
    """Write pieces of UTF-8 text one after the other."""
    with path.open("w", encoding="utf-8", newline="") as file:
        file.writelines(pieces)


def write_parquet(path: Path, tables: Iterator[pa.Table], schema: pa.Schema) -> None:
    """Write tables one after the other, each as a row group or more."""
    import pyarrow.parquet as pq

    with (
        path.open("wb") as file,
        pq.ParquetWriter(file, schema, compression="zstd") as writer,
    ):  # pyarrow knows names in UTF-8 only
        for table in tables:
            writer.write_table(table.cast(schema))


def claim(settings: ReadingSettings, command: str, known: Callable[[Path], bool]) -> Output:
    """Return the file that a command is to write.

    Raises InputError kinds where it cannot, or where something would be lost.
    """
    path = Path(settings.out or "")
    if os.path.isdir(path):  # noqa: PTH112  (Path.is_dir raises for a name that is too long)
        raise SettingsError(f"`out={path}`: is a folder", "give the name of a file")
    out = Output(path, command, settings.overwrite, (*settings.paths, settings.from_file), known=known)
    out.check()
    return out


_LABELS = re.compile(
    rb'path,label,synset,confidence|\[?\s*\{"path": |\[\]\n?$'
    rb"|.{36,} (-- |(un|re)(known|jected), |none of its labels| *\d+\.\d %)|$"
)


def holds_labels(path: Path) -> bool:
    """Tell whether a file is empty, or one that `classify` wrote."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(65536)
    if start.startswith(b"PAR1"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        with suppress(pa.ArrowException, OSError), path.open("rb") as file:
            return b"model_hash" in (pq.read_schema(file).metadata or {})
        return False
    return bool(_LABELS.match(start))


class Parts:
    """Rows on their way into a file; those of an earlier process count for files that are as they were, and had no
    error.
    """

    @classmethod
    @contextmanager
    def open(cls, out: Output, made_with: dict[str, Any], schema: pa.Schema) -> Iterator[Parts]:
        """Start, or go on where the same command was interrupted, as the only one.

        Raises InUseError where another process does, and ExistsError where rows of something else would be lost or
        mixed in.
        """
        folder = out.path.with_name(f"{short_name(out.path.name)}.part")
        with writing(out.path):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            with locks.held(folder, "wait until it is done, or choose another `out`"):
                yield cls(out, folder, json.loads(json.dumps({"rows": LAYOUT} | made_with)), schema)
        finally:
            with suppress(OSError):
                folder.rmdir()  # if nothing is left in it

    def __init__(self, out: Output, folder: Path, made_with: dict[str, Any], schema: pa.Schema) -> None:
        self.out, self.folder, self.schema = out, folder, schema
        self._rows: list[pa.Table] = []
        self._written = time.monotonic()
        settings = folder / "settings.json"
        if (settings.exists() or self._files()) and read_json(settings) != made_with:  # neither: killed before it began
            if not out.overwrite:
                raise ExistsError(
                    f"{folder}: holds unfinished rows of another model or other settings",
                    (
                        "finish them with the command that began them, choose another "
                        "`out`, or add `overwrite=true` to drop them"
                    ),
                )
            self._clear()
        sweep(folder)
        write_json(settings, made_with)
        self._earlier = self._files()
        keys = np.fromiter((key for table in self._read(["path", *STAMP, "error"]) for key in _keys(table)), np.uint64)
        self._order = np.argsort(keys, kind="stable")
        self._sorted = keys[self._order]
        self._used = np.zeros(len(keys), np.uint32)
        self._wanted = np.zeros(len(keys), bool)
        self.rows_before = int(np.count_nonzero(keys != UNREAD))
        """Rows that an earlier process wrote and that count where their files are found again: 21 bytes each in memory.
        """

    def has(self, path: str, stamp: tuple[int, int]) -> bool:
        """Take the row that an earlier process wrote of a file that has not changed since; False where there is none
        (any more).
        """
        key = np.uint64(_key(path, *stamp))
        first = int(np.searchsorted(self._sorted, key))
        place = first + (int(self._used[first]) if first < len(self._sorted) else 0)
        if place >= len(self._sorted) or self._sorted[place] != key or key == UNREAD:
            return False
        self._used[first] += 1  # a file that is named twice has two rows
        self._wanted[self._order[place]] = True
        return True

    @property
    def stale(self) -> int:
        """Rows of an earlier process that no file asked for."""
        return self.rows_before - int(np.count_nonzero(self._wanted))

    def fill(self, tables: Iterable[tuple[pa.Table, Sequence[tuple[int, int]]]]) -> None:
        """Take rows, and write a part whenever many are waiting or some for long; when interrupted, all that were
        taken.
        """
        import pyarrow as pa

        try:
            for table, stamps in tables:
                stamped = [pa.array([stamp[place] for stamp in stamps], pa.int64()) for place in range(len(STAMP))]
                self._rows.append(pa.table([*table.columns, *stamped], [*table.column_names, *STAMP]))
                if time.monotonic() - self._written > SECONDS or sum(rows.nbytes for rows in self._rows) > BYTES:
                    self.flush()
        finally:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting, whole or not at all."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._rows:
            place = self.folder / f"{len(self._files()):06}.parquet"
            with writing(self.out.path), atomic_file(place) as temporary, temporary.open("wb") as file:
                pq.write_table(pa.concat_tables(self._rows), file)
        self._rows, self._written = [], time.monotonic()

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9][0-9][0-9][0-9][0-9][0-9].parquet"))

    def _read(self, columns: list[str]) -> Iterator[pa.Table]:
        import pyarrow.parquet as pq

        for file in self._files():
            with file.open("rb") as opened:
                yield pq.read_table(opened, columns=columns)

    def tables(self) -> Iterator[pa.Table]:
        """Read the rows that are written and wanted, in order, part by part."""
        start = 0
        for file, table in zip(self._files(), self._read(self.schema.names), strict=True):
            if file in self._earlier:
                wanted = self._wanted[start : start + len(table)]
                start += len(table)
                yield table if wanted.all() else table.filter(wanted)
            else:
                yield table

    def finish(self, write: Callable[[Path], None]) -> None:
        """Write the file with all rows, then drop the parts."""
        with self.out.file() as temporary:
            write(temporary)
        self._clear()

    def _clear(self) -> None:
        """Remove what this class writes; nothing else lies in its folder, or it stays."""
        for file in (*self._files(), self.folder / "settings.json"):
            file.unlink(missing_ok=True)


def _keys(table: pa.Table) -> Iterator[int]:
    for path, size, mtime, error in zip(
        *(table.column(name).to_pylist() for name in ("path", *STAMP, "error")), strict=True
    ):
        yield _key(path, size, mtime) if error is None else UNREAD


def _key(path: str, size: int, mtime: int) -> int:
    return fingerprint(f"{path}\0{size}\0{mtime}")
