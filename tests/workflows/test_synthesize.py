"""`femtobooth synthesize` on real runs of a tiny model: what is filed, what it says, and that nothing of the user's
goes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from femtobooth import cli
from femtobooth.core import config
from femtobooth.core.errors import ExistsError, ModelError, SettingsError
from femtobooth.core.files import sha256_of
from femtobooth.generator import sampling
from femtobooth.generator.settings import AgainSettings, PersonalizeSettings
from femtobooth.pictures import records
from femtobooth.pictures.provenance import Provenance
from femtobooth.recognizer.finetuning import dataset
from femtobooth.recognizer.finetuning.surveying import survey
from femtobooth.recognizer.model import artifact
from femtobooth.recognizer.model.backbone import Recognizer
from femtobooth.workflows import personalize, regenerate, synthesize
from femtobooth.workflows.settings import SynthesizeSettings


@pytest.fixture(scope="module")
def runs(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of two steps, `rex` and `max`, on three photos each: other files of the same pixels, so that neither's
    pictures are more like the other's photos.
    """
    folder = tmp_path_factory.mktemp("synthesize")
    for number, name in enumerate(("rex", "max")):
        for index in range(3):
            pixels = np.random.default_rng(index).integers(0, 90, (96, 96, 3)).astype(np.uint8)
            pixels[20 + 8 * index : 70, 20:70] = (250, 60 * index, 0)
            (folder / "photos" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{index}.png", compress_level=number)
        personalize.run(
            config.settle(
                PersonalizeSettings,
                {
                    "base": str(tiny_base),
                    "name": name,
                    "runs": str(folder),
                    "photos": {"paths": [str(folder / "photos" / name)], "class_noun": "dog"},
                    "prior": {"weight": 0.0},
                    "samples": {"every": 0, "images": 1, "prompts": ["a [V] {class}"], "sampling": {"steps": 1}},
                    "training": {"steps": 2, "accelerator": "cpu", "trackers": []},
                    "train": {"unet_learning_rate": 1e-3 * (1 + number)},
                },
            )
        )
    return folder


Synthesize = Callable[..., dict[str, Any]]


@pytest.fixture
def call(runs: Path, tiny: Path, tmp_path: Path) -> Synthesize:
    """Six pictures a run, all of which may pass unless told otherwise."""

    def run(*names: str, **changes: Any) -> dict[str, Any]:
        few = {
            "backgrounds": ["on the beach", "in the snow", ""],
            "scales": ["", "small"],
            "styles": [""],
            "sampling": {"steps": 2},
        }
        given = {
            "runs": [str(runs / name) for name in names or ("rex",)],
            "out": str(tmp_path / "data"),
            "encoder": str(tiny),
            "device": "cpu",
        }
        return synthesize.run(
            config.settle(SynthesizeSettings, {**given, **few, "threshold": -1.0, "batch_size": 4}, changes)
        )

    return run


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_of(path) for path in sorted(folder.rglob("*.png"))}


def test_two_subjects_and_their_class(
    call: Synthesize, runs: Path, tiny: Path, tiny_base: Path, tmp_path: Path
) -> None:
    report = call("rex", "max", negatives=True)
    out = tmp_path / "data"
    assert json.loads((out / "synthesized.json").read_text()) == report
    kept = {one["label"]: one["kept"] for one in report["subjects"]} | report["negatives"]
    assert set(kept) == {"rex", "max", "dog"}
    found = dataset.read(out)
    examples, skipped = found.examples, found.skipped
    assert {name: sum(example.label == name for example in examples) for name in kept} == kept
    assert skipped == []
    for one in report["subjects"]:
        assert (one["drawn"], one["kept"] + sum(one["rejected"].values())) == (6, 6)
        assert one["kept"] > 0
        assert len(one["scores"]["pictures"]) == 6
        assert len(one["rejected_files"]) == 6 - one["kept"]
        assert all((out / entry["file"]).is_file() for entry in one["rejected_files"])
    assert Image.open(out / "sheet.png").width > 128

    seeds: list[int] = []
    for name in kept:
        listed = json.loads((out / name / "provenance.json").read_text())
        assert {entry["file"]: entry["sha256"] for entry in listed["generated"]} == files(out / name)
        for entry in listed["generated"]:
            record = json.loads(Image.open(out / name / entry["file"]).text["femtobooth"])
            about = record["synthesized"]
            seeds.append(record["seed"])
            assert (record["prompt"], about["label"]) == (entry["prompt"], name)
            assert ("sks" in record["prompt"]) == (name != "dog")
            assert all(wanted in record["settings"] for wanted in ("sampling", "width"))
            if name != "dog":
                assert record["model"]["hash"] == next(
                    one["model_hash"] for one in report["subjects"] if one["label"] == name
                )
                assert about["encoder"] == {"name": str(tiny), "hash": Recognizer.load(tiny).hash, "weights": str(tiny)}
                assert about["score"] == entry["score"] > about["threshold"]
                assert {sha256_of(path) for path in (runs / "photos" / name).iterdir()} <= set(about["photos"])
    assert len(set(seeds)) == len(seeds)


