"""`--overwrite`, command by command: nothing goes but what the same command wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from femtobooth.core.claims import MARKER

FemtoBooth = Callable[..., int]
FOLDERS = {
    "personalize": ("{photos}", "--class-noun", "robot", "--runs", "{around}", "--name", "{name}"),
    "finetune": ("{photos}", "--model", "bundled", "--runs", "{around}", "--name", "{name}"),
    "generate": ("bundled", "a cat", "--out", "{out}"),
    "export": ("{tiny}", "--out", "{out}"),
    "evaluate-classifier": ("{tiny}", "{photos}", "--out", "{out}"),
    "convert": ("bundled", "{out}"),
}
FILES = {
    "convert": ("bundled", "{out}.safetensors"),
    "compare": ("bundled", "{tiny}", "--out", "{out}.html"),
}


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def _documents(out: Path, command: str) -> str:
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    return f"does not say that femtobooth {command} made it"


def _marked(out: Path, command: str) -> str:
    _documents(out, command)
    (out / MARKER).write_text(json.dumps({"command": command, "files": ["old.txt"]}))
    return "thesis.tex"


def _repository(out: Path, command: str) -> str:
    (out / ".git").mkdir(parents=True)
    (out / ".git" / "HEAD").write_text("mine")
    (out / MARKER).write_text(json.dumps({"command": command, "files": ["old.txt"]}))
    return ".git/HEAD"


def _link(out: Path, command: str) -> str:
    real = out.with_name("real")
    real.mkdir()
    (real / "old.txt").write_text("ours")
    (real / MARKER).write_text(json.dumps({"command": command, "files": ["old.txt"]}))
    out.symlink_to(real)
    return "is a link"


def _others(out: Path, command: str) -> str:
    out.mkdir()
    (out / "old.txt").write_text("ours")
    (out / MARKER).write_text(json.dumps({"command": "demo", "files": ["old.txt"]}))
    return f"made by femtobooth demo, not by {command}"


def _input(out: Path, command: str) -> str:
    """The photos, or the model, lie in it."""
    (out / "kept").mkdir(parents=True)
    (out / MARKER).write_text(json.dumps({"command": command, "files": ["*"]}))
    return "this command reads"


@pytest.mark.parametrize("spoil", [_documents, _marked, _repository, _link, _others, _input])
@pytest.mark.parametrize("command", FOLDERS)
def test_a_folder_that_is_not_replaced(
    command: str,
    spoil: Callable[[Path, str], str],
    femtobooth: FemtoBooth,
    photos: Path,
    tiny: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    said = spoil(out, command)
    places = {"photos": photos, "tiny": tiny, "out": out, "around": tmp_path, "name": "out"}
    arguments = [part.format(**places) for part in FOLDERS[command]]
    if spoil is _input:
        arguments = [str(out / "kept") if part in (str(photos), str(tiny), "bundled") else part for part in arguments]
    before = files(tmp_path)
    assert femtobooth(command, *arguments, "--overwrite") == 2
    errors = capsys.readouterr().err
    assert said in errors
    assert len(errors[errors.index("femtobooth: ") :].strip().splitlines()) == 2
    assert files(tmp_path) == before


@pytest.mark.parametrize("command", FILES)
def test_a_file_that_is_not_replaced(
    command: str, femtobooth: FemtoBooth, photos: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [part.format(photos=photos, tiny=tiny, out=tmp_path / "out") for part in FILES[command]]
    place = Path(arguments[-1])
    place.write_text("all my work\n")
    assert femtobooth(command, *arguments, "--overwrite") == 2
    assert f"{place} is no file that femtobooth {command} writes" in capsys.readouterr().err
    assert place.read_text() == "all my work\n"
    link = place.with_name(f"link{place.suffix}")
    link.symlink_to(place)
    assert femtobooth(command, *arguments[:-1], link, "--overwrite") == 2
    assert "is a link" in capsys.readouterr().err
    assert link.is_symlink()
