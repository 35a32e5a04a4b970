"""The nearest embeddings are those of 64-bit search, whatever the format, the number of blocks and of queries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from femtobooth.recognizer.inference import index, nearest, outputs
from femtobooth.recognizer.inference.nearest import Searcher, opened, scan

WIDTH = 24


@pytest.fixture
def vectors(monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """A thousand directions in a narrow cone, some of them equal, some nearly, one of no length."""
    monkeypatch.setattr(index, "ROWS", 64)
    random = np.random.default_rng(0)
    made = np.concatenate([random.standard_normal((1000, WIDTH)) + 3]).astype(np.float32)
    made[500:520] = made[7]
    made[700:720] = made[7] * (1 + 1e-6 * random.standard_normal((20, WIDTH)))
    made[900] = 0
    return made * random.uniform(0.1, 10, (1000, 1)).astype(np.float32)


def written(vectors: np.ndarray, path: Path) -> Path:
    facts = {"model": "none", "model_hash": "1", "preprocess_hash": "2"}
    made = index.schema({"embedding": (WIDTH,)}, facts)

    def tables() -> Iterator[pa.Table]:
        """Every 90th picture could not be read."""
        for start in range(0, len(vectors), 90):
            part = vectors[start : start + 90]
            values = np.concatenate([part, np.zeros((1, WIDTH), np.float32)])
            missing = pa.array([False] * len(part) + [True])
            columns = [
                pa.array([f"{start + row}.jpg" for row in range(len(values))]),
                pa.FixedSizeListArray.from_arrays(
                    pa.array(values.reshape(-1)), type=made.field("embedding").type, mask=missing
                ),
                pa.array([None] * len(part) + ["torn"], pa.string()),
            ]
            yield pa.Table.from_arrays(columns, schema=made)

    if path.suffix == ".parquet":
        outputs.write_parquet(path, tables(), made)
    else:
        index.write(path, path.suffix[1:], tables, made)
    return path


def expected(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[list[list[str]], np.ndarray]:
    wide, asked = vectors.astype(np.float64), queries.astype(np.float64)
    unit = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    scores = np.stack([(unit * (one / np.linalg.norm(one))).sum(axis=1) for one in asked])
    places = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return [[f"{place}.jpg" for place in row] for row in places], np.take_along_axis(scores, places, 1)


@pytest.mark.parametrize("format", index.FORMATS)
def test_all_formats(vectors: np.ndarray, tmp_path: Path, format: str) -> None:
    searcher = Searcher(index.open_index(written(vectors, tmp_path / f"e.{format}")))
    queries = np.stack([vectors[7], vectors[3] + vectors[4], -vectors[1]])
    for k in (1, 30, 2000):
        names, scores = expected(vectors, queries, k)
        for _ in range(2):  # from the file, then from memory
            found = searcher.nearest(queries, k)
            assert [[name for name, _ in row] for row in found] == names
            np.testing.assert_allclose([[score for _, score in row] for row in found], scores, rtol=0, atol=1e-12)


def test_vectors_are_mapped_and_not_read(vectors: np.ndarray, tmp_path: Path) -> None:
    """Whatever stands before them in the file, where another width would put them elsewhere."""
    for format in ("npz", "safetensors"):
        held = index.open_index(written(vectors, tmp_path / f"e.{format}")).hold()
        assert all(part.flags.aligned and not part.flags.owndata for part in held.vectors)
        assert np.array_equal(np.concatenate(held.vectors), vectors)
    odd = np.empty(vectors.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(vectors.shape)
    odd[:] = vectors
    sizes = nearest.lengths(odd)
    assert not odd.flags.aligned and np.array_equal(sizes, nearest.lengths(vectors))
    directions = nearest.unit(vectors[:3])
    assert scan(directions, [(0, odd, sizes)], 5) == scan(directions, [(0, vectors, sizes)], 5)


def test_what_does_not_fit_is_read_each_time(
    vectors: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nearest, "HELD", 4 * WIDTH * 900)
    searcher = Searcher(index.open_index(written(vectors, tmp_path / "e.parquet")))
    assert searcher.nearest(vectors[:1], 3) == searcher.nearest(vectors[:1], 3)
    assert searcher._kept is None and searcher.index.takes > nearest.HELD


def test_an_index_is_opened_once_until_it_changes(vectors: np.ndarray, tmp_path: Path) -> None:
    path = written(vectors, tmp_path / "e.npz")
    assert opened(path) is opened(path)
    before = opened(path).nearest(vectors[3:4], 1)
    written(vectors[::-1], path)
    ((name, _),) = opened(path).nearest(vectors[3:4], 1)[0:1][0]
    assert before[0][0][0] == "3.jpg" and name == "996.jpg"


def test_what_was_found_before_counts() -> None:
    blocks = np.eye(4, dtype=np.float32)
    ones = np.ones(2, np.float32)
    first = scan(np.eye(4)[:1], [(0, blocks[2:], ones)], 2)
    assert scan(np.eye(4)[:1], [(2, blocks[:2], ones)], 2, first) == [[(1.0, 2), (0.0, 0)]]
