"""Each optimizer against its paper's few lines, what it keeps, what it refuses, and the average that schedule-free
makes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from schedulefree import AdamWScheduleFree
from torch import Tensor, nn

from femtobooth.core.errors import SettingsError
from femtobooth.training import averages, optimizers, trainer
from femtobooth.training.module import NumberedSteps
from femtobooth.training.settings import TrainingSettings

RATE, DECAY, STEPS = 0.03, 0.1, 60
B1, B2, EPS = 0.9, 0.999, 1e-8
START = torch.linspace(-1, 2, 12).reshape(3, 4)
TARGET = torch.linspace(3, -1, 12).reshape(3, 4)
CURVATURE = torch.logspace(-1, 1, 12).reshape(4, 3).T
HERE = ["adamw", "adafactor", "prodigy", "schedulefree"]  # adamw8bit needs a GPU


def gradient(weight: Tensor) -> Tensor:
    """Of a quadratic bowl, ten times as steep one way as another."""
    return CURVATURE.double() * (weight - TARGET.double())


def adamw(w: Tensor, rate: float) -> Tensor:
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t in range(1, STEPS + 1):
        g = gradient(w)
        m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g * g
        w = w - rate * DECAY * w - rate * m / (1 - B1**t) / ((v / (1 - B2**t)).sqrt() + EPS)
    return w


def adafactor(w: Tensor, rate: float) -> Tensor:
    """Algorithm 4 of arXiv 1804.04235, with means for sums and a rate that does not follow the weights' size."""
    rows, columns = torch.zeros(3, 1).double(), torch.zeros(1, 4).double()
    for t in range(1, STEPS + 1):
        g, beta2 = gradient(w), 1 - t**-0.8
        rows = beta2 * rows + (1 - beta2) * (g * g).mean(dim=1, keepdim=True)
        columns = beta2 * columns + (1 - beta2) * (g * g).mean(dim=0, keepdim=True)
        update = g / (rows * columns / rows.mean()).sqrt()
        update /= max(1.0, float(update.square().mean().sqrt()))
        w = w - rate * DECAY * w - max(1.0, float(w.square().mean().sqrt())) * min(rate, t**-0.5) * update
    return w


def prodigy(w: Tensor, rate: float) -> Tensor:
    """Algorithm 4 of arXiv 2306.06101, with AdamW's bias correction; the rate is left out of s."""
    start, d, numerator, beta3 = w, 1e-6, 0.0, math.sqrt(B2)
    m, v, s = torch.zeros_like(w), torch.zeros_like(w), torch.zeros_like(w)
    for t in range(1, STEPS + 1):
        g, step = gradient(w), d * rate * math.sqrt(1 - B2**t) / (1 - B1**t)
        numerator = beta3 * numerator + d * step * float((g * (start - w)).sum())
        m, v = B1 * m + (1 - B1) * d * g, B2 * v + (1 - B2) * d * d * g * g
        s = beta3 * s + d * d * g
        d = max(d, numerator / float(s.abs().sum()))
        w = w - DECAY * step * w - step * m / (v.sqrt() + d * EPS)
    return w


def schedulefree(w: Tensor, rate: float) -> Tensor:
    """Algorithm 1 of arXiv 2405.15682; gives the point at which the next gradient would be taken."""
    x, z, v = w, w, torch.zeros_like(w)
    for t in range(1, STEPS + 1):
        y = (1 - B1) * z + B1 * x
        g = gradient(y)
        v = B2 * v + (1 - B2) * g * g
        z = z - rate * (g / ((v / (1 - B2**t)).sqrt() + EPS) + DECAY * y)
        x = (1 - 1 / t) * x + z / t
    return (1 - B1) * z + B1 * x


def settings(name: Any, **changes: Any) -> TrainingSettings:
    return TrainingSettings(optimizer=name, weight_decay=DECAY, accelerator="cpu", **changes)


def walked(optimizer: torch.optim.Optimizer, weight: nn.Parameter, steps: int = STEPS) -> Tensor:
    for _ in range(steps):
        weight.grad = gradient(weight.detach().double()).to(weight.dtype)
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize(
    ("reference", "rate"), [(adamw, RATE), (adafactor, RATE), (prodigy, 1.0), (schedulefree, RATE)]
)
def test_each_walks_as_its_paper_says(
    reference: Callable[[Tensor, float], Tensor], rate: float, capsys: pytest.CaptureFixture[str]
) -> None:
    weight = nn.Parameter(START.double())
    found = walked(optimizers.make(settings(reference.__name__), [{"params": [weight], "lr": rate}]), weight)
    expected = reference(START.double(), rate)
    assert (expected - START).abs().max() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    assert capsys.readouterr().out == ""  # prodigyopt prints


