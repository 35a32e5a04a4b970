"""An adapter in training: where its layers sit, how they begin, that only they train, and that the base is the same
networks with the adapter off.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from femtobooth.core.errors import SettingsError
from femtobooth.generator import adapter_layers, adapters, tokens
from femtobooth.generator.families.stable_diffusion import StableDiffusion
from femtobooth.generator.load import load
from femtobooth.generator.train_settings import learning_rates

KINDS = ("lora", "dora", "loha", "lokr", "oft")


@pytest.mark.parametrize(("second", "of_text"), [(False, 12), (True, 23)])
def test_it_reaches_the_layers_that_kohya_counts(adapting: Any, second: bool, of_text: int) -> None:
    """Stable Diffusion 1.5 and 2.1, without memory: 128 attention layers, 192 in all transformers, 86 around them."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=1024 if second else 768, use_linear_projection=second)
        text = CLIPTextModel(CLIPTextConfig(hidden_size=64, num_attention_heads=2, num_hidden_layers=of_text))
    found = {}
    for targets in ("attention", "attention+ff", "all"):
        wanted = adapting.settings("train.parts=lora", f"lora.targets={targets}").lora
        for name, network in (("unet", unet), ("text_encoder", text)):
            pattern = adapter_layers.targets(network, wanted, StableDiffusion.ADAPTED[name][targets])
            found[name, targets] = pattern.count("|") + 1
    assert [found["unet", one] for one in ("attention", "attention+ff", "all")] == [128, 160, 192 + 86]
    assert [found["text_encoder", one] for one in ("attention", "attention+ff", "all")] == [
        4 * of_text,
        6 * of_text,
        6 * of_text,
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_off_it_is_the_base_and_merged_it_is_what_was_trained(
    adapting: Any, request: pytest.FixtureRequest, kind: str
) -> None:
    folder = request.getfixturevalue("tiny_sd1" if kind == "lora" else "tiny_base")
    check(adapting, folder, f"lora.kind={kind}", "lora.targets=all")


@pytest.mark.parametrize("sets", [["lora.alpha=1"], ["lora.alpha=1", "lora.rank_stabilised=true"]])
def test_so_it_is_with_linear_projections_and_any_scale(adapting: Any, tiny_sd2: Path, sets: list[str]) -> None:
    check(adapting, tiny_sd2, *sets)


def check(adapting: Any, folder: Path, *sets: str) -> None:
    base = load(str(folder))
    module = adapting.training(folder, "prior.target=base", *sets)
    model, plain = module.model, adapting.out(base)
    torch.testing.assert_close(adapting.out(model), plain, rtol=0, atol=2e-6)  # it begins as the base
    adapting.learn(module)
    trained = adapting.out(model)
    assert (trained - plain).abs().max() > 1e-3
    assert module.teacher is model
    with adapter_layers.switched_off(module.teacher):
        assert torch.equal(adapting.out(module.teacher), plain)
    assert torch.equal(adapting.out(model), trained)  # and is on again
    held, ours = (
        sum(one.numel() for one in module.parameters() if which(one))
        for which in (lambda one: True, lambda one: one.requires_grad)
    )
    networks = base.trainable.values()
    assert held - ours == sum(one.numel() for network in networks for one in network.parameters())  # no second copy
    adapter = adapter_layers.read(model)
    adapter_layers.remove(model)
    assert torch.equal(adapting.out(model), plain)
    assert model.unet.state_dict().keys() == base.unet.state_dict().keys()
    adapters.apply(base, adapter)
    torch.testing.assert_close(adapting.out(base), trained, rtol=1e-4, atol=1e-5)


def test_the_scale_is_alpha_over_the_root_of_the_rank(adapting: Any, tiny_base: Path) -> None:
    for sets, wanted in (([], 1.0), (["lora.alpha=1"], 1 / 4), (["lora.alpha=1", "lora.rank_stabilised=true"], 1 / 2)):
        layer = next(adapter_layers.layers(adapting.training(tiny_base, *sets).model.text_encoder))[1]
        assert layer.scaling == {"default": wanted}
        assert float(adapter_layers.tensors(layer)["alpha"]) / 4 == wanted


def test_its_start_comes_from_the_seed_alone(adapting: Any, tiny_base: Path) -> None:
    def start(seed: int, before: int) -> dict[str, Tensor]:
        torch.manual_seed(before)
        module = adapting.training(tiny_base, f"training.seed={seed}")
        state = torch.random.get_rng_state()
        torch.manual_seed(before)
        load(str(tiny_base))
        assert torch.equal(state, torch.random.get_rng_state())  # nothing was drawn from it
        return {name: value.detach() for name, value in module.named_parameters() if value.requires_grad}

    one, again, other = start(0, 1), start(0, 2), start(1, 1)
    assert all(torch.equal(value, again[name]) for name, value in one.items())
    differ = {name for name, value in one.items() if not torch.equal(value, other[name])}
    assert differ == {name for name in one if "lora_A" in name}


def test_only_the_adapter_trains_and_each_network_at_its_rate(adapting: Any, tiny_base: Path) -> None:
    module = adapting.training(tiny_base, "lora.unet_learning_rate=1e-2", "lora.text_encoder_learning_rate=1e-3")
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    optimizer = module.configure_optimizers()["optimizer"]
    assert {group["name"]: group["lr"] for group in optimizer.param_groups} == {"unet": 1e-2, "text_encoder": 1e-3}
    for _ in range(2):  # B moves first, A once B is no longer 0
        optimizer.zero_grad()
        module.training_step(0).backward()
        optimizer.step()
    moved = {name for name, value in module.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if ".lora_A." in name or ".lora_B." in name}
    assert {name.partition(".")[0] for name in moved} == {"unet", "text_encoder"}


def test_without_the_text_encoder(adapting: Any, tiny_base: Path) -> None:
    module = adapting.training(tiny_base, "lora.text_encoder=false")
    assert [group["name"] for group in module.optimizer_groups()] == ["unet"]
    assert learning_rates(module.settings.train, module.settings.lora) == {"lora.unet_learning_rate": 1e-4}
    assert not any("lora" in name for name, _ in module.model.text_encoder.named_parameters())


def test_the_teacher_says_what_a_copy_of_the_base_says(adapting: Any, tiny_base: Path) -> None:
    """The loss against the base's prediction: 0 at the start, then what a frozen copy beside it gives; the gradient of
    what was computed before the adapter was off is whole.
    """
    module = adapting.training(tiny_base, "prior.target=base")
    module.training_step(0)
    assert module.read_losses()[1, :, 0].sum() == pytest.approx(0, abs=1e-9)
    adapting.learn(module)
    losses, gradients = [], []
    copied = copy.copy(module)
    copied.teacher = load(str(tiny_base))
    for one in (module, copied):
        module.zero_grad()
        loss = one.training_step(0)
        loss.backward()
        losses.append(loss.item())
        gradients.append({name: value.grad for name, value in module.named_parameters() if value.requires_grad})
    assert losses[0] == losses[1]
    assert losses[0] > 1e-3
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        assert torch.equal(gradient, gradients[1][name]), name


def test_gradient_checkpointing_gives_the_same_gradients(adapting: Any, tiny_base: Path) -> None:
    found = []
    for on in ("false", "true"):
        module = adapting.training(tiny_base, "prior.target=base", f"training.gradient_checkpointing={on}")
        adapting.learn(module)
        module.training_step(0).backward()
        found.append([value.grad for value in module.parameters() if value.requires_grad])
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-4, atol=1e-7)


