"""What a run knows of itself, also where an older version wrote it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from femtobooth.core import locks, run
from femtobooth.core.errors import Interrupted, ModelError, NotFiniteError, SettingsError, StorageError
from femtobooth.core.run import Run, is_run, list_runs
from femtobooth.training.settings import TrainingSettings


def begun(folder: Path, **fields: Any) -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    return Run.create(folder, TrainingSettings(steps=3), **{"kind": "finetune", **fields})


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    made = begun(tmp_path, status="queued", progress={"step": 2, "steps": 3})
    read = Run.open(tmp_path)
    assert read.plain() == made.plain()
    assert (read.kind, read.status, read.progress.step, read.name) == ("finetune", "queued", 2, tmp_path.name)
    assert read.process is not None
    assert (read.process.pid, read.process.gone) == (os.getpid(), False)
    assert read.versions["python"]
    read.update(error="of another day")
    written = json.loads((tmp_path / "run.json").read_text())
    assert written == read.plain()
    (tmp_path / "run.json").write_text(json.dumps(written | {"of_a_newer_version": [1]}))
    Run.open(tmp_path).update(error="of today")
    assert json.loads((tmp_path / "run.json").read_text()) == written | {"of_a_newer_version": [1], "error": "of today"}
    with pytest.raises(TypeError, match="watch: no such fields"):
        read.update(watch=1)
    assert "folder" not in read.plain()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "not a run folder (no run.json)"),
        ("", "run.json is empty or damaged"),
        ("[]", "run.json is empty or damaged"),
        ('{"status": "done"}', "run.json lacks kind"),
        ('{"status": "on holiday", "kind": "finetune", "created": "2026-11-29T00:00:00Z"}', "is damaged at status"),
    ],
)
def test_what_is_no_run_is_named(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(ModelError) as caught:
        Run.open(tmp_path)
    assert caught.value.problem.startswith(f"{tmp_path}: ")
    assert said in caught.value.problem
    assert caught.value.way_out
    assert Run.peek(tmp_path) is None
    assert is_run(tmp_path) is (content is not None)


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (None, "interrupted", None),  # the block ended, but nothing said that the run is done
        (Interrupted("stopped"), "interrupted", None),
        (KeyboardInterrupt(), "interrupted", None),
        (NotFiniteError("the loss is nan", "train again"), "failed", "the loss is nan\n  -> train again"),
        (ValueError(), "failed", "ValueError"),
    ],
)
def test_every_way_to_end(tmp_path: Path, error: BaseException | None, status: str, told: str | None) -> None:
    begun(tmp_path, error="of last time")
    with locks.held(tmp_path):
        try:
            with Run.open(tmp_path).working() as worked:
                inside = Run.open(tmp_path)
                assert (inside.status, inside.error) == ("running", None)
                worked.at(2, 3)
                if error is not None:
                    raise error
        except BaseException as caught:
            assert caught is error
    ended = Run.open(tmp_path)
    assert (ended.status, ended.error) == (status, told)
    if error is not None:
        assert (ended.progress.step, ended.progress.steps) == (2, 3)


def test_done_stays_done_whatever_comes_after(tmp_path: Path) -> None:
    begun(tmp_path)
    with pytest.raises(Interrupted), Run.open(tmp_path).working() as worked:
        worked.update(status="done")
        raise Interrupted("while the page is written")
    assert Run.open(tmp_path).status == "done"


def test_a_full_disk_never_hides_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(tmp_path)
    with pytest.raises(ZeroDivisionError), Run.open(tmp_path).working():

        def full(*_: object) -> None:
            raise StorageError("no space left")

        monkeypatch.setattr(run, "write_json", full)
        raise ZeroDivisionError
    assert Run.open(tmp_path).status == "interrupted"  # the last that could be written, and no process is there


def test_a_heartbeat_carries_progress_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "BEAT", 0.02)
    begun(tmp_path, seconds=100.0)
    with Run.open(tmp_path).working() as worked:
        first = Run.open(tmp_path).heartbeat
        worked.at(7, 9)
        deadline = time.monotonic() + 20
        while Run.open(tmp_path).progress.step != 7:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        beaten = Run.open(tmp_path).heartbeat
        assert first is not None
        assert beaten is not None
        assert beaten > first
        time.sleep(0.15)
        worked.update(status="done")
    assert 100.1 <= Run.open(tmp_path).seconds < 130


WORK = """
import sys, time
from pathlib import Path
from femtobooth.core import locks
from femtobooth.core.run import Run
with locks.held(Path(sys.argv[1])), Run.open(Path(sys.argv[1])).working():
    print(flush=True)
    time.sleep(600)
"""


def test_a_killed_run_is_interrupted(tmp_path: Path) -> None:
    begun(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", WORK, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        seen = Run.open(tmp_path)
        assert seen.status == "running"
        assert seen.worker is not None
        assert seen.worker.pid == process.pid
        process.send_signal(signal.SIGKILL)
        process.wait()
    finally:
        process.kill()
        process.communicate()
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "running"  # nobody could write another
    assert Run.open(tmp_path).status == "interrupted"


@pytest.mark.parametrize(("silent", "status"), [(1, "running"), (3600, "interrupted")])
def test_of_another_machine_the_heartbeat_tells(tmp_path: Path, silent: int, status: str) -> None:
    begun(tmp_path, heartbeat=datetime.now(UTC) - timedelta(seconds=silent))
    there = {**vars(locks.own()), "host": "another machine", "pid": 1}
    (tmp_path / locks.LOCK).write_text(json.dumps(there))
    assert Run.open(tmp_path).status == status


def test_runs_are_listed_the_oldest_first_and_quickly(tmp_path: Path) -> None:
    """500 runs, with every setting in run.json, as a list that needs no torch."""
    begun(tmp_path / "first")
    facts = json.loads((tmp_path / "first" / "run.json").read_text())
    for index in range(499):
        folder = tmp_path / f"run{index:03d}"
        folder.mkdir()
        created = (datetime(2026, 1, 1, tzinfo=UTC) - timedelta(days=index)).isoformat()
        (folder / "run.json").write_text(json.dumps(facts | {"status": "done", "created": created}))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.json").write_text("{")
    (tmp_path / "no-run").mkdir()
    began = time.process_time()
    found = list_runs(tmp_path)
    assert time.process_time() - began < 1
    assert [one.name for one in found] == [*(f"run{index:03d}" for index in reversed(range(499))), "first"]


@pytest.mark.parametrize(("old", "new"), [("32", "fp32"), (32, "fp32"), ("16-mixed", "fp16"), ("bf16-mixed", "bf16")])
def test_an_older_run_goes_on_with_its_number_format(tmp_path: Path, old: object, new: str) -> None:
    begun(tmp_path).update(settings={"steps": 3, "precision": old})
    (tmp_path / "config.yaml").write_text(f"steps: 3\nprecision: {old!r}\n")
    settings = Run.open(tmp_path).settings_to_resume(TrainingSettings)
    assert (settings.precision, settings.steps) == (new, 3)
    Run.open(tmp_path).update(settings={"precision": "fp32" if new != "fp32" else "bf16"})
    with pytest.raises(SettingsError, match="changed since the run was started: precision"):
        Run.open(tmp_path).settings_to_resume(TrainingSettings)


def test_a_copied_run_is_its_own(tmp_path: Path) -> None:
    begun(tmp_path / "one", status="done")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    copy = Run.open(tmp_path / "two")
    copy.update(status="failed")
    assert (Run.open(tmp_path / "one").status, Run.open(tmp_path / "two").name) == ("done", "two")
