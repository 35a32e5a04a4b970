"""`femtobooth finetune --teacher`: taught on pictures with and without labels, killed and resumed, and what it refuses."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from femtobooth import cli
from femtobooth.core.files import sha256_of
from femtobooth.recognizer.finetuning.finetuner import Finetuner
from femtobooth.recognizer.finetuning.probe import Head
from femtobooth.recognizer.model.backbone import Recognizer
from femtobooth.recognizer.model.labels import Labels
from femtobooth.recognizer.model.preprocess import Preprocess

COLOURS = {"red": (220, 40, 30), "green": (40, 190, 60), "blue": (30, 60, 220)}
QUICK = ("--steps", 3, "--batch-size", 4, "--trackers", "csv", "--checkpoint-every", 2, "--result", "finetuned")
CRASH = RuntimeError("the machine went away")

Finetune = Callable[..., int]


def picture(path: Path, label: str, seed: int) -> None:
    blocks = np.random.default_rng(seed).integers(-60, 60, (6, 6, 3)) + np.array(COLOURS[label])
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(blocks.clip(0, 255).astype(np.uint8)).resize((72, 60), Image.Resampling.BICUBIC).save(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    for number, label in enumerate(COLOURS):
        for index in range(4):
            picture(folder / label / f"{index}.png", label, 10 * number + index)
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Knows the classes, in another order, at another size, and one picture that the data does not have."""
    torch.manual_seed(1)
    made = Recognizer.create("test_efficientnet", Labels(("red", "green", "blue")), Preprocess((48, 48)))
    made.provenance = {"licence": "mit", "trained_on": ["e" * 64]}
    made.freeze().save(folder := tmp_path_factory.mktemp("models") / "teacher")
    return folder


@pytest.fixture
def finetune(tiny: Path, tmp_path: Path) -> Finetune:
    def call(*arguments: object, name: str = "run") -> int:
        more = () if "--resume" in arguments else ("--runs", tmp_path, "--name", name, "--model", tiny)
        try:
            cli.main([str(part) for part in ("finetune", *arguments, *more)])
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return call


def curve(run: Path) -> list[dict[str, str]]:
    with (run / "logs" / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "pictures_per_second"} for row in csv.DictReader(file)]


@contextmanager
def dying_at_step_2() -> Iterator[None]:
    """Have the process that trains fail before the third step of the optimizer."""
    step = Finetuner.on_before_optimizer_step

    def crash(module: Finetuner, *arguments: Any) -> None:
        if module.global_step == 2:
            raise CRASH
        step(module, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Finetuner, "on_before_optimizer_step", crash)
        yield


