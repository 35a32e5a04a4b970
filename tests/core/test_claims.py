"""What a command may write and replace: claimed by creating it, held by one process, replaced only where the same
command made it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from femtobooth.core import locks
from femtobooth.core.claims import MARKER, Output, strangers
from femtobooth.core.errors import ExistsError, InUseError, StorageError
from femtobooth.core.locks import LOCK


def make(path: Path, command: str = "export", **more: object) -> Path:
    """A finished folder of a command."""
    with Output(path, command, **more).folder() as folder:  # type: ignore[arg-type]
        (folder / "model.onnx").write_text("new")
        (folder / "sub").mkdir()
        (folder / "sub" / "a.txt").write_text("new")
    return path


def files(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_a_finished_folder_is_whole_and_marked(tmp_path: Path) -> None:
    out = make(tmp_path / "a" / "out")
    assert sorted(files(out)) == [MARKER, "model.onnx", "sub/a.txt"]
    assert json.loads((out / MARKER).read_text()) == {"command": "export", "files": ["model.onnx", "sub/a.txt"]}
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert strangers(out) == []
    make(out, overwrite=True)


def test_a_failed_folder_leaves_the_old_one(tmp_path: Path) -> None:
    out = make(tmp_path / "out")
    before = files(out)
    with pytest.raises(RuntimeError), Output(out, "export", overwrite=True).folder() as folder:
        (folder / "half").touch()
        raise RuntimeError
    assert files(out) == before
    assert list(tmp_path.iterdir()) == [out]


def _notes(out: Path) -> Path:
    (out / "sub" / "thesis.tex").write_text("mine")
    return out


def _link(out: Path) -> Path:
    link = out.with_name("link")
    link.symlink_to(out)
    return link


def _git(out: Path) -> Path:
    (out / ".git").mkdir()
    (out / ".git" / "HEAD").write_text("mine")
    return out


def _unmarked(out: Path) -> Path:
    (out / MARKER).unlink()
    return out


def _mine(out: Path) -> Path:
    place = out.with_name("mine")
    place.mkdir()
    (place / "thesis.tex").write_text("mine")
    return place


def _broken_marker(out: Path) -> Path:
    (out / MARKER).write_text('{"command": 3}')
    return out


def _file(out: Path) -> Path:
    place = out.with_name("page.html")
    place.write_text("mine")
    return place


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_notes, "thesis.tex"),
        (_git, ".git/HEAD"),
        (_link, "is a link"),
        (_unmarked, "does not say that femtobooth export made it"),
        (_broken_marker, "does not say that femtobooth export made it"),
        (_mine, "does not say that femtobooth export made it"),
        (_file, "no file that femtobooth export writes"),
    ],
)
def test_overwrite_replaces_nothing_else(tmp_path: Path, spoil: Callable[[Path], Path], said: str) -> None:
    place = spoil(make(tmp_path / "out"))
    before = files(tmp_path)
    with pytest.raises(ExistsError, match=said):
        Output(place, "export", overwrite=True).check()
    with pytest.raises(ExistsError, match=said):
        make(place, overwrite=True)
    assert files(tmp_path) == before


def test_overwrite_takes_no_other_commands_folder(tmp_path: Path) -> None:
    out = make(tmp_path / "out", "convert")
    with pytest.raises(ExistsError, match="made by femtobooth convert, not by export"):
        make(out, overwrite=True)


@pytest.mark.parametrize("given", [".", "sub", "sub/a.txt", "../link/sub"])
def test_overwrite_takes_no_input(tmp_path: Path, given: str) -> None:
    out = make(tmp_path / "out")
    (tmp_path / "link").symlink_to(out)
    with pytest.raises(ExistsError, match="this command reads"):
        make(out, overwrite=True, inputs=["bundled", None, str(out / given)])
    make(out, overwrite=True, inputs=[tmp_path, "bundled"])  # an input around it is none of the folder's business


def test_what_comes_meanwhile_is_kept(tmp_path: Path) -> None:
    """Between the first look and the end a minute's work passes."""
    out = tmp_path / "out"
    with pytest.raises(ExistsError, match="meanwhile"), Output(out, "export").folder() as folder:
        (folder / "model.onnx").touch()
        out.mkdir()
        (out / "other").write_text("theirs")
    assert files(out) == {"other": "theirs"}
    make(out.with_name("two"))
    with (
        pytest.raises(ExistsError, match=r"notes\.txt"),
        Output(out.with_name("two"), "export", overwrite=True).folder() as folder,
    ):
        (folder / "model.onnx").touch()
        (tmp_path / "two" / "notes.txt").write_text("theirs")
    assert files(out.with_name("two"))["notes.txt"] == "theirs"
    page = tmp_path / "page.html"
    with pytest.raises(ExistsError, match="meanwhile"), Output(page, "compare").file() as temporary:
        temporary.write_text("ours")
        page.write_text("theirs")
    assert page.read_text() == "theirs"


