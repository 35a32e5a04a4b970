"""Labelled pictures in archives are read as if they were unpacked; labels beside pictures; archives that mean harm."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from femtobooth.core.errors import PhotoError
from femtobooth.pictures import archive_paths, archives, records
from femtobooth.pictures.images import Picture, decode, find_pictures
from femtobooth.pictures.provenance import Provenance
from femtobooth.recognizer.finetuning import dataset, label_lists
from femtobooth.recognizer.finetuning.examples import Labelled


def photo(seed: int, format: str = "JPEG") -> bytes:
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize((48, 48)).save(file := io.BytesIO(), format)
    return file.getvalue()


def filled(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def tarred(archive: Path, files: dict[str, bytes]) -> Path:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w") as made:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
    return archive


def zipped(archive: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in files.items():
            made.writestr(name, data)
    return archive


PACKED: list[Callable[[Path, dict[str, bytes]], Path]] = [tarred, zipped]


def told(found: Labelled) -> tuple[list[tuple[str, str, str | None, tuple[str, ...]]], list[tuple[str, str]]]:
    """What was read, by the path in the folder or archive that was named."""
    root = found.source.parent if found.source.name == dataset.LIST else found.source
    examples = [(one.path.relative_to(root).as_posix(), one.label, one.part, one.labels) for one in found.examples]
    return examples, sorted((one.path.relative_to(root).as_posix(), one.reason) for one in found.skipped)


LAYOUTS = {
    "classes": {
        "b/10.jpg": photo(1),
        "b/2.jpg": photo(2),
        "a/deep/1.gif": photo(3, "GIF"),
        "a/1.txt": b"a caption",
        "loose.png": photo(4, "PNG"),
        "__MACOSX/a/._1.jpg": b"\xff\xd8\xff",
        "a/.hidden.jpg": photo(5),
    },
    "split": {
        f"{part}/{label}/{i}.jpg": photo(i) for part in ("Train", "valid", "test") for label in "ab" for i in (1, 2)
    },
    "inside out": {f"{label}/{part}/1.jpg": photo(1) for part in ("train", "val") for label in "ab"},
    "nested": {f"dataset/images/{label}/1.jpg": photo(1) for label in "ab"},
    "a list": {
        "labels.csv": b"file,class,split\nx/1.jpg,cat,train\nx/2.jpg,dog,val\nx/3.jpg,dog,val\n",
        "x/1.jpg": photo(1),
        "x/2.jpg": photo(2),
    },
    "cls": {
        f"{i:06}.{end}": data
        for i in range(3)
        for end, data in (("jpg", photo(i)), ("cls", b"%d\n" % (i % 2)), ("json", b"{}"))
    },
    "cls in folders": {
        f"part{i}/{i}.{end}": data for i in range(2) for end, data in (("jpg", photo(i)), ("cls", b"7"))
    },
    "json": {
        f"{i}.{end}": data
        for i in range(3)
        for end, data in (("jpg", photo(i)), ("json", json.dumps({"width": 48, "label": i % 2}).encode()))
    },
    "txt": {f"{i}.{end}": data for i in range(3) for end, data in (("jpg", photo(i)), ("txt", "Käse\n".encode()))},
    "split cls": {
        f"{part}/{i}.{end}": data
        for part in ("train", "val")
        for i in range(2)
        for end, data in (("jpg", photo(i)), ("cls", b"%d" % i))
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_archive_is_read_as_if_it_were_unpacked(tmp_path: Path, layout: str) -> None:
    expected = dataset.read(filled(tmp_path / "folder", LAYOUTS[layout]))
    assert len(expected.examples) >= 2
    for pack in PACKED:
        found = dataset.read(pack(tmp_path / f"packed.{pack.__name__[:3]}", LAYOUTS[layout]))
        assert told(found) == told(expected)
        assert [r.replace(f"packed.{pack.__name__[:3]}", "folder") for r in found.remarks] == expected.remarks
        for one, other in zip(found.examples, expected.examples, strict=True):
            assert archive_paths.sha256_of(one.path) == archive_paths.sha256_of(other.path)
            mine, theirs = decode(one.path), decode(other.path)
            assert isinstance(mine, Picture) and isinstance(theirs, Picture) and mine.image == theirs.image
            assert mine.notes == theirs.notes


def test_labels_beside_pictures(tmp_path: Path) -> None:
    files = {
        "0.jpg": photo(0),
        "0.seg.png": photo(9, "PNG"),
        "0.json": b'{"class_name": "cat", "caption": "a cat"}',
        "1.jpg": photo(1),
        "1.json": b'{"class_name": ["cat", "outdoor"]}',
        "2.jpg": photo(2),
        "2.json": b"[" * 100_000,
        "3.jpg": photo(3),
        "3.json": b'{"class_name": 4}',
        "4.jpg": photo(4),
        "5.jpg": photo(5),
        "5.json": b'{"class_name": []}',
        "6.jpg": photo(6),
        "6.json": b'{"class_name": true}',
    }
    examples, skipped = told(found := dataset.read(tarred(tmp_path / "a.tar", files)))
    assert [(path, label) for path, label, *_ in examples] == [("0.jpg", "cat"), ("3.jpg", "4")]
    assert found.remarks == ["labels were read from `class_name` in .json files beside the pictures."]
    assert skipped == [
        ("0.seg.png", "beside 0.jpg, which has the same key"),
        ("1.jpg", "several labels (`multi_label=true`)"),
        ("2.jpg", "2.json says no label"),
        ("4.jpg", "no .json file beside it"),
        ("5.jpg", "no label"),
        ("6.jpg", "6.json says no label"),
    ]
    several = dataset.read(tmp_path / "a.tar", multi_label=True)
    assert [(one.path.name, one.labels) for one in several.examples] == [
        ("0.jpg", ("cat",)),
        ("1.jpg", ("cat", "outdoor")),
        ("3.jpg", ("4",)),
        ("5.jpg", ()),
    ]
    with pytest.raises(PhotoError, match=r"says no label \(no such file has a key like label, labels"):
        dataset.read(tarred(tmp_path / "b.tar", {"0.jpg": photo(0), "0.json": b'{"caption": "a cat"}'}))


def shard(*labels: bytes) -> dict[str, bytes]:
    return {
        f"{i}.{end}": data
        for i, label in enumerate(labels)
        for end, data in (("jpg", photo(10 * i + len(labels))), ("cls", label))
    }


def test_a_folder_of_shards(tmp_path: Path) -> None:
    for name, labels in (
        ("set-train-000.tar", (b"0", b"1")),
        ("set-train-001.tar", (b"1",)),
        ("set-val-000.tar", (b"0", b"0")),
    ):
        tarred(tmp_path / "shards" / name, shard(*labels))
    examples, skipped = told(found := dataset.read(tmp_path / "shards"))
    assert [one[:3] for one in examples] == [
        ("set-train-000.tar/0.jpg", "0", "train"),
        ("set-train-000.tar/1.jpg", "1", "train"),
        ("set-train-001.tar/0.jpg", "1", "train"),
        ("set-val-000.tar/0.jpg", "0", "val"),
        ("set-val-000.tar/1.jpg", "0", "val"),
    ]
    assert not skipped and found.remarks[0] == "3 archives were read as one."
    for part in ("train", "val"):
        (folder := tmp_path / "folders" / part).mkdir(parents=True)
        for file in (tmp_path / "shards").glob(f"*-{part}-*"):
            shutil.copy(file, folder / f"{file.stem[-3:]}.tar")
    assert [one[1:3] for one in told(dataset.read(tmp_path / "folders"))[0]] == [one[1:3] for one in examples]
    tarred(tmp_path / "shards" / "set-val-001.tar", {"a/1.jpg": photo(1), "b/1.jpg": photo(2)})
    with pytest.raises(PhotoError, match=r"its labels are folders, those of .*shards \.cls files"):
        dataset.read(tmp_path / "shards")


def test_an_archive_among_class_folders_is_no_class(tmp_path: Path) -> None:
    filled(tmp_path / "data", {"a/1.jpg": photo(1), "b/1.jpg": photo(2)})
    tarred(tmp_path / "data" / "c.tar", {"c/1.jpg": photo(3)})
    examples, skipped = told(dataset.read(tmp_path / "data"))
    assert [one[0] for one in examples] == ["a/1.jpg", "b/1.jpg"] and skipped == [("c.tar", "in no class folder")]
    assert find_pictures([tmp_path / "data" / "c.tar"])[0] == []  # where an archive is not expected


def test_a_list_names_pictures_in_archives(tmp_path: Path) -> None:
    tarred(tmp_path / "a.tar", {"x/1.jpg": photo(1)})
    zipped(tmp_path / "b.zip", {"y/2.jpg": photo(2)})
    (tmp_path / "labels.csv").write_text(
        "path,label\na.tar/x/1.jpg,cat\nb.zip\\y\\2.jpg,dog\na.tar/gone.jpg,dog\na.tar/x,dog\n"
    )
    found = dataset.read(tmp_path / "labels.csv")
    assert [(one.path.name, one.label) for one in found.examples] == [("1.jpg", "cat"), ("2.jpg", "dog")]
    assert [one.reason for one in found.skipped] == ["line 4: no such file", "line 5: a folder"]
    assert label_lists.resolved(tmp_path / "labels.csv", "a.tar/x/1.jpg") == tmp_path / "a.tar" / "x" / "1.jpg"


def test_generated_pictures_are_known_in_archives(tmp_path: Path) -> None:
    facts = records.record(
        "generated",
        "a cat",
        1,
        {"hash": "0" * 64},
        {
            "width": 8,
            "height": 8,
            "sampling": dict.fromkeys(("steps", "sampler", "guidance", "guidance_rescale", "negative"), 0)
            | {"sampler": "ddim", "negative": ""},
        },
    )
    made = records.encode(np.zeros((8, 8, 3), np.uint8), facts)
    listed = {"generated": [{"file": "a/2.jpg"}, {"file": "a/other.jpg", "sha256": _digest(photo(3))}]}
    files = {
        "a/1.png": made,
        "a/2.jpg": photo(2),
        "a/3.jpg": photo(3),
        "b/4.jpg": photo(4),
        "provenance.json": json.dumps(listed).encode(),
    }
    for pack in PACKED:
        found = dataset.read(pack(tmp_path / f"packed.{pack.__name__[:3]}", files))
        known = Provenance()
        assert {one.path.name: known.generated(one.path) for one in found.examples} == {
            "1.png": True,
            "2.jpg": True,
            "3.jpg": True,
            "4.jpg": False,
        }


def _digest(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


def test_members_that_mean_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing outside is read, the rest is used, and the report names what was not."""
    monkeypatch.setattr(archives, "LARGEST", 2**20)
    (outside := tmp_path / "secret.jpg").write_bytes(photo(99))
    archive = tmp_path / "bad.tar"
    with tarfile.open(archive, "w") as made:
        for name, kind, data in (
            ("a/1.jpg", tarfile.REGTYPE, photo(0)),
            ("a/1.jpg", tarfile.REGTYPE, photo(1)),
            ("b/2.jpg", tarfile.REGTYPE, photo(2)),
            ("../../secret.jpg", tarfile.REGTYPE, photo(3)),
            (str(outside), tarfile.SYMTYPE, b""),
            ("a/link.jpg", tarfile.SYMTYPE, b""),
            ("a/hard.jpg", tarfile.LNKTYPE, b""),
            ("/b/absolute.jpg", tarfile.REGTYPE, photo(4)),
            (f"b/{'x' * 300}.jpg", tarfile.REGTYPE, photo(5)),
            ("b/large.jpg", tarfile.REGTYPE, bytes(2**21)),
            ("b/7.jpg", tarfile.REGTYPE, photo(6)[:300]),
            ("b", tarfile.REGTYPE, photo(7)),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, str(outside), len(data)
            made.addfile(info, io.BytesIO(data))
    found = dataset.read(archive)
    inside = {one.path.relative_to(archive).as_posix() for one in found.examples}
    assert inside == {"a/1.jpg", "b/2.jpg", "b/absolute.jpg", f"b/{'x' * 300}.jpg", "b/7.jpg"}
    assert archive_paths.sha256_of(archive / "a" / "1.jpg") == _digest(photo(1))  # the later one, as unpacking has it
    assert {str(one.path.relative_to(archive)): one.reason for one in found.skipped} == {
        "a/1.jpg": "stored again further on in the archive, which counts",
        "../../secret.jpg": "its name leads out of the archive",
        str(outside)[1:]: "a link, which is not followed",
        "a/link.jpg": "a link, which is not followed",
        "a/hard.jpg": "a link, which is not followed",
        "b/large.jpg": "cannot be read (more than 1 MiB)",
        "b": "a file where the archive also has a folder",
    }
    torn = decode(archive / "b" / "7.jpg")
    assert not isinstance(torn, Picture) and torn.reason == "truncated JPEG"


def test_archives_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    files = {f"{label}/{i}.jpg": photo(i) for label in "ab" for i in range(3)}
    whole = tarred(tmp_path / "a.tar", files).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(PhotoError, match=r"a\.tar: the archive cannot be read on \(.*\n  -> make it or fetch it again"):
        dataset.read(tmp_path / "a.tar")
    whole = zipped(tmp_path / "a.zip", files).read_bytes()
    (tmp_path / "a.zip").write_bytes(whole[:-40])
    with pytest.raises(PhotoError, match=r"a\.zip: the archive cannot be read \(File is not a zip file\)"):
        dataset.read(tmp_path / "a.zip")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as made:
        made.add(tmp_path / "a.zip", "a.zip")
    with pytest.raises(PhotoError, match=r"a\.tar\.gz: cannot be read \(compressed as a whole"):
        dataset.read(tmp_path / "a.tar.gz")
    (tmp_path / "b.tar").write_bytes(bytes([1]) + tarred(tmp_path / "b.tar", files).read_bytes()[1:])
    with pytest.raises(PhotoError, match=r"b\.tar: no tar or zip, though it is called so\n  -> make it or fetch it"):
        dataset.read(tmp_path / "b.tar")
    nameless = zipped(tmp_path / "nameless.zip", files | {"nameless": photo(9)}).read_bytes()
    (tmp_path / "nameless.zip").write_bytes(
        nameless.replace(b"nameless", bytes(8))
    )  # Python's zipfile cuts names at the first NUL
    found = dataset.read(tmp_path / "nameless.zip")
    assert len(found.examples) == 6
    assert [one.reason for one in found.skipped] == ["a file where the archive also has a folder"]
    with pytest.raises(PhotoError, match="no labelled picture in it"):
        dataset.read(zipped(tmp_path / "empty.zip", {}))
    at = zipfile.ZipFile(io.BytesIO(whole)).getinfo("a/1.jpg").header_offset + 100
    (tmp_path / "torn.zip").write_bytes(whole[:at] + bytes(40) + whole[at + 40 :])
    damaged = decode(tmp_path / "torn.zip" / "a" / "1.jpg")
    assert not isinstance(damaged, Picture) and damaged.reason.startswith("cannot be read (")


def test_an_archive_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    archive = tarred(tmp_path / "a.tar", {"a/1.jpg": photo(1), "b/1.jpg": photo(2)})
    assert len(dataset.read(archive).examples) == 2
    tarred(archive, {"x/1.jpg": photo(1), "a/1.jpg": photo(5), "b/1.jpg": photo(2)})
    assert [one.label for one in dataset.read(archive).examples] == ["a", "b", "x"]
    assert archive_paths.sha256_of(archive / "a" / "1.jpg") == _digest(photo(5))
