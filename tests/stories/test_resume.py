"""A run that is killed, stopped or damaged, and resumed, ends as if nothing had happened, to the bit."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import IO

import pytest
import quick_start

from femtobooth.core.run import Run, list_runs
from femtobooth.workflows.runs import next_command

FemtoBooth = Callable[..., int]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """benchmarks/kill_resume.py, whose settings, command and comparison are used here."""
    spec = importlib.util.spec_from_file_location(
        "kill_resume", Path(__file__).parents[2] / "benchmarks" / "kill_resume.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resumed")


@pytest.fixture(scope="module")
def unbroken(benchmark: ModuleType, femtobooth: FemtoBooth, photos: Path, tiny_base: Path, runs: Path) -> object:
    command = benchmark.command(photos, str(tiny_base), runs, "whole")
    with (
        pytest.MonkeyPatch.context() as patch
    ):  # its copy is killed before its end, where other steps may still become the model
        patch.setattr("femtobooth.workflows.personalizing.validation.Validator.remove_weights", lambda _: None)
        assert femtobooth(*command[command.index("personalize") :]) == 0
    return benchmark.outcome(runs / "whole")


def start(command: list[str], errors: IO[bytes] | int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    return quick_start.start(
        command, stdout=subprocess.DEVNULL, stderr=errors, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def test_killed_in_a_save(
    benchmark: ModuleType, unbroken: object, femtobooth: FemtoBooth, photos: Path, tiny_base: Path, runs: Path
) -> None:
    """kill -9 while a checkpoint is being written; `benchmarks/kill_resume.py --tries 20` does more of these."""
    process = start(benchmark.command(photos, str(tiny_base), runs, "killed"))
    benchmark.kill_at(process, runs / "killed", 0.5, during_save=True)
    assert not (runs / "killed" / "model").exists(), "it was not killed in time"
    assert json.loads((runs / "killed" / "run.json").read_text())["status"] == "running"  # nobody could say otherwise
    killed = {one.name: next_command(one) for one in list_runs(runs) if one.status == "interrupted"}
    assert killed["killed"] == f"femtobooth personalize --resume {runs / 'killed'}"
    assert femtobooth("personalize", "--resume", runs / "killed") == 0
    assert benchmark.differences(benchmark.outcome(runs / "killed"), unbroken) == []


def test_killed_before_the_model_was_written(
    benchmark: ModuleType, unbroken: object, femtobooth: FemtoBooth, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All steps are done, the model is not; the curve stays as it is."""
    run = shutil.copytree(runs / "whole", runs / "unwritten", ignore=shutil.ignore_patterns("model", "overview.png"))
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, "status": "running"}))
    assert femtobooth("generate", run, "[V]") == 2
    assert f"femtobooth personalize --resume {run}" in capsys.readouterr().err
    assert femtobooth("personalize", "--resume", run) == 0
    assert (run / "overview.png").is_file()
    assert benchmark.differences(benchmark.outcome(run), unbroken) == []


def test_stopped_by_a_signal(
    benchmark: ModuleType,
    unbroken: object,
    femtobooth: FemtoBooth,
    photos: Path,
    tiny_base: Path,
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """SIGUSR1 saves and goes on; SIGTERM saves, says how to go on, and exits with 143; damage goes one checkpoint
    back.
    """
    run = runs / "stopped"
    with (tmp_path / "errors").open("wb") as errors:
        process = start(benchmark.command(photos, str(tiny_base), runs, "stopped"), errors)
        try:
            _wait_for((run / "checkpoints" / "step-000003").is_dir, process)
            seen = Run.open(run)
            assert (seen.status, seen.worker and seen.worker.pid) == ("running", process.pid)
            process.send_signal(signal.SIGUSR1)
            _wait_for(lambda: len(_steps(run)) > 1, process)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 143
        finally:
            process.kill()
    steps = _steps(run)
    assert len(steps) == 2
    ended = Run.open(run)
    assert (ended.status, ended.worker, ended.progress.step) == ("interrupted", None, steps[-1])
    assert steps[-1] < 12
    (hint,) = [line for line in (tmp_path / "errors").read_text().splitlines() if "--resume" in line]
    program, *resume = shlex.split(hint.partition("-> ")[2])
    assert program == "femtobooth"

    damaged = shutil.copytree(run, runs / "damaged")
    state = damaged / "checkpoints" / f"step-{steps[-1]:06d}" / "state.ckpt"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)

    assert femtobooth(*resume) == 0
    assert f"at step {steps[-1]}" in capsys.readouterr().err
    assert benchmark.differences(benchmark.outcome(run), unbroken) == []

    assert femtobooth("personalize", "--resume", damaged) == 0
    said = capsys.readouterr().err
    assert "state.ckpt is damaged; going back" in said
    assert f"at step {steps[-2]}" in said
    assert benchmark.differences(benchmark.outcome(damaged), unbroken) == []

    assert femtobooth("personalize", "--resume", run) == 0  # finished: says so and changes nothing
    assert "finished already" in capsys.readouterr().err


def _steps(run: Path) -> list[int]:
    return sorted(int(path.name.rpartition("-")[2]) for path in (run / "checkpoints").glob("step-*"))


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, "ended too early"
        assert time.monotonic() < deadline, "took too long"
        time.sleep(0.005)
