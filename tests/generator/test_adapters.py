"""Adapters in memory: what each kind changes, by its makers' own definitions, and how it is added to a model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from femtobooth.core.errors import ModelError
from femtobooth.generator.adapters import Adapter, apply, delta, layers
from femtobooth.generator.load import load


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.1


def close(found: Tensor, wanted: Tensor) -> bool:
    return found.dtype == torch.float32 and torch.allclose(found, wanted, atol=1e-6, rtol=1e-5)


def test_lora_is_what_two_layers_in_a_row_add() -> None:
    down, up = random(3, 8), random(6, 3, seed=1)
    x = random(5, 8, seed=2)
    wanted = functional.linear(functional.linear(x, down), up) * (1.5 / 3)
    found = delta({"lora_down": down, "lora_up": up, "alpha": torch.tensor(1.5)}, torch.empty(6, 8))
    assert close(functional.linear(x, found), wanted)
    assert torch.equal(delta({"lora_down": down, "lora_up": up}, torch.empty(6, 8)), up @ down)  # alpha = rank


@pytest.mark.parametrize("mid", [False, True])
def test_locon_is_what_convolutions_in_a_row_add(mid: bool) -> None:
    x = random(2, 8, 7, 7)
    down = random(3, 8, *((1, 1) if mid else (3, 3)), seed=1)
    tensors = {"lora_down": down, "lora_up": random(6, 3, 1, 1, seed=2), "alpha": torch.tensor(3.0)}
    hidden = functional.conv2d(x, down, padding=0 if mid else 1)
    if mid:
        tensors["lora_mid"] = random(3, 3, 3, 3, seed=3)
        hidden = functional.conv2d(hidden, tensors["lora_mid"], padding=1)
    found = delta(tensors, torch.empty(6, 8, 3, 3))
    assert close(functional.conv2d(x, found, padding=1), functional.conv2d(hidden, tensors["lora_up"]))


def test_a_1x1_convolution_and_a_matrix_are_one() -> None:
    down, up = random(3, 8), random(6, 3, seed=1)
    as_conv = {"lora_down": down[:, :, None, None], "lora_up": up[:, :, None, None]}
    assert torch.equal(delta(as_conv, torch.empty(6, 8)), up @ down)
    assert torch.equal(delta({"lora_down": down, "lora_up": up}, torch.empty(6, 8, 1, 1))[:, :, 0, 0], up @ down)


def test_loha() -> None:
    a1, b1, a2, b2 = random(6, 2), random(2, 72, seed=1), random(6, 2, seed=2), random(2, 72, seed=3)
    tensors = {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2, "alpha": torch.tensor(1.0)}
    wanted = torch.tensor([[sum(a1[o] * b1[:, i]) * sum(a2[o] * b2[:, i]) / 2 for i in range(72)] for o in range(6)])
    assert close(delta(tensors, torch.empty(6, 8, 3, 3)), wanted.reshape(6, 8, 3, 3))
    core = {f"hada_t{one}": random(2, 2, 3, 3, seed=one) for one in (1, 2)}
    small = {f"hada_w{one}_{side}": random(2, size, seed=one) for one in (1, 2) for side, size in (("a", 6), ("b", 8))}
    wanted = torch.ones(6, 8, 3, 3)
    for one in (1, 2):
        for o in range(6):
            for i in range(8):
                parts = (
                    core[f"hada_t{one}"][p, q] * small[f"hada_w{one}_a"][p, o] * small[f"hada_w{one}_b"][q, i]
                    for p in range(2)
                    for q in range(2)
                )
                wanted[o, i] *= sum(parts)
    assert close(delta({**core, **small}, torch.empty(6, 8, 3, 3)), wanted)


def test_lokr() -> None:
    small, large = random(2, 4), random(3, 2, seed=1)
    found = delta({"lokr_w1": small, "lokr_w2": large, "alpha": torch.tensor(9.0)}, torch.empty(6, 8))
    wanted = torch.cat([torch.cat([small[o, i] * large for i in range(4)], dim=1) for o in range(2)])
    assert close(found, wanted)  # of two whole matrices alpha says nothing
    a, b = random(3, 1, seed=2), random(1, 18, seed=3)
    found = delta(
        {"lokr_w1": small, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": torch.tensor(0.5)}, torch.empty(6, 8, 3, 3)
    )
    kernel = (a @ b).reshape(3, 2, 3, 3)
    wanted = torch.cat([torch.cat([small[o, i] * kernel for i in range(4)], dim=1) for o in range(2)])
    assert close(found, wanted * 0.5)


@pytest.mark.parametrize("weight", [random(6, 8, seed=5), random(6, 8, 3, 3, seed=5)], ids=["linear", "conv"])
@pytest.mark.parametrize("axis", [0, 1], ids=["outputs", "inputs"])
def test_dora_scales_the_changed_weight_along_the_axis_of_its_shape(weight: Tensor, axis: int) -> None:
    tensors = {"lora_down": random(2, *weight.shape[1:]), "lora_up": random(6, 2, seed=1)}
    changed = weight + delta(tensors, weight)
    count = weight.shape[axis]
    shape = [1] * weight.ndim
    shape[axis] = count
    scale = (random(count, seed=3).abs() + 0.5).reshape(shape)
    merged = weight + delta({**tensors, "dora_scale": scale}, weight)
    for one in range(count):
        row, norm = merged.select(axis, one), changed.select(axis, one).norm()
        assert close(row, changed.select(axis, one) * scale.flatten()[one] / norm)
    flat = delta({**tensors, "dora_scale": scale.flatten()}, weight)  # not square: its length tells
    assert torch.equal(flat, delta({**tensors, "dora_scale": scale}, weight))


def test_a_dora_that_does_not_tell_its_axis_is_refused() -> None:
    tensors = {"lora_down": random(2, 8), "lora_up": random(8, 2, seed=1)}
    for scale in (torch.ones(8), torch.ones(8, 8), torch.ones(7, 1), torch.ones(2, 4)):
        with pytest.raises(ValueError, match=r"dora_scale of shape .* does not tell"):
            delta({**tensors, "dora_scale": scale}, torch.empty(8, 8))


def test_oft_turns_outputs_and_keeps_their_angles() -> None:
    weight, blocks = random(6, 8), random(2, 3, 3, seed=1)
    turned = weight + delta({"oft_blocks": blocks}, weight)
    for block in range(2):
        old, new = weight[3 * block :][:3], turned[3 * block :][:3]
        skew = blocks[block] - blocks[block].T
        turn = (torch.eye(3) + skew) @ torch.linalg.inv(torch.eye(3) - skew)
        assert close(new, turn.T @ old) and close(new.T @ new, old.T @ old)
    norm = (blocks - blocks.transpose(1, 2)).norm()
    half = delta({"oft_blocks": blocks, "alpha": norm / 2 / 6}, weight)  # kohya's constraint: alpha for each output
    assert close(half, delta({"oft_blocks": blocks / 2}, weight))
    assert close(delta({"oft_blocks": blocks, "alpha": torch.tensor(0.0)}, weight), turned - weight)
    with pytest.raises(ValueError, match="BOFT"):
        delta({"oft_blocks": random(2, 2, 3, 3)}, weight)


@pytest.mark.parametrize("kind", ["linear", "conv", "1x1"])
def test_every_kind_that_peft_trains_is_what_peft_merges(kind: str) -> None:
    import peft

    make = {
        "linear": lambda: nn.Linear(8, 12),
        "conv": lambda: nn.Conv2d(8, 12, 3, padding=1),
        "1x1": lambda: nn.Conv2d(8, 12, 1),
    }[kind]
    configs: list = [
        peft.LoraConfig(r=2, lora_alpha=3, init_lora_weights=False, target_modules=["0"]),
        peft.LoraConfig(r=2, lora_alpha=3, init_lora_weights=False, use_dora=True, target_modules=["0"]),
        peft.LoHaConfig(r=2, alpha=3, init_weights=False, target_modules=["0"]),
        peft.LoHaConfig(r=2, alpha=3, init_weights=False, use_effective_conv2d=True, target_modules=["0"]),
        peft.LoKrConfig(r=2, alpha=3, init_weights=False, target_modules=["0"]),
        peft.LoKrConfig(r=1, alpha=3, init_weights=False, use_effective_conv2d=True, target_modules=["0"]),
        peft.OFTConfig(oft_block_size=4, r=0, init_weights=False, use_cayley_neumann=False, target_modules=["0"]),
    ]
    for seed, config in enumerate(configs):
        torch.manual_seed(seed)
        model: nn.Module = nn.Sequential(make())
        weight = model[0].weight.detach().clone()  # type: ignore[index]
        peft.inject_adapter_in_model(config, model)
        layer = model[0]  # type: ignore[index]
        tensors = {}
        for name, tensor in layer.named_parameters():
            if ".default" in name and "base_layer" not in name:
                tensors[name.replace(".default", "").removesuffix(".weight")] = tensor.detach()
        names = {"lora_A": "lora_down", "lora_B": "lora_up", "lora_magnitude_vector": "dora_scale"}
        held = {names.get(name, name): tensor for name, tensor in tensors.items()}
        if "oft_R" not in held:
            held["alpha"] = torch.tensor(3.0)
        if "dora_scale" in held:
            held["dora_scale"] = held["dora_scale"].reshape(-1, *[1] * (weight.ndim - 1))
        layer.merge()
        merged = layer.get_base_layer().weight.detach()
        if {"lokr_w1", "lokr_w2"} <= set(held):  # peft scales them too, kohya's files do not
            held["lokr_w1"] = held["lokr_w1"] * (3 / config.r)
        assert not torch.allclose(merged, weight, atol=1e-4)
        assert torch.allclose(weight + delta(held, weight), merged, atol=1e-5), (kind, type(config).__name__, set(held))


def test_tensors_that_do_not_fit_are_named_before_anything_large_is_made() -> None:
    with pytest.raises(ValueError, match="lacks lora_up"):
        delta({"lora_down": random(2, 8)}, torch.empty(6, 8))
    with pytest.raises(ValueError, match=r"changes a weight of \[6, 9\], and this one has \[6, 8\]"):
        delta({"lora_down": random(2, 9), "lora_up": random(6, 2)}, torch.empty(6, 8))
    with pytest.raises(ValueError, match=r"lora_up \[6, 3\], which do not fit"):
        delta({"lora_down": random(2, 8), "lora_up": random(6, 3)}, torch.empty(6, 8))
    huge = {"lora_down": torch.empty(1, 3_000_000), "lora_up": torch.empty(3_000_000, 1)}  # its product: 36 TB
    with pytest.raises(ValueError, match="changes a weight of"):
        delta(huge, torch.empty(6, 8))


def _adapter(model: object, seed: int = 0) -> Adapter:
    modules = {}
    for name, layer in layers(model):  # type: ignore[arg-type]
        out, into, *kernel = layer.weight.shape
        up = random(out, 2, *[1] * len(kernel), seed=seed + 1)
        modules[name] = {"lora_down": random(2, into, *kernel, seed=seed), "lora_up": up}
    return Adapter(modules)


def test_applied_to_a_model(tiny_sd1: Path) -> None:
    model, base = load(str(tiny_sd1)), load(str(tiny_sd1))
    adapter = _adapter(model)
    assert {name.partition(".")[0] for name in adapter.modules} == {"unet", "text_encoder"}
    apply(model, adapter, 0.0)
    before = {name: part.state_dict() for name, part in base.trainable.items()}
    for name, part in model.trainable.items():
        assert all(torch.equal(tensor, before[name][key]) for key, tensor in part.state_dict().items())
    apply(model, adapter, 0.5)
    for (name, layer), (_, old) in zip(layers(model), layers(base), strict=True):
        assert torch.equal(layer.weight, old.weight + 0.5 * delta(adapter.modules[name], old.weight))
    apply(model, adapter, -0.5)
    for (_, layer), (_, old) in zip(layers(model), layers(base), strict=True):
        assert torch.allclose(layer.weight, old.weight, atol=1e-6)


def test_a_layer_that_does_not_fit_is_named_and_nothing_changes(tiny_sd1: Path) -> None:
    model = load(str(tiny_sd1))
    adapter = _adapter(model)
    old = model.unet.conv_in.weight.clone()  # type: ignore[attr-defined]
    wrong = dict(adapter.modules)
    wrong["unet.conv_out"] = {"lora_down": random(2, 5), "lora_up": random(4, 2)}
    with pytest.raises(
        ModelError, match=r"unet.conv_out changes a weight of \[4, 5\], and this one has \[4, 32, 3, 3\]"
    ):
        apply(model, Adapter(wrong))
    with pytest.raises(ModelError, match=r"1 of \d+ layers are not in .*unet.middle"):
        apply(model, Adapter({**adapter.modules, "unet.middle": {}}))
    assert torch.equal(old, model.unet.conv_in.weight)  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match=r"makes unet\.conv_in NaN or infinite"):
        apply(model, adapter, 1e39)
