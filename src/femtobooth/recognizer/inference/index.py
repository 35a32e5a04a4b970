"""Embeddings on disk: Parquet, npz or safetensors, with the model and preprocessing they come from."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.errors import InputError
from .predict import Batch

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = ("parquet", "npz", "safetensors")
ROWS = 2**14  # of a block of vectors
WAY_OUT = "make it again with `femtobooth embed`"


def schema(shapes: dict[str, tuple[int, ...]], metadata: dict[str, str]) -> pa.Schema:
    """Make the schema: path, a fixed-size list of float32 for each output, error; output shapes are in the metadata
    too, as JSON under `shapes`.
    """
    import pyarrow as pa

    lists = [(name, pa.list_(pa.float32(), int(np.prod(shape)))) for name, shape in shapes.items()]
    return pa.schema(
        [("path", pa.string()), *lists, ("error", pa.string())],
        metadata=metadata | {"shapes": json.dumps({name: list(shape) for name, shape in shapes.items()})},
    )


def rows(batch: Batch, made: pa.Schema) -> pa.Table:
    """Put a batch's outputs in the columns of `made`; null where a picture could not be read."""
    import pyarrow as pa

    missing = np.array([error is not None for error in batch.errors], bool)
    columns: list[Any] = [pa.array(batch.paths, pa.string())]
    for field in made:
        if pa.types.is_fixed_size_list(field.type):
            values = np.zeros((len(missing), field.type.list_size), np.float32)
            if not missing.all():
                values[~missing] = batch.outputs[field.name].reshape(-1, field.type.list_size)
            columns.append(
                pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=field.type, mask=pa.array(missing))
            )
    return pa.Table.from_arrays([*columns, pa.array(batch.errors, pa.string())], schema=made)


