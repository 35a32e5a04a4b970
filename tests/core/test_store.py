"""Parts of a dataset behind an address: as in a folder, but for the lock."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from femtobooth.core.bulk.parts import SUCCESS, Dataset, make, parts_of
from femtobooth.core.bulk.settings import BulkSettings
from femtobooth.core.bulk.store import Remote
from femtobooth.core.errors import ExistsError, SettingsError, StorageError


class Squares:
    schema = pa.schema([("path", pa.string()), ("square", pa.int64()), ("error", pa.string())])

    def stamp(self, items: tuple[int, ...]) -> str:
        return str(items)

    def still_fails(self, items: tuple[int, ...], failed: list[str]) -> bool:
        return True

    def tables(self, items: tuple[int, ...]) -> Iterator[pa.Table]:
        yield pa.Table.from_pylist([{"path": str(one), "square": one * one} for one in items], schema=self.schema)


PARTS = [*parts_of(range(5), 2, str)]


@pytest.fixture(params=["memory://bucket/squares", "file://{}/deep/squares"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Remote]:
    yield Remote(request.param.format(tmp_path))
    fsspec.filesystem("memory").store.clear()


def test_parts_behind_an_address(out: Remote) -> None:
    with Dataset.open(out, {"by": "squaring"}) as dataset:
        assert [make(dataset.store, part, Squares()).rows for part in PARTS[:2]] == [2, 2]
    with pytest.raises(ExistsError, match="unfinished rows of another model"), Dataset.open(out, {"by": "chance"}):
        pass
    with Dataset.open(out, {"by": "squaring"}) as dataset:  # interrupted, and given again, of other inputs
        told = [make(dataset.store, part, Squares()) for part in PARTS[1:]]
        assert [(one.before, one.rows) for one in told] == [(2, 0), (0, 1)]
        assert dataset.finish({part.name for part in PARTS[1:]}, {"rows": 3}) == 1
    system, path = fsspec.core.url_to_fs(out.address)
    with system.open(f"{path}/{SUCCESS}") as file:
        assert json.load(file) == {"rows": 3}
    assert sorted(out.names()) == sorted([SUCCESS, "_settings.json", *(part.name for part in PARTS[1:])])
    assert pq.read_table(f"{path}/", filesystem=system)["square"].to_pylist() == [4, 9, 16]

    with pytest.raises(ExistsError, match="already exists"), Dataset.open(out, {"by": "squaring"}):
        pass
    with Dataset.open(Remote(out.address, overwrite=True), {"by": "chance"}):
        assert out.names() == ["_settings.json"]
    system.pipe_file(f"{path}/mine.txt", b"")
    with (
        pytest.raises(ExistsError, match=r"did not write there \(mine.txt\)"),
        Dataset.open(Remote(out.address, overwrite=True), {}),
    ):
        pass


def test_what_cannot_be_reached() -> None:
    with pytest.raises(StorageError, match="nowhere://bucket: cannot be read or written"):
        Remote("nowhere://bucket").names()
    with pytest.raises(SettingsError, match="only `executor=ray` writes to an address"):
        _Labels(out="s3://bucket/labels").refuse_at_once()


class _Labels(BulkSettings):
    out: str
