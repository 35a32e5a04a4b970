"""What real runs write into run.json, read back by those who use it; runs of older versions; `femtobooth runs`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from femtobooth.core import config
from femtobooth.core.files import sha256_of, write_json
from femtobooth.core.run import Run, list_runs
from femtobooth.generator.load import load
from femtobooth.generator.run import SUBJECT, PersonalizedRun
from femtobooth.generator.settings import PersonalizeSettings
from femtobooth.judging import verdict
from femtobooth.recognizer.finetuning.run import FinetunedRun
from femtobooth.recognizer.model.backbone import Recognizer
from femtobooth.recognizer.settings import FinetuneSettings
from femtobooth.training.checkpoints import MANIFEST, STATE

COLOURS = {"red": (220, 40, 30), "blue": (30, 60, 220), "green": (40, 190, 60)}
FemtoBooth = Callable[..., int]
Weights = Callable[[Path], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def personalized(personalize: Callable[..., Path], tiny_base: Path, runs: Path) -> Path:
    return personalize(tiny_base, runs, "rex", "--checkpoint-every", 1, "--hold-out", 1)


@pytest.fixture(scope="module")
def finetuned(femtobooth: FemtoBooth, tiny: Path, runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("classes")
    for number, (label, colour) in enumerate(COLOURS.items()):
        (data / label).mkdir()
        for index in range(5):
            blocks = np.random.default_rng(10 * number + index).integers(-60, 60, (6, 6, 3)) + np.array(colour)
            Image.fromarray(blocks.clip(0, 255).astype(np.uint8)).resize((72, 60)).save(data / label / f"{index}.png")
    quick = ("--steps", 4, "--batch-size", 4, "--trackers", "csv", "--checkpoint-every", 2, "--result", "finetuned")
    assert femtobooth("finetune", data, "--model", tiny, "--runs", runs, "--name", "colours", *quick) == 0
    return runs / "colours"


def test_a_real_personalize_run_is_read_by_its_owner(personalized: Path, tiny_base: Path) -> None:
    run = PersonalizedRun.open_finished(str(personalized))
    assert (run.kind, run.status, run.name, run.error) == ("personalize", "done", "rex", None)
    assert list(run.subjects) == [SUBJECT] == ["V"]
    assert run.subject.class_noun == "robot"
    assert run.subject.photos == ["photos/00.png", "photos/01.png", "photos/02.png"]
    assert [photo.path for photo in run.photos()] == [personalized / name for name in run.subject.photos]
    assert run.held_out == ["photo3.png"]
    assert len(run.held_out_photos()) == 1
    base = run.load_base()
    assert (run.base, run.base_hash, run.size) == (str(tiny_base), base.hash, base.size)
    assert load(str(personalized)).subject["token"] == run.subject.token
    assert run.steps == run.trained_steps == run.progress.step == run.progress.steps == 2
    assert (run.selected or {})["step"] == 2
    assert run.seconds > 0
    assert (run.peak_memory_gib or 0) > 0
    assert {"femtobooth", "torch"} <= run.versions.keys()
    found = verdict.of_run(run)
    assert found is not None
    assert found.plain() == run.verdict
    made_with = run.made_with()
    assert made_with == config.resolve(PersonalizeSettings, run.settings) == run.settings_to_resume(PersonalizeSettings)
    assert [row["step"] for row in run.curve()] == [1, 2]
    assert Run.open(personalized).plain() == run.plain()


def test_a_real_finetune_run_is_read_by_its_owner(finetuned: Path, tiny: Path) -> None:
    run = FinetunedRun.open(finetuned)
    assert (run.kind, run.status, run.classes, run.result) == ("finetune", "done", sorted(COLOURS), "finetuned")
    assert (run.model, run.model_hash) == (str(tiny), Recognizer.load(tiny).hash)
    assert run.steps == run.progress.step == run.progress.steps == 4
    assert run.costs["finetuned"]["steps"] == 4
    assert run.verdict
    assert run.temperature == pytest.approx(Recognizer.load(finetuned).temperature)
    assert run.survey().classes == run.classes
    assert run.head().weight.shape[0] == 3
    assert run.made_with() == config.resolve(FinetuneSettings, run.settings)
    assert [row["step"] for row in run.curve()] == [1, 2, 3, 4]


def test_killed_before_the_first_checkpoint(finetuned: Path, femtobooth: FemtoBooth, tmp_path: Path) -> None:
    """Training begins again from the probe's layer, as it is in the run folder, and gives the same weights."""
    left_out = ("model", "checkpoints", "logs")
    copy = shutil.copytree(finetuned, tmp_path / "killed", ignore=shutil.ignore_patterns(*left_out))
    FinetunedRun.open(copy).update(status="running")
    assert femtobooth("finetune", "--resume", copy) == 0
    assert sha256_of(copy / "model/model.safetensors") == sha256_of(finetuned / "model/model.safetensors")
    first, second = (json.loads((run / "report.json").read_text()) for run in (finetuned, copy))
    assert first["comparison"] == second["comparison"]


