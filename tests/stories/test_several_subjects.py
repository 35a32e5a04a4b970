"""Two subjects in one run: taught, killed and resumed, generated, evaluated, synthesized."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import femtobooth as library
from femtobooth.core import strict_yaml
from femtobooth.core.errors import ModelError, SettingsError
from femtobooth.core.files import read_json
from femtobooth.core.metrics import wilson
from femtobooth.generator import lora_reference
from femtobooth.generator.load import load
from femtobooth.generator.run import PersonalizedRun

FemtoBooth = Callable[..., int]

QUICK = {
    "training": {"steps": 4, "batch_size": 2, "trackers": ["csv"], "checkpoint_every": 2},
    "prior": {"images": 2, "sampling_batch": 2, "sampling": {"steps": 1}},
    "samples": {"images": 1, "sampling": {"steps": 1}, "prompts": ["a [V] {class}", "a {class}", "[V:Mug] on [V:rex]"]},
    "validation": {"every": 2, "steps": 1, "images": 2, "select": "best"},
    "photos": {"hold_out": 1},
    "train": {"parts": ["lora", "token"]},
    "lora": {"rank": 2},
}


@pytest.fixture(scope="module")
def two(
    femtobooth: FemtoBooth, photos: Path, tiny_base: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished run of rex (three photos, of which one is held out) and mug (the same, painted over)."""
    folder = tmp_path_factory.mktemp("two")
    for name, colour in (("rex", None), ("mug", (20, 200, 220))):
        (folder / name).mkdir()
        for path in sorted(photos.iterdir())[:3]:
            pixels = np.array(Image.open(path))
            if colour:
                pixels[10:70, 30:80] = colour
                pixels[: 5 + int(path.stem[-1])] = 0
            Image.fromarray(pixels).save(folder / name / path.name)
    (folder / "rex" / "photo0.txt").write_text("the [V] {class} by a [V:MUG] mug\n")
    settings = {
        **QUICK,
        "subjects": {
            "rex": {"paths": [str(folder / "rex")], "class_noun": "robot", "token": "sks"},
            "mug": {"paths": [str(folder / "mug")], "class_noun": "robot", "token": "<mug>"},
        },
        "base": str(tiny_base),
        "runs": str(folder),
    }
    settings["validation"] = {**QUICK["validation"], "encoder": str(tiny)}
    (folder / "two.yaml").write_text(strict_yaml.dump_yaml(settings))
    with pytest.MonkeyPatch.context() as patch:  # its copy is killed before its end, where other steps may be taken
        patch.setattr("femtobooth.workflows.personalizing.validation.Validator.remove_weights", lambda _: None)
        assert femtobooth("personalize", "--config", folder / "two.yaml", "--name", "two") == 0
    return folder / "two"


def learned(run: Path) -> dict[str, torch.Tensor]:
    files = sorted((run / "model").rglob("*.safetensors"))
    return {f"{path.name}/{name}": tensor for path in files for name, tensor in load_file(path).items()}


def test_each_is_kept_with_its_own_photos_and_word(two: Path) -> None:
    run = PersonalizedRun.open(two)
    rex, mug = run.subjects.values()
    assert (rex.photos, mug.photos) == (["photos/00.png", "photos/01.png"], ["photos/02.png", "photos/03.png"])
    assert (rex.held_out, mug.held_out) == (["held_out/00.png"], ["held_out/01.png"])
    assert (rex.token, mug.token) == ("sks", "<mug>")
    assert (two / "photos" / "00.txt").read_text() == "the [V] {class} by a <mug> mug\n"
    rows = json.loads((two / "preflight.json").read_text())
    assert [(row["subject"], row["status"]) for row in rows if row["file"].endswith("photo2.png")] == [
        ("rex", "held out"),
        ("mug", "held out"),
    ]
    assert {path.name for path in (two / "model" / "embeddings").iterdir()} == {
        "<mug>.safetensors",
        "sks.safetensors",
    }
    known = read_json(two / "model" / "femtobooth.json")
    assert isinstance(known, dict) and known["subjects"]["mug"] == {"token": "<mug>", "class_noun": "robot"}
    card = (two / "model" / "README.md").read_text()
    assert "`[V:rex]`" in card and "`[V:mug]`" in card


def test_one_noun_has_one_set_of_class_images_and_each_subject_is_scored(two: Path) -> None:
    curve = json.loads((two / "validation" / "validation.json").read_text())
    assert [one["name"] for one in curve["subjects"]] == ["rex", "mug"]
    assert curve["prompts"].count("a photo of a robot") == 1 and len(curve["prompts"]) == 2 * 3 + 1
    for point in curve["points"]:
        assert len(point["fidelity"]) == len(point["prompt"]) == 2 * 3 * 2
        assert [count for count, _, _ in point["of"]] == [6, 6]
    base = curve["points"][0]
    assert base["of"][0][1] == pytest.approx(np.mean(base["fidelity"][:6]))
    assert base["of"][1][1] == pytest.approx(np.mean(base["fidelity"][6:]))
    for subject, (_, floor, room) in zip(curve["subjects"], base["of"], strict=True):
        assert floor + room == pytest.approx(subject["ceiling"])  # the photos of the training beside the one held out
    page = (two / "report.html").read_text(encoding="utf-8")
    assert "subject fidelity of rex" in page and "subject fidelity of mug" in page and "[V:mug]" in page
    names = [path.name for path in (two / "samples" / "step-000000").iterdir()]
    assert len(names) == 4  # rex, mug, the class once, both


