"""README.md, CONTRIBUTING.md and docs/ tell the truth: their commands, flags and links exist, their Python runs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import quick_start
from PIL import Image

from femtobooth.cli import VARIABLES
from femtobooth.core import config
from femtobooth.core.fields import settings
from femtobooth.generator.locate import bundled_folder
from femtobooth.parsing import build, layers_of
from femtobooth.workflows.commands import COMMANDS, find

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
OTHERS = {
    "--head",
    "--disable-usage-stats",
    "--no-deps",
    "--data",
    "--others",
    "--judge",
    "--dreambooth",
    "--local-dir",
    "--model",
    "--node-ip-address",
    "--port",
    "--num-cpus",
    "--nnodes",
    "--nproc-per-node",
    "--node-rank",
    "--master-addr",
    "--master-port",
    "--no-python",
    "--only",
}  # of other programs
LONG = re.compile(r"femtobooth\.(personalize|finetune|export)\(")  # trains, or needs what was trained


def blocks(language: str) -> list[tuple[str, str]]:
    """Code blocks in a language, with their page."""
    return [(page, text) for page, all_of_it in TEXTS.items() for text in _blocks(all_of_it, language)]


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every line of a shell block, or of text between backticks, that begins with femtobooth and a command's name."""
    lines = [line for _, block in blocks("sh") for line in block.replace("\\\n", " ").splitlines()]
    inline = [found for text in TEXTS.values() for found in re.findall(r"`(femtobooth [^`]+)`", text)]
    found = [
        re.sub(r"\s+#.*", "", line.partition(" | ")[2] if "print0" in line else line) for line in [*lines, *inline]
    ]
    return sorted({line.strip() for line in found if re.match(r"femtobooth [a-z]", line.strip())})


def test_the_readme_is_short() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= 120


@pytest.mark.parametrize("line", commands())
def test_a_command_is_understood(line: str) -> None:
    _, name, *words = shlex.split(line.replace(" \\| head", "").replace("… ", ""))
    if name in ("completion", "help"):
        return
    command = COMMANDS[name]
    if not words or "--help" in words or "--help-all" in words:
        return
    model = find(command.settings)
    known = settings(model)
    options = build(name, command).parse_intermixed_args(words)
    file = options.config and ROOT / options.config
    options.config = file if file and file.is_file() else None
    layers = layers_of(options, known, model)
    if not options.__dict__.get("instead") and "MODEL" not in words and "RUN" not in words:
        config.resolve(model.narrowed(config.merge(*layers)), *layers)


@pytest.mark.parametrize("page", TEXTS)
def test_flags_and_settings_exist(page: str) -> None:
    known = {"--version", "--config", "--set", "--json", "--help", "--help-all", "--from", "--resume", *OTHERS}
    for name, command in COMMANDS.items():
        for one in build(name, command)._actions:
            known |= set(one.option_strings)
    text = re.sub(r"^```(?!sh|text).*?^```$", "", TEXTS[page], flags=re.MULTILINE | re.DOTALL)
    assert set(re.findall(r"(?<![\w-])(--[a-z][a-z0-9-]+)", text)) - known == set()


def test_every_command_and_variable_is_told() -> None:
    told = "".join(TEXTS[page] for page in TEXTS if page.startswith("docs/"))
    assert [name for name in COMMANDS if f"femtobooth {name}" not in told] == []
    assert [name for name in VARIABLES if f"`{name}`" not in TEXTS["docs/troubleshooting.md"]] == []


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page: str) -> None:
    text, folder = TEXTS[page], (ROOT / page).parent
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for link in links:
        file, _, anchor = link.partition("#")
        target = folder / file if file else ROOT / page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}, link


def test_every_page_is_in_the_site() -> None:
    listed = set(re.findall(r"^([a-z-]+)$", "\n".join(_blocks(TEXTS["docs/index.md"], r"\{toctree\}")), re.MULTILINE))
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"} == listed


def test_scripts_exist() -> None:
    named = {
        path
        for text in TEXTS.values()
        for path in re.findall(r"\b((?:benchmarks|recipes|configs)/[\w./-]+\.\w+)", text)
    }
    assert len(named) > 10
    assert [path for path in sorted(named) if not (ROOT / path).is_file()] == []


PYTHON = [block for page, block in blocks("python") if page != "docs/architecture.md"]


def test_snippets_are_typed(tmp_path: Path) -> None:
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nfollow_imports = skip\nplugins = pydantic.mypy\n"
        "[mypy-femtobooth.*,PIL.*,pydantic.*]\nfollow_imports = silent\n"
    )
    for index, block in enumerate(PYTHON):
        (tmp_path / f"snippet_{index}.py").write_text(block)
    names = [f"snippet_{index}.py" for index in range(len(PYTHON))]
    told = subprocess.run(
        [sys.executable, "-m", "mypy", *names], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert told.returncode == 0, told.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the snippets name: runs/rex, made of the bundled base, and holiday/beach.jpg."""
    folder = tmp_path_factory.mktemp("place")
    run = folder / "runs" / "rex"
    shutil.copytree(bundled_folder(), run / "model")
    (run / "model" / "femtobooth.json").write_text('{"token": "sks", "class_noun": "dog"}')
    (run / "run.json").write_text(
        '{"kind": "personalize", "status": "done", "created": "2026-01-31T12:00:00Z", "base": "bundled",'
        '"base_hash": "", "size": 64, "subjects": {"V": {"token": "sks", "class_noun": "dog", "photos": []}},'
        '"settings": {"training": {"steps": 400}}}'
    )
    (folder / "holiday").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 3), np.uint8).repeat(20, axis=0).repeat(20, axis=1)
    Image.fromarray(pixels).save(folder / "holiday" / "beach.jpg")
    return folder


@pytest.mark.parametrize("block", [block for block in PYTHON if not LONG.search(block)])
def test_a_snippet_runs(block: str, place: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    told = quick_start.run(
        [sys.executable, "-c", block], capture_output=True, text=True, check=False, cwd=place, env=environment
    )
    assert told.returncode == 0, told.stderr
