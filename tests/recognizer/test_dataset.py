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
from femtobooth.pictures.provenance import Provenance
from femtobooth.recognizer.finetuning.dataset import read
from femtobooth.recognizer.finetuning.splitting import split


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize((48, 48), Image.Resampling.BICUBIC).save(path)
    return path


def classes(source: Path) -> list[tuple[str, str, str | None]]:
    """What was read: each file from its folder, its class and its part."""
    root = source if source.is_dir() else source.parent
    return [
        (example.path.relative_to(root).as_posix(), example.label, example.part) for example in read(source).examples
    ]


def reasons(source: Path) -> dict[str, str]:
    return {one.path.name: one.reason for one in read(source).skipped}


def test_class_folders_in_natural_order(tmp_path: Path) -> None:
    for name in ("b/10.png", "b/2.png", "a/deep/er/1.png"):
        picture(tmp_path / name)
    (tmp_path / "b" / "notes.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    picture(tmp_path / "loose.png")
    picture(tmp_path / ".hidden" / "1.png")
    picture(tmp_path / "__MACOSX" / "1.png")
    assert classes(tmp_path) == [("a/deep/er/1.png", "a", None), ("b/2.png", "b", None), ("b/10.png", "b", None)]
    assert reasons(tmp_path) == {
        "loose.png": "in no class folder",
        "notes.txt": "not a picture",
        "empty": "no picture in it: not a class",
    }


def test_a_link_back_is_not_followed(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
    assert len(read(tmp_path).examples) == 1


def test_class_names_are_as_they_are_written_and_one_in_either_unicode_form(tmp_path: Path) -> None:
    names = ["caf\u00e9", "cafe\u0301", "Screen\u202fshot", "\u200d\u06af\u0631\u0628\u0647", "😺", "a, b", "A, b"]
    for name in names:
        picture(tmp_path / name / f"{len(name)}.png")
    assert {label for _, label, _ in classes(tmp_path)} == {*names} - {"cafe\u0301"}
    assert sum(label == "caf\u00e9" for _, label, _ in classes(tmp_path)) == 2


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("Train", "Val", "Test"),
        ("TRAIN", "valid", "TEST"),
        ("training", "validation", "testing"),
        ("train", "dev", "test"),
        ("train", "eval", "holdout"),
        ("Training Set", "Validation Set", "Hold-out"),
        ("training_set", "dev_set", "test_set"),
        ("TrainData", "ValData", "TestData"),
        ("trainset", "valset", "testset"),
        ("train2017", "val2017", "test2017"),
        ("seg_train", "seg_val", "seg_test"),
        ("Training", "PublicVal", "PrivateTest"),
        ("Trainingsdaten", "Validierung", "Test"),
        ("entraînement", "validation", "test"),
        ("entrenamiento", "validación", "prueba"),
        ("treino", "validação", "teste"),
        ("addestramento", "validazione", "collaudo"),
        ("обучение", "валидация", "тест"),
        ("训练集", "验证集", "测试集"),
        ("学習用", "検証用", "テスト"),
        ("학습", "검증", "테스트"),
    ],
)
def test_a_split_of_the_users(tmp_path: Path, train: str, val: str, test: str) -> None:
    for part in (train, val, test):
        for name in ("cat", "dog"):
            picture(tmp_path / part / name / "1.png")
    picture(tmp_path / "docs" / "1.png")
    read_as = {(label, part): path.partition("/")[0] for path, label, part in classes(tmp_path)}
    assert read_as == {
        (name, part): folder
        for name in ("cat", "dog")
        for part, folder in zip(("train", "val", "test"), (train, val, test), strict=True)
    }
    assert reasons(tmp_path) == {"docs": "none of train, val and test with class folders; left alone"}
    assert any("was read as a split: 2 training, 2 validation, 2 test" in remark for remark in read(tmp_path).remarks)


