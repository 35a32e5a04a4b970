"""A new user's first mistakes in each command: told at once, in two lines that name what was typed, before anything
heavy is imported.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from femtobooth import cli
from femtobooth.core import fields
from femtobooth.core.machine import may_accelerate
from femtobooth.workflows.commands import COMMANDS, find

HEAVY = (
    "torch",
    "diffusers",
    "transformers",
    "timm",
    "lightning",
    "sklearn",
    "pyarrow",
    "onnxruntime",
    "scipy",
    "pandas",
)

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
    wrong = []
    for one in fields.settings(find(command.settings)):
        if one.flag and one.choices:
            wrong.append((one.flag, one.choices[0] + "x"))
        elif one.flag and fields.leaf_types(one.field) & {int, float}:
            wrong.append((one.flag, "many"))
    return wrong


def _mistakes() -> dict[tuple[str, str], tuple[list[str], str]]:
    """(command, mistake): the command line, and what its problem begins with."""
    mistakes = {}
    for name, command in COMMANDS.items():
        example = shlex.split(command.example)
        for flag, value in _wrong_values(name):
            mistakes[name, f"{flag} {value}"] = [name, *example, flag, value], f"{flag}: "
        mistakes[name, "flag"] = (
            [name, *example, "--jsno"],
            f"--jsno: femtobooth {name} has no such flag; did you mean --json?",
        )
        mistakes[name, "no value"] = [name, *example, "--set"], "--set: needs a value"
        mistakes[name, "setting"] = [name, *example, "--set", "runz=1"], "--set runz: no such setting"
        mistakes[name, "file"] = (
            [name, *example, "--config", "nowhere.yaml"],
            "nowhere.yaml: cannot be read (No such file or directory)",
        )
        if command.example and name not in ("export", "studio"):  # which have defaults
            mistakes[name, "nothing"] = [name], f"{name}: no "
        files = any(one.names in ("file", "folder", "run") for one in fields.settings(find(command.settings)))
        if files and name != "search":
            typed = next((word for word in example if "/" in word), None)
            if typed and name not in ("export", "compare", "generate"):
                mistakes[name, "path"] = [name, *example], f"{typed}: no such file or folder"
    mistakes["generate", "path"] = ["generate", "runs/typo", "a dog"], "runs/typo: no such file or folder"
    mistakes["personalize", "base"] = (
        ["personalize", ".", "--class-noun", "dog", "--base", "./typo"],
        "./typo: no such file or folder",
    )
    mistakes["export", "path"] = ["export", "bundled", "--data", "photoz"], "photoz: no such file or folder"
    mistakes["finetune", "--resume and more"] = (
        ["finetune", "--resume", "runs/mine", "--lr", "1"],
        "--resume: goes on with the settings",
    )
    dog = ["personalize", ".", "--class-noun", "dog"]
    mistakes["personalize", "--name"] = [*dog, "--runs", "/", "--name", "tmp"], "/tmp already exists"  # noqa: S108
    for start in (dog, ["finetune", ".", "--model", "bundled"]):
        if not may_accelerate():
            mistakes[start[0], "--accelerator"] = [*start, "--accelerator", "gpu"], "--accelerator gpu: there is none"
        if find_spec("wandb") is None:
            mistakes[start[0], "--trackers"] = [*start, "--trackers", "wandb"], "--trackers: wandb is not installed"
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
def test_a_first_mistake(
    mistake: tuple[str, str], told: dict[tuple[str, str], tuple[int, str, list[str], float]]
) -> None:
    code, said, heavy, seconds = told[mistake]
    assert code == 2
    assert said.startswith(f"femtobooth: {MISTAKES[mistake][1]}")
    assert len(said.splitlines()) == 2, said
    assert said.splitlines()[1].startswith("  -> ")
    assert heavy == []
    assert seconds < 2  # of a processor; the first takes 0.3 s, the others some milliseconds


# Runs one command line until it imports torch or timm, and says what was printed by then.
UNTIL_HEAVY = """
import sys
class Stop:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "timm", "diffusers"):
            raise KeyboardInterrupt
sys.meta_path.insert(0, Stop())
from femtobooth import cli
cli.main(sys.argv[1:])
"""
BEGINS = {
    "personalize photos --class-noun dog": "loading bundled ...",
    "generate bundled cat": "loading bundled ...",
    "convert bundled x.safetensors": "loading bundled ...",
    "finetune photos --model tf_efficientnet_lite0": "loading tf_efficientnet_lite0 ...",
    "export bundled --data photos": "loading bundled ...",
    "evaluate-classifier bundled photos": "loading bundled ...",
    "evaluate photos": "loading photos ...",
    "synthesize photos": "loading photos ...",
    "personalize --resume photos": "loading photos ...",
    "demo": "loading bundled ...",
}


@pytest.mark.parametrize("line", BEGINS)
def test_what_is_being_done_is_said_before_it_takes_long(line: str, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    found = subprocess.run(
        [sys.executable, "-c", UNTIL_HEAVY, *line.split()], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert found.returncode == 130
    assert found.stderr.splitlines()[0] == BEGINS[line]


def test_help_shows_what_is_in_force_and_what_can_be_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The values of the base that is given, as its card has them, and of the bundled one where none is; flags in any
    order.
    """

    def shown(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stop:
            cli.main([*arguments])
        assert stop.value.code == 0
        return " ".join(capsys.readouterr().out.split())

    (tmp_path / "README.md").write_text(
        "---\nfemtobooth: {personalize: {training: {steps: 77}}, generate: {sampling: {steps: 11}}}\n---\n"
    )
    bundled, other = shown("personalize", "--help-all"), shown("personalize", "--help-all", "--base", str(tmp_path))
    assert "Optimizer steps to train for. [300]" in bundled
    assert "--crop {center,smart,pad,subject} How a picture becomes square" in bundled
    assert "close around the subject. [subject]" in bundled
    assert "Optimizer steps to train for. [77]" in other
    assert "close around the subject. [smart]" in other
    assert "Denoising steps for each picture. [25]" in shown("generate", "-h")
    assert "Denoising steps for each picture. [11]" in shown("generate", str(tmp_path), "-h")
    assert "Denoising steps for each picture. [3]" not in shown("generate", "-h", "--steps", "3")
    assert "Optimizer steps to train for. [300]" in shown("personalize", "--base", "./nowhere", "--steps", "many", "-h")
    overview = shown("--help")
    assert all(f"{name} " in overview for name in (*COMMANDS, "FEMTOBOOTH_CACHE", "FEMTOBOOTH_DEBUG"))
    assert shown("help") == shown("-h") == overview
    assert shown("help", "personalize", "--help-all") == bundled
    assert shown("help", "personalize") == shown("personalize", "-h") != bundled


def test_an_unknown_variable_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FEMTOBOOTH_CAHCE", "/elsewhere")
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    said = capsys.readouterr().err
    assert (
        said
        == "warning: FEMTOBOOTH_CAHCE: femtobooth knows no such environment variable; did you mean FEMTOBOOTH_CACHE?\n"
    )
