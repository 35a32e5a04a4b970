"""`femtobooth evaluate` on a real run: figures, honesty rules, and going on where it was stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from femtobooth import cli
from femtobooth.core.errors import ModelError, PhotoError, SettingsError
from femtobooth.core.runs import sha256_of
from femtobooth.generator import sampling
from femtobooth.recognizer.backbone import Recognizer
from femtobooth.workflows import evaluate, personalize

PROMPTS = ["a [V] {class}", "a [V] {class} on the moon"]


@pytest.fixture(scope="module")
def finished(tiny_sd1: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 2 steps on three photos."""
    folder = tmp_path_factory.mktemp("evaluate")
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 90, (96, 96, 3)).astype(np.uint8)
        pixels[20 + 8 * index : 70, 20:70] = (250, 60 * index, 30)
        (folder / "photos").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / "photos" / f"{index}.png")
    few = {"images": 1, "steps": 1}
    personalize.run(
        personalize.settings_from(
            {
                "base": str(tiny_sd1),
                "name": "run",
                "runs": str(folder),
                "photos": {"paths": [str(folder / "photos")], "class_noun": "toy"},
                "prior": {"weight": 0.0},
                "preview": {"every": 0, "images": 1, "prompts": ["a [V] {class}"], "sampling": {"steps": few["steps"]}},
                "training": {"steps": 2, "accelerator": "cpu", "trackers": []},
                "train": {"unet_learning_rate": 1e-3},
            }
        )
    )
    return folder / "run"


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def settings(run: Path, tiny: Path, **changes: Any) -> Any:
    few = {"count": 2, "class_count": 3, "other_classes": ["cat"], "prompts": PROMPTS, "device": "cpu", "sampling": {"steps": 2}}
    return evaluate.settings_from({"run": str(run), "encoders": [str(tiny)], **few}, changes)