def test_what_trains_and_what_is_measured_of_a_split(tmp_path: Path) -> None:
    """Without a validation part one is made of the training part; the test part never trains, and is what is
    measured.
    """
    for part, count in (("train", 3), ("test", 2)):
        for index in range(count):
            picture(tmp_path / part / "cat" / f"{index}.png")
    found = read(tmp_path)
    assert [example.part for example in found.to_train()] == [None] * 3
    measured, remarks = found.to_measure()
    assert [example.part for example in measured] == ["test"] * 2
    assert remarks[-1] == "The data is split: only its 2 test pictures were measured (split train measures the other)."
    assert len(found.to_measure("all")[0]) == 5
    with pytest.raises(PhotoError, match="has no val part\n  -> give `split=train or test or all`"):
        found.to_measure("val")
    picture(tmp_path / "val" / "cat" / "1.png")
    assert Counter(example.part for example in read(tmp_path).to_train()) == {"train": 3, "val": 1}
    assert len(read(tmp_path).to_measure()[0]) == 2


def test_a_split_inside_each_class_folder(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        for part in ("train", "test"):
            picture(tmp_path / label / part / "1.png")
    assert {(label, part) for _, label, part in classes(tmp_path)} == {
        (a, b) for a in ("cat", "dog") for b in ("train", "test")
    }


@pytest.mark.parametrize("way", ["train/train", "images", "train/images", "Archive/data/train", "dataset/train"])
def test_folders_that_an_archive_packed_around_the_parts(tmp_path: Path, way: str) -> None:
    root = tmp_path / "archive"
    for label in ("cat", "dog"):
        picture(root / way / label / "1.png")
        if "train" in way:
            picture(root / way.replace("train", "test") / label / "2.png")
    assert {label for _, label, _ in classes(root)} == {"cat", "dog"}
    assert {part for *_, part in classes(root)} == ({"train", "test"} if "train" in way else {None})


@pytest.mark.parametrize(
    ("paths", "labels"),
    [
        (("train/1.png", "bus/1.png"), {"train", "bus"}),
        (("train/steam/1.png", "train/electric/1.png", "bus/1.png"), {"train", "bus"}),
        (("cat/2024/1.png", "cat/2025/1.png", "dog/2024/1.png", "dog/2025/1.png"), {"cat", "dog"}),
        (("cat/images/1.png", "dog/images/1.png"), {"cat", "dog"}),
        (("cat/tabby/1.png", "cat/mixed/1.png", "dog/poodle/1.png", "dog/mixed/1.png"), {"cat", "dog"}),
        (("cat/1.png", "cat/blurred/1.png", "dog/1.png", "dog/blurred/1.png"), {"cat", "dog"}),
    ],
)
def test_what_looks_like_a_split_and_is_classes(tmp_path: Path, paths: tuple[str, ...], labels: set[str]) -> None:
    for path in paths:
        picture(tmp_path / path)
    assert {(label, part) for _, label, part in classes(tmp_path)} == {(label, None) for label in labels}


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (("a/cats/1.png", "b/cats/1.png"), r"a, b hold the same folders \(cats\): which are the classes"),
        (
            ("a/cats/1.png", "a/dogs/1.png", "b/cats/1.png", "b/dogs/1.png", "b/birds/1.png"),
            r"the same folders \(cats, dogs\)",
        ),
        (("fold1/0/1.png", "fold1/1/1.png", "fold2/0/1.png", "fold2/1/1.png"), "fold1, fold2 hold the same folders"),
        (("train/cats/1.png", "more/cats/1.png"), "more, train hold the same folders"),
        (("train/1.png", "test/1.png"), "test, train are parts of a split, and no class folders are in them"),
    ],
)
def test_a_tree_that_could_be_either_is_refused(tmp_path: Path, paths: tuple[str, ...], said: str) -> None:
    for path in paths:
        picture(tmp_path / path)
    with pytest.raises(PhotoError, match=said):
        read(tmp_path)


def test_pictures_to_predict_beside_training_folders_are_no_class(tmp_path: Path) -> None:
    """Kaggle's: train/CLASS/1.png, test/1.png."""
    for path in ("train/cat/1.png", "train/dog/1.png", "test/1.png"):
        picture(tmp_path / path)
    assert [(label, part) for _, label, part in classes(tmp_path)] == [("cat", "train"), ("dog", "train")]
    assert "left alone" in reasons(tmp_path)["test"]


