"""Captions that are encoded once: the same to the bit as encoded in every step, and how often that is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from femtobooth.core import config
from femtobooth.generator import dreambooth, text_states
from femtobooth.generator.dreambooth import DreamBooth
from femtobooth.generator.latents import LatentSet
from femtobooth.generator.load import load
from femtobooth.generator.settings import PersonalizeSettings
from femtobooth.training import trainer

CAPTIONS = ("a sks robot", "a photo of a sks robot", "sks robot on the moon")


def _trained(base: Path, folder: Path, parts: list[str], **training: Any) -> tuple[dict[str, torch.Tensor], list[int]]:
    """Train two steps of two photos and two class images; gives what trained, and how many prompts each pass of the text encoder held."""
    settings = config.resolve(
        PersonalizeSettings,
        {
            "photos": {"paths": ["x"], "class_noun": "robot", "caption_dropout": 0.0 if parts == ["token"] else 0.3},
            "train": {"parts": parts},
        },
        {"training": {"steps": 2, "batch_size": 2, "accelerator": "cpu", **training}, "prior": {"target": "base"}},
    )
    model = load(str(base))
    passes: list[int] = []
    model.text_encoder.register_forward_hook(lambda *call: passes.append(len(call[1][0])))

    def pictures(captions: tuple[str, ...], taught: bool) -> LatentSet:
        random = torch.Generator().manual_seed(len(captions))
        mean, spread = torch.randn(2, 3, 1, 4, 8, 8, generator=random)
        tokens = model.tokenize(captions)[None].expand(3, -1, -1)
        return LatentSet(mean, spread - 3, tokens, taught=torch.tensor(taught))

    module = DreamBooth(
        model, settings, "sks", lambda _: (pictures(CAPTIONS, taught=False), pictures(("a robot",), taught=True))
    )
    trainer.build(settings.training, folder, [], []).fit(module)
    return {name: one.detach() for name, one in module.named_parameters() if one.requires_grad}, passes


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_states_that_are_kept_train_the_same_weights(
    precision: str, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, once = _trained(tiny_base, tmp_path, ["attention"], precision=precision)
    monkeypatch.setattr(dreambooth, "can_be_kept", lambda *_: False)
    fresh, always = _trained(tiny_base, tmp_path, ["attention"], precision=precision)
    assert once == [1] * (5 if precision == "fp32" else 10)  # three captions, that of the class, and none
    assert len(always) == 4  # the model's and the teacher's in each step
    assert kept.keys() == fresh.keys() and len(kept) > 20
    assert all(torch.equal(kept[name], fresh[name]) for name in kept)


def test_a_text_encoder_that_trains_is_asked_in_every_step(tiny_base: Path, tmp_path: Path) -> None:
    assert len(_trained(tiny_base, tmp_path, ["token"])[1]) == 4


def test_more_captions_than_are_worth_keeping_are_not_kept(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(str(tiny_base)).to("cpu")
    tokens = model.tokenize([*CAPTIONS, CAPTIONS[0]])
    assert text_states.can_be_kept(model, tokens)
    monkeypatch.setattr(text_states, "MOST", 2)
    assert not text_states.can_be_kept(model, tokens)
