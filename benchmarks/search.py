"""How long `search` looks through many embeddings, once they are in memory: exact, against the plain way.

    python benchmarks/search.py [--rows 1000000] [--width 384] [--repeats 20] [--format npz]

Embeddings are made by a seeded formula (clusters, of which queries are members) and written as `embed` writes them. The
first answer reads the file; those after it are warm. Compared with normalizing and multiplying all at once in 64 bits,
which is what is exact. Medians; the machine's memory bounds all of it, so that a plain copy of as many bytes is timed
beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from femtobooth.core import machine
from femtobooth.core.console import Terminal
from femtobooth.core.events import listening, table
from femtobooth.recognizer.inference import index
from femtobooth.recognizer.inference.nearest import Searcher, unit

BLOCK = 50_000


def block(centers: np.ndarray, number: int, rows: int) -> np.ndarray:
    """Make embeddings (rows, D) that lie about centers, as pictures of a kind do."""
    random = np.random.default_rng(number)
    noise = random.standard_normal((rows, centers.shape[1]), np.float32)
    return centers[random.integers(0, len(centers), rows)] + 0.5 * noise


def write(path: Path, format: str, rows: int, centers: np.ndarray) -> None:
    """Write an index as `embed` does."""
    import pyarrow as pa

    made = index.schema({"embedding": centers.shape[1:]}, {"model": "none", "model_hash": "", "preprocess_hash": ""})

    def tables() -> object:
        for number in range(rows // BLOCK):
            values = pa.array(block(centers, number, BLOCK).reshape(-1))
            columns = [
                pa.array([f"photos/{number:04}/{row:06}.jpg" for row in range(BLOCK)]),
                pa.FixedSizeListArray.from_arrays(values, type=made.field("embedding").type),
                pa.nulls(BLOCK, pa.string()),
            ]
            yield pa.Table.from_arrays(columns, schema=made)

    if format == "parquet":
        from femtobooth.recognizer.inference.outputs import write_parquet

        write_parquet(path, tables(), made)  # type: ignore[arg-type]
    else:
        index.write(path, format, tables, made)  # type: ignore[arg-type]


def timed(action: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds of wall and of processor."""
    began, used = time.monotonic(), time.process_time()
    action()
    return 1000 * (time.monotonic() - began), 1000 * (time.process_time() - used)


def main(rows: int, width: int, repeats: int, format: str) -> None:
    rows = rows // BLOCK * BLOCK
    centers = np.random.default_rng(0).standard_normal((2000, width), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"embeddings.{format}")
        write(path, format, rows, centers)
        searcher = Searcher(index.open_index(path))
        queries = block(centers, 10**6, repeats)
        lines: list[tuple[str, ...]] = []
        for name, given in (
            ("first answer", queries[:1]),
            ("second answer, which holds the vectors of Parquet", queries[:1]),
        ):
            wall, processor = timed(lambda given=given: searcher.nearest(given, 10))  # type: ignore[misc]
            lines.append((name, f"{wall:.0f}", f"{processor:.0f}"))
        warm = [timed(lambda one=one: searcher.nearest(one[None], 10)) for one in queries]  # type: ignore[misc]
        lines.append(("one query, warm", *(f"{statistics.median(part):.0f}" for part in zip(*warm, strict=True))))
        several = [timed(lambda: searcher.nearest(np.resize(queries, (16, width)), 10)) for _ in range(5)]
        parts = (f"{statistics.median(part) / 16:.0f}" for part in zip(*several, strict=True))
        lines.append(("one of 16 queries at once, warm", *parts))
        held = searcher.index.hold()
        copied = [timed(lambda: [part.max() for part in held.vectors]) for _ in range(5)]
        lines.append(
            ("reading all once, one thread", *(f"{statistics.median(part):.0f}" for part in zip(*copied, strict=True)))
        )
        asked = queries[: min(3, repeats)]
        scores = np.concatenate([unit(part) @ unit(asked).T for part in held.vectors])  # (rows, Q)
        for number, found in enumerate(searcher.nearest(asked, 10)):
            expected = np.argsort(-scores[:, number], kind="stable")[:10]
            near = np.allclose([score for _, score in found], scores[expected, number], rtol=0, atol=1e-12)
            if [name for name, _ in found] != [held.path(int(row)) for row in expected] or not near:
                sys.exit(f"query {number}: not the answer of 64 bits")
    title = f"{rows} embeddings of {width} in {format}, {machine.cores()} cores, load {os.getloadavg()[0]:.1f}"
    table(f"{title}; the answers are those of 64 bits", ["", ">wall ms", ">processor ms"], lines)
    print(json.dumps({"warm_ms": statistics.median(wall for wall, _ in warm)}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--format", choices=index.FORMATS, default="npz")
    given = parser.parse_args()
    with listening(Terminal()):
        main(given.rows, given.width, given.repeats, given.format)
