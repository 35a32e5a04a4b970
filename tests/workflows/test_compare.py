"""compare: same pictures, same turns, nothing read that belongs to other weights, nothing measured twice."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import quick_start
import torch
from PIL import Image

from femtobooth import cli
from femtobooth.core import config
from femtobooth.core.cache import cache_folder
from femtobooth.core.errors import UnsafeFileError
from femtobooth.core.files import sha256_of
from femtobooth.generator.formats.folder import save_folder
from femtobooth.generator.image_cache import generate_missing
from femtobooth.generator.load import load
from femtobooth.generator.run import SUBJECT, PersonalizedRun, Subject
from femtobooth.generator.sampling_settings import SamplingSettings
from femtobooth.generator.settings import PersonalizeSettings
from femtobooth.recognizer.exporting import graph as graphs
from femtobooth.recognizer.model import artifact
from femtobooth.recognizer.model.backbone import Recognizer
from femtobooth.recognizer.model.labels import Labels
from femtobooth.recognizer.model.preprocess import Preprocess
from femtobooth.recognizer.settings import ExportSettings
from femtobooth.workflows import compare, export
from femtobooth.workflows.comparing import candidates, worker
from femtobooth.workflows.comparing.settings import CompareSettings
from femtobooth.workflows.comparing.worker import Worker


@pytest.fixture(scope="module", autouse=True)
def _quick_workers() -> Iterator[None]:
    """Processes that have imported their libraries already; what memory they hold is not theirs alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "subprocess", SimpleNamespace(Popen=quick_start.start, PIPE=subprocess.PIPE))
        yield


QUICK = {"rounds": 6, "batch_size": 2, "threads": 1}
UNTIMED = {"speed": False, "threads": 1}


