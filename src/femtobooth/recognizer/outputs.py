"""Where rows go: text as it is made, or a file that grows in parts beside its place and appears there when it is whole.

labels.csv.part/settings.json   what the rows were made with; the same command goes on, another one is refused
                000000.parquet  rows, each part written atomically
labels.csv                      all of them, in any format; then the parts are gone
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ExistsError, SettingsError
from ..core.names import shown
from ..core.runs import atomic_file, refuse_existing, sweep, write_json
from .sources import fingerprint

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]
SECONDS = 10.0  # of work that a kill may lose
BYTES = 2**26  # of rows held before they are written


def table_lines(rows: Iterable[Row], width: int) -> Iterator[str]:
    """One line a picture: path, then the labels that matter, cut to `width` columns (0: not cut)."""
    for row in rows:
        if row["error"]:
            said = f"-- {row['error']}"
        else:
            best = [_guess(guess) for guess in row["top"] if guess is row["top"][0] or guess["confidence"] >= 0.01]
            said = " | ".join(["unknown, perhaps", *best] if row["unknown"] else best)
        line = shown(f"{row['path']:<36} {said}")
        yield f"{line if not width or len(line) <= width else line[: width - 1] + '…'}\n"


def _guess(guess: Row) -> str:
    synset = f" ({guess['synset']})" if guess["synset"] else ""
    name = guess["label"].partition(",")[0] if synset else guess["label"]  # WordNet lists synonyms
    return f"{100 * guess['confidence']:5.1f} % {name}{synset}"


def jsonl_lines(rows: Iterable[Row]) -> Iterator[str]:
    """One JSON object a line."""
    return (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def json_lines(rows: Iterable[Row]) -> Iterator[str]:
    """One JSON array of objects."""
    before = "[\n"
    for row in rows:
        yield f"{before}  {json.dumps(row, ensure_ascii=False)}"
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


def csv_lines(rows: Iterable[Row], top_k: int) -> Iterator[str]:
    """A header and one line a picture; the second likeliest label and so on are label_2, synset_2, confidence_2..."""
    parts = ("label", "synset", "confidence")
    later = [f"{part}_{rank}" for rank in range(2, top_k + 1) for part in parts]
    columns = ["path", *parts, "unknown", "error", *later]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, extrasaction="ignore")  # which quotes what its own line end (CR LF) holds
    named = [dict(zip(columns, columns, strict=True))]
    for row in itertools.chain(named, rows):
        guesses = {f"{part}_{rank}": guess[part] for rank, guess in enumerate(row.get("top") or [], 1) for part in parts}
        writer.writerow(row | guesses)
        yield buffer.getvalue().removesuffix("\r\n") + "\n"
        buffer.seek(0)
        buffer.truncate()


def write_text(path: Path, pieces: Iterable[str]) -> None:
    """Write pieces of UTF-8 text one after the other."""
    with path.open("w", encoding="utf-8", newline="") as file:
        file.writelines(pieces)


def write_parquet(path: Path, tables: Iterator[pa.Table], schema: pa.Schema) -> None:
    """Write tables one after the other, each as a row group or more."""
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table.cast(schema))


class Parts:
    """Rows on their way into a file."""

    def __init__(self, out: Path, made_with: dict[str, Any], schema: pa.Schema, overwrite: bool) -> None:
        """Start, or go on where the same command was interrupted. Raises ExistsError where it would lose or mix something."""
        refuse_existing(out, overwrite)
        if out.is_dir():
            raise SettingsError(f"--out {out}: is a folder", "give the name of a file")
        self.out, self.schema, self.folder = out, schema, out.with_name(f"{out.name}.part")
        self._rows: list[pa.Table] = []
        self._written = time.monotonic()
        made_with = json.loads(json.dumps(made_with))
        if self.folder.exists() and _read(self.folder / "settings.json") != made_with:
            if not overwrite:
                raise ExistsError(
                    f"{self.folder}: holds unfinished rows of another model or other settings",
                    "finish them with the command that began them, choose another --out, or add --overwrite to drop them",
                )
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        sweep(self.folder)
        write_json(self.folder / "settings.json", made_with)
        paths = (fingerprint(str(path)) for table in self.tables(["path"]) for path in table.column("path"))
        self.done = np.sort(np.fromiter(paths, np.uint64))
        """Hashes of the paths whose rows are written already: 8 bytes a file."""

    def has(self, path: str) -> bool:
        """Whether a path's row was written before this process began."""
        value = np.uint64(fingerprint(path))
        index = int(np.searchsorted(self.done, value))
        return index < len(self.done) and bool(self.done[index] == value)

    def fill(self, tables: Iterable[pa.Table]) -> None:
        """Take rows, and write a part whenever many are waiting or some for long; when interrupted, all that were taken."""
        try:
            for table in tables:
                self._rows.append(table)
                if time.monotonic() - self._written > SECONDS or sum(rows.nbytes for rows in self._rows) > BYTES:
                    self.flush()
        finally:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting, whole or not at all."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._rows:
            with atomic_file(self.folder / f"{len(self._files()):06}.parquet") as temporary:
                pq.write_table(pa.concat_tables(self._rows), temporary)
        self._rows, self._written = [], time.monotonic()

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.parquet"))

    def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The rows that are written, in order, part by part."""
        import pyarrow.parquet as pq

        for file in self._files():
            yield pq.read_table(file, columns=columns, partitioning=None)

    def finish(self, write: Callable[[Path], None]) -> None:
        """Write the file with all rows, then drop the parts."""
        with atomic_file(self.out) as temporary:
            write(temporary)
        shutil.rmtree(self.folder)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