def test_adafactor_tells_small_gradients_apart() -> None:
    """Gradients of 1e-6, which torch's own epsilon makes equal, give the steps that the same ones of 1 give."""
    large, small = nn.Parameter(torch.zeros(3, 4)), nn.Parameter(torch.zeros(3, 4))
    optimizer = optimizers.make(settings("adafactor"), [{"params": [large, small], "lr": RATE}])
    large.grad = torch.outer(torch.tensor([1.0, 2, 4]), torch.tensor([1.0, 3, 9, 27]))
    small.grad = large.grad * 1e-8
    optimizer.step()
    torch.testing.assert_close(large.detach(), torch.full((3, 4), -RATE), rtol=1e-4, atol=0)
    torch.testing.assert_close(small.detach(), large.detach(), rtol=1e-4, atol=0)
    assert optimizer.state[large]["row_var"].shape == (3, 1)
    still = nn.Parameter(torch.ones(2, 2))
    optimizer = optimizers.make(
        TrainingSettings(optimizer="adafactor", weight_decay=0.0), [{"params": [still], "lr": 1.0}]
    )
    still.grad = torch.zeros(2, 2)
    optimizer.step()
    assert torch.equal(still.detach(), torch.ones(2, 2))


def test_warm_up_of_schedule_free_is_its_own() -> None:
    """The schedule's warm-up and the package's give the same bits, the average's weights included."""
    ours, theirs = nn.Parameter(START.clone()), nn.Parameter(START.clone())
    wanted = settings("schedulefree", warmup=6)
    optimizer = optimizers.make(wanted, [{"params": [ours], "lr": RATE}])
    schedule = trainer.learning_rate_schedule(wanted, optimizer)
    other = AdamWScheduleFree([theirs], lr=RATE, weight_decay=DECAY, warmup_steps=6, foreach=False)
    other.train()
    for _ in range(STEPS):
        walked(optimizer, ours, 1)
        schedule.step()
        walked(other, theirs, 1)
    assert torch.equal(ours, theirs)


def test_what_prodigy_found_is_its_rate() -> None:
    weight = nn.Parameter(START.double())
    optimizer = optimizers.make(settings("prodigy"), [{"params": [weight], "lr": 0.5}])
    assert optimizers.effective_rate(optimizer.param_groups[0]) == pytest.approx(0.5e-6)
    walked(optimizer, weight)
    (group,) = optimizer.param_groups
    assert optimizers.effective_rate(group) == 0.5 * group["d"] > 0.9e-6
    adam = optimizers.make(settings("adamw"), [{"params": [weight], "lr": 0.5}])
    assert optimizers.effective_rate(adam.param_groups[0]) == 0.5


class Two(NumberedSteps):
    """Two layers in groups of their own, the last one first."""

    def __init__(self, regime: TrainingSettings) -> None:
        super().__init__(regime)
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(4, 8, 3), nn.Linear(6, 4)
        self.first.bias.requires_grad_(False)
        self._optimizer = optimizers.make(regime, self.optimizer_groups())

    def optimizer_groups(self) -> list[dict[str, Any]]:
        return [
            {"params": [one for one in part.parameters() if one.requires_grad], "lr": RATE}
            for part in (self.last, self.first)
        ]

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        return self._optimizer

    def walk(self, steps: int = 3) -> None:
        for step in range(steps):
            for parameter in averages.trained(self).values():
                parameter.grad = torch.sin(parameter.detach() * 7 + step)
            self._optimizer.step()


@pytest.mark.parametrize("name", HERE)
def test_the_memory_that_is_told_is_what_is_kept(name: str) -> None:
    module = Two(settings(name))
    module.walk()
    kept = sum(
        value.numel() * value.element_size()
        for state in module._optimizer.state.values()
        for key, value in state.items()
        if key != "step" and torch.is_tensor(value)
    )
    shapes = [parameter.shape for parameter in averages.trained(module).values()]
    assert optimizers.state_bytes(name, shapes) == kept
    expected = {"adamw": 2 * 4 * 316, "schedulefree": 2 * 4 * 316, "prodigy": 4 * 4 * 316}
    # 8 x 4 kernels of 3 + 3 sums, a matrix of 4 + 6, a vector of 4
    assert kept == expected.get(name, 4 * (32 * 6 + 10 + 4))


def test_eight_bits_keep_two_bytes() -> None:
    assert optimizers.state_bytes("adamw8bit", [(6, 4), (4,)]) == 2 * 28