@pytest.fixture(scope="module")
def chosen(runs: Path, tiny_base: Path, tiny: Path) -> Path:
    """A run on two of rex's photos, whose step was chosen by the third."""
    few = {"images": 1, "prompts": ["a [V] {class}"]}
    given = {
        "base": str(tiny_base), "name": "chosen", "runs": str(runs), "prior": {"weight": 0.0},
        "photos": {"paths": [str(runs / "photos" / "rex")], "class_noun": "dog", "hold_out": 1},
        "samples": {**few, "every": 0, "sampling": {"steps": 1}}, "validation": {**few, "every": 1, "encoder": str(tiny), "steps": 1},
        "training": {"steps": 2, "accelerator": "cpu", "trackers": []},
    }  # fmt: skip
    assert (personalize.run(config.settle(PersonalizeSettings, given)).selected or {})["rule"]
    return runs / "chosen"


def test_photos_that_chose_the_step_never_validate(call: Synthesize, chosen: Path, runs: Path, tmp_path: Path) -> None:
    (one,) = call("chosen", labels=["rex"])["subjects"]
    held = runs / "photos" / "rex" / "2.png"
    assert {sha256_of(held), sha256_of(chosen / "held_out" / "00.png")} <= set(one["photos"])
    shutil.copytree(runs / "photos", tmp_path / "mine")
    pixels = np.random.default_rng(99).integers(0, 256, (12, 12, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    Image.fromarray(pixels).save(tmp_path / "mine" / "rex" / "new.png")
    for seed in range(3):
        found, findings = survey(dataset.read(str(tmp_path / "mine")), 0.5, seed, False, [tmp_path / "data"])
        rex = {
            path.name: part
            for path, part in zip(found.paths, found.parts, strict=True)
            if path.parent == tmp_path / "mine" / "rex"
        }
        assert rex == {"0.png": "train", "1.png": "train", "2.png": "train", "new.png": "val"}
        assert sha256_of(held) in found.behind  # and so in what a recognizer of these pictures says it was trained on
    assert any(one.what == "known to the generator" and one.count == 3 for one in findings)


@pytest.mark.parametrize(
    ("selected", "stops", "count"), [("final", False, False), ("final", True, True), ("best", False, True)]
)
def test_held_out_photos_count_only_where_they_decided(
    selected: str, stops: bool, count: bool, call: Synthesize, chosen: Path, runs: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(chosen, copy)
    facts, settings = json.loads((copy / "run.json").read_text()), config.read_yaml(copy / "config.yaml")
    facts["selected"]["rule"] = facts["selected"]["rule"] if selected == "best" else None
    settings["validation"] |= {"select": selected, "stop_when_done": stops}
    (copy / "run.json").write_text(json.dumps(facts))
    (copy / "config.yaml").write_text(json.dumps(settings))
    (one,) = call(runs=[str(copy)])["subjects"]
    held = {sha256_of(runs / "photos" / "rex" / "2.png"), sha256_of(chosen / "held_out" / "00.png")}
    assert len(held & set(one["photos"])) == 2 * count
    assert {sha256_of(runs / "photos" / "rex" / name) for name in ("0.png", "1.png")} <= set(one["photos"])


def test_the_threshold_comes_from_pictures_without_the_subject(call: Synthesize) -> None:
    one = call(threshold=None, passing=0.4)["subjects"][0]
    base, found, photos = (np.array(one["scores"][kind]) for kind in ("base", "pictures", "photos"))
    quarter = base.mean() + (photos.mean() - base.mean()) / 4  # of the way to the photos
    assert one["threshold"] == pytest.approx(max(sorted(base)[::-1][8], quarter))
    assert one["base_passing"] == [int((base > one["threshold"]).sum()), 20]
    assert one["rejected"]["unlike"] == (found <= one["threshold"]).sum()
    assert one["photos_passing"] == [sum(score > one["threshold"] for score in one["scores"]["photos"]), 3]


@pytest.mark.usefixtures("terminal")
def test_nothing_passes_and_all_is_kept_aside(
    call: Synthesize, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = call(threshold=1.0)
    assert (report["subjects"][0]["kept"], report["subjects"][0]["rejected"]["unlike"]) == (0, 6)
    assert not (tmp_path / "data" / "rex").exists()
    assert Image.open(tmp_path / "data" / "rejected.png").width > 128
    assert "rex: no picture was kept" in capsys.readouterr().err


def test_interrupted_it_goes_on_and_is_the_same(
    call: Synthesize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call("rex", "max")
    whole = files(tmp_path / "data")
    shutil.rmtree(tmp_path / "data")
    original, drawn = sampling.sample, []

    def dying(*arguments: Any, **options: Any) -> np.ndarray:
        if len(drawn) == 5:
            raise KeyboardInterrupt
        drawn.append(len(arguments[1]))
        return original(*arguments, **options)

    monkeypatch.setattr(sampling, "sample", dying)
    with pytest.raises(KeyboardInterrupt):
        call("rex", "max")
    assert not (tmp_path / "data" / "rex").exists()
    with pytest.raises(ExistsError, match="begun with other settings"):
        call("rex", "max", seed=3)
    monkeypatch.setattr(sampling, "sample", lambda *a, **o: drawn.append(len(a[1])) or original(*a, **o))
    call("rex", "max")
    assert sum(drawn) == 24  # six by each of two models and their base
    assert files(tmp_path / "data") == whole


@pytest.mark.parametrize("step", ["records.save", "write_json"])
def test_killed_while_filing(call: Synthesize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Whatever lies in a class folder then is known as generated, and the same command tidies up."""
    call("rex", "max")
    whole = files(tmp_path / "data")
    shutil.rmtree(tmp_path / "data")
    from femtobooth.workflows import labelled_folder

    holder, name = (records, "save") if step == "records.save" else (labelled_folder, "write_json")
    original, calls = getattr(holder, name), []

    def dying(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == (8 if name == "save" else 3):
            raise KeyboardInterrupt
        original(*arguments)

    monkeypatch.setattr(holder, name, dying)
    with pytest.raises(KeyboardInterrupt):
        call("rex", "max")
    monkeypatch.undo()
    left = [example.path for example in dataset.read(tmp_path / "data").examples]
    assert left
    assert all(Provenance().generated(path) for path in left)
    call("rex", "max")
    assert files(tmp_path / "data") == whole


def test_overwriting_takes_only_what_it_wrote(
    call: Synthesize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call()
    own = tmp_path / "data" / "rex"
    first, *_ = sorted(own.glob("*.png"))
    Image.new("RGB", (64, 64), "red").save(own / "my-photo.png")
    Image.new("RGB", (64, 64), "blue").save(first)
    with pytest.raises(ExistsError, match="already exists"):
        call()
    monkeypatch.setattr(sampling, "sample", lambda *a, **o: pytest.fail("nothing has to be drawn again"))
    with pytest.raises(ExistsError, match="was changed or put there by someone else"):
        call(overwrite=True)
    first.rename(own / "painted-over.png")
    call(overwrite=True)
    assert {"my-photo.png", "painted-over.png", first.name} <= {path.name for path in own.glob("*.png")}
    assert not Provenance().generated(own / "my-photo.png")


def test_other_folders_are_left_alone(call: Synthesize, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(ExistsError, match="not a folder of femtobooth synthesize"):
            call(overwrite=overwrite)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["thesis.txt"]


def test_any_picture_can_be_drawn_again(call: Synthesize, tmp_path: Path) -> None:
    call(negatives=True)
    for name in ("rex", "dog"):
        *_, path = sorted((tmp_path / "data" / name).glob("*.png"))
        assert _again(path, out=str(tmp_path / f"again-{name}"))["identical"]


def test_the_judge_must_not_know_the_photos(call: Synthesize, runs: Path, tiny: Path, tmp_path: Path) -> None:
    taught = Path(shutil.copytree(tiny, tmp_path / "taught"))
    described = artifact.DESCRIPTION
    facts = json.loads((taught / described).read_text())
    facts["provenance"] = {"trained_on": [sha256_of(runs / "photos" / "rex" / "0.png")]}
    (taught / described).write_text(json.dumps(facts))
    with pytest.raises(ModelError, match="was trained on 1"):
        call(encoder=str(taught))
    assert not (tmp_path / "data").exists()


def test_the_judge_must_not_be_what_is_trained(call: Synthesize, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is the recognizer that is to be trained"):
        call(recognizer=str(Path(shutil.copytree(tiny, tmp_path / "same"))))
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": ["a", "b"]}, "2 for 1 runs"),
        ({"labels": ["../a"]}, "cannot be a folder's name"),
        ({"labels": [".a"]}, "cannot be a folder's name"),
        ({"template": "a {class}"}, "needs \\[V\\]"),
    ],
)
def test_unusable_settings(call: Synthesize, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        call(**changes)
    assert not (tmp_path / "data").exists()


def test_one_name_for_two_runs(call: Synthesize) -> None:
    with pytest.raises(SettingsError, match="two runs of this name"):
        call("rex", "max", labels=["Rex", "rex"])


def test_a_subject_named_as_its_class(call: Synthesize) -> None:
    report = call(labels=["dog"], negatives=True)
    assert list(report["negatives"]) == ["other dog"]


def test_what_is_no_run(call: Synthesize, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["synthesize", str(tmp_path)], ["synthesize"]):
        with pytest.raises(SystemExit) as stopped:
            cli.main(command)
        assert stopped.value.code == 2
        said = capsys.readouterr().err
        assert len(said[said.index("femtobooth: ") :].strip().splitlines()) == 2


def _again(picture: Path, **how: str) -> dict[str, Any]:
    return regenerate.run(AgainSettings(image=str(picture), **how))
