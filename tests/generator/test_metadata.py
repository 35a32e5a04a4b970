"""Captions from a Hugging Face imagefolder's metadata file: read, beaten by a file beside the photo, and every fault told
in a line.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from femtobooth.core.errors import PhotoError
from femtobooth.generator.captions import captions_of
from femtobooth.generator.metadata import read_metadata
from femtobooth.generator.photos import load_class_images, load_photos
from femtobooth.generator.subject_settings import PhotoSettings

pytestmark = pytest.mark.usefixtures("terminal")

ROWS = [
    {"file_name": "photo0.png", "text": "a [V] dog  on\n grass", "other": 3},
    {"text": "the [v] dog", "file_name": "./photo1.png"},
    {"file_name": "photo2.png", "text": "a dog"},
    {"file_name": "photo3.png", "text": "a [V] dog, sunny"},
]
READ = ("a {token} dog on grass", "the {token} dog", "a dog", "a {token} dog, sunny")


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def load(folder: Path) -> tuple[list[tuple[str, ...]], dict[str, list[str]]]:
    photos, rows = load_photos(PhotoSettings(paths=[str(folder)], class_noun="dog"), 64)
    return [photo.captions for photo in photos], {Path(row["file"]).name: row["notes"] for row in rows}


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("kind", ["jsonl", "csv", "jsonl of Windows"])
def test_the_captions_of_an_imagefolder(kind: str, photo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if kind == "csv":
        table = "\ufefftext,file_name\n" + "".join(f'"{row["text"]}",{row["file_name"]}\n' for row in ROWS)
        (photo_folder / "metadata.csv").write_text(table, encoding="utf-8")
    else:
        end = b"\r\n" if "Windows" in kind else b"\n"
        (photo_folder / "metadata.jsonl").write_bytes(lines(*ROWS).encode().replace(b"\n", end) + end)
    captions, notes = load(photo_folder)
    file = "metadata." + kind[:5].strip()
    assert captions == [(text,) for text in READ]
    assert notes["photo0.png"] == [f"caption from {file}"] and notes["photo2.png"][0].endswith("without [V]")
    assert file not in notes and "Warning" not in (told := said(capsys)) and "photos: 4 used, 0 skipped" in told
    if kind == "jsonl":
        (photo_folder / "metadata.jsonl").write_text(lines({"file_name": "photo0.png", "text": "a brown dog"}))
        assert load_class_images(str(photo_folder), 64)[0].captions == ("a brown dog",)
        (photo_folder / "metadata.jsonl").write_text(lines(*ROWS))
        with pytest.raises(PhotoError, match=r"metadata\.jsonl: names \[V\], but class images show others"):
            load_class_images(str(photo_folder), 64)


def test_a_file_beside_the_photo_wins_and_gaps_are_named(
    photo_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = [{"file_name": f"gone{index}.png", "text": "a dog"} for index in range(5)]
    (photo_folder / "metadata.jsonl").write_text(lines(*ROWS[:2], {"file_name": "photo2.png", "text": None}, *gone))
    (photo_folder / "photo0.txt").write_text("my [V] dog")
    (photo_folder / "photo1.txt").write_text("the [V] dog")  # as the metadata says
    captions, notes = load(photo_folder)
    assert captions[:2] == [("my {token} dog",), ("the {token} dog",)] and notes["photo0.png"] == ["own caption"]
    assert captions[2] == captions[3] == ("a photo of a {token} {class}",)
    told = said(capsys)
    assert "metadata.jsonl names pictures that are not there: gone0.png, gone1.png, gone2.png and 2 more" in told
    assert "metadata.jsonl has no caption of photo2.png, photo3.png" in told
    assert "metadata.jsonl says otherwise than the caption beside photo0.png, which is used" in told


FAULTS = {
    "up": (lines({"file_name": "../photo0.png", "text": "x"}), r"line 1: \.\./photo0\.png leads out of the folder"),
    "up, with backslashes": (lines({"file_name": "a\\..\\..\\b.png", "text": "x"}), "leads out of the folder"),
    "absolute": (lines({"file_name": "/etc/passwd", "text": "x"}), "line 1: /etc/passwd leads out of the folder"),
    "a drive": (lines({"file_name": "C:\\x.png", "text": "x"}), "leads out of the folder"),
    "a share": (lines({"file_name": "\\\\host\\x.png", "text": "x"}), "leads out of the folder"),
    "a zero byte": (lines({"file_name": "a\0.png", "text": "x"}), "leads out of the folder"),
    "the folder": (lines({"file_name": ".", "text": "x"}), "leads out of the folder"),
    "no text": (lines(ROWS[0], {"file_name": "b.png", "caption": "x"}), r"line 2: no `text` \(it has file_name, caption\)"),
    "no name": (lines({"image": "a.png", "text": "x"}), r"line 1: no `file_name` \(it has image, text\)"),
    "a number for a name": (lines({"file_name": 3, "text": "x"}), "line 1: no `file_name`"),
    "twice": (lines(*ROWS, {"file_name": "photo1.png", "text": "x"}), r"line 5: photo1\.png has an entry already, in line 2"),
    "a list of texts": (lines({"file_name": "a.png", "text": ["x"]}), r"line 1: `text` is no text \(\['x'\]\)"),
    "half a letter": ('{"file_name": "a.png", "text": "\\ud800"}\n', "line 1: `text` is no text"),
    "no JSON": (lines(ROWS[0]) + "photo1.png: a dog\n", r"line 2: no JSON object \(photo1\.png: a dog\)"),
    "no object": ("[1]\n", r"line 1: no JSON object \(\[1\]\)"),
    "without end": ("[" * 100_000 + "\n", "line 1: no JSON object"),
    "escapes": ("\x1b]0;owned\x07\n", r"line 1: no JSON object \(\\x1b"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_line(name: str, photo_folder: Path) -> None:
    content, problem = FAULTS[name]
    (photo_folder / "metadata.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(PhotoError, match=problem) as raised:
        captions_of([photo_folder / "photo0.png"])
    assert len(raised.value.lines) == 2 and str(photo_folder / "metadata.jsonl") in raised.value.problem
    assert "\x1b" not in str(raised.value)


def test_faults_of_files(photo_folder: Path) -> None:
    assert read_metadata(photo_folder) is None
    (photo_folder / "metadata.csv").write_text("file_name,caption\nphoto0.png,a dog\n")
    with pytest.raises(PhotoError, match=r"metadata\.csv, line 2: no `text` \(it has file_name, caption\)"):
        read_metadata(photo_folder)
    (photo_folder / "metadata.csv").write_text('file_name,text\nphoto0.png,"a dog\n')
    with pytest.raises(PhotoError, match=r"metadata\.csv, line 1: no CSV"):
        read_metadata(photo_folder)
    (photo_folder / "metadata.jsonl").write_bytes(b'{"file_name": "a.png", "text": "caf\xe9"}')
    with pytest.raises(PhotoError, match=r"both metadata\.jsonl and metadata\.csv are there"):
        read_metadata(photo_folder)
    (photo_folder / "metadata.csv").unlink()
    with pytest.raises(PhotoError, match=r"metadata\.jsonl: cannot be read"):
        read_metadata(photo_folder)