def test_the_average_of_schedule_free_is_what_its_package_evaluates() -> None:
    module, other = Two(settings("schedulefree")), Two(settings("schedulefree"))
    average = averages.average_of(module.regime)
    assert isinstance(average, averages.ScheduleFree)
    for one in (module, other):
        one.walk()
    y = {name: value.detach().clone() for name, value in averages.trained(module).items()}
    other._optimizer.eval()  # type: ignore[attr-defined]
    x = {name: value.detach() for name, value in averages.trained(other).items()}
    with average.applied(module):
        seen = {name: value.detach().clone() for name, value in averages.trained(module).items()}
    state = {"state_dict": y, "optimizer_states": [module._optimizer.state_dict()], "callbacks": {}}
    came = averages.result(state, module)
    for name in ("first.weight", "last.weight", "last.bias"):
        assert torch.equal(seen[name], x[name])
        assert torch.equal(came[name], x[name])
        assert not torch.equal(x[name], y[name])
        assert torch.equal(averages.trained(module)[name], y[name])  # training goes on from the same bits


def test_before_the_first_step_the_average_is_where_it_starts() -> None:
    module = Two(settings("schedulefree"))
    before = {name: value.detach().clone() for name, value in averages.trained(module).items()}
    seen = dict(averages.ScheduleFree().weights(module))
    assert seen.keys() == before.keys()
    assert all(torch.equal(seen[name], before[name]) for name in before)


def test_settings_that_were_not_given_are_as_the_optimizer_wants() -> None:
    class Averaging(TrainingSettings):
        """As finetune has it."""

        ema: float = 0.98

    assert (Averaging().ema, Averaging(optimizer="prodigy").ema) == (0.98, 0.98)
    assert (Averaging(optimizer="schedulefree").ema, averages.average_of(Averaging()).decay) == (0.0, 0.98)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (
            {"optimizer": "schedulefree", "schedule": "cosine"},
            "`training.schedule=cosine`: schedule-free AdamW averages",
        ),
        ({"optimizer": "schedulefree", "ema": 0.9}, "`training.ema=0.9`: schedule-free AdamW averages"),
        ({"optimizer": "schedulefree", "beta1": 0.0}, "`training.beta1=0`: schedule-free AdamW averages with it"),
        ({"optimizer": "schedulefree", "warmup": 9, "schedule": "constant"}, None),
        ({"optimizer": "prodigy", "schedule": "cosine", "warmup": 9, "ema": 0.9}, None),
        ({"optimizer": "adafactor", "schedule": "linear", "ema": 0.9}, None),
    ],
)
def test_what_makes_no_sense_together_is_refused(given: dict[str, Any], problem: str | None) -> None:
    wanted = TrainingSettings(**given)
    if problem is None:
        wanted.refuse_at_once()
        return
    with pytest.raises(SettingsError) as caught:
        wanted.refuse_at_once()
    assert caught.value.problem.startswith(problem)
    assert len(caught.value.lines) == 2


@pytest.mark.parametrize(
    ("name", "rates", "problem"),
    [
        ("prodigy", {"a": 1.0, "b": 1.0}, None),
        ("prodigy", {"a": 0.1, "b": 0.1}, None),
        ("prodigy", {"a": 2e-6}, "`a=2e-06`: multiplies the learning rate that prodigy finds"),
        ("prodigy", {"a": 1.0, "b": 0.5}, "`a=1` `b=0.5`: prodigy finds one learning rate for all"),
        ("schedulefree", {"a": 2e-6, "b": 1.0}, None),
    ],
)
def test_rates_of_prodigy_are_multiples(name: str, rates: dict[str, float], problem: str | None) -> None:
    if problem is None:
        optimizers.refuse_rates(name, rates)
        return
    with pytest.raises(SettingsError) as caught:
        optimizers.refuse_rates(name, rates)
    assert caught.value.problem.startswith(problem)


@pytest.mark.parametrize(("name", "package"), [("prodigy", "prodigyopt"), ("schedulefree", "schedulefree")])
def test_a_missing_package_is_named_before_any_work(
    name: Any, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizers, "find_spec", lambda _: None)
    wanted = TrainingSettings(optimizer=name)
    for refused in (wanted.refuse_at_once, lambda: trainer.check(wanted)):
        with pytest.raises(
            SettingsError, match=rf"{package} is not installed\n  -> pip install .*({package}|optimizers)"
        ):
            refused()


def test_eight_bits_on_a_cpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "find_spec", lambda _: SimpleNamespace())
    for accelerator, may in (("cpu", True), ("auto", False)):
        monkeypatch.setattr(optimizers, "may_accelerate", lambda may=may: may)
        with pytest.raises(SettingsError, match=r"`training.optimizer=adamw8bit`: computes on NVIDIA's GPUs only"):
            TrainingSettings(optimizer="adamw8bit", accelerator=accelerator).refuse_at_once()  # type: ignore[arg-type]
    monkeypatch.setattr(optimizers, "may_accelerate", lambda: True)
    TrainingSettings(optimizer="adamw8bit").refuse_at_once()
