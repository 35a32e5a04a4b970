"""Run folders under stress: two processes, a full disk, files that were lost or edited."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from femtobooth.core import locks
from femtobooth.core import run as run_folders
from femtobooth.core.claims import strangers
from femtobooth.training import checkpoints
from femtobooth.training.settings import ResumeSettings
from femtobooth.workflows import personalize as workflow

FemtoBooth = Callable[..., int]
Weights = Callable[[Path], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def run(personalize: Callable[..., Path], tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    flags = ("--set", "training.checkpoint_every=1")
    return personalize(tiny_base, tmp_path_factory.mktemp("runs"), "run", *flags)


@pytest.fixture
def unfinished(run: Path, tmp_path: Path) -> Path:
    """The same, killed before its model was written."""
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("model", "overview.png", "report.html"))
    facts = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**facts, "status": "running"}))
    return copy


def test_all_that_a_run_writes_is_its_own(run: Path, femtobooth: FemtoBooth) -> None:
    """So that --overwrite, which spares all else, can replace it; pictures drawn with it too."""
    assert femtobooth("generate", run, "a [V] robot", "--set", "count=1") == 0
    assert strangers(run) == []
    (run / "photos" / "notes.txt").write_text("mine")
    (run / "images" / "best.png").write_text("mine")
    assert strangers(run) == ["images/best.png", "photos/notes.txt"]
    for path in (run / "photos" / "notes.txt", run / "images" / "best.png"):
        path.unlink()


HOLD = """
import sys, time
from pathlib import Path
from femtobooth.core import locks
from femtobooth.core import run as run_folders
locks.acquire(Path(sys.argv[1]))
print(flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def busy(unfinished: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process works on the unfinished run."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(unfinished)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_a_run_has_one_writer(
    unfinished: Path,
    busy: subprocess.Popen[str],
    femtobooth: FemtoBooth,
    photos: Path,
    tiny_base: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whoever comes second is told who is there, and harms nothing; killed, the first one holds nothing any more."""
    half = unfinished / "checkpoints" / ".tmp-writing-step-000003"
    half.mkdir()
    again = (
        "personalize",
        photos,
        "--class-noun",
        "robot",
        "--base",
        tiny_base,
        "--runs",
        unfinished.parent,
        "--name",
        "run",
    )
    for command in (("personalize", "--resume", unfinished), again, (*again, "--overwrite")):
        assert femtobooth(*command) == 2
        assert f"in use by process {busy.pid} since 20" in capsys.readouterr().err
    assert femtobooth("generate", unfinished, "[V]") == 2
    assert f"process {busy.pid} works on it" in capsys.readouterr().err
    assert half.is_dir()
    busy.kill()
    busy.wait()
    assert femtobooth("personalize", "--resume", unfinished) == 0
    assert not half.exists()


def test_one_evaluation_at_a_time(run: Path, femtobooth: FemtoBooth, capsys: pytest.CaptureFixture[str]) -> None:
    with locks.held_place(run / "evaluation"):
        assert femtobooth("evaluate", run) == 2
    assert f"{run / 'evaluation'}: in use by process {os.getpid()}" in capsys.readouterr().err
    assert not (run / "evaluation").exists()


def test_a_full_disk_in_a_checkpoint(
    run: Path,
    personalize: Callable[..., Path],
    femtobooth: FemtoBooth,
    tiny_base: Path,
    weights: Weights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The limit of a file's size is one that any user can set; the system says EFBIG where a full disk says ENOSPC."""
    real, before = checkpoints.save, resource.getrlimit(resource.RLIMIT_FSIZE)

    def save(lightning: Any, *arguments: Any) -> Path:
        if lightning.global_step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
        try:
            return real(lightning, *arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    monkeypatch.setattr(checkpoints, "save", save)
    with pytest.raises(AssertionError, match="assert 2 == 0"):
        personalize(tiny_base, tmp_path, "run", "--set", "training.checkpoint_every=1")
    monkeypatch.undo()
    place = tmp_path / "run" / "checkpoints"
    assert f"{place}: cannot be written (File too large)\n  -> make room" in capsys.readouterr().err
    assert [path.name for path in place.iterdir()] == ["step-000001"]
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["status"] == "failed"
    assert "File too large" in facts["error"]
    assert femtobooth("personalize", "--resume", tmp_path / "run") == 0
    found, expected = weights(tmp_path / "run" / "model"), weights(run / "model")
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def _edit(run: Path, before: str, after: str) -> None:
    text = (run / "config.yaml").read_text()
    assert before in text
    (run / "config.yaml").write_text(text.replace(before, after))


def _damage(run: Path) -> None:
    for path in run.glob("checkpoints/*/state.ckpt"):
        path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda run: _edit(run, "- unet\n", "- text_encoder\n"),
            "config.yaml: changed since the run was started: train.parts",
        ),
        (
            lambda run: _edit(run, "  steps: 2\n  batch_size: 2", "  steps: 2\n  batch_size: 3"),
            "training.batch_size (2 then, 3 now)",
        ),
        (lambda run: (run / "config.yaml").unlink(), "config.yaml: missing"),
        (lambda run: (run / "config.yaml").write_text(""), "config.yaml: "),
        (lambda run: (run / "run.json").write_text(""), "run.json is empty or damaged"),
        (lambda run: (run / "run.json").write_text("{}"), "run.json is empty or damaged"),
        (lambda run: (run / "run.json").write_text("[]"), "run.json is empty or damaged"),
        (lambda run: (run / "run.json").write_text('{"status": "started"}'), "run.json lacks kind"),
        (
            lambda run: (run / "run.json").write_text('{"status": "done", "classes": []}'),
            "not a run of femtobooth personalize, but of femtobooth finetune",
        ),
        (lambda run: (run / "run.json").unlink(), "not a run folder (no run.json)"),
        (_damage, "every checkpoint is damaged"),
        (lambda run: shutil.rmtree(run / "photos"), "photos"),
        (lambda run: (run / "photos" / "00.png").write_bytes(b"x"), "00.png: missing or damaged"),
        (lambda run: (run / "photos" / "01.png").unlink(), "01.png: missing or damaged"),
    ],
)
def test_a_run_that_cannot_go_on(
    unfinished: Path,
    spoil: Callable[[Path], Any],
    said: str,
    femtobooth: FemtoBooth,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(unfinished)
    assert femtobooth("personalize", "--resume", unfinished) == 2
    errors = capsys.readouterr().err
    told = errors[errors.index("femtobooth: ") :].strip().splitlines()
    assert said in told[0]
    assert len(told) == 2
    assert told[1].startswith("  -> ")
    assert not (unfinished / "model").exists()


def test_what_shapes_nothing_may_be_edited(unfinished: Path) -> None:
    _edit(unfinished, "  checkpoint_every: 1\n", "  checkpoint_every: 2\n")
    _edit(unfinished, "  log_every: 1\n", "  log_every: 2\n")
    assert workflow.resume(ResumeSettings(run=str(unfinished))).status == "done"


def test_two_runs_of_the_same_second(
    personalize: Callable[..., Path],
    femtobooth: FemtoBooth,
    photos: Path,
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run_folders, "timestamp", lambda: "20261128-235959")
    command = (
        "personalize",
        photos,
        "--class-noun",
        "robot",
        "--base",
        tiny_base,
        "--runs",
        tmp_path,
        "--prior-weight",
        0,
        "--steps",
        1,
    )
    for _ in range(2):
        assert femtobooth(*command, "--set", "samples.images=1", "--set", "samples.sampling.steps=1") == 0
    assert sorted(os.listdir(tmp_path)) == ["robot-20261128-235959", "robot-20261128-235959-2"]
    assert all(json.loads((run / "run.json").read_text())["status"] == "done" for run in tmp_path.iterdir())
