"""Every named file comes once, in order, without holding them all; shards share nothing and leave nothing out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from femtobooth.core.errors import PhotoError, SettingsError
from femtobooth.recognizer.sources import Shard, check, find


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
    assert names(folder, f"{folder}/top.jpg", f"{folder}/**/*.jpg") == ["top.jpg", "a/photo2.jpg", "a/photo10.jpg", "top.jpg"]
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
    program = "import sys; from femtobooth.recognizer.sources import find\nfor s in find(['-']): print(s.path, flush=True)"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        for name in (b"one.jpg", b"two.jpg"):
            process.stdin.write(name + b"\n")
            process.stdin.flush()
            assert process.stdout.readline().strip() == name  # before stdin ends
        process.stdin.close()


def test_shards_are_disjoint_and_complete_wherever_the_folder_lies(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
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
    with pytest.raises(SettingsError, match="--shard"):
        Shard.parse(text)


def test_what_is_not_there_is_said_before_any_work(folder: Path) -> None:
    for given, listed in (["/no/where"], None), ([f"{folder}/*.gone"], None), ([], None), ([], f"{folder}/nolist"):
        with pytest.raises(PhotoError):
            check(given, listed)
    check([str(folder), f"{folder}/*.jpg", "-"], None)
