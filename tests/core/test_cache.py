"""The cache: nothing in it is believed unchecked, and nothing ends because of it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from femtobooth.core import cache

pytestmark = pytest.mark.usefixtures("terminal")


@pytest.mark.parametrize(
    ("given", "standard", "expected"),
    [
        ("/a/b", "/c", "/a/b"),
        ("~/x", "/c", "/home/me/x"),
        ("", "/c", "/c/femtobooth"),
        ("  ", "/c", "/c/femtobooth"),
        (None, "/c", "/c/femtobooth"),
        (None, "relative", "/home/me/.cache/femtobooth"),
        (None, "", "/home/me/.cache/femtobooth"),
        ("here", None, "{cwd}/here"),
        ("~nobody-of-this-name/x", None, "{cwd}/~nobody-of-this-name/x"),
    ],
)
def test_where_it_is(
    given: str | None, standard: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in (("FEMTOBOOTH_CACHE", given), ("XDG_CACHE_HOME", standard)):
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, raising=False)
    assert str(cache.cache_folder()) == expected.replace("{cwd}", str(tmp_path))


DAMAGE = {
    "a bit flipped": lambda data: data[:3] + bytes([data[3] ^ 1]) + data[4:],
    "cut off": lambda data: data[:-9],
    "cut to nothing": lambda data: b"",
    "another's": lambda data: b"something else, without a hash",
    "longer": lambda data: data + b"\n",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_does_not_fit_its_hash_is_not_there(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "entry"
    cache.write(path, b"the value")
    assert cache.read(path) == b"the value"
    assert capsys.readouterr().err == ""
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert cache.read(path) is None
    said = capsys.readouterr().err.strip()
    assert said.startswith(str(path)) and "made again" in said and "\n" not in said


def _fill(folder: Path) -> None:
    (folder / "model").write_bytes(b"0123456789")
    (folder / "description").write_bytes(b"{}")


@pytest.mark.parametrize("damage", [*DAMAGE, "missing", "without its manifest", "a file more"])
def test_a_folder_that_does_not_fit_its_hashes_is_made_again(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = cache.folder(tmp_path / "new" / "entry", _fill)
    assert path == tmp_path / "new" / "entry"
    assert cache.folder(path, lambda _: pytest.fail("made twice")) == path
    if damage == "missing":
        (path / "description").unlink()
    elif damage == "without its manifest":
        (path / cache.MANIFEST).unlink()
    elif damage == "a file more":
        (path / "stray").touch()
    else:
        (path / "model").write_bytes(DAMAGE[damage]((path / "model").read_bytes()))
    assert cache.folder(path, _fill) == path
    assert cache.whole(path)
    assert (path / "model").read_bytes() == b"0123456789"
    assert capsys.readouterr().err.count("made again") == 1
    assert [one.name for one in path.parent.iterdir()] == ["entry"]  # nothing is left beside it


def test_a_file_where_a_folder_belongs(tmp_path: Path) -> None:
    (tmp_path / "entry").write_text("what is this")
    assert cache.whole(cache.folder(tmp_path / "entry", _fill))


class Full:
    """A disk without space: every write fails."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, *_: object, **__: object) -> None:
        raise OSError(self.number, os.strerror(self.number))


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    """In a process of its own without privileges, for root can write anywhere: the cache is a file, and one is within a
    file.
    """
    (tmp_path / "file").touch()
    code = """
import sys
from pathlib import Path
from femtobooth.core import cache
place = cache.cache_folder() / "kind"
cache.write(place / "entry", b"value")
assert cache.read(place / "entry") is None
def fill(folder):
    (folder / "model").write_bytes(b"0123456789")
made = cache.folder(place / "folder", fill)
assert (made / "model").read_bytes() == b"0123456789"
assert cache.folder(place / "folder", None) == made
print(made)
"""
    for where in (tmp_path / "file", tmp_path / "file" / "below"):
        environment = os.environ | {"FEMTOBOOTH_CACHE": str(where)}
        ended = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr
        assert ended.stderr.count("the cache cannot be written") == 1, ended.stderr
        assert f"{where}: the cache cannot be written" in ended.stderr.replace("\n", "")
        assert not Path(ended.stdout.strip()).exists()  # it went with the process


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = tmp_path / "full"

    def fill(folder: Path) -> None:
        _fill(folder)
        if folder.is_relative_to(full):
            raise OSError(number, os.strerror(number))

    cache._cannot_be_written.cache_clear()
    monkeypatch.setenv("FEMTOBOOTH_CACHE", str(full))
    made = cache.folder(full / "entry", fill)
    assert cache.whole(made) and not made.is_relative_to(full)
    monkeypatch.setattr(Path, "write_bytes", Full(number))
    cache.write(full / "file", b"value")
    assert capsys.readouterr().err.count("warning:") == 1
    assert list(full.iterdir()) == []


def test_processes_that_make_the_same_at_once(tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from femtobooth.core import cache
def fill(folder):
    (folder / "model").write_bytes(sys.argv[2].encode() * 1000)
    time.sleep(max(0.0, float(sys.argv[3]) - time.time()))
for turn in range(20):
    made = cache.folder(Path(sys.argv[1]) / str(turn), fill)
    assert cache.whole(made), turn
    cache.write(Path(sys.argv[1]) / f"{turn}.json", sys.argv[2].encode())
    assert cache.read(Path(sys.argv[1]) / f"{turn}.json")
"""
    start = str(__import__("time").time() + 1.5)
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "model").write_text("damaged before")
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name, start], stderr=subprocess.PIPE, text=True)
        for name in "abc"
    ]
    for process in running:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    assert not [one.name for one in tmp_path.iterdir() if one.name.startswith(".")]
