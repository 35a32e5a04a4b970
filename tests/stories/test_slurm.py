"""The batch file for SLURM, with stand-ins for srun, scancel and scontrol; what they start is the real command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingUnixStreamServer
from typing import Any

import pytest
import quick_start

BATCH = Path(__file__).resolve().parents[2] / "examples" / "slurm" / "personalize.sbatch"
TASKS, STEPS, STOPPED_AT = 2, 4, 1
SETS = {
    "training.trackers": "csv", "training.batch_size": 1, "training.accelerator": "cpu", "prior.images": 2,
    "prior.sampling_batch": 1, "prior.sampling.steps": 1, "samples.images": 1, "samples.sampling.steps": 1,
    "samples.prompts": "a [V] {class}", "train.unet_learning_rate": "1e-3",
}  # fmt: skip
# srun, scancel and scontrol, by whose name it is called: asks SLURM, and ends as that says.
CLIENT = f"""#!{sys.executable} -IS
import json, os, socket, sys
asked = socket.socket(socket.AF_UNIX)
asked.connect(os.environ["SLURM_SOCKET"])
asked.sendall(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]).encode() + b"\\n")
sys.exit(int(asked.recv(9)))
"""
# A task; the job's batch script gets the signal when a step of the first is done.
TASK = f"""
import os, signal, sys, time
from femtobooth.training.trainer import StepBar
def step(self, trainer, module, step, outputs):
    if step == {STOPPED_AT} and os.environ["SLURM_PROCID"] == "0" and os.environ["SLURM_RESTART_COUNT"] == "0":
        os.kill(int(os.environ["BATCH"]), signal.SIGUSR1)
        time.sleep(3)
StepBar.on_optimizer_step = step
sys.argv[0] = "femtobooth"
from femtobooth import cli
cli.main()
"""


class Slurm:
    """Two nodes, which are this machine, and what was asked of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked, self.tasks, self.turn = folder, [], [], 0
        self.said = ""
        (folder / "bin").mkdir()
        for name in ("srun", "scancel", "scontrol"):
            (folder / "bin" / name).write_text(CLIENT)
            (folder / "bin" / name).chmod(0o755)

    def answer(self, words: list[str]) -> int:
        self.asked.append(words)
        if words[0] == "scancel":
            for task in self.tasks:
                task.send_signal(signal.SIGTERM)
        return self.run(words) if words[0] == "srun" else 0

    def run(self, words: list[str]) -> int:
        self.tasks = []
        for number in range(TASKS):
            given = self.environment | {"SLURM_PROCID": f"{number}", "SLURM_NODEID": f"{number}", "SLURM_LOCALID": "0"}
            given |= {"SLURM_STEP_NUM_TASKS": f"{TASKS}", "BATCH": f"{self.batch.pid}"}
            command = [sys.executable, "-c", TASK, *words[words.index("femtobooth") + 1 :]]
            pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            self.tasks.append(quick_start.start(command, env=given, cwd=self.folder, **pipes))
        self.said = "".join(task.communicate(timeout=120)[0] for task in self.tasks)
        return max(task.returncode for task in self.tasks)

    def job(self, *words: str, **environment: str) -> int:
        """Do a turn of the job; returns how its batch script ended."""
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "SLURM_JOB_ID": "71234", "SLURM_NNODES": "2"}
        self.environment |= {"SLURM_NTASKS": f"{TASKS}", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NODELIST": "127.0.0.1"}
        self.environment |= {"SLURM_RESTART_COUNT": f"{self.turn}", "SLURM_SOCKET": str(self.folder / "socket")}
        self.environment |= {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", **environment}
        self.turn += 1
        self.batch = subprocess.Popen(["bash", str(BATCH), *words], env=self.environment, cwd=self.folder)
        return self.batch.wait(timeout=120)


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    made = Slurm(tmp_path)

    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(str(made.answer(json.loads(self.rfile.readline()))).encode())

    with ThreadingUnixStreamServer(str(tmp_path / "socket"), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield made
        server.shutdown()


def test_a_job_whose_time_is_over_saves_and_goes_on_in_its_next_turn(
    slurm: Slurm, tiny_base: Path, photos: Path
) -> None:
    runs = slurm.folder / "runs"
    words = ["--base", str(tiny_base), "--steps", f"{STEPS}"]
    words += [part for key, value in SETS.items() for part in ("--set", f"{key}={value}")]
    given = {"PHOTOS": str(photos), "NOUN": "robot"}

    assert slurm.job(*words, NAME="max", **given) == 143
    assert [asked[0] for asked in slurm.asked] == ["srun", "scancel", "scontrol"]
    assert slurm.asked[1:] == [["scancel", "--signal=TERM", "71234.0"], ["scontrol", "requeue", "71234"]]
    facts = json.loads((runs / "max" / "run.json").read_text())
    assert facts["status"] == "interrupted", slurm.said
    assert f"stopped at step {STOPPED_AT + 1}" in slurm.said

    assert slurm.job(*words, NAME="max", **given) == 0, slurm.said
    assert json.loads((runs / "max" / "run.json").read_text())["status"] == "done"
    assert slurm.asked[-1][-2:] == ["--resume", "runs/max"]
