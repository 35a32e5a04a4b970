"""Reading labelled pictures, knowing the generated ones, and splitting without leaks."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from femtobooth.core.errors import PhotoError
from femtobooth.recognizer.dataset import read, read_csv, read_folder, split
from femtobooth.recognizer.provenance import Provenance


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize((48, 48), Image.Resampling.BICUBIC).save(path)
    return path


def test_class_folders_in_natural_order(tmp_path: Path) -> None:
    for name in ("b/10.png", "b/2.png", "a/deep/er/1.png"):
        picture(tmp_path / name)
    (tmp_path / "b" / "notes.txt").write_text("hello")
    picture(tmp_path / "loose.png")
    picture(tmp_path / ".hidden" / "1.png")
    assert [(path.relative_to(tmp_path).as_posix(), label) for path, label in read_folder(tmp_path)] == [
        ("a/deep/er/1.png", "a"),
        ("b/2.png", "b"),
        ("b/10.png", "b"),
    ]
    assert {one.path.name: one.reason for one in read(tmp_path)[1]} == {"loose.png": "in no class folder", "notes.txt": "not a picture"}


def test_a_link_back_is_not_followed(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
    assert len(read_folder(tmp_path)) == 1


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val"])
def test_a_split_of_the_users(tmp_path: Path, name: str) -> None:
    for part in ("train", name, "test"):
        picture(tmp_path / part / "cat" / "1.png")
    examples, skipped = read(tmp_path)
    assert [(example.label, example.part) for example in examples] == [("cat", "train"), ("cat", "val")]
    assert [(one.path.name, one.reason) for one in skipped] == [("test", "neither train nor val; left alone")]


def test_train_can_be_a_class(tmp_path: Path) -> None:
    for name in ("train", "bus"):
        picture(tmp_path / name / "1.png")
    assert [label for _, label in read_folder(tmp_path)] == ["bus", "train"]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv(tmp_path: Path, separator: str) -> None:
    rows = [
        ("Image", "Class", "split"),
        ("x/1.png", "Katze ä", "train"),
        ("2.png", "dog", "valid"),
        ("3.png", "dog", ""),
        ("4.png", "dog", "test"),
    ]
    file = tmp_path / "labels.csv"
    file.write_text("\ufeff" + "\n".join(separator.join(row) for row in rows), encoding="utf-8")
    examples, skipped = read(file)
    assert [(example.path, example.label, example.part) for example in examples] == [
        (tmp_path / "x" / "1.png", "Katze ä", "train"),
        (tmp_path / "2.png", "dog", "val"),
        (tmp_path / "3.png", "dog", None),
    ]
    assert [one.path.name for one in skipped] == ["4.png"]


def test_csv_lines_that_say_nothing_are_named(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("path,label\n1.png,cat\n,cat\n2.png,\n1.png,dog\n")
    examples, skipped = read(file)
    assert [(path.name, label) for path, label in read_csv(file)] == [("1.png", "cat")] == [(e.path.name, e.label) for e in examples]
    assert [one.reason for one in skipped] == [
        "line 3: no path",
        "line 4: no label",
        "line 5: listed already, there as 'cat', here as 'dog'",
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"path,name\n1.png,cat\n", "no column of labels"),
        (b"label\ncat\n", "no column of paths"),
        (b"", "no column of paths"),
        (b"path,label\n", "no labelled picture"),
        (b"path,label\n\xff\xfe.png,cat\n", "cannot be read as CSV"),
        (b"path,label,split\n1.png,cat,maybe\n", "line 2: split is 'maybe'"),
    ],
)
def test_csv_faults(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "labels.csv"
    file.write_bytes(content)
    with pytest.raises(PhotoError, match=said):
        read(file)


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(PhotoError, match="no such file"):
        read(tmp_path / "gone")
    with pytest.raises(PhotoError, match="no labelled picture"):
        read(tmp_path)


class TestGenerated:
    def test_listed_beside_or_above_them(self, tmp_path: Path) -> None:
        drawn, photo = picture(tmp_path / "data" / "cat" / "drawn.png"), picture(tmp_path / "data" / "cat" / "photo.png")
        (tmp_path / "data" / "provenance.json").write_text(json.dumps({"generated": ["cat/drawn.png"]}))
        link = tmp_path / "elsewhere.png"
        link.symlink_to(drawn)
        known = Provenance()
        assert [known.generated(path) for path in (drawn, photo, link)] == [True, False, True]
        assert known.generated(tmp_path / "data" / "cat" / ".." / "cat" / "drawn.png")

    def test_marked_in_the_file(self, tmp_path: Path) -> None:
        info = PngInfo()
        info.add_text("femtobooth", "{}")
        Image.new("RGB", (8, 8)).save(tmp_path / "copied.png", pnginfo=info)
        assert Provenance().generated(tmp_path / "copied.png")

    @pytest.mark.parametrize("content", ["", "[]", "{}", '{"generated": "cat"}', '{"generated": [1]}'])
    def test_a_manifest_that_hides_something_is_an_error(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "provenance.json").write_text(content)
        with pytest.raises(PhotoError, match=r"provenance\.json: which pictures are generated"):
            Provenance().generated(picture(tmp_path / "cat" / "1.png"))


def parts_of(
    labels: str, groups: list[int] | None = None, generated: str = "", given: str = "", share: float = 0.2, seed: int = 0
) -> list[str]:
    names = {"t": "train", "v": "val", "-": None}
    numbers = np.array(groups or range(len(labels)))
    parts = [names[letter] for letter in given or "-" * len(labels)]
    return split(list(labels), numbers, parts, [letter == "x" for letter in generated or " " * len(labels)], share, seed)[0]


class TestSplit:
    @pytest.mark.parametrize("seed", range(10))
    def test_every_class_on_both_sides_and_no_group_on_two(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        labels = "".join(random.permutation(list("a" * 30 + "b" * 10 + "c" * 3)))
        groups = [ord(label) * 100 + int(random.integers(0, 2 + labels.count(label) // 2)) for label in labels]
        if min(len({g for g, name in zip(groups, labels, strict=True) if name == label}) for label in "abc") < 2:
            groups = list(range(len(labels)))
        parts = parts_of(labels, groups, seed=seed)
        for label in "abc":
            assert {"train", "val"} == {part for part, name in zip(parts, labels, strict=True) if name == label}
        assert all(len({part for part, g in zip(parts, groups, strict=True) if g == group}) == 1 for group in groups)

    def test_share(self) -> None:
        parts = parts_of("a" * 100 + "b" * 50)
        assert Counter(parts[:100])["val"] == 20
        assert Counter(parts[100:])["val"] == 10

    def test_seed_decides(self) -> None:
        assert parts_of("a" * 20 + "b" * 20, seed=1) == parts_of("a" * 20 + "b" * 20, seed=1)
        assert parts_of("a" * 20 + "b" * 20, seed=1) != parts_of("a" * 20 + "b" * 20, seed=2)

    def test_a_large_group_stays_in_training(self) -> None:
        for seed in range(6):
            parts = parts_of("a" * 22 + "bb", [0] * 20 + [20, 21, 22, 23], seed=seed)
            assert parts[:20] == ["train"] * 20

    def test_one_photo(self) -> None:
        with pytest.raises(PhotoError, match=r"b \(1 picture\); c \(3 pictures, all copies of one\)"):
            parts_of("aabccc", [0, 1, 2, 3, 3, 3])

    def test_generated_pictures_and_their_copies_only_train(self) -> None:
        for seed in range(10):
            parts = parts_of("aaaaaabb", [0, 1, 1, 3, 4, 5, 6, 7], "xx      ", share=0.9, seed=seed)
            assert parts[:3] == ["train"] * 3
            assert "val" in parts[3:6]

    def test_a_picture_of_two_classes_only_trains(self) -> None:
        for seed in range(10):
            parts = parts_of("aaabbb", [0, 1, 2, 0, 4, 5], share=0.9, seed=seed)
            assert (parts[0], parts[3]) == ("train", "train")

    def test_leaks_of_the_users_split_are_left_out(self) -> None:
        assert parts_of("aaab b".replace(" ", ""), [0, 1, 0, 3, 4], given="ttvtv") == ["train", "train", "left out", "train", "val"]

    def test_a_generated_picture_must_not_be_validated_on(self) -> None:
        with pytest.raises(PhotoError, match="1 generated pictures in the validation part"):
            parts_of("aabb", generated=" x  ", given="tvtv")

    def test_photos_behind_generated_pictures_only_train(self) -> None:
        """Nor do their copies: a model that has seen them has shown them to whatever trains on its pictures."""
        for seed in range(10):
            parts, _ = split(
                list("aaaaaabb"), np.array([0, 1, 1, 3, 4, 5, 6, 7]), [None] * 8, [False] * 8, 0.9, seed, [True, True, *[False] * 6]
            )
            assert parts[:3] == ["train"] * 3
            assert "val" in parts[3:6]

    def test_photos_behind_generated_pictures_leave_the_users_validation(self) -> None:
        given = ["train", "val", "val", "train", "val"]
        parts, remarks = split(list("aaabb"), np.arange(5), given, [False] * 5, 0.2, 0, [False, True, False, False, False])
        assert parts == ["train", "left out", "val", "train", "val"]
        assert any("left out" in remark for remark in remarks)

    def test_a_class_that_nothing_trains(self) -> None:
        with pytest.raises(PhotoError, match="no picture to train on: b"):
            parts_of("aab", given="tvv")

    def test_a_class_that_nothing_validates_is_told(self) -> None:
        _, remarks = split(list("aab"), np.arange(3), ["train", "val", "train"], [False] * 3, 0.2, 0)
        assert remarks == ["nothing to validate on: b"]


def test_pictures_that_vanish(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png")
    folder = tmp_path / "a"
    assert len(read(tmp_path)[0]) == 1
    shutil.rmtree(folder)
    with pytest.raises(PhotoError):
        read(tmp_path)
