"""A script of one's own that a launcher starts as several processes: all of them get the result, and go on."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import quick_start
from PIL import Image

SCRIPT = """
import json, os, sys
import femtobooth
base, photos, recognizer, pictures, name = sys.argv[1:]
training = {"steps": 2, "batch_size": 2, "devices": 2, "strategy": "ddp", "accelerator": "cpu", "trackers": ["csv"]}
few = {"images": 2, "sampling_batch": 1, "sampling": {"steps": 1}}
generator = femtobooth.personalize(
    photos, "robot", base=base, name=name, training=training, prior=few,
    samples={"images": 1, "prompts": ["a [V] {class}"], "sampling": {"steps": 1}}, validation={"every": 0},
)
there = (generator.run.folder / "model").is_dir()
print(json.dumps([generator.run.status, generator.token, generator.run.steps, there]), flush=True)
found = femtobooth.finetune(pictures, model=recognizer, training=training, result="finetuned", name=f"{name}-2")
print(json.dumps([found.status, found.classes, str(found.folder)]), flush=True)
"""


def together(script: str, *words: object, folder: Path, here: bool = True) -> list[subprocess.CompletedProcess[str]]:
    """Run a script in two processes, as a launcher does on one machine, or on two."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []
    for rank in range(2):
        given = {"RANK": rank, "LOCAL_RANK": rank if here else 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}
        given |= {"MASTER_PORT": port, "OMP_NUM_THREADS": 1, "FEMTOBOOTH_CACHE": folder / "cache"}
        command = [sys.executable, "-c", script, *map(str, words)]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": folder}
        env = {**os.environ, **{name: str(value) for name, value in given.items()}}
        started.append(quick_start.start(command, env=env, **pipes))
    said = [process.communicate(timeout=240) for process in started]
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *each)
        for process, each in zip(started, said, strict=True)
    ]


def test_all_processes_of_a_script_get_the_result_and_go_on(
    tiny_base: Path, tiny: Path, photos: Path, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    for index in range(8):
        blocks = random.integers(0, 90, (6, 6, 3)) + np.array([[150, 20, 20], [20, 20, 150]][index % 2])
        path = tmp_path / "pictures" / ["red", "blue"][index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(blocks.astype(np.uint8)).resize((72, 60)).save(path)
    ended = together(SCRIPT, tiny_base, photos, tiny, tmp_path / "pictures", "made", folder=tmp_path)
    assert [one.returncode for one in ended] == [0, 0], [one.stderr[-3000:] for one in ended]
    first, second = ([json.loads(line) for line in one.stdout.splitlines()] for one in ended)
    assert first == second
    facts = json.loads((tmp_path / "runs" / "made" / "run.json").read_text())
    assert first[0] == ["done", facts["subjects"]["V"]["token"], 2, True]
    assert first[1] == ["done", ["blue", "red"], "runs/made-2"]


HOSTILE = """
import os, pickle, sys
from femtobooth import cli
from femtobooth.training import sending, team
base, photos, hit = sys.argv[1:]
class Hostile:
    def __reduce__(self):
        return os.system, (f"touch {hit}",)
if os.environ["RANK"] == "0":
    sending.packed = lambda value: pickle.dumps(Hostile(), 2)
    with team.joined() as ours:
        ours.share(None)
        ours._wait_for("never")
else:
    words = ["personalize", photos, "--class-noun", "robot", "--base", base, "--nodes", "2", "--name", "hit"]
    cli.main([*words, "--strategy", "ddp", "--accelerator", "cpu", "--steps", "1"])
"""


def test_nothing_that_another_process_sends_is_run(tiny_base: Path, photos: Path, tmp_path: Path) -> None:
    first, second = together(HOSTILE, tiny_base, photos, tmp_path / "hit", folder=tmp_path, here=False)
    assert not (tmp_path / "hit").exists()
    assert second.returncode == 1
    assert "what the first process of this training sent is of another kind, and was not read" in second.stderr
    assert "ProcessLost: process 1 on " in first.stderr and first.returncode == 1
