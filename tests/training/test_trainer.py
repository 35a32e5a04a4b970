"""Schedules, moving average and the curve file."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn

from femtobooth.core.errors import SettingsError
from femtobooth.training import averages, optimizers, trainer
from femtobooth.training.settings import TrainingSettings
from femtobooth.training.tracking import CurveFile, loggers


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1, 1, 0.8536, 0.5, 0.1464]),
    ],
)
def test_schedules_count_optimizer_steps(schedule: Any, expected: list[float]) -> None:
    settings = TrainingSettings(steps=6, warmup=2, schedule=schedule)
    optimizer = optimizers.make(settings, [{"params": [nn.Parameter(torch.ones(1))], "lr": 2.0}])
    schedules = trainer.learning_rate_schedule(settings, optimizer)
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"] / 2.0)
        optimizer.step()
        schedules.step()
    assert rates == pytest.approx(expected, abs=1e-4)


def test_adamw_is_fused_on_gpus_and_can_be_clipped_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def wanted(precision: Any, *kinds: str) -> bool | None:
        weights = [SimpleNamespace(device=torch.device(kind)) for kind in kinds]
        return optimizers.can_fuse(TrainingSettings(precision=precision), [{"params": weights}])

    assert (wanted("fp32", "cuda"), wanted("bf16", "cuda", "cuda:1")) == (True, True)
    assert (wanted("fp16", "cuda"), wanted("fp32", "cpu"), wanted("fp32", "cpu", "cuda")) == (None, None, None)
    monkeypatch.setattr(optimizers, "can_fuse", lambda *_: True)
    weight = nn.Parameter(torch.zeros(2))
    optimizer = optimizers.make(TrainingSettings(), [{"params": [weight], "lr": 1.0}])
    assert optimizer.defaults["fused"]
    weight.grad = torch.tensor([3.0, 4.0])
    MixedPrecision("bf16-mixed", "cpu").clip_gradients(optimizer, 1.0)
    torch.testing.assert_close(weight.grad, torch.tensor([0.6, 0.8]))
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([-1.0, -1.0]))


def test_moving_average_follows_its_formula_and_can_be_looked_through() -> None:
    module, callback = nn.Linear(2, 1, bias=False), averages.MovingAverage(0.5)
    expected = module.weight.detach().clone()
    callback.on_train_start(SimpleNamespace(global_step=0), module)  # type: ignore[arg-type]
    for step in range(1, 6):
        with torch.no_grad():
            module.weight += step
        callback.on_train_batch_end(SimpleNamespace(global_step=step), module)  # type: ignore[arg-type]
        callback.on_train_batch_end(SimpleNamespace(global_step=step), module)  # type: ignore[arg-type]  # mid-accumulation
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * module.weight.detach()
    weight = module.weight.detach().clone()
    with callback.applied(module):  # type: ignore[arg-type]
        torch.testing.assert_close(module.weight.detach(), expected)
    assert torch.equal(module.weight, weight)


def test_the_curve_goes_on_after_the_resumed_step(tmp_path: Path) -> None:
    curve = CurveFile(tmp_path)
    for step in range(1, 5):
        curve.log_metrics({"loss": 1 / step}, step)
    curve.log_metrics({"extra": 2.0}, 4)
    curve.save()
    resumed = CurveFile(tmp_path, resumed_step=3)
    resumed.log_metrics({"loss": 0.25}, 4)
    resumed.save()
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines == ["step,loss", "1,1.0", "2,0.5", "3,0.3333333333333333", "4,0.25"]


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for absent in ("bitsandbytes", "wandb"):
        monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(SettingsError, match=r"pip install 'bitsandbytes"):
        optimizers.make(TrainingSettings(optimizer="adamw8bit"), [])
    with pytest.raises(SettingsError, match=r"pip install .*wandb"):
        loggers(TrainingSettings(trackers=["wandb"]), tmp_path, "x")


def test_missing_hardware_is_said(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(SettingsError, match=r"check `training\.accelerator`"):
        trainer.build(TrainingSettings(accelerator="gpu"), tmp_path, [], [])
    with pytest.raises(SettingsError, match="use bf16 or fp32"):
        trainer.build(TrainingSettings(accelerator="cpu", precision="fp16"), tmp_path, [], [])


def test_processes_that_were_started_must_be_those_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingsError, match=r"`training\.devices=1` `training\.nodes=1`: but this is process 0 of 2"):
        trainer.build(TrainingSettings(accelerator="cpu"), tmp_path, [], [])
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SettingsError, match="unset RANK"):
        trainer.build(TrainingSettings(accelerator="cpu"), tmp_path, [], [])
