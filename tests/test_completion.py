"""Shell completion, in the shells themselves: each types a line, presses Tab, and says what the line became."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from femtobooth import completion
from femtobooth.core.fields import settings
from femtobooth.workflows.commands import COMMANDS, find

# What is typed before Tab, and the words that stand there then.
COMPLETED = {
    "femtobooth perso": "femtobooth personalize",
    "femtobooth help gener": "femtobooth help generate",
    "femtobooth completion fi": "femtobooth completion fish",
    "femtobooth personalize --clas": "femtobooth personalize --class-",
    "femtobooth personalize --class-n": "femtobooth personalize --class-noun",
    "femtobooth personalize --no-f": "femtobooth personalize --no-flip",
    "femtobooth personalize --crop sm": "femtobooth personalize --crop smart",
    "femtobooth personalize --resume runs/r": "femtobooth personalize --resume runs/rex",
    "femtobooth generate re": "femtobooth generate runs/rex",
    "femtobooth generate bundl": "femtobooth generate bundled",
    "femtobooth generate --prompts a": "femtobooth generate --prompts a prompt.txt",
    "femtobooth generate runs/rex --sampler dp": "femtobooth generate runs/rex --sampler dpmpp-2m",
    "femtobooth classify my-p": "femtobooth classify my-photos",
    "femtobooth export --format tens": "femtobooth export --format tensorrt",
}
START = {
    "bash": (["bash", "--norc", "-i"], "bind 'set enable-bracketed-paste off'; bind 'set bell-style none'"),
    "zsh": (["zsh", "-f", "-i"], "unset zle_bracketed_paste; autoload -U compinit; compinit -u -D; setopt nobeep"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run, photos, and a completion script for each shell."""
    folder = tmp_path_factory.mktemp("shell")
    for name in ("runs/rex", "runs/other-folder", "my-photos"):
        (folder / name).mkdir(parents=True)
    (folder / "runs" / "rex" / "run.json").write_text("{}")
    (folder / "a prompt.txt").write_text("a dog\n")
    for shell in completion.SHELLS:
        (folder / f"script.{shell}").write_text(completion.script(shell))
    return folder


@pytest.mark.parametrize("shell", START)
def test_tab(shell: str, place: Path) -> None:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    command, prepare = START[shell]
    assert _pressed(command, f"{prepare}; source ./script.{shell}", place) == COMPLETED


def test_tab_in_fish(place: Path) -> None:
    if not shutil.which("fish"):
        pytest.skip("fish is not installed")
    for typed, became in COMPLETED.items():
        run = ["fish", "--no-config", "-c", f"source script.fish; complete -C {typed!r}"]
        found = subprocess.run(run, cwd=place, capture_output=True, text=True, check=True)
        offered = [line.partition("\t")[0].replace("\\ ", " ") for line in found.stdout.splitlines()]
        word = became[typed.rindex(" ") + 1 :]
        assert any(one.startswith(word) for one in offered), (typed, offered, found.stderr)


def _pressed(command: list[str], prepare: str, place: Path) -> dict[str, str]:
    """Type each line into a shell at a terminal, press Tab, and have the shell print the words it then sees."""
    ours, theirs = pty.openpty()
    environment = {"PATH": os.environ["PATH"], "HOME": str(place), "TERM": "dumb", "PS1": "", "LC_ALL": "C.UTF-8"}
    shell = subprocess.Popen(
        command, cwd=place, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)

    def answer(text: str, until: str) -> str:
        os.write(ours, text.encode())
        found, end = "", time.monotonic() + 20
        while not re.search(until, found, re.DOTALL) and time.monotonic() < end:
            if select.select([ours], [], [], 1)[0]:
                found += os.read(ours, 65536).decode(errors="replace")
        return found

    try:
        answer(f"{prepare}; echo rea''dy\n", "ready")
        became = {}
        for typed in COMPLETED:
            os.write(ours, f"{typed}\t".encode())
            time.sleep(0.3)
            said = answer("\x01printf '<%s' \x05; echo '>'\n", r"<femtobooth<[^>]*>\r")
            words = re.findall(r"<(femtobooth<[^>]*)>\r", said)
            became[typed] = " ".join(words[-1].split("<")).rstrip("/") if words else said
        return became
    finally:
        shell.kill()
        shell.wait()
        os.close(ours)


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_every_flag_of_every_command_is_there(shell: str) -> None:
    script = completion.script(shell)
    for command in COMMANDS.values():
        for one in settings(find(command.settings)):
            spelled = f"-l {one.flag[2:]}" if shell == "fish" and one.flag.startswith("--") else one.flag
            assert not one.flag or f"{spelled}" in script
