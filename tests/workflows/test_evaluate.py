"""`femtobooth evaluate` on a real run: figures, honesty rules, and going on where it was stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.models import alexnet

from femtobooth import cli
from femtobooth.core import config
from femtobooth.core.errors import ModelError, PhotoError, SettingsError
from femtobooth.core.files import sha256_of
from femtobooth.generator import sampling
from femtobooth.generator.load import load
from femtobooth.generator.photos import Photo
from femtobooth.generator.settings import PersonalizeSettings
from femtobooth.generator.stored_photos import store_photos
from femtobooth.judging import lpips
from femtobooth.recognizer.model.backbone import Recognizer
from femtobooth.workflows import evaluate, personalize
from femtobooth.workflows.settings import EvaluateSettings

PROMPTS = ["a [V] {class}", "a [V] {class} on the moon"]


@pytest.fixture(scope="module")
def finished(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 2 steps on three photos."""
    folder = tmp_path_factory.mktemp("evaluate")
    for index in range(3):
        pixels = np.random.default_rng(100 + index).integers(0, 90, (96, 96, 3)).astype(np.uint8)
        pixels[20 + 8 * index : 70, 20:70] = (250, 60 * index, 30)
        (folder / "photos").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / "photos" / f"{index}.png")
    few = {"images": 1, "steps": 1}
    personalize.run(
        config.settle(
            PersonalizeSettings,
            {
                "base": str(tiny_base),
                "name": "run",
                "runs": str(folder),
                "photos": {"paths": [str(folder / "photos")], "class_noun": "toy"},
                "prior": {"weight": 0.0},
                "samples": {"every": 0, "images": 1, "prompts": ["a [V] {class}"], "sampling": {"steps": few["steps"]}},
                "training": {"steps": 2, "accelerator": "cpu", "trackers": []},
                "train": {"unet_learning_rate": 1e-3},
            },
        )
    )
    return folder / "run"


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def settings(run: Path, tiny: Path, **changes: Any) -> Any:
    few = {
        "count": 2,
        "class_count": 3,
        "other_classes": ["cat"],
        "prompts": PROMPTS,
        "device": "cpu",
        "sampling": {"steps": 2},
    }
    return config.settle(EvaluateSettings, {"run": str(run), "encoders": [str(tiny)], **few}, changes)


