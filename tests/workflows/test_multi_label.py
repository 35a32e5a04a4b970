"""Pictures with several labels, from a list to every command that uses the model."""

from __future__ import annotations

import csv
import json
import runpy
import sys
import zipfile
from contextlib import redirect_stdout
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from femtobooth import cli
from femtobooth.recognizer.exporting import parity
from femtobooth.recognizer.inference.engines import open_engine
from femtobooth.recognizer.model.backbone import Recognizer
from femtobooth.recognizer.model.labels import Labels
from femtobooth.recognizer.model.preprocess import Preprocess
from femtobooth.recognizer.model.rejection import is_rejected

COLOURS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200)}


def command(*arguments: object) -> int:
    try:
        cli.main([str(part) for part in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 48 pictures whose labels are the colours in them, none to three, and whether they are wide."""
    folder = tmp_path_factory.mktemp("several")
    random, rows = np.random.default_rng(0), []
    for number in range(48):
        own = [name for name in COLOURS if random.random() < 0.5]
        blocks = random.integers(0, 50, (6, 6, 3)) + sum((np.array(COLOURS[name]) for name in own), np.zeros(3, int))
        size = (96, 64) if number % 2 else (64, 96)
        image = Image.fromarray(blocks.clip(0, 255).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
        image.save(folder / f"{number}.png")
        rows.append((f"{number}.png", "|".join(own), ("wide" if number % 2 else "tall") if number % 5 else ""))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "labels", "group:shape"), *rows])
    torch.manual_seed(0)
    made = Recognizer.create("test_convnext", Labels(tuple("vwxyz")), Preprocess((64, 64), crop_pct=1.0))
    made.save(folder / "base")
    asked = ("--model", folder / "base", "--runs", folder, "--name", "run", "--multi-label", "--loss", "asymmetric")
    training = ("--steps", 4, "--batch-size", 8, "--trackers", "csv", "--result", "finetuned", "--patience", 9)
    assert command("finetune", folder, *asked, *training, "--check-every", 2) == 0
    return folder / "run"


def test_the_model_says_what_it_is(run: Path) -> None:
    described = json.loads((run / "model" / "recognizer.json").read_text())
    labels = described["labels"]
    assert (described["format"], labels["names"]) == (2, ["blue", "green", "red", "shape=tall", "shape=wide"])
    assert labels["activation"] == {"label": "sigmoid", "shape": "softmax"}
    assert len(labels["thresholds"]) == 5 and labels["thresholds"] != [0.5] * 5
    report = json.loads((run / "report.json").read_text())
    assert report["judged"]["measured"]["labels"] == 5
    assert (
        -1 < report["calibration"]["rejected_below"] < 1 and "of known pictures" in report["calibration"]["rejection"]
    )
    assert report["data"]["classes"]["red"]["train"] > report["data"]["classes"]["red"]["val"] > 0
    page = (run / "report.html").read_text()
    assert "<h2>Label by label" in page and ">shape=wide<" in page
    front, card = (run / "model" / "README.md").read_text().split("---\n")[1:]
    scores = yaml.safe_load(front)["model-index"][0]["results"][0]["metrics"]
    assert scores[0]["value"] == pytest.approx(report["judged"]["measured"]["map"][0], abs=1e-4)
    assert "`shape=wide`" in card
    with (run / "split.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["split"] for row in rows} == {"train", "val", "stop"}
    assert all(isinstance(json.loads(row["label"]), list) for row in rows)


def test_commands_use_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "SECONDS", 0.0)
    data, out = run.parent, tmp_path / "c.csv"
    assert command("classify", *sorted(data.glob("*.png")), "--model", run, "--out", out) == 0
    engine = open_engine(run, "torch")
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    pixels = np.stack([engine.preprocess.pixels(Image.open(row["path"]).convert("RGB")) for row in rows])
    probabilities = engine.labels.probabilities(engine.run(pixels)["logits"])
    decided = engine.labels.decided(probabilities)
    for row, said in zip(rows, decided, strict=True):
        assert set(row["labels"].split("|")) == {engine.labels.names[i] for i in np.flatnonzero(said)}

    capsys.readouterr()
    assert command("evaluate-classifier", run, data, "--out", tmp_path / "e", "--include-training") == 0
    report = json.loads((tmp_path / "e" / "report.json").read_text())
    with (tmp_path / "e" / "predictions.csv").open(newline="") as file:
        right = sum(row["missing"] == row["too_many"] == "" for row in csv.DictReader(file))
    assert (report["pictures"], report["exact"][0]) == (48, pytest.approx(right / 48))
    assert "shape right" in capsys.readouterr().err
    page = (tmp_path / "e" / "report.html").read_text()
    assert "Where it errs" in page and report["no_maps"] == ""
    with (tmp_path / "e" / "predictions.csv").open(newline="") as file:
        wrong = [len([*filter(None, f"{row['missing']}|{row['too_many']}".split("|"))]) for row in csv.DictReader(file)]
    assert page.count("evidence for") == sum(min(count, 3) for count in sorted(wrong)[-12:])

    foreign = tmp_path / "foreign.zip"  # green and blue stripes are nothing that it knows
    stripes = (np.indices((64, 64)).sum(axis=0)[..., None] // 2 % 2 * np.array([0, 255, 255])).astype(np.uint8)
    Image.fromarray(stripes).save(file := BytesIO(), "PNG")
    with zipfile.ZipFile(foreign, "w") as archive:
        archive.writestr("stripes.png", file.getvalue())
    ood = ("--ood", foreign, "--overwrite")
    assert command("evaluate-classifier", run, data, "--out", tmp_path / "e", "--include-training", *ood) == 0
    rejection = json.loads((tmp_path / "e" / "report.json").read_text())["rejection"]
    assert engine.rejection is not None and rejection["promise"] == engine.rejection["how"]
    away = is_rejected(engine.run(pixels)["embedding"], engine.rejection)
    assert rejection["rejected"][0] == pytest.approx(away.mean()) and away.mean() < 0.1
    assert [row["rejected"] == "true" for row in rows] == away.tolist()
    one = engine.run(engine.preprocess.pixels(Image.fromarray(stripes))[None])["embedding"]
    told = rejection["out_of_distribution"]
    assert (told["pictures"], told["rejected"][0]) == (1, float(is_rejected(one, engine.rejection)[0]))
    assert "rejected, of 1 out of distribution" in (tmp_path / "e" / "report.html").read_text()

    few = tmp_path / "few.csv"
    few.write_text("path,labels\n" + "".join(f"{row['path']},{row['labels']}\n" for row in rows[:8]))
    out = tmp_path / "exported"
    assert command("export", run, "--format", "torchscript", "--data", few, "--out", out) == 0
    held = {"recognizer.json": ""}
    torch.jit.load(str(out / "model.pt"), _extra_files=held)
    said_of: dict[str, Any] = json.loads(json.loads(held["recognizer.json"])["labels"])
    assert said_of["activation"]["label"] == "sigmoid"
    assert said_of == engine.labels.to_dict()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as printed:
        patch.setattr(sys, "argv", ["run.py", rows[0]["path"], rows[1]["path"]])
        runpy.run_path(str(out / "run.py"))
    said_by_script = {tuple(line.split("\t")[:2]) for line in printed.getvalue().splitlines() if "shape" not in line}
    free = {(row["path"], x) for row in rows[:2] for x in row["labels"].split("|") if x and "shape" not in x}
    assert said_by_script == free
    figures = json.loads((out / "parity.json").read_text())["figures"]
    assert (figures["judged_by"], figures["agreement"][0]) == ("agreement", 1.0)


def test_a_loss_without_several_labels_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("finetune", run.parent, "--loss", "asymmetric") == 2
    assert "--loss: has no effect without multi_label" in capsys.readouterr().err
