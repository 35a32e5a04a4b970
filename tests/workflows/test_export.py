"""`femtobooth export` from model to artifact and report, in the runtimes that are installed."""

from __future__ import annotations

import itertools
import json
import math
import os
import runpy
import signal
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image, ImageOps

from femtobooth import cli
from femtobooth.core import busy
from femtobooth.core.errors import ParityError, PhotoError, SettingsError
from femtobooth.core.files import sha256_of
from femtobooth.recognizer.exporting import parity, script
from femtobooth.recognizer.inference.engines import open_engine
from femtobooth.recognizer.model import artifact
from femtobooth.recognizer.model.backbone import Recognizer
from femtobooth.recognizer.model.formats import FORMATS
from femtobooth.recognizer.model.preprocess import Preprocess
from femtobooth.recognizer.settings import ExportSettings
from femtobooth.workflows import export as workflow

CPU = Path("/proc/cpuinfo")
BF16 = CPU.is_file() and "bf16" in CPU.read_text()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "SECONDS", 0.0)


def run(model: Path, out: Path, **settings: Any) -> dict[str, Any]:
    return workflow.run(ExportSettings(model=str(model), out=str(out), threads=1, **settings))


@pytest.mark.parametrize(
    ("format", "normalize"),
    [*itertools.product(["onnx", "openvino", "torchscript"], [False, True]), ("pt2", True)],
)
def test_exports_say_what_the_original_says(
    tiny: Path, photos: Path, tmp_path: Path, format: Any, normalize: bool
) -> None:
    report = run(tiny, tmp_path / "out", format=format, data=str(photos), normalize=normalize)
    assert (report["status"], report["verdict"], report["passed"]) == (
        "executed",
        "not shown",
        None,
    )  # by twenty photos
    assert report["misses"] == []
    assert report["figures"]["agreement"][0] == 1
    speed = report["figures"]["speed"]
    for value, low, high in (*speed["latency_ms"]["exported"].values(), *speed["ratio"].values()):
        assert 0 < low <= value <= high
    assert set(speed["ratio"]) == set(speed["latency_ms"]["exported"]) == {"1", "8"}
    assert {"parity.json", "parity.html", "recognizer.json", FORMATS[format].file} <= {
        file.name for file in (tmp_path / "out").iterdir()
    }
    assert artifact.read(tmp_path / "out").hash == Recognizer.load(tiny).hash
    assert b"site-packages" not in (tmp_path / "out" / FORMATS[format].file).read_bytes()
    said = _script_says(tmp_path / "out", sorted(photos.glob("*/*.jpg")))
    assert said == _model_says(tiny, sorted(photos.glob("*/*.jpg")))


def test_ncnn_says_what_the_original_says(tiny: Path, photos: Path, tmp_path: Path) -> None:
    report = run(tiny, tmp_path / "out", format="ncnn", data=str(photos))
    assert (report["status"], report["runtime"], report["misses"]) == ("executed", "ncnn", [])
    assert report["figures"]["agreement"][0] == 1
    assert report["size"]["exported"] == pytest.approx(report["size"]["original"], rel=0.2)
    assert artifact.read(tmp_path / "out").hash == Recognizer.load(tiny).hash
    said = _script_says(tmp_path / "out", sorted(photos.glob("*/*.jpg")))
    assert said == _model_says(tiny, sorted(photos.glob("*/*.jpg")))


def test_scripts_of_all_formats_are_programs(tiny_onnx: Path) -> None:
    """Also of those whose runtimes are not here."""
    for format in FORMATS:
        told = script.text(format, artifact.read(tiny_onnx), normalizes=False)
        compile(told, "run.py", "exec")
        assert FORMATS[format].file in told and "femtobooth" not in told.partition('"""\n')[2]


def _script_says(out: Path, photos: list[Path]) -> dict[tuple[str, str], Any]:
    """What the script beside an export prints, as by a new process, which takes the time of importing a runtime."""
    assert "import femtobooth" not in (out / "run.py").read_text()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as printed:
        patch.setattr(sys, "argv", ["run.py", *map(str, photos)])
        runpy.run_path(str(out / "run.py"))
    rows = (line.split("\t") for line in printed.getvalue().splitlines())
    return {(path, label): pytest.approx(float(value), abs=2e-4) for path, label, value in rows}


