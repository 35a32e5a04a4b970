"""The class kept as it was without class images: by the photos under captions of their class, and by a pull."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from femtobooth.core.files import write_json

Weights = Callable[[Path], dict[str, torch.Tensor]]
FLAGS = ("--train", "unet", "--validate-every", 0)
SHARE = 0.4  # of what a step moved, at the rate 1e-3


def offset(weights: Weights, run: Path, base: Path) -> torch.Tensor:
    tuned, start = weights(run / "model"), weights(base)
    return torch.cat([(tuned[name] - start[name]).flatten() for name in start if name.startswith("unet/")])


def test_photos_alone_keep_the_class_and_the_pull_holds_back(
    personalize: Callable[..., Path],
    femtobooth: Callable[..., int],
    photos: Path,
    tiny_base: Path,
    tmp_path: Path,
    weights: Weights,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FEMTOBOOTH_CACHE", str(tmp_path / "cache"))
    by_photos = ("--prior-target", "photos")
    free = personalize(tiny_base, tmp_path, "free", *FLAGS, *by_photos, "--steps", 1)
    told = " ".join(capsys.readouterr().err.split())
    assert "the photos as any robot: 'a photo of a robot'" in told
    assert not list((tmp_path / "cache").rglob("*.png"))
    page = (free / "report.html").read_text(encoding="utf-8")
    assert "the target was what the base predicts" in page
    assert "Loss on photos and on photos as their class" in page
    pulled = ("--prior-pull", SHARE / 1e-3, "--checkpoint-every", 1)
    held = personalize(tiny_base, tmp_path, "held", *FLAGS, *by_photos, *pulled, "--steps", 1)
    moved, back = (offset(weights, run, tiny_base) for run in (free, held))
    assert moved.abs().max() > 5e-4
    torch.testing.assert_close(back, (1 - SHARE) * moved, rtol=0, atol=1e-6)

    whole = personalize(tiny_base, tmp_path, "whole", *FLAGS, *pulled, "--prior-weight", 0, "--steps", 2)
    copy = tmp_path / "killed"
    shutil.copytree(whole, copy, ignore=shutil.ignore_patterns("model", "overview.png", "report.html", "step-000002*"))
    facts = json.loads((copy / "run.json").read_text())
    write_json(copy / "run.json", {key: facts[key] for key in facts if key != "selected"} | {"status": "running"})
    assert femtobooth("personalize", "--resume", copy) == 0
    first, second = weights(whole / "model"), weights(copy / "model")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert json.loads((copy / "run.json").read_text())["steps"] == 2


def test_a_caption_of_no_subject_is_refused_before_anything_is_written(
    femtobooth: Callable[..., int], photos: Path, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "photo2.txt").write_text("a robot on the beach")
    command = (
        "personalize",
        tmp_path / "photos",
        "--class-noun",
        "robot",
        "--base",
        tiny_base,
        "--runs",
        tmp_path / "r",
    )
    assert femtobooth(*command, "--prior-target", "photos") == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "photo2.png: its caption 'a robot on the beach' cannot be said of any robot" in told
    assert not (tmp_path / "r").exists()
