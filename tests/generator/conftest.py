"""What tests of the generator share: a training without a Trainer, what its model predicts, and what the user reads."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from torch import Tensor

from femtobooth.core import config
from femtobooth.core.console import STYLE, Terminal
from femtobooth.core.events import listening
from femtobooth.generator.dreambooth import DreamBooth
from femtobooth.generator.families.family import Family
from femtobooth.generator.latents import LatentSet
from femtobooth.generator.load import load
from femtobooth.generator.settings import PersonalizeSettings
from femtobooth.parsing import overrides


class Offline(DreamBooth):
    """The module without a Trainer around it."""

    global_rank = 0  # type: ignore[assignment]
    device = torch.device("cpu")  # type: ignore[assignment]
    trainer = SimpleNamespace(world_size=1)  # type: ignore[assignment]


def settings(*sets: str) -> PersonalizeSettings:
    given = config.Layer({"photos": {"paths": ["x"], "class_noun": "robot"}})
    return config.settle(PersonalizeSettings, given, overrides(PersonalizeSettings, sets, {}))


def training(folder: Path, *sets: str) -> Offline:
    """A module that trains an adapter, and pictures for it: three of the subject, four of the class."""
    wanted = sets if any(one.startswith("train.parts") for one in sets) else ("train.parts=lora", *sets)
    given = settings("lora.rank=4", *wanted)
    module = Offline(load(str(folder), held=given.train.held), given, "sks", lambda _: None)
    random = torch.Generator().manual_seed(1)
    sets_of = {}
    for count, caption in ((3, "a sks robot"), (4, "a robot")):
        mean = torch.randn(count, 1, 4, 8, 8, generator=random)
        sets_of[caption] = LatentSet(mean, mean - 9, module.model.tokenize([caption] * count)[:, None])
    module.instance, module.prior = sets_of.values()
    module.prior.taught = torch.ones(4, dtype=torch.bool)
    return module


def out(model: Family, text: str = "a sks robot") -> Tensor:
    """What a model predicts for fixed noise."""
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model.denoise(
            noisy.to(model.denoiser.dtype), torch.tensor([500]), model.condition(model.tokenize([text]))
        )


def learn(module: DreamBooth, amount: float = 0.05) -> None:
    """Move everything that trains."""
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=random) * amount)


@pytest.fixture
def adapting() -> SimpleNamespace:
    """The functions above."""
    return SimpleNamespace(settings=settings, training=training, out=out, learn=learn)


@pytest.fixture
def said() -> Iterator[io.StringIO]:
    """What the user reads."""
    screen = io.StringIO()
    with listening(Terminal(console=Console(file=screen, width=300, **STYLE))):  # type: ignore[arg-type]
        yield screen