def write(path: Path, format: str, tables: Callable[[], Iterator[pa.Table]], made: pa.Schema) -> None:
    """Write rows as npz or safetensors: an array (N, ...) for each output, of readable pictures only, in constant
    memory.

    npz: `paths`, `failed`, `errors` (texts) and `metadata` (JSON) lie beside them; safetensors: these are its metadata.
    """
    texts: dict[str, list[str]] = {"paths": [], "failed": [], "errors": []}
    for table in tables():
        for name, error in zip(table.column("path").to_pylist(), table.column("error").to_pylist(), strict=True):
            texts["paths" if error is None else "failed"].append(name)
            texts["errors"] += [] if error is None else [error]
    metadata = {key.decode(): value.decode() for key, value in made.metadata.items()}
    shapes = {name: (len(texts["paths"]), *shape) for name, shape in json.loads(metadata["shapes"]).items()}

    def values(name: str) -> Iterator[bytes]:
        for table in tables():
            for chunk in table.column(name).drop_null().chunks:
                yield np.ascontiguousarray(chunk.flatten().to_numpy(zero_copy_only=False), "<f4").tobytes()

    if format == "npz":
        with zipfile.ZipFile(path, "w") as archive:
            for name, shape in shapes.items():
                with archive.open(_aligned(archive, f"{name}.npy"), "w", force_zip64=True) as file:
                    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
                    file.writelines(values(name))
            for name, lines in {**texts, "metadata": [json.dumps(metadata)]}.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, np.array(lines, dtype=str), allow_pickle=False)
        return
    header: dict[str, Any] = {"__metadata__": metadata | {name: json.dumps(lines) for name, lines in texts.items()}}
    end = 0
    for name, shape in shapes.items():
        header[name] = {
            "dtype": "F32",
            "shape": list(shape),
            "data_offsets": [end, end := end + 4 * int(np.prod(shape))],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name in shapes:
            out.writelines(values(name))


def _aligned(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """Make the header of a member whose bytes begin at a multiple of 64, so that they can be mapped to memory as
    numbers: with a field for nothing else in it (that of Android's zipalign).
    """
    info = zipfile.ZipInfo(name)
    fixed = 30 + len(name) + 20 + 4  # the header, its field for large files, and this field's own head
    assert archive.fp is not None  # noqa: S101  (it is open)
    padding = -(archive.fp.tell() + fixed) % 64
    info.extra = struct.pack("<HH", 0xD935, padding) + bytes(padding)
    return info


Blocks = Iterator[tuple[list[str], np.ndarray]]


@dataclass(frozen=True)
class Held:
    """All vectors of an index, in memory or mapped to it."""

    vectors: list[np.ndarray]
    """float32 (n, D) each; together they are in the order of the index."""
    path: Callable[[int], str]
    """Path of a row."""


@dataclass(frozen=True)
class Index:
    """What `femtobooth embed` wrote."""

    path: Path
    metadata: dict[str, str]
    """model (what was given), model_hash, preprocess_hash, shapes and so on."""
    blocks: Callable[[], Blocks]
    """Paths and their embeddings (n, D), block by block, in constant memory."""
    hold: Callable[[], Held]
    """Map the vectors to memory; those of Parquet, which are compressed, are read into it."""
    takes: int
    """Bytes of memory that holding them takes; 0 where they are mapped."""


def open_index(path: Path) -> Index:
    """Open an index by its content. Raises InputError naming the file."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror})", "give a file that `femtobooth embed` wrote"
        ) from None
    read = _parquet if start == b"PAR1" else _npz if start[:2] == b"PK" else _safetensors
    try:
        index = read(path)
        json.loads(index.metadata["shapes"])["embedding"]
        index.metadata["model_hash"], index.metadata["preprocess_hash"]
    except Exception as error:  # of three libraries
        raise InputError(f"{path}: no index, or a damaged one ({type(error).__name__})", WAY_OUT) from None
    return index


def is_index(path: Path) -> bool:
    """Tell whether a file is empty, or one that `embed` wrote."""
    if not path.is_file():
        return False
    try:
        return path.stat().st_size == 0 or bool(open_index(path))
    except InputError:
        return False


def _parquet(path: Path) -> Index:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def matrix(values: Any) -> np.ndarray:
        return values.flatten().to_numpy().reshape(-1, values.type.list_size)

    def batches() -> Iterator[pa.RecordBatch]:
        with path.open("rb") as file, pq.ParquetFile(file) as opened:
            for batch in opened.iter_batches(ROWS, columns=["path", "embedding"]):
                yield batch.filter(batch.column("embedding").is_valid())

    def blocks() -> Blocks:
        return ((batch.column("path").to_pylist(), matrix(batch.column("embedding"))) for batch in batches())

    def hold() -> Held:
        kept = list(batches())
        paths = pa.chunked_array([batch.column("path") for batch in kept], pa.string())
        return Held([matrix(batch.column("embedding")) for batch in kept], lambda row: str(paths[row]))

    with path.open("rb") as opened, pq.ParquetFile(opened) as file:
        read = file.schema_arrow.metadata or {}
        metadata = {key.decode(): value.decode("utf-8", "replace") for key, value in read.items()}
        takes = file.metadata.num_rows * 4 * int(np.prod(json.loads(metadata["shapes"])["embedding"]))
        return Index(path, metadata, blocks, hold, takes)


def _npz(path: Path) -> Index:
    def hold() -> Held:
        paths = _mapped(path, "paths")
        return Held(_cut(_mapped(path, "embedding")), lambda row: str(paths[row]))

    with np.load(path, allow_pickle=False) as arrays:
        return Index(path, json.loads(str(arrays["metadata"][0])), lambda: _of(hold()), hold, takes=0)


def _mapped(path: Path, name: str) -> np.ndarray:
    """Map an array of an npz file, as `write` makes them, to memory; one that is compressed is read."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        if archive.getinfo(f"{name}.npy").compress_type != zipfile.ZIP_STORED:
            return np.load(path, allow_pickle=False)[name]
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, kind = read(file)
        start = archive.getinfo(f"{name}.npy").header_offset
        place = file.tell()
    if fortran or kind.hasobject:
        raise ValueError(f"{name} is laid out in another way")
    with path.open("rb") as opened:
        opened.seek(start + 26)
        place += start + 30 + sum(int.from_bytes(opened.read(2), "little") for _ in range(2))
    return _map(path, kind, shape, place)


def _safetensors(path: Path) -> Index:
    from safetensors import safe_open

    def hold() -> Held:
        with safe_open(path, "np") as file:
            paths = json.loads(file.metadata()["paths"])
        with path.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            said = json.loads(opened.read(length))["embedding"]
        if said["dtype"] != "F32":
            raise ValueError(said["dtype"])
        place = 8 + length + said["data_offsets"][0]
        return Held(_cut(_map(path, np.dtype("<f4"), tuple(said["shape"]), place)), paths.__getitem__)

    with safe_open(path, "np") as file:
        own = {key: value for key, value in file.metadata().items() if key not in ("paths", "failed", "errors")}
        return Index(path, own, lambda: _of(hold()), hold, takes=0)


def _map(path: Path, kind: np.dtype[Any], shape: tuple[int, ...], place: int) -> np.ndarray:
    return np.memmap(path, kind, "r", place, shape).view(np.ndarray) if 0 not in shape else np.empty(shape, kind)


def _cut(vectors: np.ndarray) -> list[np.ndarray]:
    return [vectors[start : start + ROWS] for start in range(0, len(vectors), ROWS)]


def _of(held: Held) -> Blocks:
    """Give the blocks of vectors with their paths."""
    start = 0
    for block in held.vectors:
        yield [held.path(row) for row in range(start, start + len(block))], block
        start += len(block)
