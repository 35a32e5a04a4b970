"""`femtobooth train-many` on this machine: each subject as personalize alone makes it, whatever is killed meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import quick_start
import torch
from tiny_models import subject_photos

from femtobooth import cli
from femtobooth.core import cache, config, job, locks
from femtobooth.core.errors import SettingsError
from femtobooth.core.files import sha256_of
from femtobooth.core.run import Run, list_runs
from femtobooth.generator.settings import PersonalizeSettings
from femtobooth.workflows import personalize, protocol
from femtobooth.workflows.many import executors, standing
from femtobooth.workflows.many.settings import ManySettings, TrainManySettings
from femtobooth.workflows.many.subjects import read
from femtobooth.workflows.many.work import Ended, Work, carry_out
from femtobooth.workflows.settings import ProtocolSettings


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As in the processes that are started."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes begin without importing anything anew."""
    turn = threading.Lock()

    def start(*given: Any, **named: Any) -> subprocess.Popen[Any]:
        with turn:
            return quick_start.start(*given, **named)

    monkeypatch.setattr(job, "subprocess", types.SimpleNamespace(Popen=start, DEVNULL=subprocess.DEVNULL))


@pytest.fixture
def subjects(tmp_path: Path) -> Path:
    """Two dogs; the photos of a third are not there."""
    rows: list[dict[str, Any]] = []
    for seed, name in enumerate(("rex", "pup")):
        subject_photos(tmp_path / "photos" / name, seed)
        rows.append({"name": name, "photos": f"photos/{name}", "class_noun": "dog"})
    rows[0] |= {"training.steps": 24}
    rows.append({"name": "gone", "photos": ["photos/gone"], "class_noun": "dog"})
    path = tmp_path / "subjects.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def quick(base: Path) -> dict[str, Any]:
    return {
        "base": str(base),
        "prior": {"images": 2, "sampling_batch": 2, "sampling": {"steps": 1}},
        "samples": {"images": 1, "prompts": ["a [V] {class}"], "sampling": {"steps": 1}},
        "validation": {"every": 0},
        "training": {"steps": 2, "trackers": ["csv"], "accelerator": "cpu", "checkpoint_every": 4},
    }


def when(there: Callable[[], Any], do: Callable[[], None]) -> threading.Thread:
    """Do something as soon as something is there."""

    def watch() -> None:
        end = time.monotonic() + 400
        while not there() and time.monotonic() < end:
            time.sleep(0.01)
        do()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def weights(run: Path) -> dict[str, str]:
    return {path.relative_to(run).as_posix(): sha256_of(path) for path in sorted(run.glob("model/**/*.safetensors"))}


