"""Pictures that no path leads to: behind addresses that fsspec understands, and in columns of Parquet files.

`s3://bucket/photos`, `gs://…`, `hf://…`, `https://…`: what a file system's package needs (s3fs, gcsfs) is installed
beside femtobooth, and takes keys and endpoints from where it always does.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ...core.bulk.store import file_system, is_address
from ...core.errors import PhotoError, SettingsError, first_line
from ...pictures.images import natural_order

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_MAGIC = re.compile(r"[*?\[]")
Found = tuple[str, str, tuple[int, int]]
"""An address, its part below the named folder, and bytes and a number that changes with the contents."""


def check(address: str) -> None:
    """Raise PhotoError where nothing is at an address."""
    system, path = file_system(address)
    try:
        there = bool(system.glob(path)) if has_magic(address) else system.exists(path)
    except Exception as error:  # of every network
        raise PhotoError(f"{address}: cannot be reached ({first_line(error)})", "check address and keys") from None
    if not there:
        raise PhotoError(f"{address}: no such file or folder", "check the address")


def find(address: str, hidden: Callable[[], object]) -> Iterator[Found]:
    """Find the files at an address, and below it, in natural order; of a folder's names at a time."""
    system, path = file_system(address)
    if has_magic(address):
        for match in sorted(system.glob(path), key=natural_order):
            yield from find(system.unstrip_protocol(match), hidden)
        return
    if not system.isdir(path):
        yield address, address, _stamp(system.info(path))
        return
    waiting: list[tuple[str, str, dict[str, Any] | None]] = [(path, "", None)]
    while waiting:
        place, key, facts = waiting.pop()
        if facts is not None and facts["type"] != "directory":
            yield system.unstrip_protocol(place), key, _stamp(facts)
            continue
        inside = [(one["name"].rstrip("/").rpartition("/")[2], one) for one in system.ls(place, detail=True)]
        for name, one in sorted(inside, key=lambda entry: natural_order(entry[0]), reverse=True):
            if name.startswith("."):
                hidden()
            elif one["name"].rstrip("/") != place.rstrip("/"):  # object stores list a folder's own mark in it
                waiting.append((one["name"], f"{key}/{name}" if key else name, one))


def stamp(address: str) -> tuple[int, int]:
    """Ask for a file's bytes, and a number that changes with its contents; -1 where there is none."""
    try:
        system, path = file_system(address)
        return _stamp(system.info(path))
    except Exception:  # reading it says why
        return -1, -1


def _stamp(facts: dict[str, Any]) -> tuple[int, int]:
    from ...core.bulk.parts import digest

    told = (facts.get(name) for name in ("ETag", "etag", "LastModified", "mtime", "last_commit", "blob_id", "created"))
    return int(facts.get("size") or -1), int(digest(map(str, told))[:15], 16)


def read(address: str) -> bytes:
    """Read a file. Raises OSError."""
    system, path = file_system(address)
    try:
        return bytes(system.cat_file(path))
    except OSError:
        raise
    except Exception as error:  # of every network
        raise OSError(first_line(error)) from None


def has_magic(address: str) -> bool:
    """Tell whether an address is a glob."""
    return bool(_MAGIC.search(address.partition("://")[2])) and not address.startswith("http")


# Columns of Parquet files


def opened(file: str) -> pq.ParquetFile:
    """Open a Parquet file by its path or address. Raises PhotoError."""
    import pyarrow.parquet as pq

    try:
        if is_address(file):
            system, path = file_system(file)
            return pq.ParquetFile(system.open(path, "rb"))
        return pq.ParquetFile(file, memory_map=False)
    except Exception as error:
        raise PhotoError(f"{file}: no Parquet file that can be read ({first_line(error)})", "check it") from None


def values(file: str, column: str) -> Iterator[tuple[int, str | None]]:
    """Read the names in a column of texts, by row; None for each row of a column that holds pictures themselves.

    Raises SettingsError for a column that is not there or holds something else.
    """
    import pyarrow as pa

    parquet = opened(file)
    if column not in parquet.schema_arrow.names:
        raise SettingsError(
            f"`column={column}`: {file} has no such column", f"it has {', '.join(parquet.schema_arrow.names)}"
        )
    kind = parquet.schema_arrow.field(column).type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        texts = (text for batch in parquet.iter_batches(4096, columns=[column]) for text in batch[0].to_pylist())
        yield from enumerate(texts)
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_struct(kind):
        yield from ((row, None) for row in range(parquet.metadata.num_rows))
    else:
        raise SettingsError(
            f"`column={column}`: holds {kind}", "give one of pictures' bytes, or of paths and addresses"
        )


def value(file: str, column: str, row: int) -> bytes:
    """Read a picture's bytes in a row, also as `datasets` writes them (`{bytes, path}`). Raises OSError."""
    start, cells = _group(file, column, row)
    cell = cells[row - start]
    found = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(found, bytes):
        raise OSError("the row holds no picture")
    return found


def _group(file: str, column: str, row: int) -> tuple[int, list[Any]]:
    metadata, start = _opened(file).metadata, 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if row < start + rows:
            return start, _cells(file, column, group)
        start += rows
    raise OSError("no such row")


_opened = functools.lru_cache(4)(opened)


@functools.lru_cache(2)
def _cells(file: str, column: str, group: int) -> list[Any]:
    """Read a row group's column; neighbours are asked for next."""
    return opened(file).read_row_group(group, columns=[column]).column(0).to_pylist()
