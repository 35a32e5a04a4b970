"""A LoRA extracted from a tuned model."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from adapter_readers import everything, random_lora

from femtobooth.core.errors import ModelError
from femtobooth.generator.adapter_extraction import extract
from femtobooth.generator.adapters import apply, delta, layers
from femtobooth.generator.families.stable_diffusion import StableDiffusion
from femtobooth.generator.load import load


def copied(model: StableDiffusion) -> StableDiffusion:
    return replace(model, unet=deepcopy(model.unet), text_encoder=deepcopy(model.text_encoder))


def test_at_full_rank_it_is_the_tune(tiny_base: Path) -> None:
    base = load(str(tiny_base))
    assert isinstance(base, StableDiffusion)
    tuned = copied(base)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, layer in layers(tuned):
            if "conv_in" not in name:
                layer.weight += torch.randn(layer.weight.shape, generator=random) * 0.01
        tuned.unet.conv_out.bias += 0.1
    found = extract(tuned, base, 10_000)
    assert set(found.adapter.modules) == {name for name, _ in layers(tuned)} - {"unet.conv_in"}
    assert found.kept == pytest.approx(1, abs=1e-9) and found.elsewhere == 1 and found.adapter.kind == "LoRA"
    wanted = dict(layers(tuned))
    rebuilt = copied(base)
    apply(rebuilt, found.adapter)
    for name, layer in layers(rebuilt):
        assert torch.allclose(layer.weight, wanted[name].weight, atol=1e-6)
    difference = sum(
        (layer.weight - old.weight).double().square().sum()
        for (_, layer), (_, old) in zip(layers(tuned), layers(base), strict=True)
    )
    assert found.reach == pytest.approx(float(difference / (difference + 4 * 0.1**2)), rel=1e-4)


def test_of_a_low_rank_it_keeps_what_no_other_could(tiny_base: Path) -> None:
    base = load(str(tiny_base))
    assert isinstance(base, StableDiffusion)
    tuned = copied(base)
    lora = random_lora(base, everything(base), rank=4)
    apply(tuned, lora)
    four, two = extract(tuned, base, 4), extract(tuned, base, 2)
    assert four.kept == pytest.approx(1, abs=1e-6) and four.reach == 1 and four.elsewhere == 0
    weights = {name: layer.weight for name, layer in layers(base)}
    energy = best = 0.0
    for name, tensors in lora.modules.items():
        change = delta(tensors, weights[name]).flatten(1)
        assert torch.allclose(delta(four.adapter.modules[name], weights[name]).flatten(1), change, atol=1e-5)
        values = torch.linalg.svdvals(change).square()
        energy, best = energy + float(values.sum()), best + float(values[:2].sum())
        left = change - delta(two.adapter.modules[name], weights[name]).flatten(1)
        assert float(left.square().sum()) == pytest.approx(float(values[2:].sum()), rel=1e-3, abs=1e-6)
        assert two.adapter.modules[name]["alpha"] == 2
    assert two.kept == pytest.approx(best / energy, rel=1e-4) and two.kept < 0.9


def test_what_is_no_tune_of_the_base_is_refused(tiny_sd1: Path, tiny_sd2: Path) -> None:
    one, other = load(str(tiny_sd1)), load(str(tiny_sd2))
    with pytest.raises(
        ModelError, match=r"are of different shapes, unet\.down_blocks\.0\.attentions\.0\.proj_in\.weight"
    ):
        extract(one, other, 4)
    with pytest.raises(ModelError, match="its layers are those of"):
        extract(one, load(str(tiny_sd1)), 4)