def test_stopped_killed_and_failed(
    subjects: Path, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, photos = tmp_path / "runs", subjects.parent / "photos"
    (tmp_path / "quick.yaml").write_text(json.dumps({"personalize": quick(tiny_base)}))

    def command(*more: str) -> int:
        given = ["train-many", str(subjects), "--config", str(tmp_path / "quick.yaml"), "--runs", str(runs)]
        with pytest.raises(SystemExit) as stopped:
            cli.main([*given, "--jobs", "2", "--workers", "1", *more])
            raise SystemExit(0)
        return int(stopped.value.code or 0)

    def stop() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def kill() -> None:
        found = locks.holder(runs / ".many" / "rex")
        assert found
        os.kill(found.pid, signal.SIGKILL)

    def at(step: int) -> Callable[[], bool]:
        return (runs / "rex" / "checkpoints" / f"step-{step:06d}").is_dir

    thread = when(at(4), stop)
    assert command() == 130
    thread.join()
    stopped = Run.open(runs / "rex")
    assert stopped.status == "interrupted" and 4 <= stopped.progress.step < 16

    thread = when(at(16), kill)
    assert command() == 1
    thread.join()
    told = capsys.readouterr().err
    assert f"resuming {runs / 'rex'} at step 1" in (runs / ".many" / "rex" / "log.txt").read_text()
    assert "1 of 3 subjects are not finished: gone" in told
    found = {one["name"]: one for one in json.loads((runs / "subjects.json").read_text())["subjects"]}
    assert {name: one["status"] for name, one in found.items()} == {
        "rex": "done", "pup": "done", "gone": "failed",
    }  # fmt: skip
    assert "photos/gone" in found["gone"]["problem"]
    assert (found["rex"]["trained_steps"], found["pup"]["step"]) == (24, 2)
    page = (runs / "subjects.html").read_text()
    assert 'href="rex/report.html"' in page and "photos/gone: no such file" in page
    assert sorted(one.name for one in list_runs(runs)) == ["pup", "rex"]

    logs = [(runs / ".many" / name / "log.txt").read_text() for name in ("rex", "pup")]
    assert sum("class images: 2 of 'a photo of a dog' from" in log.split("resuming")[0] for log in logs) == 1

    given = {
        "name": "rex",
        "runs": str(tmp_path / "alone"),
        "photos": {"paths": [str(photos / "rex")], "class_noun": "dog"},
    }
    alone = config.settle(PersonalizeSettings, quick(tiny_base), given, {"training": {"steps": 24}})
    personalize.run(alone)
    assert weights(runs / "rex") == weights(tmp_path / "alone" / "rex") and weights(runs / "rex")

    before = {path: path.stat().st_mtime_ns for name in ("rex", "pup") for path in (runs / name).rglob("*")}
    subjects.write_text("\n".join(subjects.read_text().splitlines()[:2]))
    assert command() == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert command("--set", "personalize.training.steps=3") == 2
    assert "was begun with other settings (training.steps)" in capsys.readouterr().err


def test_rows(subjects: Path, tiny_base: Path, tmp_path: Path) -> None:
    given = {"subjects": str(subjects), "personalize": {"base": str(tiny_base), "training": {"steps": 5}}}
    found = read(config.settle(TrainManySettings, given))
    assert [(one.name, one.settings.training.steps, one.settings.photos.class_noun) for one in found] == [
        ("rex", 24, "dog"), ("pup", 5, "dog"), ("gone", 5, "dog"),
    ]  # fmt: skip
    assert found[0].settings.photos.paths == [str(subjects.parent / "photos" / "rex")]
    folder = given | {"subjects": str(subjects.parent / "photos"), "class_noun": "thing"}
    (subjects.parent / "photos" / protocol.LISTS).write_text(
        "rex,dog\nObject Prompts\n'a {0} {1}'.format(unique_token, class_token)\n"
        "Live Subject Prompts\n'a {0} {1}'.format(unique_token, class_token)\n"
    )
    of_folder = read(config.settle(TrainManySettings, folder))
    assert [(one.name, one.settings.photos.class_noun) for one in of_folder] == [
        ("pup", "thing"), ("rex", "dog"),
    ]  # fmt: skip
    row = '{"name": "a", "photos": "p", "class_noun": "dog"'
    for text, told in (
        ("[1]", "line 1: is no JSON object"),
        (f"{row}}}\n\n{row}}}", "two subjects are called a"),
        ('\n{"name": "a", "photos": "p"}', "line 2: does not say what a is"),
        ('{"photos": "p"}', "line 1: needs name and photos"),
        (f'{row}, "training.stepps": 3}}', "line 1: training.stepps: no such setting; did you mean training.steps?"),
        (f'{row}, "runs": "there"}}', "line 1: runs: no setting of one subject"),
    ):
        subjects.write_text(text)
        with pytest.raises(SettingsError, match=told.replace("?", r"\?")):
            read(config.settle(TrainManySettings, given))


def test_each_has_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(executors, "cores", lambda: 5)
    two = {"OMP_NUM_THREADS": "2", "FEMTOBOOTH_SHARE_BASE": "1"}
    assert executors.slots(ManySettings(jobs=2), accelerated=False) == [two] * 2
    assert executors.slots(ManySettings(), accelerated=False) == [{}]
    monkeypatch.setattr(executors, "_gpus", lambda: ["3", "5"])
    assert [one["CUDA_VISIBLE_DEVICES"] for one in executors.slots(ManySettings(), accelerated=True)] == ["3", "5"]
    three = executors.slots(ManySettings(jobs=3, workers=4), accelerated=True)
    assert three[2] == {"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "3"}


def test_what_two_need_is_made_once(tmp_path: Path) -> None:
    found: list[bool] = []

    def make() -> None:
        with cache.in_turn(tmp_path / "folder"):
            found.append((tmp_path / "folder" / "made").exists())
            time.sleep(0.1)
            (tmp_path / "folder" / "made").touch()

    threads = [threading.Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [False, True]
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["made"]


def test_a_process_that_lives_on_is_waited_for(tmp_path: Path) -> None:
    place, ended = tmp_path / "place", list[Ended]()
    work = Work("rex", place, tmp_path / "run", lambda: None)
    place.mkdir()
    thread = threading.Thread(target=lambda: ended.append(carry_out(work, 0, {}, threading.Event())))
    with locks.held(place):
        thread.start()
        time.sleep(0.3)
        assert ended == []
    thread.join(10)
    assert ended == [Ended("done")]

    # of one on another machine that has said nothing for two minutes, what it held is freed
    lock = place / locks.LOCK
    lock.write_text(json.dumps({**vars(locks.own()), "host": "far away"}))
    assert standing.doing([work])
    os.utime(lock, (time.time() - 121,) * 2)
    assert carry_out(work, 0, {}, threading.Event()) == Ended("done")
    assert not lock.exists()


def test_the_protocol_beside_each_other(subjects: Path, tiny_base: Path, tiny: Path, tmp_path: Path) -> None:
    data = subjects.parent / "photos"
    prompts = "'a {0} {1}'.format(unique_token, class_token)\n"
    (data / protocol.LISTS).write_text(f"rex,dog\nObject Prompts\n{prompts}Live Subject Prompts\n{prompts}")
    few = {
        "count": 2,
        "class_count": 2,
        "other_classes": [],
        "device": "cpu",
        "sampling": {"steps": 1},
        "region": False,
    }
    where = {
        "run": str(data),
        "protocol": "dreambooth",
        "encoders": [str(tiny)],
        "personalize": quick(tiny_base) | {"prior": {"weight": 0.0}},
    }
    alone, beside = (
        protocol.run(config.settle(ProtocolSettings, few | where | {"runs": str(tmp_path / name)} | more))
        for name, more in (("alone", {}), ("beside", {"jobs": 1, "workers": 1}))
    )
    assert [row["subject"] for row in beside["subjects"]] == ["rex"]
    assert (beside["means"], beside["subjects"]) == (alone["means"], alone["subjects"])