def test_a_word_that_trains_beside_it_is_off_too(adapting: Any, tiny_base: Path) -> None:
    """Pivotal tuning: three groups; the teacher reads the word as it was before training."""
    module = adapting.training(tiny_base, "train.parts=lora,token", "prior.target=base")
    assert {group["name"]: group["lr"] for group in module.optimizer_groups()} == {
        "unet": 1e-4,
        "text_encoder": 5e-5,
        "token": 5e-3,
    }
    before = adapting.out(module.model)
    adapting.learn(module)
    with adapter_layers.switched_off(module.model):
        torch.testing.assert_close(adapting.out(module.model), before, rtol=0, atol=2e-6)
    table = module.model.text_encoder.embeddings.token_embedding
    assert isinstance(table, tokens.TokenEmbedding)
    assert not torch.equal(table.row, table.start)
    assert table.is_on


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_frozen_weights_take_half_the_room_and_the_adapter_stays(
    adapting: Any, tiny_base: Path, precision: str
) -> None:
    exact = adapting.training(tiny_base, "prior.target=base")
    module = adapting.training(tiny_base, "prior.target=base", f"train.frozen_precision={precision}")
    adapting.learn(exact)
    adapting.learn(module)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert {value.dtype for value in module.parameters() if not value.requires_grad} == {dtype}
    assert {value.dtype for value in module.parameters() if value.requires_grad} == {torch.float32}
    loss, wanted = module.training_step(0), exact.training_step(0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(wanted.item(), rel=0.05)
    loss.backward()
    wanted.backward()
    ours = torch.cat([value.grad.flatten() for value in module.parameters() if value.grad is not None])
    theirs = torch.cat([value.grad.flatten() for value in exact.parameters() if value.grad is not None])
    assert ours.dtype == torch.float32
    assert cosine(ours, theirs) > 0.95


def cosine(one: Tensor, other: Tensor) -> float:
    return float(nn.functional.cosine_similarity(one, other, dim=0))


@pytest.mark.parametrize("part", ["unet", "attention", "text_encoder"])
def test_it_stands_beside_frozen_weights(adapting: Any, part: str) -> None:
    with pytest.raises(
        SettingsError, match=f"lora trains beside frozen weights, {part} trains those; name one of them"
    ):
        adapting.settings(f"train.parts=lora,{part}")


@pytest.mark.parametrize(
    ("sets", "idle", "why"),
    [
        (["lora.rank=4"], "lora.rank", "without lora in train.parts"),
        (["train.frozen_precision=bf16"], "train.frozen_precision", "without lora in train.parts"),
        (["train.parts=lora", "train.unet_learning_rate=1e-4"], "train.unet_learning_rate", "rates of its own"),
        (["train.parts=lora", "lora.kind=oft", "lora.alpha=1"], "lora.alpha", "with oft"),
        (
            ["train.parts=lora", "lora.text_encoder=false", "lora.text_encoder_learning_rate=1e-4"],
            "lora.text_encoder_learning_rate",
            "without lora.text_encoder",
        ),
    ],
)
def test_what_has_no_effect(adapting: Any, sets: list[str], idle: str, why: str) -> None:
    with pytest.raises(SettingsError, match=f"^--set {idle}: has no effect .*{why}"):
        adapting.settings(*sets)
