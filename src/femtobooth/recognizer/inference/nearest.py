"""The nearest of many embeddings, by exact search: every vector is compared, a block at a time.

Products of 32-bit floats find which rows may be among the nearest; only their similarities are computed in 64 bits, so
that the answer is that of 64-bit search. All of it is bound by how fast memory is read.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ...core.machine import cores
from .index import Held, Index, open_index

NEAR = 2e-4
"""More than the rounding of a cosine of 32-bit floats, of up to 10,000 dimensions."""
LEAST = 1e-12  # length of a vector, below which it has no direction
HELD = 2**32  # bytes of memory
CHUNK = 4096  # rows that are computed in 64 bits at a time

Best = list[tuple[float, int]]
"""Cosine similarity and row, nearest first; of equal ones the first row."""


class Searcher:
    """Answers queries from vectors that are mapped to memory; those of Parquet are held there from the second call on,
    if they do not take more than `HELD`.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        self._kept: tuple[Held, list[np.ndarray]] | None = None
        self._first = True

    def nearest(self, queries: np.ndarray, k: int) -> list[list[tuple[str, float]]]:
        """Find for each query (Q, D) paths and cosine similarities of the k nearest pictures, nearest first."""
        directions = unit(queries)
        first, self._first = self._first, False
        if self.index.takes > (0 if first else HELD):
            return self._streamed(directions, k)
        if self._kept is None:
            held = self.index.hold()
            with ThreadPoolExecutor(cores()) as pool:
                self._kept = held, list(pool.map(lengths, held.vectors))
        held, sizes = self._kept
        starts = np.cumsum([0, *map(len, held.vectors)]).tolist()
        blocks = list(zip(starts, held.vectors, sizes, strict=False))
        shares = [blocks[first :: cores()] for first in range(cores())]
        with ThreadPoolExecutor(len(shares)) as pool:
            found = list(pool.map(lambda share: scan(directions, share, k), shares))
        return [
            [(held.path(row), score) for score, row in merged(of_query, k)] for of_query in zip(*found, strict=True)
        ]

    def _streamed(self, directions: np.ndarray, k: int) -> list[list[tuple[str, float]]]:
        start = 0
        names: dict[int, str] = {}
        best: list[Best] = [[] for _ in directions]
        for paths, vectors in self.index.blocks():
            best = scan(directions, [(start, vectors, lengths(vectors))], k, best)
            names = {row: names[row] if row < start else paths[row - start] for one in best for _, row in one}
            start += len(vectors)
        return [[(names[row], score) for score, row in one] for one in best]


@functools.lru_cache(1)
def _searcher(path: Path, size: int, changed: int) -> Searcher:
    return Searcher(open_index(path))


def opened(path: Path) -> Searcher:
    """Open an index, or give the one that was last opened in this process if it has not changed. Raises InputError."""
    try:
        facts = os.stat(path)  # noqa: PTH116
    except OSError:
        return Searcher(open_index(path))  # which says why not
    return _searcher(path.absolute(), facts.st_size, facts.st_mtime_ns)


def scan(
    directions: np.ndarray,
    blocks: Iterable[tuple[int, np.ndarray, np.ndarray]],
    k: int,
    best: list[Best] | None = None,
) -> list[Best]:
    """Find for each direction (Q, D) the k nearest rows of blocks: number of the first row, vectors, their lengths.

    `best` is what was found before.
    """
    found = best or [[] for _ in directions]
    queries = directions.astype(np.float32)
    for start, vectors, sizes in blocks:
        scores = np.divide(queries @ np.require(vectors, requirements="A").T, sizes)  # (Q, n)
        for number, (direction, row) in enumerate(zip(directions, scores, strict=True)):
            found[number] = merged([found[number], _better(direction, row, vectors, start, k, found[number])], k)
    return found


def _better(direction: np.ndarray, scores: np.ndarray, vectors: np.ndarray, start: int, k: int, best: Best) -> Best:
    """Find the rows of a block that belong among the best so far."""
    least = best[-1][0] if len(best) == k else -np.inf
    if len(scores) > k and np.count_nonzero(scores >= least - NEAR) > k:
        least = max(least, float(np.partition(scores, len(scores) - k)[len(scores) - k]))
    places = np.flatnonzero(~(scores < least - NEAR))
    near: Best = []
    for chunk in np.array_split(places, len(places) // CHUNK + 1):
        exact = (unit(vectors[chunk]) * direction).sum(axis=1)
        near = merged(
            [near, [(float(score), start + int(place)) for score, place in zip(exact, chunk, strict=True)]], k
        )
    return near


def merged(several: Iterable[Best], k: int) -> Best:
    """Give the k best of several lists."""
    return sorted((one for best in several for one in best), key=lambda one: (-one[0], one[1]))[:k]


def lengths(vectors: np.ndarray) -> np.ndarray:
    """Compute the lengths of vectors (n, D), float32 (n)."""
    values = np.require(vectors, requirements="A")
    return np.maximum(np.sqrt(np.einsum("ij,ij->i", values, values)), np.float32(LEAST))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Give vectors of length 1 in 64 bits; one of no length stays."""
    values = np.asarray(vectors, np.float64)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), LEAST)
