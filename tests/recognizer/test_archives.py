"""Pictures in archives have the rows of the same pictures in a folder; what an archive hides or lies about, a reason."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest

from femtobooth.core import config
from femtobooth.core.bulk.parts import make, parts_of
from femtobooth.pictures import archives
from femtobooth.recognizer.inference.reading import listed
from femtobooth.recognizer.inference.units import Classifier
from femtobooth.recognizer.settings import ClassifySettings, EmbedSettings
from femtobooth.workflows import classify, embed


def settled(model: Path, *paths: Path | str, **more: Any) -> ClassifySettings:
    return config.settle(
        ClassifySettings, {"paths": list(map(str, paths)), "model": str(model), "batch_size": 4} | more
    )


def said(model: Path, *paths: Path | str, **more: Any) -> tuple[list[str], list[Any]]:
    rows = list(classify.rows(settled(model, *paths, **more)))
    return [row["path"] for row in rows], [(row["label"], row["confidence"], row["top"], row["error"]) for row in rows]


@pytest.fixture
def packed(photos: Path, tmp_path: Path) -> dict[str, Path]:
    """The photos, one of them torn, in archives of each kind, with texts and hidden files among them, as WebDataset
    and macOS put them there.
    """
    (photos / "a" / "4.jpg").write_bytes((photos / "a" / "4.jpg").read_bytes()[:200])
    files = sorted(photos.rglob("*.jpg"), key=lambda file: (file.parent.name, int(file.stem)))
    names = [file.relative_to(photos).as_posix() for file in files]
    made = {kind: tmp_path / f"shard.{kind}" for kind in ("tar", "zip", "stored.zip")}
    with tarfile.open(made["tar"], "w") as archive:
        for name in names:
            archive.add(photos / name, f"./{name}")
            for beside, data in ((f"./{name[:-4]}.json", b"{}"), (f"./a/._{name[2:]}", b"\xff\xd8\xff hidden")):
                info = tarfile.TarInfo(beside)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    for kind, method in (("zip", zipfile.ZIP_DEFLATED), ("stored.zip", zipfile.ZIP_STORED)):
        with zipfile.ZipFile(made[kind], "w", method) as archive:
            for name in names:
                archive.write(photos / name, name)
            archive.writestr("words.txt", "no picture")
            archive.writestr("__MACOSX/a/._0.jpg", b"\xff\xd8\xff hidden")
    return made


def test_rows_are_those_of_the_folder(tiny_onnx: Path, photos: Path, packed: dict[str, Path], tmp_path: Path) -> None:
    names, rows = said(tiny_onnx, photos)
    assert sum(row[-1] is not None for row in rows) == 1
    for archive in packed.values():
        assert said(tiny_onnx, archive) == ([name.replace(str(photos), str(archive)) for name in names], rows)
    several = tmp_path / "list.txt"
    several.write_text(f"{packed['tar']}\n{packed['zip']}\n")
    assert said(tiny_onnx, from_file=str(several))[1] == said(tiny_onnx, str(tmp_path / "shard.[tz]*"))[1] == 2 * rows
    halves = [set(said(tiny_onnx, packed["tar"], shard=f"{half}/2")[0]) for half in (1, 2)]
    assert not halves[0] & halves[1] and len(halves[0] | halves[1]) == 20 and all(halves)


def test_counts_and_embeddings(tiny_onnx: Path, photos: Path, packed: dict[str, Path], tmp_path: Path) -> None:
    tables = []
    for given in (photos, packed["tar"], packed["zip"]):
        out = tmp_path / f"{given.name}.parquet"
        counts = embed.run(
            config.settle(EmbedSettings, {"paths": [str(given)], "model": str(tiny_onnx), "out": str(out)})
        )
        assert (counts["read"], counts["failed"]) == (19, 1)
        tables.append(pq.read_table(out))
    assert tables[0].column("embedding") == tables[1].column("embedding") == tables[2].column("embedding")


def test_an_interrupted_command_goes_on(tiny_onnx: Path, packed: dict[str, Path], tmp_path: Path) -> None:
    given = settled(tiny_onnx, packed["tar"], out=str(tmp_path / "labels.csv"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "femtobooth.recognizer.inference.outputs.Parts.finish", lambda *_: (_ for _ in ()).throw(KeyError)
        )
        with pytest.raises(KeyError):
            classify.run(given)
    counts = classify.run(given)
    assert isinstance(counts, dict) and (counts["done_before"], counts["read"], counts["failed"]) == (19, 0, 1)


def test_other_processes_make_the_same_rows(tiny_onnx: Path, packed: dict[str, Path], tmp_path: Path) -> None:
    """A part of members is sent to where it is made; one whose archive has changed is made again."""
    unit = Classifier(str(tiny_onnx), batch_size=4)
    for kind, archive in packed.items():
        (part,) = parts_of(listed(settled(tiny_onnx, archive)), 100, lambda source: source.path)
        part = pickle.loads(pickle.dumps(part))  # noqa: S301  (as sent)
        told = make(tmp_path, part, unit)
        assert (told.rows, told.failed, told.others) == (19, 1, 20 if kind == "tar" else 1)
        rows = pq.read_table(tmp_path / told.name).to_pylist()
        assert [row["label"] for row in rows] == [row[0] for row in said(tiny_onnx, archive)[1]]
        assert make(tmp_path, part, unit).before == 19
        os.utime(archive, ns=(1, 1))
        assert make(tmp_path, part, unit).rows == 19


def test_archives_behind_addresses(tiny_onnx: Path, packed: dict[str, Path]) -> None:
    system = fsspec.filesystem("memory")
    for kind in ("tar", "zip"):
        system.put(str(packed[kind]), f"/bucket/{packed[kind].name}")
    expected = said(tiny_onnx, packed["tar"])[1]
    try:
        for kind in ("tar", "zip"):
            names, rows = said(tiny_onnx, f"memory://bucket/shard.{kind}")
            assert rows == expected and names[0] == f"memory://bucket/shard.{kind}/a/0.jpg"
        assert said(tiny_onnx, "memory://bucket/shard.*")[1] == 2 * expected
    finally:
        system.rm("/bucket", recursive=True)


def errors(model: Path, archive: Path) -> dict[str, str | None]:
    names, rows = said(model, archive, archive.parent / "photos" / "a" / "0.jpg")
    return {name.removeprefix(f"{archive}"): row[-1] for name, row in zip(names, rows, strict=True)} | {names[-1]: None}


def test_a_tar_that_means_harm(tiny_onnx: Path, photos: Path, tmp_path: Path) -> None:
    archive, photo = tmp_path / "bad.tar", (photos / "a" / "0.jpg").read_bytes()
    with tarfile.open(archive, "w") as made:
        for name, kind in (
            ("../../etc/a.jpg", tarfile.REGTYPE),
            ("/etc/b.jpg", tarfile.REGTYPE),
            ("c.jpg", tarfile.SYMTYPE),
            ("d.jpg", tarfile.LNKTYPE),
            ("e.jpg", tarfile.FIFOTYPE),
            ("f\udcff\n.jpg", tarfile.REGTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            info.size = len(photo) if kind == tarfile.REGTYPE else 0
            made.addfile(info, io.BytesIO(photo))
    found = errors(tiny_onnx, archive)
    assert found.pop("/../../etc/a.jpg") == "its name leads out of the archive"
    assert found.pop("/c.jpg") == found.pop("/d.jpg") == "a link, which is not followed"
    assert found.pop("/etc/b.jpg") is None
    assert [name for name in found if name.startswith("/f")] and set(found.values()) == {None} and len(found) == 2


@pytest.mark.parametrize("left", [-1, -300, -700])
def test_a_tar_that_is_cut_off(tiny_onnx: Path, photos: Path, tmp_path: Path, left: int) -> None:
    archive = tmp_path / "cut.tar"
    with tarfile.open(archive, "w") as made:
        made.add(photos / "a" / "0.jpg", "0.jpg")
        first = made.offset
        made.add(photos / "a" / "2.jpg", "2.jpg")
        second = made.offset
    size = (photos / "a" / "2.jpg").stat().st_size
    data = archive.read_bytes()
    archive.write_bytes({-1: data[: second - 600], -300: data[: first + 300], -700: data[:second] + b"x" * 700}[left])
    found = errors(tiny_onnx, archive)
    assert found["/0.jpg"] is None and size > 600
    assert found[""] == (
        "the archive cannot be read on ("
        + {-1: "unexpected end of data)", -300: "cut off)", -700: "no member begins where one should)"}[left]
    )
    if left == -1:
        assert found["/2.jpg"] == "cannot be read (the archive ends within it)"


def test_a_tar_whose_headers_are_never_over(tiny_onnx: Path, photos: Path, tmp_path: Path) -> None:
    archive = tmp_path / "long.tar"
    info = tarfile.TarInfo("long")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**33
    archive.write_bytes(info.tobuf(tarfile.GNU_FORMAT))
    os.truncate(archive, 2**33)
    assert errors(tiny_onnx, archive)[""].startswith("the archive cannot be read on (a header of ")  # type: ignore[union-attr]
    chain = tarfile.TarInfo("x")
    chain.type, chain.size = tarfile.XHDTYPE, 0
    archive.write_bytes(chain.tobuf(tarfile.USTAR_FORMAT) * 20_000)
    assert errors(tiny_onnx, archive)[""] == "the archive cannot be read on (nested without end)"


def test_a_zip_that_means_harm(tiny_onnx: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "LARGEST", 2**20)
    archive, photo = tmp_path / "bad.zip", (photos / "a" / "0.jpg").read_bytes()
    link = zipfile.ZipInfo("link.jpg")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("good.jpg", photo)
        made.writestr("..\\..\\out.jpg", photo)
        made.writestr(link, "/etc/passwd")
        made.writestr("bomb.jpg", photo + bytes(2**21))
        made.writestr("locked.jpg", photo)
        made.writestr("odd.jpg", photo)
        made.writestr("torn.jpg", photo)
        for name, field, value in (("locked.jpg", 6, 1), ("odd.jpg", 8, 97)):  # flags, method
            made.getinfo(name).__setattr__({6: "flag_bits", 8: "compress_type"}[field], value)
        torn = made.getinfo("torn.jpg").header_offset
    data = bytearray(archive.read_bytes())
    at = torn + 30 + len("torn.jpg") + 40
    data[at : at + 200] = bytes(200)
    for name, at, value in (("locked.jpg", 6, 1), ("odd.jpg", 8, 97)):  # the same in the headers before the bytes
        place = data.index(name.encode()) - 30
        data[place + at : place + at + 2] = struct.pack("<H", value)
    archive.write_bytes(data)
    found = errors(tiny_onnx, archive)
    assert found["/good.jpg"] is None
    assert found["/..\\..\\out.jpg"] == "its name leads out of the archive"
    assert found["/link.jpg"] == "a link, which is not followed"
    assert found["/bomb.jpg"] == "cannot be read (more than 1 MiB)"
    assert found["/locked.jpg"] == "encrypted; unpack it with its password"
    assert found["/odd.jpg"] == "cannot be read (That compression method is not supported)"
    assert str(found["/torn.jpg"]).startswith("cannot be read (")
    archive.write_bytes(data[:-30])
    assert errors(tiny_onnx, archive)[""] == "the archive cannot be read (File is not a zip file)"


def test_what_is_only_named_so(tiny_onnx: Path, photos: Path, tmp_path: Path) -> None:
    expected = said(tiny_onnx, photos / "a" / "0.jpg")[1]
    named = tmp_path / "photo.tar"
    named.write_bytes((photos / "a" / "0.jpg").read_bytes())
    assert said(tiny_onnx, named) == ([str(named)], expected)
    (gzip := tmp_path / "shard.tar.gz").write_bytes(b"\x1f\x8b\x08\0")
    assert errors(tiny_onnx, gzip)[""].startswith("cannot be read (compressed as a whole")  # type: ignore[union-attr]
    (empty := tmp_path / "empty.tar").write_bytes(b"")
    assert errors(tiny_onnx, empty)[""] == "empty file"
    (gone := tmp_path / "list.txt").write_text(f"{tmp_path}/gone.zip\n{photos}/a/0.jpg\n")
    assert said(tiny_onnx, from_file=str(gone))[1][0][-1] == "no such file"
