"""femtobooth convert: folder to single file and back."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from femtobooth.core.errors import ExistsError, FemtoboothError, SettingsError
from femtobooth.generator import base
from femtobooth.workflows import convert


def _weights(folder: Path) -> dict[str, str]:
    files = sorted(folder.rglob("*.safetensors"))
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.parametrize(("fixture", "layout"), [("tiny_sd1", "Stable Diffusion 1.x"), ("tiny_sd2", "Stable Diffusion 2.x")])
def test_folder_to_file_to_folder(fixture: str, layout: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source = request.getfixturevalue(fixture)
    written = convert.run(str(source), tmp_path / "model.safetensors")
    assert written["layout"] == layout
    assert written["bytes"] == (tmp_path / "model.safetensors").stat().st_size
    convert.run(str(tmp_path / "model.safetensors"), tmp_path / "folder")
    assert _weights(tmp_path / "folder") == _weights(source)
    assert (tmp_path / "folder" / "README.md").read_text() == (source / "README.md").read_text()
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "folder")
    assert pipeline.scheduler.config.prediction_type == written["prediction_type"]


def test_a_runs_subject_survives(tiny_sd1: Path, tmp_path: Path) -> None:
    model = base.load(str(tiny_sd1))
    model.subject = {"token": "sks", "class_noun": "dog"}
    base.save_folder(model, tmp_path / "run" / "model", card="# a dog\n")
    convert.run(str(tmp_path / "run"), tmp_path / "dog.safetensors")
    convert.run(str(tmp_path / "dog.safetensors"), tmp_path / "dog")
    assert base.load(str(tmp_path / "dog")).subject == model.subject


def test_16_bits(tiny_sd1: Path, tmp_path: Path) -> None:
    convert.run(str(tiny_sd1), tmp_path / "half.safetensors", precision="16")
    weight = load_file(tmp_path / "half.safetensors")["model.diffusion_model.out.2.weight"]
    assert torch.equal(weight, base.load(str(tiny_sd1)).unet.conv_out.weight.half())


def test_targets_that_would_lose_something(tiny_sd1: Path, tmp_path: Path) -> None:
    (tmp_path / "old.safetensors").write_text("mine")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_text("mine")
    (tmp_path / "folder.safetensors").mkdir()
    cases: list[tuple[str, bool, type[FemtoboothError]]] = [
        ("old.safetensors", False, ExistsError),
        ("old.safetensors", True, ExistsError),
        ("photos", False, ExistsError),
        ("photos", True, ExistsError),
        ("folder.safetensors", True, ExistsError),
        ("model.ckpt", False, SettingsError),
    ]
    for name, overwrite, error in cases:
        with pytest.raises(error, match=name):
            convert.run(str(tiny_sd1), tmp_path / name, overwrite=overwrite)
    assert (tmp_path / "old.safetensors").read_text() == "mine"
    assert (tmp_path / "photos" / "cat.png").read_text() == "mine"


def test_what_convert_wrote_is_replaced_but_never_its_source(tiny_sd1: Path, tmp_path: Path) -> None:
    for target in (tmp_path / "model.safetensors", tmp_path / "folder"):
        convert.run(str(tiny_sd1), target)
        with pytest.raises(ExistsError, match="this command reads"):
            convert.run(str(target), target, precision="16", overwrite=True)
        convert.run(str(tiny_sd1), target, precision="16", overwrite=True)
        assert base.load(str(target)).size == 64
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder", "model.safetensors"]
