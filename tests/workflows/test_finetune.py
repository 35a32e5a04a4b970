"""`femtobooth finetune` from a folder of classes to an artifact, interrupted and resumed, and what it refuses."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quick_start
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from femtobooth import cli
from femtobooth.core.files import sha256_of
from femtobooth.recognizer.exporting import parity
from femtobooth.recognizer.finetuning.finetuner import Finetuner, with_classes
from femtobooth.recognizer.finetuning.run import FinetunedRun
from femtobooth.recognizer.model.backbone import Recognizer
from femtobooth.recognizer.model.labels import Labels
from femtobooth.recognizer.model.preprocess import Preprocess
from femtobooth.recognizer.model.rejection import is_rejected
from femtobooth.workflows import export_photos

COLOURS = {"red": (220, 40, 30), "green": (40, 190, 60), "blue": (30, 60, 220)}
QUICK = ("--steps", 8, "--batch-size", 4, "--trackers", "csv", "--checkpoint-every", 2, "--warmup", 2, "--lr", "2e-3")


def picture(path: Path, label: str, seed: int) -> None:
    """Noisy blocks tinted by the class."""
    blocks = np.random.default_rng(seed).integers(-60, 60, (6, 6, 3)) + np.array(COLOURS[label])
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(blocks.clip(0, 255).astype(np.uint8)).resize((72, 60), Image.Resampling.BICUBIC).save(path)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of five pictures, a copy of one, and a file that is no picture."""
    folder = tmp_path_factory.mktemp("classes")
    for number, label in enumerate(COLOURS):
        for index in range(5):
            picture(folder / label / f"{index}.png", label, 10 * number + index)
    with Image.open(folder / "red" / "0.png") as image:
        image.resize((60, 50)).save(folder / "red" / "again.jpg", quality=60)
    (folder / "blue" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not really")
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network as an artifact, which has been trained on a picture before."""
    torch.manual_seed(0)
    made = Recognizer.create("test_convnext", Labels(tuple("vwxyz")), Preprocess((64, 64), crop_pct=1.0))
    made.provenance = {"licence": "mit", "trained_on": ["f" * 64]}
    folder = tmp_path_factory.mktemp("models") / "tiny"
    made.save(folder)
    return folder


Finetune = Callable[..., int]


@pytest.fixture
def finetune(base: Path, tmp_path: Path) -> Finetune:
    def call(*arguments: object, name: str = "run") -> int:
        command = [str(part) for part in ("finetune", *arguments)]
        if "--resume" not in command:
            command += ["--runs", str(tmp_path), "--name", name] + (
                ["--model", str(base)] if "--model" not in command else []
            )
        try:
            cli.main(command)
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return call


def weights(run: Path) -> str:
    return sha256_of(run / "model" / "model.safetensors")


def curve(run: Path) -> list[dict[str, str]]:
    with (run / "logs" / "metrics.csv").open(newline="") as file:
        return [
            {name: value for name, value in row.items() if name != "pictures_per_second"}
            for row in csv.DictReader(file)
        ]


def test_from_a_folder_to_an_artifact(
    finetune: Finetune, data: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune(data, *QUICK, "--result", "finetuned", "--json") == 0
    said = capsys.readouterr()
    run = tmp_path / "run"
    facts = json.loads(said.out)
    assert facts == json.loads((run / "run.json").read_text())
    assert (facts["status"], facts["result"], facts["classes"]) == ("done", "finetuned", ["blue", "green", "red"])
    assert "fine-tuning" in said.err
    assert "validation pictures" in said.err

    report = json.loads((run / "report.json").read_text())
    found = {one["what"]: one["count"] for one in report["data"]["findings"]}
    assert (found["not used"], found["near-duplicates"], found["same file twice"]) == (1, 1, 0)
    tried = report["averaged"]["tried"]
    assert report["averaged"]["share"] == min(tried, key=lambda one: one["log_loss"])["share"]
    assert [one["share"] for one in tried] == [0.25, 0.5, 0.75, 1]
    assert f"{report['averaged']['share']:.0%} of the fine-tuned network" in (run / "report.html").read_text()
    low, high = report["comparison"]["accuracy_difference"][1:]
    assert low < report["comparison"]["accuracy_difference"][0] < high
    page = (run / "report.html").read_text()
    verdict = report["comparison"]["verdict"]
    assert f"{verdict[:1].upper()}{verdict[1:]}." in page
    right, pictures = report["judged"]["measured"]["right"], report["judged"]["measured"]["pictures"]
    assert f"The fine-tuned network names {right} of {pictures} validation pictures right: " in page
    assert page.index("<img ") < page.index("<h2>Did fine-tuning beat the probe?")  # pictures come first
    assert "http" not in page.replace("http://www.w3.org", "")

    with (run / "split.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["label"], row["split"]) for row in rows} == {
        (label, part) for label in COLOURS for part in ("train", "val")
    }
    copies = {
        row["split"] for row in rows if Path(row["path"]).name in ("0.png", "again.jpg") and row["label"] == "red"
    }
    assert len(copies) == 1

    result = Recognizer.load(run / "model")
    assert result.labels.names == ("blue", "green", "red")
    assert result.temperature == facts["temperature"] != 1
    assert result.preprocess == Recognizer.load(base).preprocess
    train = {row["sha256"] for row in rows if row["split"] == "train"}
    assert set(result.provenance["trained_on"]) == train | {"f" * 64}
    assert set(result.provenance["calibrated_on"]) == {row["sha256"] for row in rows if row["split"] == "val"}
    assert result.provenance["licence"] == "mit"
    assert result.rejection is not None
    with torch.no_grad():
        known = result.embed(result.batch([Image.open(data / "red" / "1.png").convert("RGB")])).numpy()
    assert is_rejected(known, result.rejection).tolist() == [False]
    assert is_rejected(2 * result.rejection["center"] - known, result.rejection).tolist() == [True]


def test_the_result_lies_between_the_probe_and_where_training_ended(
    finetune: Finetune, data: Path, tmp_path: Path
) -> None:
    """At the share of the report, every weight; and warm-up is a third of so few steps, where it is not given."""
    at = QUICK.index("--warmup")
    options = (*QUICK[:at], *QUICK[at + 2 :])
    assert finetune(data, *options, "--result", "finetuned", "--ema", 0) == 0
    run = tmp_path / "run"
    settings = json.loads((run / "run.json").read_text())["settings"]
    assert (settings["training"]["steps"], settings["training"]["warmup"]) == (8, 2)
    share = json.loads((run / "report.json").read_text())["averaged"]["share"]
    ended = torch.load(run / "checkpoints" / "step-000008" / "state.ckpt", weights_only=True)["state_dict"]
    opened = FinetunedRun.open(run)
    start = with_classes(
        Recognizer.load(settings["model"], any_head=True), Labels(tuple(opened.classes)), opened.head().softened()
    ).model.state_dict()
    for name, value in Recognizer.load(run / "model").model.state_dict().items():
        between = torch.lerp(start[name], ended[f"recognizer.model.{name}"], share)
        assert torch.allclose(value, between, atol=1e-6), name


def test_the_probe_can_be_the_result(finetune: Finetune, data: Path, base: Path, tmp_path: Path) -> None:
    assert finetune(data, *QUICK, "--result", "probe") == 0
    result, start = (
        Recognizer.load(tmp_path / "run" / "model").model.state_dict(),
        Recognizer.load(base).model.state_dict(),
    )
    assert [
        name for name in start if result[name].shape != start[name].shape or not torch.equal(result[name], start[name])
    ] == [
        "head.fc.weight",
        "head.fc.bias",
    ]


def test_the_probe_alone(
    finetune: Finetune, data: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is trained, and what it cost is the probe's own cost."""
    assert finetune(data, "--probe-only", "--steps", 10**6) == 0
    run = tmp_path / "run"
    facts, report = (json.loads((run / name).read_text()) for name in ("run.json", "report.json"))
    assert (facts["status"], facts["result"]) == ("done", "probe")
    assert facts["costs"] == {"probe": {"seconds": report["probe"]["seconds"]}}
    assert facts["seconds"] > 0  # that the process worked on the run
    assert not (run / "checkpoints").exists()
    assert "finetuned" not in report
    assert report["judged"]["measured"]["pictures"] == 16
    assert Recognizer.load(run / "model").labels.names == ("blue", "green", "red")
    page = (run / "report.html").read_text()
    assert "The linear probe names" in page
    assert "pictures in every class" not in page  # one class has a copy more
    assert 'class="callout warn"' not in page
    assert "<img " in page
    assert "training" not in capsys.readouterr().err
    assert finetune(data, "--probe-only", "--result", "finetuned", name="other") == 2


def test_classes_that_look_alike_are_told_apart_by_every_command(
    finetune: Finetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By case, space, underscore or comma: trained, then evaluated and exported with the run's own pictures."""
    monkeypatch.setattr(parity, "SECONDS", 0.0)
    names = ["Cat", "cat", "big cat", "big_cat", "a, b", "Screen\u202fshot"]
    for number, name in enumerate(names):
        for index in range(4):
            picture(tmp_path / "data" / name / f"{index}.png", list(COLOURS)[number % 3], 10 * number + index)
    assert finetune(tmp_path / "data", "--probe-only") == 0
    run = tmp_path / "run"
    assert set(json.loads((run / "model" / "recognizer.json").read_text())["labels"]["names"]) == {*names}
    cli.main(
        ["evaluate-classifier", str(run), str(tmp_path / "data"), "--include-training", "--out", str(tmp_path / "page")]
    )
    counts = {
        row["class"]: row["pictures"]
        for row in json.loads((tmp_path / "page" / "report.json").read_text())["per_class"]
    }
    assert counts == dict.fromkeys(names, 4)
    cli.main(["export", str(run), "--out", str(tmp_path / "exported"), "--threads", "1", "--max-drop", "100"])
    assert json.loads((tmp_path / "exported" / "parity.json").read_text())["figures"]["pictures"] == 6
    wanted = {path: names.index(path.parent.name) for path in (tmp_path / "data").rglob("*.png")}
    read = export_photos.read(str(tmp_path / "data"), Labels(tuple(names)))
    assert dict(zip(read.paths, read.classes, strict=True)) == wanted


EVERYTHING = (
    "--freeze",
    3,
    "--unfreeze-every",
    1,
    "--ema",
    0.9,
    "--cutmix",
    0.5,
    "--accumulate",
    2,
    "--patience",
    3,
    "--check-every",
    2,
)
CRASH = RuntimeError("the machine went away")


@pytest.mark.parametrize("how", ["signal", "crash", "crash, then workers"])
def test_interrupted_and_resumed_it_is_the_same_to_the_bit(
    finetune: Finetune,
    data: Path,
    tmp_path: Path,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = (data, *QUICK, *EVERYTHING, "--result", "finetuned")
    assert finetune(*options, name="whole") == 0

    step = Finetuner.on_before_optimizer_step

    def interrupted(module: Finetuner, *arguments: Any) -> None:
        if module.global_step == 4:  # the fifth step, of which no checkpoint is due
            if how != "signal":
                raise CRASH
            signal.raise_signal(signal.SIGTERM)
        step(module, *arguments)

    monkeypatch.setattr(Finetuner, "on_before_optimizer_step", interrupted)
    code = finetune(*options, name="broken")
    assert code == (143 if how == "signal" else 1)
    run = tmp_path / "broken"
    assert not (run / "model").exists()
    newest = max(path.name for path in (run / "checkpoints").iterdir())
    assert newest == ("step-000005" if how == "signal" else "step-000004")
    monkeypatch.undo()
    monkeypatch.setenv("FEMTOBOOTH_CACHE", str(tmp_path / "another-cache"))  # what was embedded before is not needed
    if "workers" in how:
        text = (run / "config.yaml").read_text()
        (run / "config.yaml").write_text(text.replace("workers: 0", "workers: 2"))
    torch.rand(10), np.random.random(10)
    capsys.readouterr()
    assert finetune("--resume", run) == 0
    assert f"at step {int(newest[5:])}" in capsys.readouterr().err
    assert weights(run) == weights(tmp_path / "whole")
    assert curve(run) == curve(tmp_path / "whole")


@pytest.mark.parametrize(("optimizer", "rate"), [("prodigy", 1.0), ("schedulefree", 2e-3)])
def test_another_optimizer_goes_on_to_the_same_bits(
    optimizer: str, rate: float, finetune: Finetune, data: Path, tmp_path: Path
) -> None:
    """And what schedule-free comes to is the average of its steps, not where it takes gradients."""
    assert finetune(data, *QUICK, "--lr", rate, "--optimizer", optimizer, "--result", "finetuned", name="whole") == 0
    whole = tmp_path / "whole"
    settings = json.loads((whole / "run.json").read_text())["settings"]
    assert (settings["layer_decay"], settings["training"]["ema"] == 0) == (1, optimizer == "schedulefree")
    cut = shutil.copytree(whole, tmp_path / "cut", ignore=shutil.ignore_patterns("model", "report.html"))
    shutil.rmtree(cut / "checkpoints" / "step-000008")
    facts = json.loads((cut / "run.json").read_text())
    (cut / "run.json").write_text(json.dumps(facts | {"status": "running", "worker": None}))
    assert finetune("--resume", cut) == 0
    assert weights(cut) == weights(whole)
    if optimizer == "schedulefree":
        state = torch.load(whole / "checkpoints" / "step-000008" / "state.ckpt", weights_only=True)
        made = Recognizer.load(str(whole / "model")).model.state_dict()
        y = {name.removeprefix("recognizer.model."): value for name, value in state["state_dict"].items()}
        moved = [name for name, value in made.items() if not torch.equal(value, y[name])]
        assert len(moved) > len(made) / 2


def test_another_seed_is_another_result(finetune: Finetune, data: Path, tmp_path: Path) -> None:
    """So that the equality above means something."""
    for seed in (0, 1):
        assert finetune(data, *QUICK, "--result", "finetuned", "--seed", seed, name=str(seed)) == 0
    assert weights(tmp_path / "0") != weights(tmp_path / "1")


def test_frozen_layers_come_out_as_they_went_in(finetune: Finetune, data: Path, base: Path, tmp_path: Path) -> None:
    """Also through weight decay, the moving average and a resumed run."""
    assert finetune(data, *QUICK, "--freeze", 8, "--result", "finetuned", "--ema", 0.5) == 0
    result, start = (
        Recognizer.load(tmp_path / "run" / "model").model.state_dict(),
        Recognizer.load(base).model.state_dict(),
    )
    changed = {
        name for name in start if result[name].shape != start[name].shape or not torch.equal(result[name], start[name])
    }
    assert changed == {"head.fc.weight", "head.fc.bias", "head.norm.weight", "head.norm.bias"}


def test_early_stopping_stops_for_good(
    finetune: Finetune, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rate this high only makes it worse; the best weights are kept; a resumed run does not go on."""
    options = (
        "--steps",
        60,
        "--lr",
        1.0,
        "--patience",
        2,
        "--check-every",
        1,
        "--result",
        "finetuned",
        "--warmup",
        0,
        "--ema",
        0,
    )
    assert finetune(data, *QUICK, *options) == 0
    run = tmp_path / "run"
    facts = json.loads((run / "run.json").read_text())
    assert 1 <= facts["steps"] < 58
    rows = [row for row in curve(run) if row["loss/set_aside"]]
    assert min(rows, key=lambda row: float(row["loss/set_aside"]))["step"] == str(facts["steps"])
    assert int(rows[-1]["step"]) == facts["steps"] + 2
    with (run / "split.csv").open(newline="") as file:
        parts = {row["split"] for row in csv.DictReader(file)}
    assert parts == {"train", "stop", "val"}
    before = weights(run)
    shutil.rmtree(run / "model")
    (run / "run.json").write_text(json.dumps(facts | {"status": "running"}))
    capsys.readouterr()
    assert finetune("--resume", run) == 0
    assert "training" not in capsys.readouterr().err
    assert weights(run) == before


def synthesized(folder: Path, behind: list[Path], judge: str = "", count: int = 6) -> Path:
    """What `femtobooth synthesize` leaves: marked red pictures of a model that has learned from the photos `behind`."""
    facts = {"photos": [sha256_of(path) for path in behind], "encoder": {"name": "judge", "hash": judge}}
    info = PngInfo()
    info.add_text("femtobooth", json.dumps({"synthesized": facts}))
    for index in range(count):
        path = folder / "red" / f"drawn{index}.png"
        picture(path, "red", 100 + index)
        Image.open(path).save(path, pnginfo=info)
    return folder


def split_of(run: Path) -> list[dict[str, str]]:
    with (run / "split.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("merged", [False, True])
def test_synthesized_pictures_and_the_photos_behind_them_only_train(
    finetune: Finetune, data: Path, tmp_path: Path, merged: bool
) -> None:
    """From a folder of their own, or thrown among the photos under other names."""
    behind = [data / "red" / name for name in ("1.png", "2.png", "3.png")]
    drawn, photos, more = synthesized(tmp_path / "drawn", behind), data, ["--synthesized", tmp_path / "drawn"]
    if merged:
        photos, more = Path(shutil.copytree(data, tmp_path / "photos")), []
        for index, path in enumerate(sorted(drawn.glob("red/*.png"))):
            path.rename(photos / "red" / f"holiday{index}.png")
    assert finetune(photos, *more, *QUICK, "--validation", 0.9) == 0
    rows = split_of(tmp_path / "run")
    assert [row["split"] for row in rows if row["generated"] == "1"] == ["train"] * 6
    assert sorted(Path(row["path"]).name for row in rows if row["learned"] == "1") == ["1.png", "2.png", "3.png"]
    assert {row["split"] for row in rows if row["learned"] == "1"} == {"train"}
    assert "val" in {row["split"] for row in rows if row["label"] == "red"}
    page = json.loads((tmp_path / "run" / "report.json").read_text())
    found = {one["what"]: one["count"] for one in page["data"]["findings"]}
    assert (found["generated"], found["known to the generator"]) == (6, 3)


def test_a_recognizer_of_synthesized_pictures_knows_the_photos_behind_them(
    finetune: Finetune, data: Path, tmp_path: Path
) -> None:
    """So that nothing scores it on them, although it was not trained on them itself."""
    picture(tmp_path / "elsewhere.png", "red", 77)
    synthesized(tmp_path / "drawn", [tmp_path / "elsewhere.png"])
    assert finetune(data, "--synthesized", tmp_path / "drawn", *QUICK) == 0
    assert sha256_of(tmp_path / "elsewhere.png") in Recognizer.load(tmp_path / "run").provenance["trained_on"]


def test_what_is_given_as_synthesized_only_trains_whatever_it_says(
    finetune: Finetune, data: Path, tmp_path: Path
) -> None:
    for index in range(6):
        picture(tmp_path / "drawn" / "red" / f"{index}.jpg", "red", 200 + index)
    assert finetune(data, "--synthesized", tmp_path / "drawn", *QUICK, "--validation", 0.9) == 0
    rows = [row for row in split_of(tmp_path / "run") if str(tmp_path / "drawn") in row["path"]]
    assert [(row["split"], row["generated"]) for row in rows] == [("train", "1")] * 6


def test_the_judge_of_synthesized_pictures_cannot_be_trained_on_them(
    finetune: Finetune, data: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    synthesized(tmp_path / "drawn", [], judge=Recognizer.load(base).hash)
    assert finetune(data, "--synthesized", tmp_path / "drawn", *QUICK) == 2
    assert "chose the generated pictures itself" in capsys.readouterr().err
    assert finetune(data, *QUICK, name="child") == 0
    assert finetune(data, "--synthesized", tmp_path / "drawn", *QUICK, "--model", tmp_path / "child") == 2
    assert not (tmp_path / "run").exists()


def test_synthesized_classes_must_be_those_of_the_photos(
    finetune: Finetune, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "drawn" / "crimson" / "1.png", "red", 1)
    assert finetune(data, "--synthesized", tmp_path / "drawn", *QUICK) == 2
    assert "none of its classes (crimson)" in capsys.readouterr().err


def test_generated_pictures_never_validate(finetune: Finetune, data: Path, tmp_path: Path) -> None:
    mixed = shutil.copytree(data, tmp_path / "mixed")
    names = []
    for index in range(8):
        picture(mixed / "red" / f"drawn{index}.png", "red", 100 + index)
        names.append(f"red/drawn{index}.png")
    (mixed / "provenance.json").write_text(json.dumps({"generated": names}))
    assert finetune(mixed, *QUICK, "--validation", 0.5) == 0
    with (tmp_path / "run" / "split.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["split"] for row in rows if row["generated"] == "1"] == ["train"] * 8
    assert {row["split"] for row in rows if row["label"] == "red" and row["generated"] == "0"} == {"train", "val"}


def test_a_generated_picture_in_the_users_validation_part(
    finetune: Finetune, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split = tmp_path / "split"
    for part in ("train", "val"):
        shutil.copytree(data, split / part)
    (split / "provenance.json").write_text(json.dumps({"generated": ["val/red/1.png"]}))
    assert finetune(split, *QUICK) == 2
    assert "1 generated pictures in the validation part" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("copies", ["group", "leave-out"])
def test_leaks_between_the_users_train_and_val(finetune: Finetune, data: Path, tmp_path: Path, copies: str) -> None:
    """A split of the user's own stays as it is, and the report says what flatters; only when told to is something left
    out.
    """
    split = tmp_path / "split"
    for number, label in enumerate(COLOURS):
        for index in range(5):
            picture(
                split / ("Validation" if index > 2 else "Training") / label / f"{index}.png", label, 10 * number + index
            )
    shutil.copy(split / "Training" / "red" / "0.png", split / "Validation" / "red" / "copied.png")
    assert finetune(split, *QUICK, "--copies", copies) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    left = int(copies == "leave-out")
    found = {one["what"]: one for one in report["data"]["findings"]}
    assert found["train in val"]["count"] == 1
    assert ("flatters" in found["train in val"]["about"]) == (not left)
    counts = {"train": 3, "val": 3 - left, "generated": 0} | ({"left out": 1} if left else {})
    assert report["data"]["classes"]["red"] == counts
    assert report["comparison"]["pictures"] == 7 - left


def test_a_fixed_camera_can_be_trained(finetune: Finetune, tmp_path: Path) -> None:
    """Twelve shots each of one scene, in which only a small thing differs, or nothing but the sensor's noise."""
    blocks = np.random.default_rng(5).integers(60, 200, (6, 8, 3)).astype(np.uint8)
    room = np.asarray(Image.fromarray(blocks).resize((160, 120), Image.Resampling.BICUBIC)).astype(np.int64)
    for index in range(24):
        shot = room + np.random.default_rng(index).integers(-4, 5, room.shape)
        if index % 2:
            shot[20 + 3 * index : 32 + 3 * index, 40:52] = 250
        path = tmp_path / "door" / ("open" if index % 2 else "closed") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(shot.clip(0, 255).astype(np.uint8)).save(path)
    assert finetune(tmp_path / "door", *QUICK) == 0
    found = {one["what"]: one for one in json.loads((tmp_path / "run" / "report.json").read_text())["data"]["findings"]}
    assert found["one picture, two classes"]["count"] == 0
    assert found["split"]["about"].startswith("all 12 pictures of closed look like one shot (`copies=keep` says")
    groups = {row["group"] for row in split_of(tmp_path / "run") if row["label"] == "open"}
    assert len(groups) == 12


def test_one_photo_of_a_class(
    finetune: Finetune, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = shutil.copytree(data, tmp_path / "few")
    for path in sorted((few / "green").iterdir())[1:]:
        path.unlink()
    assert finetune(few, *QUICK) == 2
    said = capsys.readouterr().err
    assert "green (1 picture)" in said
    assert "2 different photos at least" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere",), "nowhere: no such file or folder"),
        (("--model", "nothing_like_this"), "nothing_like_this"),
        (("--batch-size", 3), "batch_size must be even"),
        (("--lr", 0), "--lr"),
        (("--steps", "many"), "--steps: "),
        (("--resume", "nowhere"), "nowhere: no such file or folder"),
    ],
)
def test_what_is_refused(
    finetune: Finetune,
    data: Path,
    tmp_path: Path,
    arguments: tuple[object, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    named = arguments if arguments[0] in ("nowhere", "--resume") else (data, *arguments)
    assert finetune(*named) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_overwritten_unasked(
    finetune: Finetune, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    assert finetune(data, *QUICK) == 2
    assert "already exists" in capsys.readouterr().err
    assert finetune(data, *QUICK, "--overwrite") == 2
    assert "does not say that femtobooth finetune made it" in capsys.readouterr().err
    assert (tmp_path / "run" / "thesis.txt").read_text() == "mine"


def test_two_processes_train_one_network(data: Path, base: Path, tmp_path: Path) -> None:
    """Started by the command itself (gloo): layers frozen by their rates stay frozen, and resuming works as with
    one.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = [sys.executable, "-c", quick_start.RANKS, "-m", "femtobooth", "finetune"]
    options = [
        str(part) for part in (*QUICK, "--freeze", 4, "--unfreeze-every", 8, "--result", "finetuned", "--ema", 0)
    ]
    options += [
        "--devices",
        "2",
        "--strategy",
        "ddp",
        "--accelerator",
        "cpu",
        "--model",
        str(base),
        "--runs",
        str(tmp_path),
        "--name",
        "run",
    ]
    ended = quick_start.run(
        [*start, str(data), *options], env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    run = tmp_path / "run"
    assert json.loads((run / "run.json").read_text())["status"] == "done"
    assert [row["step"] for row in curve(run)] == [str(step) for step in range(1, 9)]
    result, before = Recognizer.load(run / "model").model.state_dict(), Recognizer.load(base).model.state_dict()
    changed = {
        name
        for name in before
        if result[name].shape != before[name].shape or not torch.equal(result[name], before[name])
    }
    # Head from the start, the last layer of the trunk from step 4, those before it not within 8 steps.
    assert {name.partition(".")[0] for name in changed} == {"head", "stages"}
    assert {name.split(".")[1] for name in changed if name.startswith("stages")} == {"3"}
    whole, first = weights(run), curve(run)
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "checkpoints" / "step-000008")
    (run / "run.json").write_text(json.dumps(json.loads((run / "run.json").read_text()) | {"status": "running"}))
    ended = quick_start.run(
        [*start, "--resume", str(run)], env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "at step 6" in ended.stderr
    assert weights(run) == whole
    assert curve(run) == first


def test_training_that_becomes_infinite_is_no_result(
    finetune: Finetune, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune(data, *QUICK, "--lr", "1e30", "--result", "finetuned") == 2
    run = tmp_path / "run"
    assert "train again with a lower --lr (it was 1e+30)" in capsys.readouterr().err
    assert json.loads((run / "run.json").read_text())["status"] == "failed"
    assert not (run / "model").exists()