def test_scores_are_those_of_the_pictures_with_floor_ceiling_and_encoder(
    copied: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = evaluate.run(settings(copied, tiny))
    assert json.loads((copied / "evaluation" / "evaluation.json").read_text()) == report
    assert Image.open(copied / "evaluation" / "grid.png").width > 128
    rows = {row["score"]: row for row in report["scores"]}
    assert {"subject fidelity", "subject fidelity, region", "prompt match, by example", "diversity (1 - cosine)"} <= set(rows)
    assert {"prior preservation (PRES)", "drift of its class (KID)", "drift of 'a cat' (KID)"} <= set(rows)
    assert all(row["encoder"] == str(tiny) for row in report["scores"])

    recognizer = Recognizer.load(tiny)

    def directions(paths: list[Path]) -> np.ndarray:
        found = recognizer.embed(recognizer.batch(Image.open(path).convert("RGB") for path in paths)).numpy()
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    real = directions(sorted((copied / "photos").glob("*.png")))
    said = {path: Image.open(path).text["parameters"] for path in (copied / "evaluation" / "pictures" / "tuned").glob("*.png")}
    drawn = directions([path for path, text in said.items() if "sks" in text])
    assert len(drawn) == 4
    row = rows["subject fidelity"]
    assert row["tuned"][0] == pytest.approx((drawn @ real.T).mean(), abs=1e-5)
    assert row["ceiling"] == pytest.approx((real @ real.T)[~np.eye(3, dtype=bool)].mean(), abs=1e-5)
    assert row["base"] != row["tuned"][0]
    assert row["tuned"][1] <= row["tuned"][0] <= row["tuned"][2]
    shown = capsys.readouterr().err
    assert "Scored by" in shown
    assert "trained on, which flatters" in shown


def test_it_goes_on_where_it_was_stopped(copied: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = evaluate.run(settings(copied, tiny))
    (lost, *_) = sorted((copied / "evaluation" / "pictures" / "base").glob("*.png"))
    before = lost.read_bytes()
    lost.unlink()
    calls: list[list[str]] = []
    draw = sampling.sample

    def counted(model: Any, prompts: list[str], *rest: Any, **options: Any) -> np.ndarray:
        calls.append(prompts)
        return draw(model, prompts, *rest, **options)

    monkeypatch.setattr(sampling, "sample", counted)
    assert evaluate.run(settings(copied, tiny))["scores"] == first["scores"]
    assert len(calls) == 1
    assert lost.read_bytes() == before
    evaluate.run(settings(copied, tiny, seed=9))
    assert len(calls) > 1  # other seeds are other pictures

    recognizer = Recognizer.load(tiny)
    recognizer.provenance = {"trained_on": [sha256_of(path) for path in (copied / "evaluation" / "pictures" / "tuned").glob("*.png")]}
    recognizer.save(tmp_path / "taught")
    with pytest.raises(ModelError, match="of the pictures it would score"):  # nor does an encoder score what it has seen of these
        evaluate.run(settings(copied, tmp_path / "taught"))


def test_an_encoder_never_scores_what_it_was_trained_on(copied: Path, tiny: Path, tmp_path: Path) -> None:
    (original, *_) = (Path(row["file"]) for row in json.loads((copied / "preflight.json").read_text()))
    for name, path in (("original", original), ("copy", copied / "photos" / "00.png")):
        recognizer = Recognizer.load(tiny)
        recognizer.provenance = {"trained_on": [sha256_of(path)]}
        recognizer.save(tmp_path / name)
        with pytest.raises(ModelError, match="was trained on 1 of the pictures"):
            evaluate.run(settings(copied, tmp_path / name))
    assert not (copied / "evaluation").exists()


def test_held_out_photos_and_a_gallery(copied: Path, tiny: Path, photo_folder: Path, tmp_path: Path) -> None:
    own = Path(json.loads((copied / "preflight.json").read_text())[0]["file"]).parent
    look_alike = tmp_path / "gallery" / "other"
    shutil.copytree(own, tmp_path / "gallery" / "itself")
    with pytest.raises(PhotoError, match="no folder of other subjects"):
        evaluate.run(settings(copied, tiny, gallery=str(tmp_path / "gallery")))
    look_alike.mkdir()
    for path in photo_folder.iterdir():
        Image.open(path).rotate(90).save(look_alike / path.name)
    report = evaluate.run(settings(copied, tiny, photos=[str(photo_folder)], gallery=str(tmp_path / "gallery")))
    assert report["held_out"]
    assert report["photos"] == 4
    (row,) = (row for row in report["scores"] if "gallery" in row["score"])
    assert row["among"] == ["other"]
    assert not evaluate.run(settings(copied, tiny, photos=[str(own)]))["held_out"]

    recognizer = Recognizer.load(tiny)
    recognizer.provenance = {"trained_on": [sha256_of(path) for path in look_alike.iterdir()]}
    recognizer.save(tmp_path / "taught")
    with pytest.raises(ModelError, match="was trained on 4 of the pictures"):
        evaluate.run(settings(copied, tmp_path / "taught", gallery=str(tmp_path / "gallery")))


def test_copies_are_found_and_other_pictures_are_not(photo_folder: Path) -> None:
    photos = [np.array(Image.open(path)) for path in sorted(photo_folder.iterdir())]
    blurred = np.array(Image.fromarray(photos[0]).resize((48, 48)).resize((96, 96)))
    fresh = np.random.default_rng(9).integers(0, 256, (4, 4, 3), np.uint8).repeat(24, 0).repeat(24, 1)
    assert evaluate.near_copies([blurred, fresh], photos[:1]) == [True, False]


def test_what_cannot_be_evaluated(copied: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SettingsError, match="each needs"):
        evaluate.run(settings(copied, tiny, prompts=["a dog"]))
    with pytest.raises(PhotoError, match="no such folder"):
        evaluate.run(settings(copied, tiny, gallery=str(tmp_path / "none")))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["evaluate", str(tmp_path)])
    assert stopped.value.code == 2
    assert "not a run folder" in capsys.readouterr().err


def test_another_base_is_refused(copied: Path, tiny: Path) -> None:
    facts = json.loads((copied / "run.json").read_text())
    (copied / "run.json").write_text(json.dumps(facts | {"base_hash": "0"}))
    with pytest.raises(ModelError, match="not the base"):
        evaluate.run(settings(copied, tiny))