def older(run: Path, copy: Path, status: str) -> Path:
    """The run as a version of before December 2026 had left it, unfinished where `status` is not done."""
    left_out = () if status == "done" else ("model", "overview.png", "report.html")
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns(*left_out))
    facts = json.loads((run / "run.json").read_text())

    def renamed(settings: dict[str, Any]) -> dict[str, Any]:
        old = {{"samples": "preview", "validation": "watch"}.get(name, name): value for name, value in settings.items()}
        old["training"] = old["training"] | {"precision": "32"}
        return old | ({"save_precision": "32"} if "save_precision" in old else {})

    settings = renamed(facts["settings"])
    written = {"status": status, "settings": settings, "environment": facts["versions"]}
    if facts["kind"] == "personalize":
        names = ("base", "base_hash", "size", "held_out")
        subject = facts["subjects"]["V"]
        written |= {"token": subject["token"], "class_noun": subject["class_noun"]}
        done = ("seconds", "peak_memory_gib", "trained_steps", "steps", "selected", "verdict")
        (copy / "samples").rename(copy / "previews")
        for checkpoint in (copy / "checkpoints").iterdir():
            state = torch.load(checkpoint / STATE, weights_only=True)
            watch = state["callbacks"].pop("Validator")
            seconds = {"watching": watch["seconds"]["validation"], "training": watch["seconds"]["training"]}
            state["callbacks"]["Watch"] = watch | {"seconds": seconds}
            torch.save(state, checkpoint / STATE)
            hashes = {STATE: sha256_of(checkpoint / STATE)}
            write_json(checkpoint / MANIFEST, {"step": state["global_step"], "sha256": hashes})
    else:
        names = ("model", "model_hash", "classes", "behind_generated")
        done = ("costs", "result", "verdict", "steps", "seconds", "temperature")
    written |= {name: facts[name] for name in (*names, *(done if status == "done" else ()))}
    (copy / "run.json").write_text(json.dumps(written))
    (copy / "config.yaml").write_text(json.dumps(settings | {"overwrite": False}))
    return copy


