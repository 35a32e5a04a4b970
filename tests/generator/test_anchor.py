"""The pull towards the base: its exact value for every kind of parameter, and what it keeps for that."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import peft
import pytest
import schedulefree
import torch
from prodigyopt import Prodigy
from torch import Tensor, nn

from femtobooth.generator.anchor import Anchor

X = torch.tensor([[0.5, -1.0, 2.0]])


def _network() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def _step(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    network(X).square().sum().backward()
    optimizer.step()


def test_two_weights_are_pulled_with_their_own_rates() -> None:
    network = nn.ParameterDict({"slow": torch.tensor([1.0]), "fast": torch.tensor([2.0]), "off": torch.tensor([3.0])})
    network["off"].requires_grad_(False)
    anchor = Anchor({"net": network}, 5.0, {})
    assert anchor.kept_bytes == 8
    with torch.no_grad():
        network["slow"].fill_(1.8)
        network["fast"].fill_(0.0)
        network["off"].fill_(9.0)
    groups = [{"params": [network["slow"], network["off"]], "lr": 0.01}, {"params": [network["fast"]], "lr": 0.1}]
    anchor.pull(torch.optim.SGD(groups))
    found = [float(network[name].detach()) for name in ("slow", "fast", "off")]
    assert found == pytest.approx([1.8 - 0.05 * 0.8, 0.0 + 0.5 * 2.0, 9.0])  # 5 lr of the way back


def test_a_pull_of_all_and_more_ends_at_the_base() -> None:
    weight = nn.ParameterDict({"w": torch.tensor([1.0])})
    anchor = Anchor({"net": weight}, 300.0, {})
    with torch.no_grad():
        weight["w"].fill_(7.0)
    anchor.pull(torch.optim.SGD(weight.values(), lr=0.01))
    assert float(weight["w"].detach()) == 1.0


@pytest.mark.parametrize(
    "make",
    [
        lambda values: torch.optim.AdamW(values, lr=0.1, weight_decay=0.0),
        lambda values: torch.optim.Adafactor(values, lr=0.1, weight_decay=0.0),
        lambda values: Prodigy(values, lr=1.0, d0=0.05),
        lambda values: schedulefree.AdamWScheduleFree(values, lr=0.1),
    ],
    ids=["adamw", "adafactor", "prodigy", "schedule-free"],
)
def test_every_optimizer_is_pulled_by_the_rate_it_steps_with(make: Callable[..., Any]) -> None:
    network = _network()
    start, optimizer, anchor = (
        network.weight.detach().clone(),
        make(network.parameters()),
        Anchor({"n": network}, 2, {}),
    )
    if hasattr(optimizer, "train"):
        optimizer.train()
    for _ in range(3):
        _step(network, optimizer)
    before, group = network.weight.detach().clone(), optimizer.param_groups[0]
    average = _average(network, optimizer)
    share = 2 * group["lr"] * group.get("d", 1)
    assert 0 < share < 1
    anchor.pull(optimizer)
    torch.testing.assert_close(network.weight.detach() - start, (1 - share) * (before - start))
    # what a schedule-free optimizer evaluates, the average of its steps, is pulled as far
    torch.testing.assert_close(_average(network, optimizer) - start, (1 - share) * (average - start))


def _average(network: nn.Linear, optimizer: Any) -> Tensor:
    if not hasattr(optimizer, "eval"):
        return network.weight.detach().clone()
    optimizer.eval()
    found = network.weight.detach().clone()
    optimizer.train()
    return found


def test_what_the_teacher_holds_is_not_kept_again() -> None:
    network = _network()
    teacher = deepcopy(network).requires_grad_(False)
    anchor = Anchor({"net": network}, 1.0, {"net": teacher})
    assert anchor.kept_bytes == 0
    assert anchor.starts[network.weight] is teacher.weight
    assert Anchor({"net": network}, 1.0, {"net": network}).kept_bytes == 4 * 8  # nothing frozen apart


@pytest.mark.parametrize(
    "adapter",
    [
        peft.LoraConfig(r=2, target_modules=["0"]),
        peft.LoHaConfig(r=2, target_modules=["0"]),
        peft.LoKrConfig(r=2, target_modules=["0"]),
    ],
    ids=["lora", "loha", "lokr"],
)
def test_an_adapters_offset_shrinks_as_a_whole(adapter: Any) -> None:
    """B A of LoRA, and the like: by lr times the weight, as the offset of a weight itself, with nothing kept."""
    torch.manual_seed(1)
    network = peft.inject_adapter_in_model(adapter, nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)))
    anchor = Anchor({"net": network}, 3.0, {})
    assert anchor.kept_bytes == 0
    assert anchor.starts
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.1, weight_decay=0.0)
    for _ in range(3):
        optimizer.zero_grad()
        network(torch.randn(5, 6)).square().sum().backward()
        optimizer.step()
    before = network[0].get_delta_weight("default").detach().clone()
    assert before.abs().max() > 1e-3
    anchor.pull(optimizer)
    torch.testing.assert_close(network[0].get_delta_weight("default"), 0.7 * before)


def test_dora_keeps_its_magnitudes_alone() -> None:
    network = peft.inject_adapter_in_model(
        peft.LoraConfig(r=2, target_modules=["0"], use_dora=True), nn.Sequential(nn.Linear(6, 4))
    )
    anchor = Anchor({"net": network}, 1.0, {})
    assert anchor.kept_bytes == 4 * 4  # one for each output
    assert sorted(0 if start is None else start.numel() for start in anchor.starts.values()) == [0, 4]
