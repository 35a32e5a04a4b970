"""Pictures behind addresses and in columns of Parquet files: the rows of the same pictures in a folder."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from femtobooth.core import config
from femtobooth.core.errors import PhotoError, SettingsError
from femtobooth.recognizer.inference.reading import listed
from femtobooth.recognizer.inference.sources import stamped
from femtobooth.recognizer.settings import ClassifySettings
from femtobooth.workflows import classify

SAID = ("label", "confidence", "top", "error")


def settled(model: Path, *paths: str, **more: Any) -> ClassifySettings:
    return config.settle(ClassifySettings, {"paths": list(paths), "model": str(model), "batch_size": 4} | more)


def said(model: Path, *paths: str, **more: Any) -> tuple[list[str], list[Any]]:
    rows = list(classify.rows(settled(model, *paths, **more)))
    return [row["path"] for row in rows], [[row[name] for name in SAID] for row in rows]  # type: ignore[literal-required]


@pytest.fixture
def memory(photos: Path) -> Iterator[str]:
    """The photos in the file system of fsspec that is this process's memory, one of them torn, beside a text."""
    (photos / "a" / "4.jpg").write_bytes((photos / "a" / "4.jpg").read_bytes()[:200])
    (photos / "a" / "words.txt").write_text("no picture")
    system = fsspec.filesystem("memory")
    system.put(f"{photos}/", "/bucket/photos/", recursive=True)
    yield "memory://bucket/photos"
    system.rm("/bucket", recursive=True)


def test_an_address_has_the_rows_of_the_folder(tiny_onnx: Path, photos: Path, memory: str) -> None:
    names, rows = said(tiny_onnx, str(photos))
    far, found = said(tiny_onnx, memory)
    assert far == [name.replace(str(photos), "memory:///bucket/photos") for name in names]
    assert found == rows and sum(row[-1] is not None for row in rows) == 1
    assert said(tiny_onnx, f"{memory}/b/*.jpg")[1] == rows[10:]
    assert said(tiny_onnx, f"{memory}/b/3.jpg")[1] == said(tiny_onnx, str(photos / "b" / "3.jpg"))[1]


def test_stamps_tell_changes(tiny_onnx: Path, memory: str) -> None:
    def stamps() -> list[Any]:
        return [stamped(source).stamp for source in listed(settled(tiny_onnx, memory))]

    before = stamps()
    assert stamps() == before and len(set(before)) > 1
    fsspec.filesystem("memory").pipe("/bucket/photos/a/0.jpg", b"other")
    assert [one != other for one, other in zip(before, stamps(), strict=True)] == [True] + 20 * [False]


def test_a_server(tiny_onnx: Path, photos: Path) -> None:
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(quiet, directory=str(photos))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/b/"
        far, found = said(tiny_onnx, address)
        assert far[:2] == [f"{address}1.jpg", f"{address}3.jpg"]
        assert found == said(tiny_onnx, str(photos / "b"))[1]
        with pytest.raises(PhotoError, match="no such file or folder"):
            said(tiny_onnx, f"{address}none.jpg")
        server.shutdown()


def test_columns(tiny_onnx: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "a" / "4.jpg").write_bytes((photos / "a" / "4.jpg").read_bytes()[:200])
    files = sorted(photos.rglob("*.jpg"))
    names, rows = said(tiny_onnx, *map(str, files))
    data = [file.read_bytes() for file in files]
    table = pa.table({
        "name": list(map(str, files)),
        "data": data,
        "image": [{"bytes": one, "path": None} for one in data],
        "number": list(range(20)),
    })  # fmt: skip
    file = tmp_path / "photos.parquet"
    pq.write_table(table, file, row_group_size=6)
    assert said(tiny_onnx, str(file), column="name") == (names, rows)
    for column in ("data", "image"):
        found = said(tiny_onnx, str(file), column=column)
        assert found == ([f"{file}#{row}" for row in range(20)], rows)
    with pytest.raises(SettingsError, match="`column=number`: holds int64"):
        said(tiny_onnx, str(file), column="number")
    with pytest.raises(SettingsError, match=r"has no such column\n  -> it has name, data, image, number"):
        said(tiny_onnx, str(file), column="picture")


def test_a_file_system_that_is_not_installed(tiny_onnx: Path) -> None:
    with pytest.raises(SettingsError, match="nowhere://photos: cannot be opened here"):
        said(tiny_onnx, "nowhere://photos")