class TestLists:
    @pytest.mark.parametrize(
        ("encoding", "separator", "header"),
        [
            ("utf-8", ",", "path,label,split"),
            ("utf-8-sig", ";", "Image,Class,split"),
            ("utf-16", "\t", "Split,File Name,Category"),
            ("utf-16-le", ",", "x,image_path,target,subset"),
            ("utf-16-be", "|", "path,label,split"),
            ("cp1252", ";", "x,image_path,target,subset"),
        ],
    )
    def test_as_spreadsheets_and_scripts_write_them(
        self, tmp_path: Path, encoding: str, separator: str, header: str
    ) -> None:
        columns = [name.strip().lower().replace(" ", "_") for name in header.split(",")]
        wanted = [
            ("x/1.png", "Käse, süß", "train"),
            ("2.png", "dog", "valid"),
            ("3.png", "dog", ""),
            ("4.png", "dog", "Testing"),
        ]
        lines = [separator.join(header.split(","))]
        for path, label, given in wanted:
            picture(tmp_path / path)
            cells = {"split": given, "subset": given, "x": "9"}
            row = [
                cells.get(
                    name, f'"{label}"' if name in ("label", "class", "category", "target") else path.replace("/", "\\")
                )
                for name in columns
            ]
            lines.append(separator.join(row))
        file = tmp_path / "list.csv"
        file.write_bytes("\r\n".join([*lines, ""]).encode(encoding))
        parts = ["train", "val", None, "test"]
        assert classes(file) == [(path, label, part) for (path, label, _), part in zip(wanted, parts, strict=True)]
        assert [("Windows-1252" in remark) for remark in read(file).remarks] == ([True] if encoding == "cp1252" else [])

    def test_without_a_header_and_with_a_line_for_excel(self, tmp_path: Path) -> None:
        picture(tmp_path / "1.png")
        picture(tmp_path / "2.png")
        (tmp_path / "a.csv").write_text("cat,1.png\ndog,2.png\n")
        (tmp_path / "b.csv").write_text("sep=;\npath;label\n1.png;cat\n2.png;dog\n")
        assert (
            classes(tmp_path / "a.csv")
            == classes(tmp_path / "b.csv")
            == [("1.png", "cat", None), ("2.png", "dog", None)]
        )

    def test_lines_that_say_nothing_or_name_no_file_are_left_out_by_name(self, tmp_path: Path) -> None:
        picture(tmp_path / "1.png")
        (tmp_path / "folder").mkdir()
        file = tmp_path / "labels.csv"
        file.write_text(
            "path,label\n1.png,cat\n,cat\n2.png,\n1.png,dog\n\ngone.png,cat\n~$1.png,cat\nfolder,cat\n3.png\n"
        )
        assert classes(file) == [("1.png", "cat", None)]
        assert [(one.path.name, one.reason) for one in read(file).skipped] == [
            (tmp_path.name, "line 3: no path"),
            ("2.png", "line 4: no label"),
            ("1.png", "line 5: listed already, there as 'cat', here as 'dog'"),
            ("gone.png", "line 7: no such file"),
            ("~$1.png", "line 8: no such file"),
            ("folder", "line 9: a folder"),
            ("3.png", "line 10: no label"),
        ]
        assert read(file).remarks == ["labels.csv lists 2 files that are not there."]

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"path,colour\n1.png,cat\n", r"no column of labels \(it has path, colour\)"),
            (b"label\ncat\n", "no column of paths"),
            (b"", "no column of paths"),
            (b"path,label\n", "no labelled picture"),
            (b"path,label\ngone.png,cat\n\xff\xfe.png,cat\n", "none of its 2 files is there; the first: .*gone.png"),
            (b"path,label,split\n1.png,cat,maybe\n", "line 2: split is 'maybe'"),
            (b'path,label\n"' + b"a" * 200_000 + b"\n", "cannot be read as CSV"),
            (
                b"path,label,synset,confidence,rejected,error\n1.png,cat,,0.9,False,\n",
                "guesses of `femtobooth classify`",
            ),
        ],
    )
    def test_faults(self, tmp_path: Path, content: bytes, said: str) -> None:
        picture(tmp_path / "1.png")
        file = tmp_path / "labels.csv"
        file.write_bytes(content)
        with pytest.raises(PhotoError, match=said):
            read(file)

    def test_beside_class_folders_it_decides_unless_it_holds_guesses(self, tmp_path: Path) -> None:
        picture(tmp_path / "images" / "1.png")
        picture(tmp_path / "more" / "2.png")
        file = tmp_path / "labels.csv"
        file.write_text("path,label\nimages/1.png,cat\nmore/2.png,dog\n")
        assert [label for _, label, _ in classes(tmp_path)] == ["cat", "dog"]
        assert read(tmp_path).remarks == ["labels.csv was read in the place of the class folders beside it."]
        for content, why in (
            ("path,label,confidence,error\n1.png,cat,1,\n", "holds guesses"),
            ("a,b\n", "no column of paths"),
        ):
            file.write_text(content)
            assert [label for _, label, _ in classes(tmp_path)] == ["images", "more"]
            assert why in read(tmp_path).remarks[0]


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(PhotoError, match="no such file"):
        read(tmp_path / "gone")
    with pytest.raises(PhotoError, match="no labelled picture"):
        read(tmp_path)


