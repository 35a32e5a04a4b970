"""Accumulation: what the optimizer steps with is the gradient of the mean loss over the micro-steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

from femtobooth.core import config
from femtobooth.generator.dreambooth import DreamBooth
from femtobooth.generator.families.family import Family
from femtobooth.generator.latents import LatentSet
from femtobooth.generator.load import load
from femtobooth.generator.settings import PersonalizeSettings
from femtobooth.training import trainer


class Gradients(Callback):
    """Keeps what the gradients are before each optimizer step, unclipped."""

    def __init__(self) -> None:
        self.found: list[dict[str, torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.found.append(
            {name: one.grad.clone() for name, one in pl_module.named_parameters() if one.grad is not None}
        )


def pictures(model: Family, caption: str, seed: int) -> LatentSet:
    random = torch.Generator().manual_seed(seed)
    mean = torch.randn((3, 1, 4, 8, 8), generator=random)
    tokens = model.tokenize([caption] * 3)[:, None]
    return LatentSet(mean, mean - 9, tokens)


def trained(folder: Path, out: Path, accumulate: int, steps: int, rate: float) -> list[dict[str, torch.Tensor]]:
    training = {"batch_size": 2, "steps": steps, "accumulate": accumulate, "trackers": [], "accelerator": "cpu"}
    train = {"unet_learning_rate": rate, "text_encoder_learning_rate": rate}
    given = {"photos": {"paths": ["x"], "class_noun": "robot"}, "training": training, "train": train}
    settings = config.resolve(PersonalizeSettings, given)
    model = load(str(folder))
    sets = pictures(model, "a sks robot", 1), pictures(model, "a robot", 2)
    module, gradients = DreamBooth(model, settings, "sks", lambda _: sets), Gradients()
    trainer.build(settings.training, out, [gradients], []).fit(module)
    return gradients.found


def test_accumulated_gradients_equal_those_of_the_mean_loss(tiny_base: Path, tmp_path: Path) -> None:
    """Three micro-steps in one optimizer step against the mean of the same three as steps that move nothing."""
    (together,) = trained(tiny_base, tmp_path, accumulate=3, steps=1, rate=1e-4)
    apart = trained(tiny_base, tmp_path, accumulate=1, steps=3, rate=1e-30)
    assert len(apart) == 3
    assert together.keys() == apart[0].keys()
    assert not any(name.startswith("vae") for name in together)
    for name, gradient in together.items():
        expected = torch.stack([one[name] for one in apart]).mean(dim=0)
        torch.testing.assert_close(
            gradient, expected, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert sum(float(one.abs().sum()) for one in together.values()) > 0