def _model_says(model: Path, photos: list[Path]) -> dict[tuple[str, str], float]:
    engine = open_engine(model, "torch")
    pixels = np.stack([engine.preprocess.pixels(Image.open(path)) for path in photos])
    probabilities = engine.labels.probabilities(engine.run(pixels)["logits"], engine.temperature)
    names = engine.labels.names
    return {
        (str(path), names[i]): float(row[i]) for path, row in zip(photos, probabilities, strict=True) for i in range(5)
    }


PREPROCESSED = {
    "squashed": {"crop_mode": "squash", "crop_pct": 0.9},
    "bordered": {"crop_mode": "border", "crop_pct": 1.0},
    "bordered and cropped": {"crop_mode": "border", "crop_pct": 0.8},
    "not square": {"size": [48, 64], "interpolation": "bilinear"},
}


@pytest.mark.parametrize("name", PREPROCESSED)
def test_the_script_prepares_pictures_as_the_model_wants_them(tiny_onnx: Path, tmp_path: Path, name: str) -> None:
    """Its pixels are those of `Preprocess`, for wide, tall and small pictures."""
    described = artifact.read(tiny_onnx)
    how = Preprocess.from_dict(described.preprocess.to_dict() | PREPROCESSED[name])
    told = script.text("onnx", replace(described, preprocess=how), normalizes=True)
    body = told[told.index("    image = ImageOps") : told.index("    logits = ")].replace(
        "    x = np", "    x = seen[path] = np"
    )
    for number, size in enumerate([(120, 90), (70, 131), (31, 17), (64, 64), (301, 97)]):
        noise = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{number}.png")
    seen: dict[str, Any] = {}
    paths = [str(path) for path in sorted(tmp_path.glob("*.png"))]
    names = {
        "Image": Image,
        "ImageOps": ImageOps,
        "np": np,
        "floor": math.floor,
        "how": how.to_dict(),
        "seen": seen,
        "paths": paths,
    }
    exec(f"for path in paths:\n{body}", names)  # noqa: S102  (what it wrote itself)
    for path in paths:
        np.testing.assert_array_equal(seen[path][0], how.pixels(Image.open(path)))


def test_batches_of_any_size(tiny: Path, tmp_path: Path) -> None:
    run(tiny, tmp_path / "out", parity=False)
    engine = open_engine(tmp_path / "out", "ort")
    pixels = np.random.default_rng(0).integers(0, 256, (7, 64, 64, 3), np.uint8)
    whole = engine.run(pixels)["logits"]
    assert whole.shape == (7, 5)
    np.testing.assert_allclose(
        np.concatenate([engine.run(one[None])["logits"] for one in pixels]), whole, rtol=1e-4, atol=1e-5
    )


def test_metadata_holds_what_belongs_to_the_model_and_no_paths(tiny: Path, tmp_path: Path) -> None:
    run(tiny, tmp_path / "out", parity=False, normalize=True)
    model = onnx.load(tmp_path / "out" / "model.onnx")
    held = {prop.key: json.loads(prop.value) for prop in model.metadata_props}
    assert held["labels"]["names"] == ["ant", "bee", "cat", "dog", "elk"]
    assert held["preprocess"]["size"] == [64, 64]
    assert held["temperature"] == 2.0
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [output.name for output in model.graph.output] == ["logits", "embedding"]
    assert b"site-packages" not in model.SerializeToString()


