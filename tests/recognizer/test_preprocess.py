"""Preprocessing is timm's, to the last bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from femtobooth.core.errors import ModelError
from femtobooth.recognizer.model.preprocess import LARGEST, Preprocess

USUAL: dict[str, Any] = {
    "input_size": (3, 64, 64),
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "crop_pct": 0.875,
    "crop_mode": "center",
}
CONFIGURATIONS = {
    "usual": {},
    "test size": {"input_size": (3, 96, 96), "crop_pct": 0.95},
    "lite0": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    "bilinear": {"interpolation": "bilinear", "crop_pct": 1.0},
    "nearest": {"interpolation": "nearest"},
    "squash": {"crop_mode": "squash", "interpolation": "bilinear", "crop_pct": 0.9},
    "border": {"crop_mode": "border", "interpolation": "lanczos", "crop_pct": 1.0},
    "border, cropped": {"crop_mode": "border", "interpolation": "box"},
    "wide": {"input_size": (3, 48, 80)},
    "wide, squashed": {"input_size": (3, 48, 80), "crop_mode": "squash", "interpolation": "hamming"},
}
SIZES = [(100, 75), (75, 100), (64, 64), (333, 500), (31, 29), (500, 9), (9, 500), (1, 1), (73, 73)]


def picture(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_bit_is_timms(name: str) -> None:
    config = USUAL | CONFIGURATIONS[name]
    ours, theirs = Preprocess.from_timm(config), create_transform(**config)
    for size in SIZES:
        if "border" in name and max(size) / min(size) > 50:
            continue  # timm rounds the shorter side to 0 and fails
        pixels = ours.pixels(picture(*size))[None]
        wanted = theirs(picture(*size))[None]
        assert pixels.dtype == np.uint8
        assert torch.equal(ours.normalize(torch.from_numpy(pixels)), wanted), size
        assert np.array_equal(ours.normalize(pixels), wanted.numpy()), size


def test_normalizing_leaves_the_pixels_alone() -> None:
    spec = Preprocess.from_timm(USUAL)
    pixels = spec.pixels(picture(80, 80))[None]
    before = pixels.copy()
    for batch in (pixels, torch.from_numpy(pixels)):
        result = spec.normalize(batch)
        assert tuple(result.shape) == (1, 3, 64, 64)
    assert np.array_equal(pixels, before)


@pytest.mark.parametrize("size", [(20000, 10), (10, 20000), (60000, 1), (1, 60000)])
def test_a_thread_of_a_picture_is_not_resized_whole(size: tuple[int, int]) -> None:
    spec = replace(Preprocess.from_timm(USUAL), size=(224, 224))
    shorter, longer = sorted(size)
    assert 256 * 256 * longer // shorter > LARGEST
    ramp = np.linspace(0, 255, longer).astype(np.uint8)
    values = np.broadcast_to(ramp if size[0] == longer else ramp[:, None], (size[1], size[0]))
    pixels = spec.pixels(Image.fromarray(np.ascontiguousarray(values)).convert("RGB"))
    assert pixels.shape == (224, 224, 3)
    assert np.abs(pixels.astype(int) - 127).max() <= 1  # its middle


def test_what_is_cropped_alone_differs_by_a_level_or_two(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, image = Preprocess.from_timm(USUAL), picture(333, 500)
    whole = spec.pixels(image).astype(int)
    monkeypatch.setattr("femtobooth.recognizer.model.preprocess.LARGEST", 0)
    assert np.abs(spec.pixels(image) - whole).max() <= 2


def test_there_and_back() -> None:
    spec = Preprocess.from_timm(USUAL | {"crop_mode": "border"})
    assert Preprocess.from_dict(spec.to_dict()) == spec
    assert Preprocess.from_timm(spec.to_timm()) == spec
    assert Preprocess.from_timm(USUAL, size=(32, 48)).size == (32, 48)


def test_the_hash_tells_any_two_apart() -> None:
    spec = Preprocess.from_timm(USUAL)
    others = [
        replace(spec, size=(64, 65)),
        replace(spec, crop_pct=0.9),
        replace(spec, interpolation="box"),
        replace(spec, mean=(0, 0, 0)),
    ]
    assert len({spec.hash, *(other.hash for other in others)}) == 5
    assert spec.hash == Preprocess.from_dict(spec.to_dict()).hash


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": [0, 64]},
        {"size": [64]},
        {"size": ["a", 64]},
        {"crop_pct": 0},
        {"crop_pct": "much"},
        {"interpolation": "magic"},
        {"interpolation": []},
        {"crop_mode": "other"},
        {"std": [0.0, 1.0, 1.0]},
        {"std": [1.0, 1.0]},
        {"mean": [float("nan"), 0.0, 0.0]},
        {"mean": None},
        {"more": 1},
    ],
)
def test_what_cannot_be_done_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="preprocessing"):
        Preprocess.from_dict(Preprocess.from_timm(USUAL).to_dict() | wrong)


def test_other_channels_are_refused() -> None:
    with pytest.raises(ModelError, match="1 channels"):
        Preprocess.from_timm(USUAL | {"input_size": (1, 28, 28)})
