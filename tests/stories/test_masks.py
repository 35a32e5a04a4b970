"""Photos with masks, as a user gives them: by transparency, by files, and gone when the run goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from femtobooth.core import strict_yaml

from .conftest import QUICK

Weights = Callable[[Path], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("masked")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos over white whose masks lie beside them (files/), and the same as cut-outs (alpha/)."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "alpha").mkdir()
    (folder / "files" / "masks").mkdir(parents=True)
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (80, 96, 4), np.uint8)
        pixels[..., 3] = 0
        pixels[20 + 8 * index : 60, 20:70, 3] = 255
        cut_out = Image.fromarray(pixels)
        cut_out.save(folder / "alpha" / f"{index}.png")
        white = Image.new("RGB", cut_out.size, "white")
        white.paste(cut_out, mask=cut_out.getchannel("A"))
        white.save(folder / "files" / f"{index}.png")
        mask = cut_out.getchannel("A")
        mask.save(folder / "files" / (f"masks/{index}.png" if index else f"{index}.mask.png"))
    return folder


def test_a_run_with_masks(
    femtobooth: Callable[..., int], given: Path, tiny_base: Path, runs: Path, weights: Weights
) -> None:
    settings = runs / "quick.yaml"
    quick = {**QUICK, "training": {**QUICK["training"], "checkpoint_every": 1}, "photos": {"flip": True}}
    settings.write_text(strict_yaml.dump_yaml(quick))
    for name in ("files", "alpha"):
        command = ["personalize", given / name, "--class-noun", "robot", "--base", tiny_base, "--runs", runs]
        assert femtobooth(*command, "--name", name, "--config", settings, "--background", "photos") == 0
    by_files, wanted = runs / "files", weights(runs / "alpha" / "model")

    def same() -> bool:
        ours = weights(by_files / "model")
        return ours.keys() == wanted.keys() and all(torch.equal(ours[name], wanted[name]) for name in ours)

    assert same()
    facts = json.loads((by_files / "run.json").read_text())["subjects"]["V"]
    assert facts["masks"] == [f"photos/{index:02d}.mask.png" for index in range(3)]
    assert facts["photos"] == [f"photos/{index:02d}.png" for index in range(3)]
    page = (by_files / "report.html").read_text()
    assert page.count("counted: its mask") == 3
    assert "3 of 3 photos came with a mask. What is grey did not count." in page

    shutil.rmtree(given)
    shutil.rmtree(by_files / "model")
    shutil.rmtree(by_files / "checkpoints" / "step-000002")
    facts = json.loads((by_files / "run.json").read_text())
    (by_files / "run.json").write_text(json.dumps({**facts, "status": "running"}))
    assert femtobooth("personalize", "--resume", by_files) == 0
    assert same()
