"""Embeddings on disk, and the nearest of them:

Parquet, npz or safetensors, with the model and preprocessing they come from.
"""

from __future__ import annotations

import json
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
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
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


@dataclass(frozen=True)
class Index:
    """What `femtobooth embed` wrote."""

    path: Path
    metadata: dict[str, str]
    """model (what was given), model_hash, preprocess_hash, shapes and so on."""
    parts: Callable[[], Iterator[tuple[list[str], np.ndarray]]]
    """Paths and their embeddings (N, D), piece by piece."""


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
        metadata, parts = read(path)
        json.loads(metadata["shapes"])["embedding"]
        metadata["model_hash"], metadata["preprocess_hash"]
    except Exception as error:  # of three libraries
        raise InputError(f"{path}: no index, or a damaged one ({type(error).__name__})", WAY_OUT) from None
    return Index(path, metadata, parts)


def is_index(path: Path) -> bool:
    """Tell whether a file is empty, or one that `embed` wrote."""
    if not path.is_file():
        return False
    try:
        return path.stat().st_size == 0 or bool(open_index(path))
    except InputError:
        return False


def nearest(index: Index, queries: np.ndarray, k: int) -> list[list[tuple[str, float]]]:
    """Find for each query (Q, D) paths and cosine similarities of the k nearest pictures, nearest first; in constant
    memory.
    """
    directions = _unit(queries)
    best: list[list[tuple[str, float]]] = [[] for _ in queries]
    for paths, embeddings in index.parts():
        scores = directions @ _unit(embeddings).T
        for found, row in zip(best, scores, strict=True):
            found += [(paths[place], float(row[place])) for place in np.argsort(-row, kind="stable")[:k]]
            found.sort(key=lambda pair: -pair[1])
            del found[k:]
    return best


def _unit(vectors: np.ndarray) -> np.ndarray:
    values = np.asarray(vectors, np.float64)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


Read = tuple[dict[str, str], Callable[[], Iterator[tuple[list[str], np.ndarray]]]]


def _parquet(path: Path) -> Read:
    import pyarrow.parquet as pq

    def parts() -> Iterator[tuple[list[str], np.ndarray]]:
        with path.open("rb") as file, pq.ParquetFile(file) as opened:
            for batch in opened.iter_batches(4096, columns=["path", "embedding"]):
                kept = batch.filter(batch.column("embedding").is_valid())
                values = kept.column("embedding")
                yield kept.column("path").to_pylist(), values.flatten().to_numpy().reshape(-1, values.type.list_size)

    with path.open("rb") as opened, pq.ParquetFile(opened) as file:
        return {
            key.decode(): value.decode("utf-8", "replace") for key, value in (file.schema_arrow.metadata or {}).items()
        }, parts


def _npz(path: Path) -> Read:
    def parts() -> Iterator[tuple[list[str], np.ndarray]]:
        with np.load(path, allow_pickle=False) as arrays:
            yield list(map(str, arrays["paths"])), arrays["embedding"]

    with np.load(path, allow_pickle=False) as arrays:
        return json.loads(str(arrays["metadata"][0])), parts


def _safetensors(path: Path) -> Read:
    from safetensors import safe_open

    def parts() -> Iterator[tuple[list[str], np.ndarray]]:
        with safe_open(path, "np") as file:
            yield json.loads(file.metadata()["paths"]), file.get_tensor("embedding")

    with safe_open(path, "np") as file:
        return {key: value for key, value in file.metadata().items() if key not in ("paths", "failed", "errors")}, parts