class TestGenerated:
    def test_listed_beside_or_above_them(self, tmp_path: Path) -> None:
        drawn, photo = (
            picture(tmp_path / "data" / "cat" / "drawn.png"),
            picture(tmp_path / "data" / "cat" / "photo.png"),
        )
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


def parts_of(
    labels: str,
    groups: list[int] | None = None,
    generated: str = "",
    given: str = "",
    share: float = 0.2,
    seed: int = 0,
) -> list[str]:
    names = {"t": "train", "v": "val", "-": None}
    numbers = np.array(groups or range(len(labels)))
    parts = [names[letter] for letter in given or "-" * len(labels)]
    return split(
        list(labels), numbers, parts, [letter == "x" for letter in generated or " " * len(labels)], share, seed
    )[0]


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

    def test_the_users_split_stays_as_it_is_unless_leaks_are_to_be_left_out(self) -> None:
        given = ["train", "train", "val", "train", "val"]
        for leave_out, third in ((False, "val"), (True, "left out")):
            parts, remarks = split(
                list("aaabb"), np.array([0, 1, 0, 3, 4]), given, [False] * 5, 0.2, 0, leave_out=leave_out
            )
            assert parts == ["train", "train", third, "train", "val"]
            assert any("left out" in remark for remark in remarks) == leave_out

    def test_a_generated_picture_must_not_be_validated_on(self) -> None:
        with pytest.raises(PhotoError, match="1 generated pictures in the validation part"):
            parts_of("aabb", generated=" x  ", given="tvtv")

    def test_photos_behind_generated_pictures_only_train(self) -> None:
        """Nor do their copies: a model that has seen them has shown them to whatever trains on its pictures."""
        for seed in range(10):
            parts, _ = split(
                list("aaaaaabb"),
                np.array([0, 1, 1, 3, 4, 5, 6, 7]),
                [None] * 8,
                [False] * 8,
                0.9,
                seed,
                [True, True, *[False] * 6],
            )
            assert parts[:3] == ["train"] * 3
            assert "val" in parts[3:6]

    def test_photos_behind_generated_pictures_leave_the_users_validation(self) -> None:
        given = ["train", "val", "val", "train", "val"]
        parts, remarks = split(
            list("aaabb"), np.arange(5), given, [False] * 5, 0.2, 0, [False, True, False, False, False]
        )
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
    assert len(read(tmp_path).examples) == 1
    shutil.rmtree(folder)
    with pytest.raises(PhotoError):
        read(tmp_path)
