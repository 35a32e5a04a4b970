"""-q, nothing and -v, before or behind any command: what is said on stderr, while stdout stays for results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from femtobooth import cli
from femtobooth.workflows.commands import COMMANDS


@pytest.mark.parametrize(
    ("arguments", "begins", "timed"),
    [
        (["classify"], True, False),
        (["classify", "-q"], False, False),
        (["--quiet", "classify"], False, False),
        (["classify", "--verbose"], True, True),
        (["-v", "classify"], True, True),
    ],
    ids=str,
)
def test_what_a_command_says(
    arguments: Sequence[str],
    begins: bool,
    timed: bool,
    tiny_onnx: Path,
    photos: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (photos / "a" / "torn.jpg").write_bytes(b"")
    cli.main([*arguments, str(photos), "--model", str(tiny_onnx), "--format", "jsonl"])
    said = capsys.readouterr()
    assert len([json.loads(line) for line in said.out.splitlines()]) == 21
    assert ("opening" in said.err) == begins
    assert ("opening the model: done after" in said.err) == timed
    assert "1 of 21 files could not be read" in said.err


def test_the_result_is_shown_quietly_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["-q", "models", "--runs", str(tmp_path)])
    said = capsys.readouterr()
    assert "tf_efficientnet_lite0.in1k" in said.err
    assert "looking for" not in said.err
    assert said.out == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_them(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([name, "--help-all"])
    assert stopped.value.code == 0
    told = capsys.readouterr().out
    assert "-q, --quiet" in told and "-v, --verbose" in told


def test_both_at_once_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["-q", "-v", "models"])
    assert stopped.value.code == 2
    assert "not allowed with" in capsys.readouterr().err
