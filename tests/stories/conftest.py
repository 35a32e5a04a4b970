"""What the stories share: the command in this process, photos, and settings that make a run short."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from femtobooth import cli
from femtobooth.core import strict_yaml

# Settings of a file, which may say more than each of its runs makes use of.
QUICK = {
    "training": {"steps": 2, "batch_size": 2, "trackers": ["csv"]},
    "prior": {"images": 2, "sampling_batch": 2, "sampling": {"steps": 2}},
    "samples": {"images": 1, "prompts": ["a [V] {class}"], "sampling": {"steps": 1}},
    "train": {"unet_learning_rate": 1e-3, "text_encoder_learning_rate": 1e-3},
}


@pytest.fixture(scope="session", autouse=True)
def _same_arithmetic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One thread, as in the processes that stories start, and no cache of the user's even before a test begins."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEMTOBOOTH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def femtobooth() -> Callable[..., int]:
    """The command line in this process; returns its exit code."""

    def call(*arguments: object) -> int:
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return call


@pytest.fixture(scope="session")
def personalize(
    femtobooth: Callable[..., int], photos: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """`personalize(base, runs, name, *flags)`: a short run on the photos, judged by a tiny recognizer, that must
    succeed; returns its folder.
    """

    quick = tmp_path_factory.mktemp("settings") / "quick.yaml"
    quick.write_text(strict_yaml.dump_yaml(QUICK | {"validation": {"encoder": str(tiny)}}))

    def call(base: Path | str, runs: Path, name: str, *flags: object) -> Path:
        command = ["personalize", photos, "--class-noun", "robot", "--base", base, "--runs", runs, "--name", name]
        assert femtobooth(*command, "--config", quick, *flags) == 0
        return runs / name

    return call


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four different 96x80 pictures: a bar that wanders over noise."""
    folder = tmp_path_factory.mktemp("subject")
    for index in range(4):
        random = np.random.default_rng(index)
        pixels = random.integers(0, 60, (80, 96, 3)) + np.array([180, 90, 40]) * (index + 1) // 5
        pixels[20 + 8 * index : 60, 20:70] = (250, 40 * index, 30)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"photo{index}.png")
    return folder


@pytest.fixture(scope="session")
def weights() -> Callable[[Path], dict[str, torch.Tensor]]:
    """`weights(folder)`: every tensor of a model folder, named part/tensor."""

    def read(folder: Path) -> dict[str, torch.Tensor]:
        files = sorted(folder.glob("*/*.safetensors"))
        assert files, f"{folder}: nothing to compare"
        return {f"{path.parent.name}/{name}": value for path in files for name, value in load_file(path).items()}

    return read


@pytest.fixture(scope="session")
def curve() -> Callable[[Path], list[dict[str, str]]]:
    """`curve(run)`: the rows of metrics.csv."""

    def read(run: Path) -> list[dict[str, str]]:
        with (run / "logs" / "metrics.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    return read