def make(folder: Path, names: tuple[str, ...], seed: int, trained_on: tuple[str, ...] = ()) -> Path:
    torch.manual_seed(seed)
    recognizer = Recognizer.create("test_convnext", Labels(names), Preprocess((64, 64)), depths=[1, 1, 1, 1])
    torch.nn.init.normal_(recognizer.model.head.fc.weight, std=2)
    recognizer.provenance = {"licence": "MIT", "trained_on": list(trained_on)}
    recognizer.freeze().save(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures each of the classes ant and bee."""
    folder = tmp_path_factory.mktemp("compare") / "data"
    for index in range(24):
        path = folder / ("ant", "bee")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        blocks = (
            np.random.default_rng(index).integers(0, 256, (4, 4, 3), np.uint8).repeat(20, axis=0).repeat(20, axis=1)
        )
        Image.fromarray(blocks).save(path)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, data: Path) -> dict[str, Path]:
    """Two of the same classes, of which the second was trained on one of the pictures, and one of other classes."""
    root = tmp_path_factory.mktemp("models")
    seen = sha256_of(data / "ant" / "0.png")
    return {
        "one": make(root / "one", ("ant", "bee", "cat"), 1),
        "two": make(root / "two", ("ant", "bee", "cat"), 2, (seen,)),
        "other": make(root / "other", ("bee", "yak"), 3),
    }


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, models: dict[str, Path], data: Path) -> Iterator[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEMTOBOOTH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        out = tmp_path_factory.mktemp("out") / "page.html"
        settings = CompareSettings(models=[str(one) for one in models.values()], data=str(data), out=str(out), **QUICK)
        yield {"settings": settings, "report": compare.run(settings), "page": out.read_text(encoding="utf-8")}


def row(report: dict[str, Any], name: str, task: str = "recognizer") -> list[dict[str, Any]]:
    return next(line["figures"] for line in report["tables"][task] if line["name"] == name)


def test_accuracy_is_what_the_model_says(compared: dict[str, Any], models: dict[str, Path], data: Path) -> None:
    recognizer = Recognizer.load(models["one"])
    files = [path for path in sorted(data.rglob("*.png")) if path != data / "ant" / "0.png"]
    said = recognizer(recognizer.batch([Image.open(path).convert("RGB") for path in files])).argmax(1).tolist()
    right = np.mean([index == ("ant", "bee").index(path.parent.name) for index, path in zip(said, files, strict=True)])
    assert row(compared["report"], "top-1 accuracy")[0]["value"] == pytest.approx(right)
    assert "23 pictures" in row(compared["report"], "top-1 accuracy")[0]["how"]["what"]


def test_pictures_that_one_was_trained_on_test_none(compared: dict[str, Any]) -> None:
    assert any(
        "1 of 24 pictures" in remark and "left out for all" in remark for remark in compared["report"]["remarks"]
    )


def test_pictures_that_set_8_bit_ranges_test_none(
    tiny: Path, models: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    (tmp_path / "few").mkdir()
    for index in range(8):
        (tmp_path / "few" / f"{index}.png").write_bytes(
            (data / ("ant", "bee")[index % 2] / f"{index}.png").read_bytes()
        )
    exported = ExportSettings(
        model=str(tiny), precision="int8", representative_data=str(tmp_path / "few"), data=str(data), out=str(tmp_path / "int8"),
        max_drop=100, threads=1, parity=False,
    )  # fmt: skip
    export.run(exported)
    wanted = CompareSettings(
        models=[str(models["two"]), str(tmp_path / "int8")], data=str(data), out=str(tmp_path / "page.html"), **UNTIMED
    )
    report = compare.run(wanted)
    assert (
        "1 of 24 pictures of the data were left out for all: one of the models was trained on them."
        in report["remarks"]
    )
    assert (
        "7 of 24 pictures of the data were left out for all: they set the 8-bit ranges of one of the models."
        in report["remarks"]
    )
    assert "16 pictures" in row(report, "top-1 accuracy")[0]["how"]["what"]
    assert not any("does not list" in remark for remark in report["remarks"])
    described = json.loads((tmp_path / "int8" / "recognizer.json").read_text())
    del described["provenance"]["export"]["activation_ranges"]
    (tmp_path / "int8" / "recognizer.json").write_text(json.dumps(described))
    report = compare.run(wanted.model_copy(update={"overwrite": True}))
    assert (
        "int8 does not list the photos that set its 8-bit ranges: any of them in the data flatter it."
        in report["remarks"]
    )


def test_other_label_sets_are_compared_where_both_know_the_class(compared: dict[str, Any]) -> None:
    other = compared["report"]["verdicts"][1]
    assert any(line.startswith("accuracy:") and "12 pictures" in line for line in other["told"]), (
        "the 12 bees that both know"
    )
    assert any("name different classes" in remark for remark in compared["report"]["remarks"])


def test_every_figure_says_how(compared: dict[str, Any]) -> None:
    for lines in compared["report"]["tables"].values():
        for figure in (figure for line in lines for figure in line["figures"]):
            assert figure["how"]["kind"] in ("measured here", "counted here", "read from a file", "not known")
            assert figure["how"]["what"]
            if figure["how"]["kind"] == "measured here":
                assert figure["how"]["machine"] and figure["how"]["when"]
                assert figure["how"]["command"].startswith("femtobooth compare ")
    page = compared["page"]
    links = set(re.findall(r'href="#([^"]+)"', page))
    assert links <= set(re.findall(r'id="([^"]+)"', page))
    assert len([link for link in links if link.startswith("note-")]) > 5
    assert all('alt="' in image and 'alt=""' not in image for image in re.findall("<img[^>]*>", page))
    assert not re.search(r'(src|href)="(?!data:|#)', page)


def test_disagreements_are_pictures_that_are_named_differently(compared: dict[str, Any]) -> None:
    found = compared["report"]["disagreements"]
    assert found
    assert all(len({answer["name"] for answer in one["answers"]}) > 1 for one in found)
    settled = [{True, False} <= {answer["right"] for answer in one["answers"]} for one in found]
    assert settled == sorted(settled, reverse=True), "those that some get right and some wrong come first"


def refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("measured again")


def test_comparing_again_measures_nothing(
    compared: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Worker, "ask", refuse)
    again = compare.run(compared["settings"].model_copy(update={"out": str(tmp_path / "again.html")}))
    assert again["tables"] == compared["report"]["tables"]
    with pytest.raises(AssertionError, match="measured again"):
        compare.run(compared["settings"].model_copy(update={"out": str(tmp_path / "fresh.html"), "fresh": True}))


@pytest.mark.parametrize("what", ["weights", "rounds", "data"])
def test_what_changed_is_measured_again(
    compared: dict[str, Any],
    models: dict[str, Path],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    settings = compared["settings"]
    if what == "weights":
        changed = make(tmp_path / "one", ("ant", "bee", "cat"), 9)
        settings = settings.model_copy(update={"models": [str(changed), *settings.models[1:]]})
    elif what == "rounds":
        settings = settings.model_copy(update={"rounds": 7})
    else:
        shutil.copytree(data, tmp_path / "data")
        (tmp_path / "data" / "bee" / "1.png").unlink()
        settings = settings.model_copy(update={"data": str(tmp_path / "data")})
    monkeypatch.setattr(Worker, "ask", refuse)
    with pytest.raises(AssertionError, match="measured again"):
        compare.run(settings.model_copy(update={"out": str(tmp_path / "page.html")}))


def test_a_damaged_cache_is_measured_again(compared: dict[str, Any], tmp_path: Path) -> None:
    for file in (cache_folder() / "compare").glob("outputs-*"):
        file.write_bytes(file.read_bytes()[:20])
    again = compare.run(compared["settings"].model_copy(update={"out": str(tmp_path / "page.html")}))
    accuracies = [[one["value"] for one in row(report, "top-1 accuracy")] for report in (again, compared["report"])]
    assert accuracies[0] == accuracies[1]


def test_generated_pictures_test_nothing(models: dict[str, Path], data: Path, tmp_path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    from femtobooth.pictures.records import CHUNK

    shutil.copytree(data, tmp_path / "data")
    text = PngInfo()
    text.add_text(CHUNK, "{}")
    Image.open(data / "ant" / "2.png").save(tmp_path / "data" / "ant" / "2.png", pnginfo=text)
    settings = CompareSettings(
        models=[str(models["one"]), str(models["two"])], data=str(tmp_path / "data"), out=str(tmp_path / "page.html")
    )
    report = compare.run(settings.model_copy(update=UNTIMED))
    assert any("1 generated pictures" in remark for remark in report["remarks"])
    assert "22 pictures" in row(report, "top-1 accuracy")[0]["how"]["what"]


def test_an_export_beside_its_original(
    tiny: Path, tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "subprocess", subprocess)  # memory is looked at
    report = compare.run(CompareSettings(models=[str(tiny), str(tiny_onnx)], out=str(tmp_path / "page.html"), **QUICK))
    assert [one["value"] for one in row(report, "runs in")] == ["torch", "ort"]
    assert [one["value"] for one in row(report, "runs without PyTorch")] == [False, True]
    torchs, onnx = (one["value"] for one in row(report, "peak memory"))
    assert onnx < 0.7 * torchs, "each in its own process: ONNX Runtime needs no torch"
    assert "Choose" not in report["verdicts"][0]["choose"], "nothing is known of their accuracy"


def test_photos_that_set_8_bit_ranges_are_spoken_of(
    tiny_onnx: Path, models: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    int8 = tmp_path / "int8"
    shutil.copytree(tiny_onnx, int8)
    described = json.loads((int8 / "recognizer.json").read_text())
    described["provenance"]["export"] = {"format": "onnx", "precision": "int8", "normalizes": False}
    (int8 / "recognizer.json").write_text(json.dumps(described))
    out = str(tmp_path / "page.html")
    report = compare.run(CompareSettings(models=[str(models["one"]), str(int8)], data=str(data), out=out, **UNTIMED))
    assert any("8-bit ranges" in remark for remark in report["remarks"])
    assert row(report, "precision")[1]["value"] == "int8"


# Generators


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A run whose model differs from its base, with an evaluation whose pictures were really drawn by it."""
    run = tmp_path_factory.mktemp("runs") / "rex"
    origin = load(str(tiny_base))
    model = load(str(tiny_base))
    with torch.no_grad():
        model.unet.conv_out.weight.mul_(1.5)
    model.subject = {"token": "sks", "class_noun": "dog", "base_hash": origin.hash, "steps": 3}
    save_folder(model, run / "model", card="# rex\n")
    (run / "photos").mkdir()
    Image.new("RGB", (64, 64), (200, 30, 30)).save(run / "photos" / "00.png")
    given = config.resolve(PersonalizeSettings, {"photos": {"paths": ["x"], "class_noun": "dog"}})
    subject = Subject(token="sks", class_noun="dog", photos=["photos/00.png"])
    known = {"subjects": {SUBJECT: subject}, "base": str(tiny_base), "base_hash": origin.hash, "size": 64}
    PersonalizedRun.create(run, given, **known).update(status="done", seconds=12.0, steps=3)
    sampling = SamplingSettings(steps=1)
    settings = {"count": 2, "seed": 5, "batch_size": 2, "sampling": sampling.model_dump()}
    drawn = load(str(run / "model"))
    generate_missing(
        drawn,
        run / "evaluation" / "pictures" / "tuned",
        [("a sks dog", 5), ("a sks dog", 6)],
        sampling,
        2,
        64,
        Silent(),
    )
    scores = [
        {
            "score": "subject fidelity",
            "encoder": "e",
            "better": "higher",
            "tuned": [0.7, 0.6, 0.8],
            "base": 0.4,
            "gain": [0.3, 0.2, 0.4],
        },
        {"score": "drift of its class (KID)", "encoder": "e", "better": "lower", "tuned": [0.2, 0.1, 0.3], "base": 0.0},
        {"score": "diversity (1 - cosine)", "encoder": "e", "better": "higher", "tuned": [0.2, 0.1, 0.3], "base": 0.5},
    ]
    report = {
        "model_hash": drawn.hash,
        "prompts": ["a [V] dog"],
        "settings": settings,
        "scores": scores,
        "pictures": 2,
        "photos": 1,
    }
    (run / "evaluation" / "evaluation.json").write_text(json.dumps(report))
    return run


class Silent:
    def advance(self, amount: int = 1, note: str | None = None) -> None:
        pass


def generators(*given: object, out: Path, **more: Any) -> dict[str, Any]:
    quick = QUICK | {"sampling": SamplingSettings(steps=1), "count": 1, "prompts": ["a [V] {class}"]} | more
    return compare.run(CompareSettings(models=[str(one) for one in given], out=str(out), **quick))


def test_a_run_against_its_base(run_folder: Path, tiny_base: Path, tmp_path: Path) -> None:
    report = generators(tiny_base, run_folder, out=tmp_path / "page.html")
    assert [one["value"] for one in row(report, "subject fidelity by e", "generator")] == [0.4, 0.7]
    verdict = report["verdicts"][0]
    assert "subject fidelity by e" in verdict["better"]
    assert "drift of its class (KID) by e" in verdict["worse"], "its interval lies above the base's, which is 0"
    assert not any("diversity" in line for line in verdict["told"]), (
        "the base's has no interval and no gain: not compared"
    )
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "tiny-base draws &#39;a dog&#39; with seed 500" in page
    assert "rex draws &#39;a sks dog&#39; with seed 500" in page
    swapped = generators(run_folder, tiny_base, out=tmp_path / "swapped.html")["verdicts"][0]
    assert "subject fidelity by e" in swapped["worse"]
    assert "drift of its class (KID) by e" in swapped["better"]
    for one in (verdict, swapped):
        assert one["choose"] == (
            "tiny-base was never taught sks dog, and is no choice for drawing it; "
            "femtobooth evaluate says whether rex has learned it."
        )


def test_an_evaluation_of_other_weights_is_not_read(run_folder: Path, tiny_base: Path, tmp_path: Path) -> None:
    later = tmp_path / "rex"
    shutil.copytree(run_folder, later)
    model = load(str(later / "model"))
    with torch.no_grad():
        model.unet.conv_out.weight.mul_(1.1)
    save_folder(model, later / "model", card="# rex, trained on\n", overwrite=True)
    report = generators(tiny_base, later, out=tmp_path / "page.html", prompts=[], speed=False)
    assert not any("by e" in line["name"] for line in report["tables"]["generator"])
    assert "femtobooth evaluate says whether rex has learned it" in report["verdicts"][0]["choose"]


def test_both_tasks_have_a_table_each(models: dict[str, Path], run_folder: Path, tmp_path: Path) -> None:
    report = generators(run_folder, models["one"], out=tmp_path / "page.html", prompts=[], speed=False)
    assert [*report["tables"]] == ["generator", "recognizer"]
    assert report["verdicts"] == []


def test_settings_that_differ(run_folder: Path, tmp_path: Path) -> None:
    from femtobooth.workflows.comparing.cards import settings_that_differ

    runs = []
    for name, steps in (("a", 3), ("b", 4)):
        shutil.copytree(run_folder, tmp_path / name)
        (tmp_path / name / "config.yaml").write_text(f"seed: 1\ntraining: {{steps: {steps}, lr: 0.1}}\n")
        (tmp_path / name / "model" / "unet" / "note.txt").write_text(name)
        runs.append(str(tmp_path / name))
    found = settings_that_differ(candidates.find(runs))
    assert found == [{"setting": "training.steps", "values": {"a": "3", "b": "4"}}]


# What cannot be compared


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{one}"], "fewer than two models"),
        (["{one}", "{one}"], "the same model"),
        (["bundled", "bundled"], "is a base and a recognizer"),
        (["{one}", "/nowhere/at/all"], "/nowhere/at/all"),
        (["{one}", "{two}", "--data", "/nowhere"], "/nowhere"),
        (["{one}", "{two}", "--rounds", "2"], "rounds"),
        (["{run}", "generator:bundled", "--data", "{data}"], "none of the models is a classifier"),
    ],
)
def test_bad_input(
    arguments: list[str],
    said: str,
    models: dict[str, Path],
    run_folder: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {name: str(path) for name, path in models.items()} | {"run": str(run_folder), "data": str(data)}
    with pytest.raises(SystemExit) as stop:
        cli.main(["compare", *(part.format(**places) for part in arguments)])
    assert stop.value.code == 2
    told = capsys.readouterr().err
    told = told[told.index("femtobooth: ") :]
    assert said in told
    assert len(told.strip().splitlines()) <= 2
    assert [*tmp_path.iterdir()] == []


def test_bundled_is_of_the_task_of_the_others(models: dict[str, Path], run_folder: Path) -> None:
    assert [one.task for one in candidates.find(["bundled", str(models["one"])])] == ["recognizer"] * 2
    assert [one.task for one in candidates.find(["bundled", str(run_folder)])] == ["generator"] * 2


def test_a_page_is_not_overwritten(models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(SystemExit) as stop:
        cli.main(["compare", str(models["one"]), str(models["two"]), "--out", str(tmp_path / "mine.html")])
    assert stop.value.code == 2
    assert (tmp_path / "mine.html").read_text() == "mine"


def test_a_torchscript_artifact_wants_trust(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a program: opening it runs whatever whoever made it put in."""
    recognizer = Recognizer.load(tiny)
    described = graphs.describe(recognizer, {"format": "torchscript", "precision": "fp32", "normalizes": False})
    (tmp_path / "theirs").mkdir()
    graphs.write_torchscript(graphs.Graph(recognizer, inside=False), tmp_path / "theirs", described)
    artifact.write(described, tmp_path / "theirs")
    settings = CompareSettings(
        models=[str(tiny), str(tmp_path / "theirs")], speed=False, out=str(tmp_path / "page.html")
    )
    with (
        monkeypatch.context() as patch,
        pytest.raises(UnsafeFileError, match=r"theirs: a TorchScript artifact[^\n]*\n  -> add `trust=true`"),
    ):
        patch.setattr(Worker, "ask", refuse)
        compare.run(settings)
    assert compare.run(settings.model_copy(update={"trust": True}))["models"][1]["name"] == "theirs"
