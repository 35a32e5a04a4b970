"""A new user's first mistakes in each command: told at once, in two lines that name what was typed, before anything heavy is imported."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from femtobooth.commands import COMMANDS
from femtobooth.core import config
from femtobooth.parsing import _settings_class

HEAVY = ("torch", "diffusers", "transformers", "timm", "lightning", "sklearn", "pyarrow", "onnxruntime", "scipy", "pandas")

# Runs command lines in one process and says of each: exit code, stderr, and what heavy it imported.
RUNNER = """
import contextlib, io, json, sys, time
from femtobooth import cli
for line in json.load(sys.stdin):
    said, code = io.StringIO(), 0
    started = time.process_time()
    with contextlib.redirect_stderr(said):
        try:
            cli.main(line)
        except SystemExit as stop:
            code = stop.code
    heavy = sorted(set(sys.argv[1:]) & set(sys.modules))
    print(json.dumps([code, said.getvalue(), heavy, time.process_time() - started]))
"""


def _wrong_values(name: str) -> list[tuple[str, str]]:
    """For every flag of a command that does not take any text: one value that it cannot take."""
    command = COMMANDS[name]
    model = _settings_class(command.settings)
    wrong = []
    for flag, path in command.flags.items():
        field = config.field_at(model, path)
        kinds = config.leaf_types(field)
        if config.choices(field):
            wrong.append((flag, config.choices(field)[0] + "x"))
        elif kinds & {int, float}:
            wrong.append((flag, "many"))
    return wrong


def _mistakes() -> dict[tuple[str, str], tuple[list[str], str]]:
    """(command, mistake): the command line, and what its problem begins with."""
    mistakes = {}
    for name, command in COMMANDS.items():
        example = shlex.split(command.example)
        others = {} if name == "evaluate" else {"protocol"}
        for flag, value in _wrong_values(name):
            if command.flags[flag] not in others:
                mistakes[name, f"{flag} {value}"] = [name, *example, flag, value], f"{flag}: "
        mistakes[name, "flag"] = [name, *example, "--jsno"], f"--jsno: femtobooth {name} has no such flag; did you mean --json?"
        mistakes[name, "no value"] = [name, *example, "--set"], "--set: needs a value"
        mistakes[name, "setting"] = [name, *example, "--set", "runz=1"], "--set runz: no such setting"
        mistakes[name, "file"] = [name, *example, "--config", "nowhere.yaml"], "nowhere.yaml: cannot be read (No such file or directory)"
        if command.example and name != "export":  # which has a default
            mistakes[name, "nothing"] = [name], f"{name}: no "
        if command.files and name != "search":
            typed = next((word for word in reversed(example) if "/" in word and word != "drawn/"), None)
            if typed and name not in ("export", "compare", "generate"):
                mistakes[name, "path"] = [name, *example], f"{typed}: no such file or folder"
    mistakes["generate", "path"] = ["generate", "runs/typo", "a dog"], "runs/typo: no such file or folder"
    mistakes["personalize", "base"] = ["personalize", ".", "--class-noun", "dog", "--base", "./typo"], "./typo: no such file or folder"
    mistakes["export", "path"] = ["export", "bundled", "--data", "photoz"], "photoz: no such file or folder"
    mistakes["finetune", "--resume and more"] = ["finetune", "--resume", "runs/mine", "--lr", "1"], "--resume: goes on with the settings"
    mistakes["clasify", "command"] = ["clasify", "photos/"], "clasify: no such command"
    return mistakes


MISTAKES = _mistakes()


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[int, str, list[str], float]]:
    lines = json.dumps([line for line, _ in MISTAKES.values()])
    place = tmp_path_factory.mktemp("empty")
    command = [sys.executable, "-c", RUNNER, *HEAVY]
    found = subprocess.run(command, input=lines, capture_output=True, text=True, check=True, cwd=place)
    assert not list(Path(place).iterdir())
    return dict(zip(MISTAKES, map(json.loads, found.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("mistake", MISTAKES, ids=" ".join)
def test_a_first_mistake(mistake: tuple[str, str], told: dict[tuple[str, str], tuple[int, str, list[str], float]]) -> None:
    code, said, heavy, seconds = told[mistake]
    assert code == 2
    assert said.startswith(f"femtobooth: {MISTAKES[mistake][1]}")
    assert len(said.splitlines()) == 2, said
    assert said.splitlines()[1].startswith("  -> ")
    assert heavy == []
    assert seconds < 2  # of a processor; the first takes 0.3 s, the others some milliseconds
