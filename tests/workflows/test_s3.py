"""Pictures and rows behind `s3://`, on a server of this machine (moto's): those of a local folder."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("moto.server", reason="there is no S3 server here: pip install '.[test-more]'")
pytest.importorskip("s3fs", reason="s3fs is not installed: pip install '.[test-more]'")
ray = pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")

import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import s3fs  # noqa: E402
from moto.server import ThreadedMotoServer  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from femtobooth.core import config  # noqa: E402
from femtobooth.core.bulk.parts import SUCCESS  # noqa: E402
from femtobooth.recognizer.settings import ClassifySettings  # noqa: E402
from femtobooth.workflows import classify  # noqa: E402

SAID = ("label", "confidence", "top", "error")
PHOTOS = "bucket/photos"


@pytest.fixture(scope="module")
def s3() -> Iterator[s3fs.S3FileSystem]:
    """A server, where this process and those it starts find it as they would Amazon's."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    given = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            patch.setenv(name, value)
        system = s3fs.S3FileSystem()
        system.mkdir("bucket")
        yield system
    server.stop()


@pytest.fixture(scope="module")
def cluster(s3: s3fs.S3FileSystem) -> Iterator[str]:
    """Two nodes of one core, which know where the server is."""
    os.environ |= {"RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_worker_niceness": "0"}
    small = {"num_cpus": 1, "object_store_memory": 2**27}
    made = Cluster(initialize_head=True, head_node_args=small | {"include_dashboard": False})
    made.add_node(**small)
    yield made.address
    made.shutdown()


@pytest.fixture
def stored(s3: s3fs.S3FileSystem, photos: Path, tmp_path: Path) -> dict[str, list[str]]:
    """The photos, one of them torn, in three kinds of places of a bucket, with what `classify` is given to find them."""
    (photos / "a" / "4.jpg").write_bytes((photos / "a" / "4.jpg").read_bytes()[:200])
    files = sorted(photos.rglob("*.jpg"), key=lambda file: (file.parent.name, int(file.stem)))
    names = [f"s3://{PHOTOS}/{file.relative_to(photos)}" for file in files]
    pq.write_table(pa.table({"image": [file.read_bytes() for file in files], "there": names}), tmp_path / "p.parquet")
    with tarfile.open(tmp_path / "p.tar", "w") as archive:
        for file in files:
            archive.add(file, str(file.relative_to(photos)))
    s3.rm("bucket", recursive=True) if s3.find("bucket") else None
    s3.invalidate_cache()
    if not s3.exists("bucket"):
        s3.mkdir("bucket")
    s3.put(f"{photos}/", f"{PHOTOS}/", recursive=True)
    for kind in ("parquet", "tar"):
        s3.put_file(str(tmp_path / f"p.{kind}"), f"bucket/p.{kind}")
    return {
        "a folder": [f"s3://{PHOTOS}"],
        "globs": [f"s3://{PHOTOS}/a/*.jpg", f"s3://{PHOTOS}/b/*.jpg"],
        "a column of pictures": ["s3://bucket/p.parquet", "--column", "image"],
        "a column of addresses": ["s3://bucket/p.parquet", "--column", "there"],
        "an archive": ["s3://bucket/p.tar"],
    }


@pytest.fixture
def expected(stored: dict[str, list[str]], photos: Path, tiny_onnx: Path) -> list[list[Any]]:
    """The rows of the folder, without their names."""
    given = {"paths": [str(photos)], "model": str(tiny_onnx), "batch_size": 4}
    return [[row[name] for name in SAID] for row in classify.rows(config.settle(ClassifySettings, given))]  # type: ignore[literal-required]


def labels(s3: s3fs.S3FileSystem, out: str) -> list[dict[str, Any]]:
    s3.invalidate_cache()
    parts = [one for one in sorted(s3.find(out)) if one.endswith(".parquet")]
    found: list[dict[str, Any]] = []
    for part in parts:
        with s3.open(part) as file:
            found += pq.read_table(file).to_pylist()
    return found


def given(model: Path, words: list[str]) -> dict[str, Any]:
    paths, column = ([*words[:-2]], words[-1]) if "--column" in words else (words, None)
    return {"paths": paths, "model": str(model), "batch_size": 4} | ({"column": column} if column else {})


def test_rows_are_those_of_a_folder(stored: dict[str, list[str]], expected: list[list[Any]], tiny_onnx: Path) -> None:
    assert len(expected) == 20 and sum(row[-1] is not None for row in expected) == 1
    for place, words in stored.items():
        found = classify.rows(config.settle(ClassifySettings, given(tiny_onnx, words)))
        assert [[row[name] for name in SAID] for row in found] == expected, place  # type: ignore[literal-required]


def test_parts_are_those_rows(
    cluster: str, s3: s3fs.S3FileSystem, stored: dict[str, list[str]], expected: list[list[Any]], tiny_onnx: Path
) -> None:
    for number, (place, words) in enumerate(stored.items()):
        out = f"bucket/labels-{number}"
        more = {"executor": "ray", "address": cluster, "part_size": 8, "out": f"s3://{out}"}
        counts = classify.run(config.settle(ClassifySettings, given(tiny_onnx, words) | more))
        assert (counts["read"], counts["failed"]) == (19, 1)
        assert [[row[name] for name in SAID] for row in labels(s3, out)] == expected, place
        assert s3.exists(f"{out}/{SUCCESS}")


def test_a_killed_command_goes_on(
    cluster: str, s3: s3fs.S3FileSystem, stored: dict[str, list[str]], expected: list[list[Any]], tiny_onnx: Path
) -> None:
    out = "bucket/killed"
    command = [sys.executable, "-m", "femtobooth", "classify", *stored["a folder"], "--model", str(tiny_onnx)]
    command += ["--batch-size", "1", "--part-size", "1", "--executor", "ray", "--address", cluster]
    command += ["--out", f"s3://{out}", "--json"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as first:
        while not any(name.endswith(".parquet") for name in s3.find(out, refresh=True)):
            assert first.poll() is None, first.communicate()[1][-2000:]
            time.sleep(0.05)
        first.kill()
    time.sleep(2)  # until its actors have ended, too
    done = labels(s3, out)
    assert 0 < len(done) < 20 and not s3.exists(f"{out}/{SUCCESS}")
    second = subprocess.run(command, check=False, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr[-2000:]
    found = labels(s3, out)
    assert [row["path"] for row in found] == [
        row["path"] for row in sorted(found, key=lambda one: natural(one["path"]))
    ]
    assert len({row["path"] for row in found}) == len(found) == 20
    assert [(row["label"], row["error"]) for row in found] == [(row[0], row[-1]) for row in expected]


def natural(path: str) -> tuple[str, int]:
    folder, _, name = path.rpartition("/")
    return folder, int(name.removesuffix(".jpg"))
