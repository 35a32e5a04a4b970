"""The deterministic loss moves with the weights alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from femtobooth.core import config
from femtobooth.generator.deterministic import SAMPLES, deterministic_loss, fixed_batches
from femtobooth.generator.dreambooth import DreamBooth
from femtobooth.generator.latents import LatentSet
from femtobooth.generator.load import load
from femtobooth.generator.settings import PersonalizeSettings


@pytest.fixture
def module(tiny_base: Path) -> Any:
    settings = config.resolve(PersonalizeSettings, {"photos": {"paths": ["x"], "class_noun": "robot"}})
    model = load(str(tiny_base))
    made = DreamBooth(model, settings, "sks", lambda _: None)
    torch.manual_seed(0)
    tokens = model.tokenize(["a sks robot"]).expand(3, 1, -1)
    made.instance = LatentSet(torch.randn(3, 1, 4, 8, 8), torch.full((3, 1, 4, 8, 8), -5.0), tokens)
    return made


def test_it_is_the_same_until_the_weights_move(module: Any) -> None:
    first = deterministic_loss(module)
    torch.manual_seed(99)
    assert deterministic_loss(module) == first
    with torch.no_grad():
        module.unet.conv_out.bias.add_(0.1)
    assert deterministic_loss(module) != first


def test_it_falls_as_the_photos_are_learned(module: Any) -> None:
    first = deterministic_loss(module)
    optimizer = torch.optim.AdamW([parameter for parameter in module.parameters() if parameter.requires_grad], lr=1e-3)
    module.trainer = SimpleNamespace(world_size=1, global_rank=0)
    module.prior = None
    for step in range(12):
        module.training_step(step).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert deterministic_loss(module) < first


def test_it_leaves_random_state_modes_and_gradients_alone(module: Any) -> None:
    module.unet.train()
    modes, state = [part.training for part in module.modules()], torch.get_rng_state()
    deterministic_loss(module)
    assert [part.training for part in module.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_its_timesteps_cover_the_schedule(module: Any) -> None:
    drawn = fixed_batches(module.instance, module.model, 0)[0]
    assert drawn.timesteps.tolist() == [125, 375, 625, 875]
    assert len(drawn.latents) == SAMPLES
    assert torch.equal(drawn.noise, fixed_batches(module.instance, module.model, 0)[0].noise)
    assert not torch.equal(drawn.noise, fixed_batches(module.instance, module.model, 1)[0].noise)