def test_int8_sets_ranges_and_is_compared_on_different_photos(tiny: Path, photos: Path, tmp_path: Path) -> None:
    report = run(tiny, tmp_path / "out", precision="int8", representative_data=str(photos), max_drop=100)
    assert report["quantization"]["pictures"] + report["figures"]["pictures"] == 20
    assert report["figures"]["judged_by"] == "agreement"
    assert report["size"]["exported"] < report["size"]["original"]
    assert artifact.read(tmp_path / "out").hash != Recognizer.load(tiny).hash


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_an_export_says_which_photos_set_its_ranges(tiny: Path, photos: Path, tmp_path: Path, format: Any) -> None:
    (photos / "a" / "torn.jpg").write_bytes((photos / "a" / "0.jpg").read_bytes()[:200])
    data = tmp_path / "data"
    data.mkdir()
    Image.new("RGB", (80, 80), "red").save(data / "new.png")
    run(
        tiny,
        tmp_path / "out",
        format=format,
        precision="int8",
        representative_data=str(photos),
        data=str(data),
        max_drop=100,
    )
    used = sorted(sha256_of(path) for path in photos.rglob("*.jpg") if path.name != "torn.jpg")
    described = artifact.read(tmp_path / "out")
    assert described.provenance["export"]["activation_ranges"] == {"photos": 20, "sha256": used}
    assert artifact.ranges_from(described.provenance) == set(used)
    run(tiny, tmp_path / "float", format=format, data=str(data))
    assert artifact.ranges_from(artifact.read(tmp_path / "float").provenance) == set()


def test_the_half_that_compares_holds_no_copy_of_the_half_that_sets_ranges(
    tiny: Path, photos: Path, tmp_path: Path
) -> None:
    files = sorted(photos.rglob("*.jpg"))
    for index, path in enumerate(files):  # twice each, so that the copies are neighbours
        for copy in range(2):
            (tmp_path / "twice" / f"{2 * index + copy:02d}.jpg").parent.mkdir(exist_ok=True)
            (tmp_path / "twice" / f"{2 * index + copy:02d}.jpg").write_bytes(path.read_bytes())
    with pytest.raises(SettingsError, match="no photos to compare on"):
        run(tiny, tmp_path / "out", precision="int8", representative_data=str(tmp_path / "twice"), max_drop=100)


