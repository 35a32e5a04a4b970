"""Every named file comes once, in order, without holding them all; shards share nothing and leave nothing out."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from PIL import Image

from femtobooth.core.errors import PhotoError, SettingsError
from femtobooth.recognizer.inference.sources import Shard, check, find


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a/photo10.jpg", "a/photo2.jpg", "b/c/deep.png", "b/.hidden.jpg", "top.jpg", ".git/object"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def names(folder: Path, *given: str, listed: str | None = None) -> list[str]:
    return [os.path.relpath(source.path, folder) for source in find(given, listed)]


def test_folders_are_searched_in_natural_order_without_what_is_hidden(folder: Path) -> None:
    hidden = []
    found = [os.path.relpath(source.path, folder) for source in find([str(folder)], hidden=lambda: hidden.append(1))]
    assert found == ["a/photo2.jpg", "a/photo10.jpg", "b/c/deep.png", "top.jpg"]
    assert len(hidden) == 2


def test_globs_files_and_their_order(folder: Path) -> None:
    assert names(folder, f"{folder}/top.jpg", f"{folder}/**/*.jpg") == [
        "top.jpg",
        "a/photo2.jpg",
        "a/photo10.jpg",
        "top.jpg",
    ]
    assert names(folder, f"{folder}/b*") == ["b/c/deep.png"]


def test_a_file_with_the_characters_of_a_glob_is_itself(folder: Path) -> None:
    (folder / "[1].jpg").touch()
    assert names(folder, f"{folder}/[1].jpg") == ["[1].jpg"]


def test_links_that_lead_back_end(folder: Path) -> None:
    (folder / "b" / "again").symlink_to(folder, target_is_directory=True)
    assert names(folder, str(folder)).count("top.jpg") == 1


def test_very_deep_folders(tmp_path: Path) -> None:
    """Deeper than Python calls itself; taken away again, as pytest could not."""
    start, depth = Path.cwd(), 1200
    try:
        os.chdir(tmp_path)
        for _ in range(depth):
            Path("d").mkdir()
            os.chdir("d")
        Path("x.jpg").touch()
        found = len(list(find([str(tmp_path)])))
        Path("x.jpg").unlink()
        for _ in range(depth):
            os.chdir("..")
            Path("d").rmdir()
    finally:
        os.chdir(start)
    assert found == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\0"])
def test_lists(folder: Path, end: bytes) -> None:
    paths = [f"{folder}/top.jpg".encode(), f"{folder}/a".encode(), b"/gone/\xff.jpg"]
    if end == b"\0":
        paths.insert(0, b"new\nline.jpg")
    (folder / "list").write_bytes(end.join(paths) + end)
    expected = [os.fsdecode(path) for path in paths]
    expected[-2:-1] = [f"{folder}/a/photo2.jpg", f"{folder}/a/photo10.jpg"]
    assert [source.path for source in find([], str(folder / "list"))] == expected


def test_stdin_is_read_as_it_comes(folder: Path) -> None:
    program = (
        "import sys; from femtobooth.recognizer.inference.sources import "
        "find\nfor s in find(['-']): print(s.path, flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        for name in (b"one.jpg", b"two.jpg"):
            process.stdin.write(name + b"\n")
            process.stdin.flush()
            assert process.stdout.readline().strip() == name  # before stdin ends
        process.stdin.close()


def test_shards_are_disjoint_and_complete_wherever_the_folder_lies(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("elsewhere") / "copy"
    for place in (folder / "many", other / "many"):
        place.mkdir(parents=True)
        for index in range(300):
            (place / f"{index}.jpg").touch()
    shards = [Shard.parse(f"{index}/3") for index in (1, 2, 3)]
    sources = list(find([str(folder / "many")]))
    parts = [{source.key for source in sources if shard.holds(source)} for shard in shards]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 300
    assert all(70 < len(part) < 130 for part in parts)
    assert parts[0] == {source.key for source in find([str(other / "many")]) if shards[0].holds(source)}


@pytest.mark.parametrize("text", ["0/3", "4/3", "1/0", "1", "a/b", "-1/3", "1/3/5", ""])
def test_shards_that_cannot_be(text: str) -> None:
    with pytest.raises(SettingsError, match="`shard="):
        Shard.parse(text)


def test_what_is_not_there_is_said_before_any_work(folder: Path) -> None:
    for given, listed in (["/no/where"], None), ([f"{folder}/*.gone"], None), ([], None), ([], f"{folder}/nolist"):
        with pytest.raises(PhotoError):
            check(given, listed)
    check([str(folder), f"{folder}/*.jpg", "-"], None)


LIST = ["photos/a b.jpg", "名前/一.png", "фото/кот/.jpg", "/data/é/x.jpg", "ab/c.jpg", "a/\u202f.png"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False], ids=["ended", "not ended"])
@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", ""),
        ("utf-8", "\ufeff"),
        ("utf-16-le", "\ufeff"),  # as PowerShell writes
        ("utf-16-be", "\ufeff"),
        ("utf-32-le", "\ufeff"),
        ("utf-32-be", "\ufeff"),
        ("utf-16-le", ""),
        ("utf-16-be", ""),
    ],
)
def test_lists_in_any_encoding(tmp_path: Path, encoding: str, mark: str, end: str, last: bool) -> None:
    text = mark + end.join(LIST) + end * last
    (tmp_path / "list").write_bytes(text.encode(encoding))
    assert [source.path for source in find([], str(tmp_path / "list"))] == LIST


@pytest.mark.parametrize("name", [*LIST[:1], "/data/x.jpg", "./a.png", "C:\\photos\\x.jpg"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_a_list_of_one_line_in_any_encoding(tmp_path: Path, name: str, encoding: str) -> None:
    (tmp_path / "list").write_bytes(name.encode(encoding))
    assert [source.path for source in find([], str(tmp_path / "list"))] == [name]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\n\r\n\n", []),
        (b"\0\0\0", []),
        (b"a.jpg\n\n\nb.jpg\n", ["a.jpg", "b.jpg"]),
        (b"a.jpg\n\0\nb.jpg\n", ["a.jpg", "\\x00 !", "b.jpg"]),
        (b"a.jpg\nb\0.jpg\nc.jpg\n", ["a.jpg", "b\\x00.jpg !", "c.jpg"]),
        (b"a\0b\0c d\0", ["a", "b", "c d"]),
        (b"./a.jpg\0./b.jpg", ["./a.jpg", "./b.jpg"]),
        (b"/\na.jpg\n", ["/ !", "a.jpg"]),
        (b"//\0a.jpg\0/.\0", ["/ !", "a.jpg", "/ !"]),
        (b"x" * 5000 + b".jpg\na.jpg\n", ["x" * 5000 + ".jpg", "a.jpg"]),
        (b"y" * 3_000_000 + b"\na.jpg\n", ["y" * 100 + "… !", "a.jpg"]),
        (b"y" * 3_000_000, ["y" * 100 + "… !"]),
        (b"a/" * 3000 + b"\na.jpg", ["a/" * 3000, "a.jpg"]),
    ],
    ids=range(13),
)
def test_each_line_is_one_row_and_nothing_becomes_the_whole_disk(
    tmp_path: Path, content: bytes, expected: list[str]
) -> None:
    """An exclamation mark stands for a problem."""
    (tmp_path / "list").write_bytes(content)
    found = find([], str(tmp_path / "list"))
    assert [source.path + " !" * (source.problem is not None) for source in itertools.islice(found, 99)] == expected


def test_lists_that_are_none(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "empty").write_text("\n")
    Image.new("RGB", (8, 8)).save(folder / "picture.png")
    for name, problem in {
        "pipe": "not a file",
        "a": "not a file",
        "empty": "names no file",
        "picture.png": "is a picture",
    }.items():
        with pytest.raises(PhotoError, match=problem):
            check([], f"{folder}/{name}")


def test_places_that_may_not_be_looked_at_are_a_row() -> None:
    """As a user who is not root, who may look everywhere."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        closed = Path(name, "closed")
        closed.mkdir(mode=0)
        Path(name, "list").write_text(f"{closed}/x.jpg\n{closed}\n{name}/y.jpg\n")
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)
            found = [(source.path, source.problem) for source in find([], f"{name}/list")]
        finally:
            os.seteuid(user)
            closed.chmod(0o700)
    assert found == [
        (f"{closed}/x.jpg", None),
        (str(closed), "cannot be listed (Permission denied)"),
        (f"{name}/y.jpg", None),
    ]
