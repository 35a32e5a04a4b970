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
from femtobooth.parsing import names
from femtobooth.workflows.commands import COMMANDS

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
OTHERS = {"--local-dir", "--logdir", "--onnx", "--saveEngine", "--stronglyTyped"}  # of hf, tensorboard and trtexec


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
    name, versions = re.match(r"([\w-]+)(.*)", requirement).groups()  # type: ignore[union-attr]
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


def test_every_flag_that_a_message_names_exists() -> None:
    known = {called for one in COMMANDS.values() for called in names(one).values()}
    known |= (
        {f"--no-{flag[2:]}" for flag in known}
        | {"--config", "--set", "--json", "--help", "--help-all", "--version"}
        | OTHERS
    )
    unknown = {}
    for file in (ROOT / "src").rglob("*.py"):
        if file.parent.name == "pages":  # which has CSS's variables
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found = set(re.findall(r"(?<![\w<!({;-])--[a-z][a-zA-Z-]+", node.value)) - known
                unknown |= dict.fromkeys(found, f"{file.name}:{node.lineno}")
    assert unknown == {}


def test_a_shortened_text_is_one_harmless_line() -> None:
    assert shortened("a\x1b[31m\nb") == "a\\x1b[31m\\nb"
    assert len(shortened("x" * 10**6)) == 60