def test_copies_of_representative_photos_are_not_compared_on(tiny: Path, photos: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for index, path in enumerate(sorted(photos.rglob("*.jpg"))[:3]):
        (data / f"copy{index}.jpg").write_bytes(path.read_bytes())
    Image.new("RGB", (80, 80), "red").save(data / "new.png")
    report = run(
        tiny, tmp_path / "out", precision="int8", representative_data=str(photos), data=str(data), max_drop=100
    )
    assert report["figures"]["pictures"] == 1


def test_a_miss_is_an_error_and_keeps_the_report(tiny: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="logit errors"):
        run(tiny, tmp_path / "out", data=str(photos), tolerance=1e-12)
    assert json.loads((tmp_path / "out" / "parity.json").read_text())["passed"] is False


@pytest.mark.skipif(not BF16, reason="this processor does not compute in bf16")
def test_openvinos_silent_bf16_is_caught(tiny: Path, photos: Path, tmp_path: Path) -> None:
    assert run(tiny, tmp_path / "f32", format="openvino", data=str(photos), max_drop=50)["passed"]
    with pytest.raises(ParityError, match="logit errors"):
        run(tiny, tmp_path / "bf16", format="openvino", data=str(photos), reduced=True)


def test_tensorrt_is_converted_not_executed(tiny: Path, photos: Path, tmp_path: Path) -> None:
    report = run(
        tiny, tmp_path / "out", format="tensorrt", precision="int8", representative_data=str(photos), max_drop=100
    )
    assert report["status"] == "converted only"
    assert report["command"].startswith(f"trtexec --onnx={tmp_path / 'out' / 'model.onnx'}")
    assert "--minShapes=pixels:1x3x64x64" in report["command"]


def test_without_photos_there_is_no_verdict(tiny: Path, tmp_path: Path) -> None:
    report = run(tiny, tmp_path / "out", parity=False)
    assert (report["status"], report["passed"], report["figures"]) == ("converted only", None, None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "no photos to compare on"),
        ({"precision": "int8"}, "no representative photos"),
        ({"precision": "int8", "format": "coreml"}, "not made for coreml"),
        ({"python": "/usr/bin/python3"}, "converted by this interpreter"),
        ({"format": "litert", "parity": False}, "which is not installed"),
        ({"format": "ncnn", "normalize": True}, "`normalize`: ncnn reads floats only"),
        ({"format": "executorch", "parity": False, "python": "/nowhere/python"}, "cannot be run"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(
    tiny: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        run(tiny, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_too_few_representative_photos(tiny: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(PhotoError, match="fewer than 8"):
        run(tiny, tmp_path / "out", precision="int8", representative_data=str(photos / "a"))


def test_too_few_readable_representative_photos(tiny: Path, photos: Path, tmp_path: Path) -> None:
    for path in sorted((photos / "a").glob("*.jpg"))[:7] + sorted((photos / "b").glob("*.jpg"))[:7]:
        path.write_bytes(path.read_bytes()[:-200])
    (tmp_path / "data").mkdir()
    Image.new("RGB", (80, 80), "red").save(tmp_path / "data" / "new.png")
    with pytest.raises(PhotoError, match="6 of 20 representative photos can be read, fewer than 8") as caught:
        run(tiny, tmp_path / "out", precision="int8", representative_data=str(photos), data=str(tmp_path / "data"))
    assert str(caught.value).count("\n") == 1
    for path in photos.rglob("*.jpg"):
        path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(PhotoError, match="none of the 20 photos to compare on can be read"):
        run(tiny, tmp_path / "out", data=str(photos))
    assert not (tmp_path / "out").exists()


def test_a_busy_machine_is_named(tiny: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy, "BUSY", 0.01)
    monkeypatch.setattr(parity, "SECONDS", 0.5)
    started = subprocess.run(
        ["sh", "-c", f"{sys.executable} -c 'while True: pass' >&2 & echo $!"], stdout=subprocess.PIPE, check=True
    )
    try:  # no child of ours: its parent has ended
        report = run(tiny, tmp_path / "out", data=str(photos))
    finally:
        os.kill(int(started.stdout), signal.SIGKILL)
    assert report["figures"]["speed"]["others"] > 0.02
    assert any("The machine was busy while this was timed" in remark for remark in report["remarks"])


def test_a_run_brings_its_own_photos(tiny: Path, photos: Path, tmp_path: Path) -> None:
    recognizer = Recognizer.load(tiny)
    recognizer.save(tmp_path / "run" / "model")
    (tmp_path / "run" / "run.json").write_text("{}")
    files = sorted(photos.rglob("*.jpg"))
    lines = [
        f"{path},{'ant' if i % 2 else 'bee'},{'val' if i < 8 else 'train'},{i},False,0" for i, path in enumerate(files)
    ]
    (tmp_path / "run" / "split.csv").write_text("\n".join(["path,label,split,group,generated,sha256", *lines]))
    report = workflow.run(ExportSettings(model=str(tmp_path / "run"), precision="int8", max_drop=100, threads=1))
    assert report["out"] == str(tmp_path / "run" / "exports" / "onnx-int8")
    assert report["quantization"]["pictures"] == 12
    assert report["figures"]["accuracy"]["pictures"] == 8


def test_command(tiny: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["export", str(tiny), "--data", str(photos), "--out", str(tmp_path / "few"), "--threads", "1", "--json"])
    told = capsys.readouterr()
    assert json.loads(told.out)["verdict"] == "not shown"
    assert (
        "not shown to be within tolerance: top-1 labels differ from the original's by 0.0 points on 20 photos"
        in told.err
    )
    assert "within tolerance." not in (tmp_path / "few" / "parity.html").read_text().replace(
        "to be within tolerance.", ""
    )
    cli.main(
        [
            "export",
            str(tiny),
            "--data",
            str(photos),
            "--out",
            str(tmp_path / "out"),
            "--threads",
            "1",
            "--max-drop",
            "20",
            "--json",
        ]
    )
    assert json.loads(capsys.readouterr().out)["passed"] is True
    with pytest.raises(SystemExit) as stopped:
        cli.main(["export", str(tiny), "--data", str(photos), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert "already exists" in capsys.readouterr().err
