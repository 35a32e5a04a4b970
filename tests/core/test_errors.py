"""What errors suggest: commands that can be pasted, libraries that can be installed, flags that exist."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest

from femtobooth.core.errors import command, needs, shortened
from femtobooth.parsing import names, spoken
from femtobooth.workflows.commands import COMMANDS

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
FLAG = re.compile(r"(?<![\w<!({;:-])--[a-z][a-zA-Z0-9-]+")
OTHERS = {
    "--set",  # of every command, for a setting that has no flag
    "--cell",
    "--head",
    "--local-dir",
    "--private",
    "--logdir",
    "--onnx",
    "--saveEngine",
    "--stronglyTyped",
}  # of CSS, hf, tensorboard and trtexec


@pytest.mark.parametrize(
    "name",
    ["plain", "dog's", "$(touch x)", "a;b", "*", "~", "café 🦊", "-rf", "a\nb", "\x1b[31m'", "x\u202fy", "\udcff"],
)
def test_a_suggested_command_is_one_line_that_the_shell_reads_back(name: str) -> None:
    line = command("personalize", "--resume", Path(name))
    assert line.startswith("femtobooth personalize --resume ")
    assert "\n" not in line
    assert "\x1b" not in line
    shell = ["bash", "-c", "femtobooth() { printf '%s' \"${!#}\"; }\n" + line]
    found = subprocess.run(shell, check=True, capture_output=True, env={"LC_ALL": "C.UTF-8", "HOME": "/home"}).stdout
    assert found.decode("utf-8", "surrogateescape") == (f"./{name}" if name.startswith("-") else name)


@pytest.mark.parametrize("extra", [extra for extra in EXTRAS if extra != "test"])
def test_what_an_extra_brings_is_named_itself(extra: str) -> None:
    """No package index has femtobooth, so that `pip install femtobooth[...]` fails wherever it was installed from."""
    pip, install, *wanted = shlex.split(needs(extra))
    assert (pip, install) == ("pip", "install")
    assert [_parts(one) for one in wanted] == [_parts(one) for one in EXTRAS[extra]]


def _parts(requirement: str) -> tuple[str, set[str]]:
    name, versions = re.match(r"([\w-]+(?:\[\w+\])?)(.*)", requirement).groups()  # type: ignore[union-attr]
    return name, set(versions.split(","))


def test_an_unknown_extra_leads_to_femtobooths_own_folder() -> None:
    assert needs("nothing") == "pip install '.[nothing]' in femtobooth's own folder"


def test_nothing_says_to_install_femtobooth_from_an_index() -> None:
    files = [
        ROOT / "README.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "src").rglob("*.py"),
        *(ROOT / "recipes").rglob("*.md"),
    ]
    assert [
        str(file) for file in files if re.search(r"pip install \S?femtobooth", file.read_text(encoding="utf-8"))
    ] == []


def test_no_text_below_the_command_line_names_a_flag() -> None:
    """Errors, notes and help texts name settings; the command line shows them as its flags, a form as its fields."""
    found = []
    for file in (ROOT / "src" / "femtobooth").rglob("*/*.py"):
        if file.name == "fields.py":  # which says what a flag is
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        skipped = {id(part) for node in ast.walk(tree) if _says_a_command(node) for part in ast.walk(node)}
        skipped |= {id(text) for node in ast.walk(tree) if (text := _docstring(node))}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
                if FLAG.fullmatch(node.value):  # an argument of a process that is started
                    continue
                flags = set(FLAG.findall(node.value)) - OTHERS
                found += [f"{file.name}:{node.lineno}: {flag}" for flag in flags]
    assert found == []


def test_every_flag_in_a_suggested_command_exists() -> None:
    known = {one.called for row in COMMANDS.values() for one in names(row).values()}
    known |= {f"--no-{flag[2:]}" for flag in known} | {"--config", "--set", "--json", "--help", "--help-all"}
    unknown = {}
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if _says_a_command(node):
                for part in ast.walk(node):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        unknown |= dict.fromkeys(set(FLAG.findall(part.value)) - known, f"{file.name}:{node.lineno}")
    assert unknown == {}


def _says_a_command(node: ast.AST) -> bool:
    """Whether this is a whole command line, the example of one, or the flag of a field."""
    if isinstance(node, ast.keyword):
        return node.arg == "example"
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("command", "Flag")


def _docstring(node: ast.AST) -> ast.expr | None:
    """The docstring of a module, function or class; not the text under a field, which people read."""
    if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
        return node.body[0].value  # type: ignore[attr-defined]
    return None


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        ("`training.steps`: too few", "--steps: too few"),
        ("give `training.steps=400` or more", "give --steps 400 or more"),
        ("add `overwrite=true` to replace it", "add --overwrite to replace it"),
        ("or `photos.flip=false`", "or --no-flip"),
        ("`training.clip=1` clips", "--set training.clip=1 clips"),
        ("`photos.paths` and `run`", "PHOTOS and --resume"),
        ("`prior.folder=my photos`: empty", "--class-folder my photos: empty"),
        ("`hf download x/y` and `bundled` stay, and `training.step`", None),
    ],
)
def test_the_command_line_calls_settings_by_its_flags(text: str, typed: str | None) -> None:
    assert spoken(text, COMMANDS["personalize"]) == (typed or text)


def test_a_setting_has_the_flag_of_the_command_that_was_typed() -> None:
    text = "`sampling.steps` and `training.steps`"
    assert spoken(text, COMMANDS["generate"]) == "--steps and `training.steps`"
    assert spoken(text, COMMANDS["finetune"]) == "`sampling.steps` and --steps"


def test_a_shortened_text_is_one_harmless_line() -> None:
    assert shortened("a\x1b[31m\nb") == "a\\x1b[31m\\nb"
    assert len(shortened("x" * 10**6)) == 60
