"""Commands that take labelled pictures say the same of them in archives and shards as in folders, to the bit."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from femtobooth import cli
from femtobooth.core.files import sha256_of
from femtobooth.recognizer.finetuning.finetuner import Finetuner

COLOURS = {"blue": (30, 60, 220), "green": (40, 190, 60), "red": (220, 40, 30)}
QUICK = ("--steps", 4, "--batch-size", 4, "--trackers", "csv", "--checkpoint-every", 2, "--result", "finetuned")
CRASH = RuntimeError("the machine went away")

Call = Callable[..., int]


@pytest.fixture
def call(tmp_path: Path) -> Call:
    def run(*arguments: object) -> int:
        try:
            cli.main([str(part) for part in arguments])
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return run


@pytest.fixture
def packed(tmp_path: Path) -> dict[str, Path]:
    """Three classes of five pictures: a folder, a zip, and three shards as WebDataset writes them."""
    folder = tmp_path / "folder"
    made = {"folder": folder, "zip": tmp_path / "data.zip", "shards": tmp_path / "shards"}
    made["shards"].mkdir()
    samples = []
    for number, label in enumerate(COLOURS):
        (folder / label).mkdir(parents=True)
        for index in range(5):
            blocks = np.random.default_rng(10 * number + index).integers(-60, 60, (6, 6, 3)) + np.array(COLOURS[label])
            image = Image.fromarray(blocks.clip(0, 255).astype(np.uint8)).resize((72, 60))
            image.save(file := folder / label / f"{index}.png")
            samples.append((file, label))
    with zipfile.ZipFile(made["zip"], "w", zipfile.ZIP_DEFLATED) as archive:
        for file, _ in samples:
            archive.write(file, file.relative_to(folder))
    for shard in range(3):
        with tarfile.open(made["shards"] / f"{shard:06}.tar", "w") as archive:
            for number, (file, label) in list(enumerate(samples))[5 * shard : 5 * shard + 5]:
                for ending, data in ((".png", file.read_bytes()), (".cls", label.encode())):
                    info = tarfile.TarInfo(f"{number:08}{ending}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    return made


def test_the_same_bits(
    call: Call,
    packed: dict[str, Path],
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = tmp_path / "more.tar"
    with tarfile.open(more, "w") as archive:
        for index in range(3):
            noise = np.random.default_rng(index).integers(0, 255, (40, 40, 3), np.uint8)
            Image.fromarray(noise).save(file := tmp_path / f"{index}.png")
            archive.add(file, f"deep/{index}.png")
    options: tuple[Any, ...] = (
        *QUICK,
        "--runs",
        (runs := tmp_path / "runs"),
        "--model",
        tiny,
        "--teacher",
        tiny,
        "--unlabelled",
        more,
    )
    step = Finetuner.on_before_optimizer_step

    def crash(module: Finetuner, *arguments: Any) -> None:
        if module.global_step == 3:
            raise CRASH
        step(module, *arguments)

    for name, data in packed.items():
        if name != "folder":
            monkeypatch.setattr(Finetuner, "on_before_optimizer_step", crash)
            assert call("finetune", data, *options, "--name", name, "--workers", 2) == 1
            monkeypatch.undo()
            monkeypatch.setenv("FEMTOBOOTH_CACHE", str(tmp_path / f"cache-{name}"))
            assert call("finetune", "--resume", runs / name) == 0
        else:
            assert call("finetune", data, *options, "--name", name) == 0
        assert "also on 3 pictures without labels" in capsys.readouterr().err
        assert sha256_of(runs / name / "model" / "model.safetensors") == sha256_of(
            runs / "folder" / "model" / "model.safetensors"
        )
        page = (runs / name / "report.html").read_text()
        assert page.count("<img ") == (runs / "folder" / "report.html").read_text().count("<img ") > 0

    split = (runs / "zip" / "split.csv").read_text()
    assert f"{packed['zip']}/blue/0.png" in split
    packed["zip"].write_bytes(b"PK\3\4 gone")
    assert call("finetune", "--resume", runs / "zip") == 0  # finished: nothing is read


def test_what_changed_is_not_gone_on_with(
    call: Call,
    packed: dict[str, Path],
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Finetuner, "on_before_optimizer_step", lambda *_: (_ for _ in ()).throw(CRASH))
    assert call("finetune", packed["zip"], *QUICK, "--runs", tmp_path, "--model", tiny, "--name", "run") == 1
    whole = packed["zip"].read_bytes()
    with zipfile.ZipFile(packed["zip"], "w") as archive:
        archive.write(packed["folder"] / "red" / "0.png", "blue/0.png")
    capsys.readouterr()
    assert call("finetune", "--resume", tmp_path / "run") == 2
    assert (
        f"{packed['zip']}/blue/0.png: gone or changed since the run began (15 pictures are)" in capsys.readouterr().err
    )
    packed["zip"].write_bytes(whole[:-30])
    assert call("finetune", "--resume", tmp_path / "run") == 2
    told = capsys.readouterr().err
    assert (
        f"{packed['zip']}: the archive cannot be read (File is not a zip file)\n  -> make it or fetch it again" in told
    )


def test_measured_and_exported(call: Call, packed: dict[str, Path], tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert call("finetune", packed["folder"], "--probe-only", "--runs", tmp_path, "--model", tiny, "--name", "run") == 0
    told: dict[str, list[Any]] = {}
    for name, data in packed.items():
        out = tmp_path / f"measured-{name}"
        assert call("evaluate-classifier", run, data, "--include-training", "--ood", data, "--out", out) == 0
        report = json.loads((out / "report.json").read_text())
        told[name] = [report[key] for key in ("pictures", "top1", "calibration", "out_of_distribution")]
    assert told["folder"] == told["zip"] == told["shards"]
    for name in ("folder", "shards"):
        options = ("--precision", "int8", "--activation-ranges", "minmax", "--max-drop", 100)
        made = tmp_path / f"export-{name}"
        assert call("export", run, *options, "--representative-data", packed[name], "--out", made) == 0
        parity = json.loads((made / "parity.json").read_text())
        told[name] = [parity["figures"][key] for key in ("pictures", "agreement", "accuracy", "logit_error", "cosine")]
        assert (made / "model.onnx").read_bytes() == (tmp_path / "export-folder" / "model.onnx").read_bytes()
    assert told["folder"] == told["shards"]