def test_an_empty_folder_is_used_as_it_is(tmp_path: Path) -> None:
    """It may be a mount point, the current folder, or behind a link: nothing is renamed over it."""
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    node = real.stat().st_ino
    make(link)
    assert sorted(files(real)) == [MARKER, "model.onnx", "sub/a.txt"]
    assert real.stat().st_ino == node


def test_names_that_were_made_up_are_counted(tmp_path: Path) -> None:
    first = Output(tmp_path / "dog-20261128-235959", "personalize", numbered=True, owns=["run.json"])

    def begin(folder: Path) -> None:
        (folder / "run.json").write_text("{}")

    with first.claimed(begin) as one, first.claimed(begin) as two, first.claimed(begin) as three:
        assert [path.name for path in (one, two, three)] == [f"dog-20261128-235959{end}" for end in ("", "-2", "-3")]
        assert all(locks.holder(path) for path in (one, two, three))
    assert not any((path / LOCK).exists() for path in (one, two, three))


def test_a_folder_in_use_says_by_whom(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with Output(run, "personalize", owns=["run.json"]).claimed(
        lambda folder: (folder / "run.json").write_text("{}") and None
    ):
        for overwrite in (False, True):
            with pytest.raises(InUseError, match=f"in use by process {os.getpid()} since .*: "):
                make(run, "personalize", overwrite=overwrite)
        with pytest.raises(InUseError, match="in use by"), locks.held(run):
            pass
        assert (run / "run.json").is_file()
    with locks.held(run):
        pass


def _another(folder: Path) -> subprocess.Popen[str]:
    """A process that holds the lock of `folder`."""
    code = (
        "from pathlib import Path; from femtobooth.core import locks; "
        f"locks.acquire(Path({str(folder)!r})); print(flush=True); input()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    process = _another(tmp_path)
    with pytest.raises(InUseError, match=f"process {process.pid} "):
        locks.acquire(tmp_path)
    found = locks.holder(tmp_path)
    assert found is not None
    assert found.pid == process.pid
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet waited for
    assert locks.holder(tmp_path) is None
    locks.acquire(tmp_path)
    locks.release(tmp_path)
    process.wait()


@pytest.mark.parametrize(
    ("change", "free"),
    [
        ({"began": "1"}, True),  # another process of this number
        ({"boot": "before"}, True),
        ({"host": "elsewhere"}, False),
    ],
)
def test_whose_lock_it_is(tmp_path: Path, change: dict[str, str], free: bool) -> None:
    locks.acquire(tmp_path)
    found = json.loads((tmp_path / LOCK).read_text())
    (tmp_path / LOCK).write_text(json.dumps(found | change))
    if free:
        locks.acquire(tmp_path)
    else:
        with pytest.raises(InUseError, match=r"on elsewhere .*\n.*remove .*\.lock"):
            locks.acquire(tmp_path)


def test_a_lock_that_was_cut_off_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text('{"pid": 1, "beg')
    locks.acquire(tmp_path)
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_one_of_many_gets_it(tmp_path: Path) -> None:
    """Four processes find the lock of a dead one and want to take it over at the same moment."""
    process = _another(tmp_path)
    process.kill()
    process.wait()
    code = (
        "import sys, time; from pathlib import Path; from femtobooth.core import "
        "locks; from femtobooth.core.errors import InUseError\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "try: locks.acquire(Path(sys.argv[1])); print('got', flush=True)\n"
        "except InUseError: print('not', flush=True)\n"
        "sys.stdin.readline()"
    )
    others = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for other in others:
        assert other.stdout
        other.stdout.readline()
    for turn in range(2):
        for other in others:
            assert other.stdin
            other.stdin.write("\n")
            other.stdin.flush()
        if turn == 0:
            said = [other.stdout.readline().strip() for other in others if other.stdout]
    for other in others:
        other.communicate()
    assert sorted(said) == ["got", *["not"] * 3]


@pytest.mark.parametrize("place", ["file/out", "file/deeper/out", "x" * 300])
def test_what_cannot_be_written_is_named_before_any_work(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=place[:10]):
        Output(tmp_path / place, "export").check()


def test_a_place_that_may_not_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a read-only mount; root, as which tests may run, may write anywhere else."""
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(StorageError, match=f"{tmp_path} cannot be written to"):
        Output(tmp_path / "runs" / "x", "personalize").check()