def test_taught_killed_and_resumed(
    finetune: Finetune,
    data: Path,
    teacher: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for index in range(5):
        picture(tmp_path / "more" / "deep" / f"{index}.png", "green", 50 + index)
    shutil.copytree(data, tmp_path / "more" / "known")  # what validates, and what has a label, teaches nothing here
    options = (data, *QUICK, "--teacher", teacher, "--unlabelled", tmp_path / "more", "--ema", 0.9)
    assert finetune(*options) == 0
    said = capsys.readouterr().err
    assert "teaches its answers and its embeddings, also on 5 pictures without labels" in said
    assert "12 unlabelled pictures are left out" in said
    run = tmp_path / "run"
    facts, report = (json.loads((run / name).read_text()) for name in ("run.json", "report.json"))
    assert facts["teacher"]["hash"] == Recognizer.load(teacher).hash == report["teacher"]["hash"]
    assert report["teacher"]["validation"]["pictures"] == 3
    assert report["guidance"]["after"].startswith("with 3 pictures a class ")
    page = (run / "report.html").read_text()
    assert "taught its answers and its embeddings on the labelled pictures and on 5 without labels." in page
    assert "<td>teacher</td>" in page
    assert f"taught by {teacher.name}" in (run / "model" / "README.md").read_text()
    made = Recognizer.load(run)
    unlabelled = {sha256_of(path) for path in (tmp_path / "more" / "deep").iterdir()}
    assert {*unlabelled, "e" * 64} < set(made.provenance["trained_on"])
    with (run / "split.csv").open(newline="") as file:
        val = {row["sha256"] for row in csv.DictReader(file) if row["split"] == "val"}
    assert not val & set(made.provenance["trained_on"])
    assert not any("projection" in name for name in made.state_dict())
    for row in curve(run):
        parts = [float(row[f"loss/{name}"]) for name in ("labels", "answers", "embeddings")]
        assert float(row["loss/train"]) == pytest.approx(0.5 * sum(parts), rel=1e-4)
        assert min(parts) > 0

    with dying_at_step_2():
        assert finetune(*options, name="broken") == 1
    text = (tmp_path / "broken" / "config.yaml").read_text()
    (tmp_path / "broken" / "config.yaml").write_text(text.replace("workers: 0", "workers: 1"))
    assert finetune("--resume", tmp_path / "broken") == 0
    weights = [sha256_of(tmp_path / name / "model" / "model.safetensors") for name in ("run", "broken")]
    assert weights[0] == weights[1]
    assert curve(run) == curve(tmp_path / "broken")


def test_a_teacher_of_other_classes_teaches_its_embeddings(
    finetune: Finetune, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune(data, *QUICK, "--teacher", "bundled") == 0
    assert "teaches its embeddings\n" in capsys.readouterr().err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["teacher"]["validation"] is None
    assert {row["loss/answers"] for row in curve(tmp_path / "run")} == {"0.0"}
    assert finetune(data, *QUICK, "--teacher", "bundled", "--teacher-features", 0, name="nothing") == 2
    assert "has not all classes of the data" in capsys.readouterr().err


@pytest.fixture(scope="module")
def featurizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network without classes, in a hub's folder, as timm has DINO's."""
    torch.manual_seed(2)
    model = timm.create_model("test_vit", num_classes=0)
    folder = tmp_path_factory.mktemp("models") / "dino"
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    own = {"num_classes": 0, "classifier": "head", "mean": [0.5] * 3, "std": [0.5] * 3, "fixed_input_size": True}
    described = {"architecture": "test_vit", "num_classes": 0, "num_features": 64}
    own["input_size"] = list(model.pretrained_cfg["input_size"])
    (folder / "config.json").write_text(json.dumps(described | {"pretrained_cfg": own}))
    return folder


@pytest.mark.parametrize("probe", [False, True])
def test_a_teacher_without_classes(
    finetune: Finetune,
    data: Path,
    featurizer: Path,
    probe: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its embeddings teach, and a probe's answers where that is asked for; killed and resumed to the same bits."""
    options = (data, *QUICK, "--teacher", featurizer, *(["--teacher-probe"] if probe else []))
    assert finetune(*options) == 0
    taught = "the answers of a linear probe on it and its embeddings" if probe else "its embeddings"
    assert f"(test_vit) teaches {taught}\n" in capsys.readouterr().err
    run = tmp_path / "run"
    report = json.loads((run / "report.json").read_text())
    assert report["teacher"]["teaches"] == taught.split(" and ")
    assert f"taught {taught}." in (run / "report.html").read_text()
    if probe:
        assert report["teacher"]["validation"]["right"] == report["teacher"]["validation"]["pictures"] == 3
        own = Recognizer.load(featurizer, any_head=True)
        told = own.outputs([Image.open(path) for path in sorted(data.rglob("*.png"))])["embedding"].numpy()
        said = Head.load(run / "teacher_probe.safetensors").logits(told)
        assert (said.argmax(axis=1) == np.repeat([0, 1, 2], 4)).all()
    else:
        assert report["teacher"]["validation"] is None
    for row in curve(run):
        assert (float(row["loss/answers"]) > 0) == probe and float(row["loss/embeddings"]) > 0

    with dying_at_step_2():
        assert finetune(*options, name="broken") == 1
    assert finetune("--resume", tmp_path / "broken") == 0
    weights = {sha256_of(tmp_path / name / "model" / "model.safetensors") for name in ("run", "broken")}
    assert len(weights) == 1 and curve(run) == curve(tmp_path / "broken")


def test_a_network_without_classes_can_be_fine_tuned(
    finetune: Finetune, data: Path, featurizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = ("finetune", data, *QUICK, "--runs", tmp_path, "--model", featurizer, "--name", "own")
    cli.main([str(part) for part in made])
    assert Recognizer.load(tmp_path / "own").labels.names == ("blue", "green", "red")
    with pytest.raises(SystemExit):
        cli.main(["classify", str(data), "--model", str(featurizer)])
    assert "a feature extractor can be fine-tuned, or teach" in capsys.readouterr().err


def test_what_a_teacher_knows_does_not_validate(
    finetune: Finetune, data: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    knows = Recognizer.load(teacher)
    seen = [path for path in sorted(data.rglob("*.png")) if path.stem in "012"]
    knows.provenance = {"trained_on": [sha256_of(path) for path in seen]}
    knows.save(tmp_path / "knows")
    assert finetune(data, *QUICK, "--teacher", tmp_path / "knows") == 0
    with (tmp_path / "run" / "split.csv").open(newline="") as file:
        assert {Path(row["path"]).stem for row in csv.DictReader(file) if row["split"] == "val"} == {"3"}
    facts, report = (json.loads((tmp_path / "run" / name).read_text()) for name in ("run.json", "report.json"))
    assert any("have trained the teacher" in one["about"] for one in report["data"]["findings"])
    (tmp_path / "run" / "run.json").write_text(json.dumps(facts | {"status": "running", "worker": None}))
    shutil.rmtree(tmp_path / "knows")
    shutil.copytree(teacher, tmp_path / "knows")
    other = Recognizer.load(teacher)
    torch.nn.init.ones_(other.model.get_classifier().bias)
    other.save(tmp_path / "knows", overwrite=True)
    assert finetune("--resume", tmp_path / "run") == 2
    assert "not the teacher that" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--teacher", "nothing_like_this"), "nothing_like_this: no such file, folder or timm model"),
        (("--teacher-weight", 0.3), "--teacher-weight: has no effect without a --teacher"),
        (
            ("--teacher", "bundled", "--teacher-weight", 0, "--teacher-probe"),
            "--teacher-probe: has no effect with --tea",
        ),
        (("--teacher", "bundled", "--unlabelled", "nowhere"), "nowhere: no such file or folder"),
        (("--teacher", "bundled", "--cutmix", 0.5), "use augment.mixup"),
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
    assert finetune(data, *QUICK, *arguments) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