def test_it_goes_on_to_the_bit_where_it_was_killed(two: Path, femtobooth: FemtoBooth, tmp_path: Path) -> None:
    killed = shutil.copytree(
        two, tmp_path / "two", ignore=shutil.ignore_patterns("model", "report.html", "step-000004")
    )
    facts = json.loads((killed / "run.json").read_text())
    (killed / "run.json").write_text(json.dumps({**facts, "status": "running"}))
    assert femtobooth("personalize", "--resume", killed) == 0
    ours, theirs = learned(killed), learned(two)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    curves = [json.loads((run / "validation" / "validation.json").read_text())["points"] for run in (killed, two)]
    assert curves[0] == curves[1]


def test_prompts_name_the_subject(two: Path, femtobooth: FemtoBooth, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    quick = ("-n", 1, "--steps", 1)
    assert femtobooth("generate", two, "a [V] robot", *quick) == 2
    assert "[V] could be any of 2 subjects\n  -> write [V:rex] or [V:mug]" in capsys.readouterr().err
    assert femtobooth("generate", two, "a [v:rex] robot by [V:Mug]", *quick, "--out", tmp_path / "out") == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["images"][0]["prompt"] == "a sks robot by <mug>"
    lora = lora_reference.find(str(two))
    assert len(lora.words) == 2 and lora.subject and set(lora.subject["subjects"]) == {"rex", "mug"}
    flags = ("--lora", two, *quick, "--out", tmp_path / "lora")
    assert femtobooth("generate", tiny_base, "a [V:mug] robot by [V:rex]", *flags) == 0
    model, whole = load(str(two)), load(str(tiny_base))
    assert torch.equal(  # a word that was added stands where it stood
        model.text_encoder.embeddings.token_embedding.weight[-1], learned(two)["<mug>.safetensors/<mug>"][0]
    )
    assert len(model.tokenizer) == len(whole.tokenizer) + 1
    assert femtobooth("convert", two, tmp_path / "one.safetensors") == 0
    assert load(str(tmp_path / "one.safetensors")).subject["subjects"] == model.subject["subjects"]


def test_evaluate_says_who_is_who(two: Path, femtobooth: FemtoBooth, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    quick = ("-n", 2, "--class-pictures", 2, "--other-classes", "cat", "--encoders", tiny, "--set", "sampling.steps=1")
    assert femtobooth("evaluate", two, "a [V] {class}", "a [V:mug] {class} here", *quick) == 0
    told = capsys.readouterr().err
    found = json.loads((two / "evaluation" / "evaluation.json").read_text())
    assert found["prompts"] == ["a [V:rex] robot", "a [V:mug] robot", "a [V:mug] robot here"]
    matrix = found["confusion"]
    assert matrix["asked"] == matrix["recognized"] == ["rex", "mug"]
    assert np.array(matrix["counts"]).sum(axis=1).tolist() == [2, 4] == np.array(matrix["base"]).sum(axis=1).tolist()
    assert matrix["right"] == [list(wilson(matrix["counts"][0][0], 2)), list(wilson(matrix["counts"][1][1], 4))]
    assert matrix["photos"][1] == 6
    (pair,) = found["together"]["pairs"]
    assert pair["prompt"] == "a [V:rex] robot next to a [V:mug] robot" and pair["of"] == 2
    assert {row["subject"] for row in found["scores"]} == {"rex", "mug"} == set(found["verdicts"])
    assert "both in" in told
    assert (two / "evaluation" / "together.png").is_file()
    assert "Who is who" in (two / "report.html").read_text(encoding="utf-8")
    assert femtobooth("evaluate", two, "--photos", two / "photos") == 2
    assert "nobody knows which of rex, mug they show" in capsys.readouterr().err


def test_each_subject_becomes_a_class(two: Path, femtobooth: FemtoBooth, tiny: Path, tmp_path: Path) -> None:
    few = ("--backgrounds", "on the beach", "--scales", "", "--styles", "", "--set", "sampling.steps=1")
    command = ("synthesize", two, "--out", tmp_path / "drawn", "--encoder", tiny, "--threshold", -1, *few)
    assert femtobooth(*command) == 0
    report = json.loads((tmp_path / "drawn" / "synthesized.json").read_text())
    assert [(one["label"], one["subject"]) for one in report["subjects"]] == [
        (name, one.token) for name, one in PersonalizedRun.open(two).subjects.items()
    ]
    assert femtobooth(*command, "--labels", "a", "--overwrite") == 2


def test_programs_know_them(two: Path) -> None:
    booth = library.Generator.load(two)
    assert [one.class_noun for one in booth.subjects.values()] == ["robot", "robot"]
    with pytest.raises(ModelError, match="teaches rex, mug"):
        _ = booth.token
    (picture,) = booth.generate("a [V:mug] robot", count=1, sampling={"steps": 1})
    assert picture.size == (64, 64)
    with pytest.raises(SettingsError, match="says the photos and the noun of each"):
        library.personalize(two / "photos", "robot", subjects={"rex": f"{two}:robot"})
