"""Weights beside an adapter, held in fewer bits: what a layer then computes, what it keeps, and what trains."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from femtobooth.core import config
from femtobooth.core.errors import ModelError, SettingsError
from femtobooth.core.machine import Precision
from femtobooth.generator import adapter_layers, frozen
from femtobooth.generator.dreambooth import DreamBooth
from femtobooth.generator.families.family import Family
from femtobooth.generator.formats import parts
from femtobooth.generator.formats.ldm_keys import Place
from femtobooth.generator.latents import LatentSet
from femtobooth.generator.load import load
from femtobooth.generator.settings import PersonalizeSettings
from femtobooth.training import trainer

BITS = ("int8", "nf4")
WIDEST = 0.152  # half the widest gap between two of nf4's numbers, which reach from -1 to 1


def tensors(model: Family) -> dict[str, Tensor]:
    networks = ((name, getattr(model, name)) for name in model.NETWORKS)
    return {f"{name}.{path}": one for name, network in networks for path, one in network.named_parameters()}


def rounded_layers(model: Family) -> dict[str, frozen.Rounded]:
    found = ((name, network.named_modules()) for name, network in model.trainable.items())
    return {f"{name}.{path}": one for name, all_ in found for path, one in all_ if isinstance(one, frozen.Rounded)}


def test_a_base_is_read_into_what_it_is_held_in(tiny_base: Path) -> None:
    whole = load(str(tiny_base))
    for precision in ("bf16", "fp16"):
        read, cast = load(str(tiny_base), held=precision), copy.deepcopy(whole)
        frozen.hold(cast, precision)
        assert read.held == cast.held == precision and read.hash == whole.hash
        found, held = tensors(read), tensors(cast)
        for name, tensor in tensors(whole).items():
            wanted = tensor if name.startswith("vae.") else tensor.to(frozen.dtype(precision))
            for ours in (found[name], held[name]):
                assert ours.dtype == wanted.dtype and torch.equal(ours, wanted) and ours.is_contiguous(), name


def test_what_16_bits_cannot_hold_is_named(tmp_path: Path) -> None:
    layer, big = nn.Linear(2, 1, bias=False), {"weight": torch.tensor([[1.0, 70000.0]])}
    with pytest.raises(ModelError, match="x: weight is too large for fp16"):
        parts.fill(layer, big, {"weight": Place("weight")}, "x", "fp16")
    parts.fill(layer, big, {"weight": Place("weight")}, "x", "bf16")
    assert layer.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("precision", BITS)
def test_rounding_is_as_exact_as_it_says(precision: Precision, tiny_base: Path) -> None:
    pytest.importorskip("bitsandbytes")
    whole, model, again = tensors(load(str(tiny_base))), load(str(tiny_base), held=precision), load(str(tiny_base))
    frozen.hold(again, precision)
    layers, others = rounded_layers(model), rounded_layers(again)
    ends = {"unet.conv_in.weight", "unet.conv_out.weight"}
    # every weight of two and more axes but the ends and the tables of embeddings
    wanted = {name for name, one in whole.items() if one.ndim > 1 and not name.startswith("vae.")} - ends
    assert {f"{name}.weight" for name in layers} == {name for name in wanted if "_embedding.weight" not in name}
    for name, layer in layers.items():
        weight, found = whole[f"{name}.weight"], layer.weight
        assert found.shape == weight.shape and found.dtype == torch.bfloat16
        flat = (
            weight.flatten(1)
            if precision == "int8"
            else torch.cat([weight.flatten(), torch.zeros(-weight.numel() % 64)]).view(-1, 64)
        )
        error = (found.float() - weight).flatten()
        largest = flat.abs().amax(1)
        allowed = largest / 254 + largest / 2**10 if precision == "int8" else largest * WIDEST
        allowed = allowed[:, None].expand_as(flat).flatten()[: weight.numel()] + weight.abs().flatten() / 2**7
        assert (error.abs() <= allowed).all(), name
        assert error.abs().max() > 0
        assert torch.equal(layer.numbers, others[name].numbers) and torch.equal(layer.scales, others[name].scales)
    count = sum(layer.shape.numel() for layer in layers.values())
    taken = sum(one.numel() * one.element_size() for layer in layers.values() for one in (layer.numbers, layer.scales))
    assert count * (1 if precision == "int8" else 0.5) < taken < count * (1.1 if precision == "int8" else 0.6)
    kept = {one.dtype for name, one in tensors(model).items() if not name.startswith("vae.")}
    assert kept == {torch.bfloat16}


@pytest.mark.parametrize("precision", BITS)
@pytest.mark.parametrize("made", [lambda: nn.Linear(24, 5), lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1)])
def test_a_layer_computes_with_its_rounded_weight_and_keeps_nothing(made: Any, precision: Precision) -> None:
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    network = nn.Sequential(made())
    layer = network[0].requires_grad_(False)
    with torch.no_grad():
        layer.weight[0] = 0  # a scale of 0
        layer.bias.copy_(layer.bias.bfloat16())
    plain = made().requires_grad_(False).bfloat16()
    assert frozen.kept(network, "0.weight", layer.weight, precision) is None
    layer.bias.data = layer.bias.data.bfloat16()
    plain.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    assert isinstance(layer, frozen.Rounded) and (layer.weight[0] == 0).all()
    shape = (2, 24) if isinstance(plain, nn.Linear) else (2, 3, 6, 6)
    ours, theirs = (
        torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16().requires_grad_() for _ in range(2)
    )
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: saved.append(one) or one, lambda one: one):
        out = layer(ours)
    assert saved == []
    wanted = plain(theirs)
    assert torch.equal(out, wanted)
    out.float().square().sum().backward()
    wanted.float().square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0.02, atol=1e-3)
    assert layer.state_dict().keys() == {"bias"}


def test_an_adapter_begins_alike_beside_any_base(adapting: Any, tiny_base: Path) -> None:
    """Its start is 32-bit and the same; DoRA's norms are those of the weights that are there."""
    exact = dict(adapting.training(tiny_base).named_parameters())
    module = adapting.training(tiny_base, "train.frozen_precision=bf16")
    ours = {name: one for name, one in module.named_parameters() if one.requires_grad}
    assert ours and all(one.dtype == torch.float32 and torch.equal(one, exact[name]) for name, one in ours.items())
    plain = load(str(tiny_base), held="bf16").text_encoder.state_dict()
    dora = adapting.training(tiny_base, "train.frozen_precision=bf16", "lora.kind=dora").model.text_encoder
    for name, layer in adapter_layers.layers(dora):
        norms = layer.lora_magnitude_vector["default"].weight
        weight = plain[f"{name}.weight"]
        assert torch.equal(layer.get_base_layer().weight, weight)
        torch.testing.assert_close(norms, weight.float().norm(dim=1))


