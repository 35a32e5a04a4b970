"""What stands in the way of a studio is told in two lines, before anything is served."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path

import pytest

from femtobooth import cli
from femtobooth.core import locks
from femtobooth.core.errors import needs
from femtobooth.studio import start


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """What `femtobooth studio` says on its way out."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["studio", "--no-browser", *arguments])
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def find(name: str) -> object:
        return None if name == "fastapi" else importlib.util.find_spec(name)

    monkeypatch.setattr(start, "find_spec", find)
    assert told(capsys) == ["femtobooth: studio: fastapi not installed", f"  -> {needs('studio')}"]


def test_where_another_studio_has_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".studio").mkdir()
    with locks.held(tmp_path / ".studio"):
        lines = told(capsys, "--folder", str(tmp_path), "--port", "0")
    assert len(lines) == 2
    assert lines[1] == "  -> stop it, or give another --folder"


def test_where_something_else_has_the_port(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        lines = told(capsys, "--folder", str(tmp_path), "--port", str(port))
    assert lines[0].startswith(f"femtobooth: --host 127.0.0.1, --port {port}: cannot be listened on (")
    assert lines[1] == "  -> give another --port; 0 takes any that is free"
