"""`--help` and `--help-all`: what stands there, and how quickly."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated

import pytest

from femtobooth import cli
from femtobooth.core.config import Settings
from femtobooth.core.fields import Flag, Flags, settings
from femtobooth.workflows.commands import COMMANDS, find


def _printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_the_first_screen_holds_what_most_people_need(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    flags = [one for one in settings(find(COMMANDS[name].settings)) if one.flag]
    common = [one.flag for one in flags if one.common]
    page = _printed(capsys, name, "--help")
    assert len(common) <= 10
    assert len(page.splitlines()) <= 46
    assert all(f"  {flag}" in page for flag in common)
    if len(flags) > 10:
        assert len(common) >= 9
        assert all(f"  {one.flag} " not in page for one in flags if not one.common)
        assert f"--help-all shows {len(flags) - len(common)} more flags" in " ".join(page.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_all_lists_every_setting(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = _printed(capsys, name, "--help-all")
    assert _printed(capsys, "help", name, "--help-all") == page
    for one in settings(find(COMMANDS[name].settings)):
        assert (f"  {one.called}" if one.called else f"  --set {one.path}=") in page, one.path
    for title in {one.group for one in settings(find(COMMANDS[name].settings))} - {""}:
        assert f"\n{title}:\n" in page


def test_help_shows_defaults_and_units(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    page = _printed(capsys, "finetune", "--help-all")
    lines = {line.split()[0]: line for line in page.splitlines() if line.startswith("  --")}
    assert "--size PIXELS" in lines["--size"]
    assert lines["--validation"].startswith("  --validation SHARE")
    assert "[0.2]" in lines["--validation"]
    assert lines["--probe-only,"].endswith("[off]")
    assert lines["--flip,"].endswith("[on]")
    assert "  --set training.clip=GRADIENT-NORM" in page


def test_help_is_quick() -> None:
    code = (
        "import sys, time\nstarted = time.process_time()\nfrom femtobooth.cli import main\ntry:\n"
        "    main(['personalize', '--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'diffusers', 'transformers', 'numpy', 'PIL', 'rich'} & set(sys.modules)))\n"
        "print(time.process_time() - started)"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    *_, heavy, seconds = found.stdout.splitlines()
    assert heavy == "[]"
    assert float(seconds) < 1  # of a processor; 0.3 s where nothing else runs


class _Inner(Settings):
    steps: Annotated[int, Flag("--steps", common=True, unit="steps")] = 3
    """How many."""
    seed: Annotated[int, Flag("--seed", group="chance")] = 0
    """Where it begins."""


class _Outer(Settings):
    first: Annotated[_Inner, Flags("first", without=("seed",))] = _Inner()
    second: Annotated[_Inner, Flags("second", none=True)] = _Inner()


class _Twice(Settings):
    first: _Inner = _Inner()
    second: _Inner = _Inner()


def test_a_group_says_which_of_its_flags_a_command_has() -> None:
    found = {one.path: (one.flag, one.common, one.group, one.unit) for one in settings(_Outer)}
    assert found == {
        "first.steps": ("--steps", True, "first", "steps"),
        "first.seed": ("", False, "chance", ""),
        "second.steps": ("", False, "second", "steps"),
        "second.seed": ("", False, "chance", ""),
    }


def test_no_flag_stands_for_two_settings() -> None:
    with pytest.raises(ValueError, match="_Twice: --seed, --steps stands for two settings"):
        settings(_Twice)