def test_an_older_personalize_run_opens_and_generates(
    personalized: Path, femtobooth: FemtoBooth, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, today = older(personalized, tmp_path / "old", "done"), PersonalizedRun.open(personalized)
    run = PersonalizedRun.open_finished(str(copy))
    assert (run.kind, run.status, run.worker) == ("personalize", "done", None)
    assert run.subjects == today.subjects
    assert run.settings == today.settings
    assert run.made_with() == today.made_with()
    assert (run.progress, run.versions) == (today.progress, today.versions)
    assert (
        femtobooth("generate", copy, "a [V] robot", "-n", 1, "--set", "sampling.steps=1", "--out", tmp_path / "drawn")
        == 0
    )
    assert femtobooth("report", copy) == 0
    assert femtobooth("personalize", "--resume", copy) == 0
    assert "finished already" in capsys.readouterr().err


@pytest.mark.parametrize("status", ["started", "interrupted", "failed"])
def test_an_older_personalize_run_goes_on_where_it_was(
    status: str, personalized: Path, femtobooth: FemtoBooth, weights: Weights, tmp_path: Path, capsys: Any
) -> None:
    copy = older(personalized, tmp_path / "old", status)
    shutil.rmtree(copy / "checkpoints" / "step-000002")
    found = PersonalizedRun.open(copy)
    assert found.status == ("interrupted" if status == "started" else status)
    assert (found.progress.step, found.progress.steps) == (1, 2)
    assert femtobooth("personalize", "--resume", copy) == 0
    assert f"resuming {copy} at step 1" in capsys.readouterr().err
    whole, resumed = weights(personalized / "model"), weights(copy / "model")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    written = json.loads((copy / "run.json").read_text())
    assert (written["status"], written["kind"]) == ("done", "personalize")
    assert "token" not in written
    assert "environment" not in written
    assert (copy / "samples" / "step-000002.png").is_file()


def test_an_older_finetune_run_opens_and_goes_on(
    finetuned: Path, femtobooth: FemtoBooth, tmp_path: Path, capsys: Any
) -> None:
    done = FinetunedRun.open(older(finetuned, tmp_path / "done", "done"))
    today = FinetunedRun.open(finetuned)
    assert (done.classes, done.result, done.steps, done.costs) == (today.classes, "finetuned", 4, today.costs)
    assert done.settings == today.settings
    copy = older(finetuned, tmp_path / "old", "started")
    shutil.rmtree(copy / "checkpoints" / "step-000004")
    assert FinetunedRun.open(copy).status == "interrupted"
    assert femtobooth("finetune", "--resume", copy) == 0
    assert f"resuming {copy} at step 2" in capsys.readouterr().err
    name = "model/model.safetensors"
    assert sha256_of(copy / name) == sha256_of(finetuned / name)
    assert FinetunedRun.open(copy).status == "done"


def test_runs_are_listed_with_what_to_do_next(
    personalized: Path, finetuned: Path, femtobooth: FemtoBooth, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, name in ((personalized, "rex"), (finetuned, "colours")):
        shutil.copytree(path, tmp_path / name)
    failed = Run.open(shutil.copytree(personalized, tmp_path / "broken"))
    failed.update(status="failed", error="the disk is full\n  -> make room", progress={"step": 1, "steps": 2})
    older(personalized, tmp_path / "old", "started")
    capsys.readouterr()
    assert femtobooth("runs", "--runs", tmp_path) == 0
    told = capsys.readouterr().err
    assert f"rex: done; next: femtobooth generate {tmp_path / 'rex'} 'a [V] on the moon'" in told
    assert f"colours: done; next: femtobooth classify --model {tmp_path / 'colours'} PHOTOS" in told
    resume = f"next: femtobooth personalize --resume {tmp_path / 'broken'}"
    assert f"broken: failed (the disk is full); {resume}" in told
    assert "2 of 2" in told
    assert femtobooth("runs", "--runs", tmp_path, "--json") == 0
    listed = {one["name"]: one for one in json.loads(capsys.readouterr().out)["runs"]}
    assert listed.keys() == {one.name for one in list_runs(tmp_path)} == {"rex", "colours", "broken", "old"}
    assert listed["old"]["status"] == "interrupted"
    assert listed["old"]["next"] == f"femtobooth personalize --resume {tmp_path / 'old'}"
    assert (listed["broken"]["progress"], listed["broken"]["error"]) == (
        {"step": 1, "steps": 2},
        "the disk is full\n  -> make room",
    )
    assert listed["colours"]["kind"] == "finetune"
    assert femtobooth("runs", "--runs", tmp_path / "none") == 2