@pytest.mark.usefixtures("terminal")
def test_scores_are_those_of_the_pictures_with_floor_ceiling_and_encoder(
    copied: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = evaluate.run(settings(copied, tiny))
    assert json.loads((copied / "evaluation" / "evaluation.json").read_text()) == report
    assert report["model_hash"] == load(str(copied)).hash
    assert Image.open(copied / "evaluation" / "grid.png").width > 128
    rows = {row["score"]: row for row in report["scores"]}
    assert {
        "subject fidelity",
        "subject fidelity, region",
        "prompt match, by example",
        "diversity (1 - cosine)",
    } <= set(rows)
    assert {"prior preservation (PRES)", "drift of its class (KID)", "drift of 'a cat' (KID)"} <= set(rows)
    assert all(row["encoder"] == str(tiny) for row in report["scores"])

    recognizer = Recognizer.load(tiny)

    def directions(paths: list[Path]) -> np.ndarray:
        found = recognizer.embed(recognizer.batch(Image.open(path).convert("RGB") for path in paths)).numpy()
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    real = directions(sorted((copied / "photos").glob("*.png")))
    said = {
        path: Image.open(path).text["parameters"]
        for path in (copied / "evaluation" / "pictures" / "tuned").glob("*.png")
    }
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


def test_it_goes_on_where_it_was_stopped(
    copied: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    recognizer.provenance = {
        "trained_on": [sha256_of(path) for path in (copied / "evaluation" / "pictures" / "tuned").glob("*.png")]
    }
    recognizer.save(tmp_path / "taught")
    with pytest.raises(ModelError, match="pictures of this run"):  # nor does an encoder score what it has seen of these
        evaluate.run(settings(copied, tmp_path / "taught"))
    shutil.rmtree(copied / "evaluation")
    with pytest.raises(ModelError, match="of the pictures it would score"):  # not even where they had been thrown away
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


def hold_out(run: Path, photo_folder: Path) -> None:
    """What `personalize --hold-out 2` leaves in a run."""
    paths = sorted(photo_folder.iterdir())[:2]
    store_photos(
        [Photo(path, np.array(Image.open(path).resize((64, 64))), ("a {token} {class}",), ()) for path in paths],
        run / "held_out",
    )


def test_photos_held_out_by_the_run_are_what_it_is_scored_against(
    copied: Path, tiny: Path, photo_folder: Path, tmp_path: Path
) -> None:
    hold_out(copied, photo_folder)
    report = evaluate.run(settings(copied, tiny))
    assert report["held_out"]
    assert report["photos"] == 2
    assert report["scored_against"] == "photos held out of training"
    assert not any("flatters" in remark for remark in report["remarks"])

    recognizer = Recognizer.load(tiny)
    ours, theirs = (
        recognizer.embed(
            recognizer.batch(Image.open(path).convert("RGB") for path in sorted((copied / part).glob("*.png")))
        ).numpy()
        for part in ("photos", "held_out")
    )
    ours, theirs = (found / np.linalg.norm(found, axis=1, keepdims=True) for found in (ours, theirs))
    (row,) = (row for row in report["scores"] if row["score"] == "subject fidelity")
    assert row["ceiling"] == pytest.approx((ours @ theirs.T).mean(), abs=1e-5)  # real photos in place of pictures

    recognizer.provenance = {"trained_on": [sha256_of(copied / "held_out" / "01.png")]}
    recognizer.save(tmp_path / "taught")
    with pytest.raises(ModelError, match="was trained on 1 of the pictures"):
        evaluate.run(settings(copied, tmp_path / "taught"))


def test_a_held_out_copy_of_a_training_photo_flatters(copied: Path, tiny: Path) -> None:
    shutil.copytree(copied / "photos", copied / "held_out")
    report = evaluate.run(settings(copied, tiny))
    assert not report["held_out"]
    assert any("trained on 3 of the 3 photos" in remark for remark in report["remarks"])


def test_an_encoder_that_knows_any_picture_of_the_run_is_refused(copied: Path, tiny: Path, tmp_path: Path) -> None:
    one, *_ = sorted((copied / "samples").rglob("*.png"))
    recognizer = Recognizer.load(tiny)
    recognizer.provenance = {"trained_on": [sha256_of(one)]}
    recognizer.save(tmp_path / "taught")
    with pytest.raises(ModelError, match="was trained on 1 pictures of this run"):
        evaluate.run(settings(copied, tmp_path / "taught"))
    assert not (copied / "evaluation").exists()


def test_copies_drawn_by_the_model_are_counted(copied: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (photo, *_) = sorted((copied / "photos").glob("*.png"))
    copy = np.array(ImageOps.mirror(Image.open(photo)).crop((0, 8, 56, 64)).resize((64, 64)))
    draw = sampling.sample

    def memorized(model: Any, prompts: list[str], *rest: Any, **options: Any) -> np.ndarray:
        pictures = draw(model, prompts, *rest, **options)
        if model.subject and "sks" in prompts[0]:  # only the tuned model has a subject
            pictures[0] = copy
        return pictures

    monkeypatch.setattr(sampling, "sample", memorized)
    found = evaluate.run(settings(copied, tiny))["near_copies"]
    assert (found["count"], found["of"], found["base"]) == (1, 4, 0)


@pytest.mark.usefixtures("terminal")
def test_unreadable_photos_are_left_out(
    copied: Path, tiny: Path, photo_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (photo_folder / "photo0.png").read_bytes()
    (photo_folder / "torn.png").write_bytes(whole[: len(whole) // 2])
    (photo_folder / ".hidden.png").write_bytes(whole)
    (photo_folder / "notes.txt").write_text("no picture")
    assert evaluate.run(settings(copied, tiny, photos=[str(photo_folder)]))["photos"] == 4
    assert "torn.png" in capsys.readouterr().err


def test_the_report_page_gets_the_scores(copied: Path, tiny: Path) -> None:
    before = (copied / "report.html").read_text(encoding="utf-8")
    evaluate.run(settings(copied, tiny))
    after = (copied / "report.html").read_text(encoding="utf-8")
    assert "subject fidelity, region" in after
    assert "subject fidelity, region" not in before
    (copied / "report.html").unlink()
    evaluate.run(settings(copied, tiny))
    assert not (copied / "report.html").exists()


def test_diversity_by_lpips_where_its_weights_are(
    copied: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    without = evaluate.run(settings(copied, tiny))
    assert not any(row["encoder"] == "lpips" for row in without["scores"])
    assert any("LPIPS is not measured" in remark for remark in without["remarks"])
    torch.manual_seed(0)
    lpips.trunk_file().parent.mkdir(parents=True)
    torch.save(alexnet(weights=None).state_dict(), lpips.trunk_file())
    report = evaluate.run(settings(copied, tiny))
    (row,) = (row for row in report["scores"] if row["encoder"] == "lpips")
    files = sorted((copied / "evaluation" / "pictures" / "tuned").glob("*.png"))
    said = [(Image.open(path).text["parameters"].split("\n")[0], np.array(Image.open(path))) for path in files]
    pairs = [[pixels for text, pixels in said if text == prompt] for prompt in ("a sks toy", "a sks toy on the moon")]
    assert row["tuned"][0] == pytest.approx(
        np.mean([lpips.open_distances(torch.device("cpu"))(pair)[0, 1] for pair in pairs])
    )
    assert not any("LPIPS" in remark for remark in report["remarks"])


def test_who_chose_the_checkpoint_is_no_fair_judge_of_it() -> None:
    real = evaluate.Against([], [np.zeros((8, 8, 3), np.uint8)], [None], set(), held_out=True, source="")
    given, facts = (
        config.settle(EvaluateSettings, {"run": "somewhere"}),
        SimpleNamespace(validation={"encoder": "mine"}, selected={"step": 100, "rule": "a rule"}),
    )
    assert any(
        "mine also chose" in remark for remark in evaluate._remarks(given, ["other", "mine"], False, real, facts)
    )
    assert not any("also chose" in remark for remark in evaluate._remarks(given, ["other"], False, real, facts))


def test_the_bundled_encoder_alone_is_no_judge_of_photos() -> None:
    real = evaluate.Against([], [np.zeros((8, 8, 3), np.uint8)], [None], set(), held_out=True, source="")
    given, run = config.settle(EvaluateSettings, {"run": "somewhere"}), SimpleNamespace(validation=None, selected=None)
    assert any("icons" in remark for remark in evaluate._remarks(given, ["bundled"], False, real, run))
    assert not any(
        "icons" in remark for remark in evaluate._remarks(given, ["bundled", "tf_efficientnet_lite0"], False, real, run)
    )


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