@pytest.mark.parametrize(
    "sets", [["train.frozen_precision=int8"], ["train.frozen_precision=nf4", "lora.kind=dora"]], ids=str
)
def test_only_the_adapter_trains_beside_a_rounded_base(adapting: Any, tiny_base: Path, sets: list[str]) -> None:
    pytest.importorskip("bitsandbytes")
    exact = adapting.training(tiny_base, "prior.target=base", *sets[1:])
    module = adapting.training(tiny_base, "prior.target=base", *sets)
    with torch.no_grad(), adapter_layers.switched_off(module.model):
        base = module.model.denoise(
            torch.ones(1, 4, 8, 8).bfloat16(), torch.tensor([500]), module.model.condition(module.model.tokenize(["a"]))
        )
    module.training_step(0)
    prior = module.read_losses()[1, :, 0].sum()
    assert prior == 0 or (len(sets) > 1 and prior < 1e-4)  # the adapter is 0, or DoRA's that rounds
    adapting.learn(exact)
    adapting.learn(module)
    loss, wanted = module.training_step(0), exact.training_step(0)
    assert loss.item() == pytest.approx(wanted.item(), rel=0.05)
    loss.backward()
    wanted.backward()
    ours = torch.cat([one.grad.flatten() for one in module.parameters() if one.requires_grad])
    theirs = torch.cat([one.grad.flatten() for one in exact.parameters() if one.requires_grad])
    assert ours.dtype == torch.float32
    assert nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.9
    assert {one.dtype for one in module.parameters() if not one.requires_grad} == {torch.bfloat16}
    with torch.no_grad(), adapter_layers.switched_off(module.model):
        again = module.model.denoise(
            torch.ones(1, 4, 8, 8).bfloat16(), torch.tensor([500]), module.model.condition(module.model.tokenize(["a"]))
        )
    assert torch.equal(base, again)  # the base, to the bit, whatever was learned


def test_without_the_package_it_is_refused_in_a_line(monkeypatch: pytest.MonkeyPatch, adapting: Any) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    given = adapting.settings("train.parts=lora", "train.frozen_precision=nf4")
    with pytest.raises(
        SettingsError, match=r"`train\.frozen_precision=nf4`: bitsandbytes is not installed.*"
    ) as refused:
        given.refuse_at_once()
    assert "pip install" in str(refused.value) and "or use bf16" in str(refused.value)
    adapting.settings("train.parts=lora", "train.frozen_precision=bf16").refuse_at_once()


def test_a_run_beside_a_rounded_base_goes_on_to_the_same_bits(tiny_base: Path, tmp_path: Path) -> None:
    """Four steps at once, and two steps, a checkpoint, and two more in a module that was made anew."""
    pytest.importorskip("bitsandbytes")

    def fit(steps: int, start: Path | None = None, end: Path | None = None) -> dict[str, Tensor]:
        given = config.resolve(
            PersonalizeSettings,
            {"photos": {"paths": ["x"], "class_noun": "robot"}, "prior": {"weight": 0.0}},
            {"training": {"steps": steps, "accelerator": "cpu", "batch_size": 2}, "lora": {"rank": 2}}
            | {"train": {"parts": ["lora"], "frozen_precision": "int8"}},
        )
        model, random = load(str(tiny_base), held="int8"), torch.Generator().manual_seed(0)
        mean, spread = torch.randn(2, 3, 1, 4, 8, 8, generator=random)
        pictures = LatentSet(mean, spread, model.tokenize(["a sks robot"])[None].expand(3, -1, -1))
        module = DreamBooth(model, given, "sks", lambda _: (pictures, None))
        lightning = trainer.build(given.training, tmp_path, [], [])
        lightning.fit(module, ckpt_path=start)
        if end:
            lightning.save_checkpoint(end)
            assert end.stat().st_size < 2e6  # no weight of the base
        return {name: one.detach().clone() for name, one in module.named_parameters() if one.requires_grad}

    whole, half = fit(4), fit(2, end=tmp_path / "half.ckpt")
    again = fit(4, start=tmp_path / "half.ckpt")
    assert whole.keys() == again.keys() and len(whole) > 100
    assert all(torch.equal(one, again[name]) for name, one in whole.items())
    assert any(not torch.equal(one, half[name]) for name, one in whole.items())
