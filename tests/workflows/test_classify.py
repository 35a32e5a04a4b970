"""`femtobooth classify`: every format says the same, an interruption loses nothing, what is unreadable is a row."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from femtobooth import cli
from femtobooth.core import config
from femtobooth.core.errors import ExistsError, InputError, InUseError, PhotoError, SettingsError, StorageError
from femtobooth.core.names import restored
from femtobooth.recognizer.inference import outputs, reading
from femtobooth.recognizer.inference.predict import Batch
from femtobooth.recognizer.model.backbone import Recognizer
from femtobooth.recognizer.settings import ClassifySettings
from femtobooth.workflows import classify


def run(*paths: Path, **given: Any) -> dict[str, Any]:
    return classify.run(
        config.resolve(ClassifySettings, {"paths": list(map(str, paths)), "batch_size": 3, "workers": 2} | given)
    )


@pytest.fixture
def rows(tiny_onnx: Path, photos: Path, tmp_path: Path) -> list[dict[str, Any]]:
    """What an uninterrupted run says of the photos, one of which is unreadable."""
    (photos / "a" / "4.jpg").write_bytes(b"\xff\xd8\xff cut off")
    run(photos, model=str(tiny_onnx), out=str(tmp_path / "whole.jsonl"))
    return [json.loads(line) for line in (tmp_path / "whole.jsonl").read_text().splitlines()]


def test_rows(rows: list[dict[str, Any]], photos: Path, tiny: Path) -> None:
    assert [row["path"] for row in rows] == [
        *(f"{photos}/a/{i}.jpg" for i in range(0, 20, 2)),
        *(f"{photos}/b/{i}.jpg" for i in range(1, 20, 2)),
    ]
    (bad,) = (row for row in rows if row["error"])
    assert bad == {"path": f"{photos}/a/4.jpg", "error": bad["error"]} | dict.fromkeys(
        ("label", "synset", "confidence", "rejected", "top")
    )
    for row in rows:
        if not row["error"]:
            assert [guess["confidence"] for guess in row["top"]] == sorted(
                (guess["confidence"] for guess in row["top"]), reverse=True
            )
            assert sum(guess["confidence"] for guess in row["top"]) == pytest.approx(1, abs=1e-5)
            assert row["top"][0] == {name: row[name] for name in ("label", "synset", "confidence")}
    recognizer = Recognizer.load(tiny)
    from PIL import Image

    logits = recognizer(recognizer.batch([Image.open(rows[0]["path"])])).numpy()
    assert rows[0]["confidence"] == pytest.approx(
        recognizer.labels.probabilities(logits, 2.0).max(), abs=1e-4
    )  # calibrated
    assert len({row["label"] for row in rows}) > 2


@pytest.mark.parametrize("format", ["json", "csv", "parquet"])
def test_formats_say_the_same(
    rows: list[dict[str, Any]], tiny_onnx: Path, photos: Path, tmp_path: Path, format: str
) -> None:
    out = tmp_path / f"labels.{format}"
    run(photos, model=str(tiny_onnx), out=str(out), top_k=5)
    if format == "json":
        assert json.loads(out.read_text()) == rows
    elif format == "parquet":
        table = pq.read_table(out)
        assert table.to_pylist() == rows
        assert table.schema.metadata[b"model_hash"].decode() == Recognizer.load(tiny_onnx.with_name("tiny")).hash
    else:
        lines = list(csv.DictReader(io.StringIO(out.read_text(encoding="utf-8"))))
        for line, row in zip(lines, rows, strict=True):
            assert (line["path"], line["error"], line["label"]) == (row["path"], row["error"] or "", row["label"] or "")
            if row["top"]:
                assert [line["label"], *(line[f"label_{rank}"] for rank in range(2, 6))] == [
                    guess["label"] for guess in row["top"]
                ]
                assert float(line["confidence_3"]) == row["top"][2]["confidence"]


def test_stdout(rows: list[dict[str, Any]], tiny_onnx: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["classify", str(photos), "--model", str(tiny_onnx), "--format", "jsonl"])
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows
    cli.main(["classify", str(photos), "--model", str(tiny_onnx), "--json"])
    assert json.loads(capsys.readouterr().out) == rows
    cli.main(["classify", str(photos), "--model", str(tiny_onnx)])
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 20
    assert "1 of 20 files could not be read" in said.err


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
@pytest.mark.parametrize("after", [0, 1, 4])
def test_an_interrupted_run_goes_on(
    rows: list[dict[str, Any]],
    tiny_onnx: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    format: str,
    after: int,
) -> None:
    out, real = tmp_path / f"labels.{format}", reading.predict
    monkeypatch.setattr(outputs, "SECONDS", -1.0)  # a part for each batch

    def stopped(*given: Any) -> Iterator[Batch]:
        for count, batch in enumerate(real(*given)):
            if count == after:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(reading, "predict", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(photos, model=str(tiny_onnx), out=str(out))
    assert not out.exists()
    (tmp_path / f"labels.{format}.part" / ".tmp-torn-000009.parquet").write_bytes(b"PAR1 torn")
    monkeypatch.setattr(reading, "predict", real)
    facts = run(photos, model=str(tiny_onnx), out=str(out))
    done = sum(
        row["error"] is None for row in rows[: 3 * after]
    )  # what could not be read is tried again, and comes last
    assert (facts["done_before"], facts["read"] + facts["failed"]) == (done, 20 - done)
    found = (
        pq.read_table(out).to_pylist()
        if format == "parquet"
        else [json.loads(line) for line in out.read_text().splitlines()]
    )
    assert sorted(found, key=str) == sorted(rows, key=str)
    assert not Path(f"{out}.part").exists()


def test_a_killed_process_goes_on(rows: list[dict[str, Any]], tiny_onnx: Path, photos: Path, tmp_path: Path) -> None:
    """SIGKILL, in a process that waits for more of its list."""
    out = tmp_path / "labels.csv"
    command = [
        sys.executable,
        "-c",
        "from femtobooth.recognizer.inference import outputs; outputs.SECONDS = -1; from femtobooth import cli; cli.main()",
    ]
    command += ["classify", "-", "--model", str(tiny_onnx), "--out", str(out), "--batch-size", "1", "--workers", "1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin
        process.stdin.write("".join(f"{row['path']}\n" for row in rows[:8]).encode())
        process.stdin.flush()
        limit = time.monotonic() + 60
        while not list(Path(f"{out}.part").glob("0*.parquet")) and time.monotonic() < limit:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    written = [row for file in Path(f"{out}.part").glob("0*.parquet") for row in pq.read_table(file).to_pylist()]
    assert written
    facts = run(photos, model=str(tiny_onnx), out=str(out))
    assert facts["done_before"] == sum(row["error"] is None for row in written)
    with out.open(newline="") as file:
        assert sorted(line["path"] for line in csv.DictReader(file)) == sorted(row["path"] for row in rows)


def test_rows_of_other_settings_are_not_mixed(
    tiny_onnx: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "labels.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(reading, "predict", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(photos, model=str(tiny_onnx), out=str(out))
    with pytest.raises(ExistsError, match="unfinished rows"):
        run(photos, model=str(tiny_onnx), out=str(out), top_k=2)
    run(photos, model=str(tiny_onnx), out=str(out), top_k=2, overwrite=True)
    assert len(json.loads(out.read_text().splitlines()[0])["top"]) == 2
    with pytest.raises(ExistsError):
        run(photos, model=str(tiny_onnx), out=str(out))


def test_shards_make_the_whole(rows: list[dict[str, Any]], tiny_onnx: Path, photos: Path, tmp_path: Path) -> None:
    found = []
    for index in (1, 2, 3):
        out = tmp_path / f"{index}.jsonl"
        run(photos, model=str(tiny_onnx), out=str(out), shard=f"{index}/3")
        found += [json.loads(line) for line in out.read_text().splitlines()]
    by_path = sorted(found, key=lambda row: row["path"])
    assert [row["path"] for row in by_path] == sorted(row["path"] for row in rows)
    labels = {row["path"]: row["label"] for row in rows}
    assert all(row["label"] == labels[row["path"]] for row in by_path)


def test_rejected(tiny: Path, photos: Path, tmp_path: Path) -> None:
    recognizer = Recognizer.load(tiny)
    size = recognizer.model.num_features
    recognizer.rejection = {
        "threshold": 2.0,
        "center": np.zeros(size, np.float32),
        "centroids": np.eye(5, size, dtype=np.float32),
    }
    recognizer.save(tmp_path / "strict")
    run(photos, model=str(tmp_path / "strict"), out=str(tmp_path / "o.jsonl"), engine="torch")
    row = json.loads((tmp_path / "o.jsonl").read_text().splitlines()[0])
    assert row["rejected"] is True
    assert {name: row[name] for name in ("label", "synset", "confidence")} == row["top"][
        0
    ]  # the best class is always there
    assert len(row["top"]) == 5
    run(photos, model=str(tmp_path / "strict"), out=str(tmp_path / "o.csv"), engine="torch")
    first = next(csv.DictReader((tmp_path / "o.csv").open()))
    assert (first["label"], first["rejected"]) == (row["label"], "True")


def test_nothing_readable(tiny_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"")
    with pytest.raises(SystemExit) as stop:
        cli.main(["classify", str(tmp_path / "bad"), "--model", str(tiny_onnx), "--out", str(tmp_path / "o.csv")])
    assert stop.value.code == 2
    assert "empty file" in (tmp_path / "o.csv").read_text()
    assert "empty file" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        cli.main(["classify", str(tmp_path / "gone"), "--model", str(tiny_onnx)])
    assert stop.value.code == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(PhotoError, match="no pictures"):
        run(tmp_path / "empty", model=str(tiny_onnx))


def test_a_listed_file_that_is_gone_is_a_row(tiny_onnx: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(f"{photos}/a/0.jpg\n/gone/\n".encode() + os.fsencode(f"{photos}/b/1.jpg"))
    facts = run(model=str(tiny_onnx), from_file=str(tmp_path / "list"), out=str(tmp_path / "o.jsonl"))
    assert (facts["read"], facts["failed"]) == (2, 1)
    errors = [json.loads(line)["error"] for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert errors == [None, "no such file", None]


@pytest.mark.parametrize(("given", "problem"), [({"format": "parquet"}, "stdout"), ({"out": "labels.xyz"}, "ending")])
def test_formats_that_cannot_be(photos: Path, given: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        run(photos, **given)


@pytest.mark.parametrize("format", ["json", "jsonl", "csv", "parquet"])
def test_names_are_in_files_as_they_are_on_the_disk(tiny_onnx: Path, photos: Path, tmp_path: Path, format: str) -> None:
    names = [
        "Screenshot 9.41\u202fAM.jpg",
        "a\u00a0b.jpg",
        "\U0001f469\u200d\U0001f467.jpg",
        "\u3000.jpg",
        "\u0645\u06cc\u200c\u062e.jpg",
    ]
    names += [
        "[edited] :dog: [/].jpg",
        "cafe\u0301.jpg",
        'quote".jpg',
        "two\nlines\rhere.jpg",
        "=1+1.jpg",
        "\x1b[2J\u202e.jpg",
    ]
    names += [os.fsdecode(b"caf\xe9 \\.jpg"), "literal \\xe9.jpg"]
    folder = tmp_path / "named"
    folder.mkdir()
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes((photos / "a" / "0.jpg").read_bytes())
    out = tmp_path / f"labels.{format}"
    run(folder, model=str(tiny_onnx), out=str(out))
    if format == "parquet":
        found = pq.read_table(out)["path"].to_pylist()
    elif format == "csv":
        with out.open(encoding="utf-8", newline="") as file:
            found = [line["path"] for line in csv.DictReader(file)]
    else:
        text = out.read_text(encoding="utf-8")
        found = [row["path"] for row in (json.loads(text) if format == "json" else map(json.loads, text.splitlines()))]
    assert sorted(map(restored, found)) == sorted(f"{folder}/{name}" for name in names)
    changed = {path for path in found if path != restored(path)}
    assert changed == {f"{folder}/caf\\xe9 \\\\.jpg", f"{folder}/literal \\\\xe9.jpg"}


def stop_after(batches: int, monkeypatch: pytest.MonkeyPatch, *paths: Path, **given: Any) -> None:
    """Run until so many batches are written, then be interrupted."""
    real = reading.predict

    def stopped(*given: Any) -> Iterator[Batch]:
        yield from itertools.islice(real(*given), batches)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(reading, "predict", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(*paths, **given)


@pytest.mark.parametrize("format", ["jsonl", "csv", "parquet"])
def test_going_on_gives_what_one_run_would_have_given(
    rows: list[dict[str, Any]],
    tiny_onnx: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    format: str,
) -> None:
    """A file that has changed meanwhile, one that is gone, one that is new, one that can be read now, one that is as it
    was.
    """
    out = tmp_path / f"labels.{format}"
    stop_after(4, monkeypatch, photos, model=str(tiny_onnx), out=str(out))
    content, time = (photos / "b" / "1.jpg").read_bytes(), (photos / "a" / "2.jpg").stat().st_mtime_ns
    (photos / "a" / "0.jpg").write_bytes(content)  # another size or time
    (photos / "a" / "2.jpg").write_bytes(content + b"\0")
    os.utime(photos / "a" / "2.jpg", ns=(time, time))  # another size alone
    (photos / "a" / "4.jpg").write_bytes(content)  # it could not be read
    (photos / "a" / "6.jpg").unlink()
    (photos / "a" / "7.jpg").write_bytes(content)
    facts = run(photos, model=str(tiny_onnx), out=str(out))
    assert facts["done_before"] == 12 - 4
    run(photos, model=str(tiny_onnx), out=str(tmp_path / f"at-once.{format}"))

    def read(file: Path) -> list[str]:
        return list(map(str, pq.read_table(file).to_pylist())) if format == "parquet" else file.read_text().splitlines()

    assert len(read(out)) == 20 + (format == "csv")
    assert sorted(read(out)) == sorted(read(tmp_path / f"at-once.{format}"))


def test_a_file_that_is_named_twice_has_two_rows_also_after_going_on(
    tiny_onnx: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, paths = tmp_path / "o.jsonl", [photos / "a" / "0.jpg"] * 7
    stop_after(1, monkeypatch, *paths, model=str(tiny_onnx), out=str(out))
    assert run(*paths, model=str(tiny_onnx), out=str(out))["done_before"] == 3
    assert len(out.read_text().splitlines()) == 7


def test_another_folder_does_not_inherit_rows(
    tiny_onnx: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "o.jsonl"
    stop_after(2, monkeypatch, photos / "a", model=str(tiny_onnx), out=str(out))
    run(photos / "b", model=str(tiny_onnx), out=str(out))
    assert {Path(json.loads(line)["path"]).parent.name for line in out.read_text().splitlines()} == {"b"}


@pytest.mark.parametrize("format", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("room", [200, 2800], ids=["for no part", "for parts only"])
def test_a_full_disk_is_named_and_loses_no_row(
    tiny_onnx: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],  # stderr in memory, as the limit holds for every file
    format: str,
    room: int,
) -> None:
    out = tmp_path / f"labels.{format}"
    many = [*photos.rglob("*.jpg")] * 8
    monkeypatch.setattr(outputs, "SECONDS", -1.0)
    run(*many[:1], model=str(tiny_onnx), out=str(tmp_path / "o.csv"))  # whatever else is written once
    stop_after(1, monkeypatch, *many, model=str(tiny_onnx), out=str(out))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    part = next(Path(f"{out}.part").glob("0*.parquet")).stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (room if room < part else part + 2000, before[1]))
    try:
        with pytest.raises(StorageError, match=re.escape(f"{out}") + ".*(too large|full)") as stop:
            run(*many, model=str(tiny_onnx), out=str(out))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert stop.value.exit_code == 2
    assert not out.exists()
    assert run(*many, model=str(tiny_onnx), out=str(out))["done_before"] >= 3
    assert not Path(f"{out}.part").exists()
    count = (
        pq.read_table(out).num_rows if format == "parquet" else len(out.read_text().splitlines()) - (format == "csv")
    )
    assert count == len(many)


def test_two_commands_do_not_write_one_file(
    tiny_onnx: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "o.jsonl"
    real, second = reading.predict, []

    def while_running(*given: Any) -> Iterator[Batch]:
        monkeypatch.setattr(reading, "predict", real)
        with pytest.raises(InUseError, match=f"{os.getpid()}"):
            run(photos, model=str(tiny_onnx), out=str(out), overwrite=True)
        second.append(True)
        yield from real(*given)

    monkeypatch.setattr(reading, "predict", while_running)
    run(photos, model=str(tiny_onnx), out=str(out))
    assert second
    assert len(out.read_text().splitlines()) == 20
    assert not Path(f"{out}.part").exists()


@pytest.mark.parametrize("name", ["thesis.csv", "photo.csv", "list.csv", "folder.csv", "link.csv", "device"])
def test_overwrite_replaces_labels_only(tiny_onnx: Path, photos: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "thesis.csv").write_text("chapter,words\n1,9000\n")
    (tmp_path / "photo.csv").write_bytes((photos / "a" / "0.jpg").read_bytes())
    (tmp_path / "list.csv").write_text(f"{photos}/a/0.jpg\n")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "labels.csv").write_text("path,label,synset,confidence\n")
    (tmp_path / "link.csv").symlink_to(tmp_path / "labels.csv")
    out = Path(os.devnull) if name == "device" else tmp_path / name
    before = (
        sorted(tmp_path.rglob("*")),
        [file.read_bytes() for file in sorted(tmp_path.glob("*.csv")) if file.is_file()],
    )
    given = {"model": str(tiny_onnx), "format": "csv", "overwrite": True, "from_file": str(tmp_path / "list.csv")}
    with pytest.raises((ExistsError, SettingsError), match=re.escape(str(out))):
        run(out=str(out), **given)
    assert before == (
        sorted(tmp_path.rglob("*")),
        [file.read_bytes() for file in sorted(tmp_path.glob("*.csv")) if file.is_file()],
    )
    assert Path(os.devnull).is_char_device()
    for format in ("table", "json", "jsonl", "csv", "parquet"):
        for _ in range(2):
            run(out=str(tmp_path / "own"), **given | {"format": format})


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"out": "file/o.csv"}, "file"),
        ({"out": ".", "format": "csv"}, "is a folder"),
        ({"out": "n" * 300 + ".csv"}, "too long"),
        ({"out": "o.txt"}, "ending"),
        ({"out": "o.csv", "shard": "3/2"}, "`shard=3/2`"),
        ({"paths": ["no-photos"]}, "no pictures among what was named"),
        ({"paths": [""]}, "'': no such file"),
        ({"paths": ["gone\n.jpg"]}, "gone"),
        ({"from_file": "file"}, "names no file"),
    ],
    ids=str,
)
def test_what_cannot_be_is_said_before_the_model_is_opened(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "no-photos").mkdir()
    (tmp_path / "no-photos" / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=re.escape(problem)):
        classify.run(config.resolve(ClassifySettings, {"paths": [str(photos)], "model": "no such model"} | given))


def command_line(*arguments: object, behind: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = shlex.join([sys.executable, "-c", "from femtobooth.cli import main; main()", *map(str, arguments)])
    return subprocess.run(
        ["sh", "-c", f"{command} {behind}"], env=os.environ | environment, capture_output=True, check=False, timeout=120
    )


@pytest.mark.parametrize("flags", [["--json"], ["--format", "csv"], ["--out", "o.csv", "--json"]], ids=" ".join)
def test_stdout_is_utf8_whatever_the_locale(tiny_onnx: Path, photos: Path, tmp_path: Path, flags: list[str]) -> None:
    folder = tmp_path / "\u5199\u771f \u202f"
    (photos / "b").rename(folder)
    flags = [flag.replace("o.csv", str(folder / "o.csv")) for flag in flags]
    done = command_line(
        "classify", folder, "--model", tiny_onnx, *flags, PYTHONIOENCODING="ascii", LC_ALL="C", PYTHONUTF8="0"
    )
    assert done.returncode == 0, done.stderr
    assert str(folder) in done.stdout.decode("utf-8")


@pytest.mark.parametrize("flags", [["--json"], ["--format", "csv"], []], ids=" ".join)
@pytest.mark.parametrize(
    ("shell", "said"), [(">&-", "stdout: is closed"), (">/dev/full", "stdout: cannot be written (No space")]
)
def test_stdout_that_takes_nothing(tiny_onnx: Path, photos: Path, flags: list[str], shell: str, said: str) -> None:
    done = command_line("classify", photos / "a", "--model", tiny_onnx, *flags, behind=shell)
    told = done.stderr.decode()
    assert (done.returncode, done.stdout) == (2, b"")
    assert said in told
    assert "Traceback" not in told and "Exception ignored" not in told


def test_stdin_that_is_closed(tiny_onnx: Path) -> None:
    done = command_line("classify", "-", "--model", tiny_onnx, behind="<&-")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"femtobooth: -: stdin is closed\n  -> ")


def test_a_reader_who_leaves_ends_it_quietly(tiny_onnx: Path, photos: Path) -> None:
    done = command_line("classify", photos, "--model", tiny_onnx, "--format", "csv", behind="| head -n 1")
    assert done.stdout.startswith(b"path,label,")
    assert b"rror" not in done.stderr


def test_csv_that_no_spreadsheet_runs(
    tiny_onnx: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = [
        "=cmd|' ' !A0.jpg",
        "+1.jpg",
        "-1.jpg",
        "@SUM(1).jpg",
        "\tx.jpg",
        "\rx.jpg",
        "'=x.jpg",
        "'quoted'.jpg",
        "plain=.jpg",
    ]
    for name in names:
        Path(name).write_bytes((photos / "a" / "0.jpg").read_bytes())
    for safe, format in ((True, "csv"), (False, "csv"), (True, "jsonl")):
        run(*map(Path, names), model=str(tiny_onnx), out=f"{safe}.{format}", csv_safe=safe)
    with Path("False.csv").open(newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == names
    assert [json.loads(line)["path"] for line in Path("True.jsonl").read_text().splitlines()] == names
    with Path("True.csv").open(newline="") as file:
        found = [row["path"] for row in csv.DictReader(file)]
    assert found == [name if name in ("'quoted'.jpg", "plain=.jpg") else f"'{name}" for name in names]
