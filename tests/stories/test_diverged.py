"""Training that leaves the finite numbers stops at once, saves nothing of it, and says which checkpoint to trust."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from femtobooth.generator import dreambooth
from femtobooth.workflows.personalizing import outcome

FemtoBooth = Callable[..., int]
QUICK = {
    "training.steps": "4", "training.checkpoint_every": "1", "training.keep_checkpoints": "9", "training.trackers": "csv",
    "prior.weight": "0", "samples.images": "1", "samples.sampling.steps": "1", "samples.prompts": "a [V] {class}",
}  # fmt: skip


@pytest.fixture
def train(femtobooth: FemtoBooth, photos: Path, tiny_base: Path, tmp_path: Path) -> Callable[..., int]:
    def call(*flags: object) -> int:
        sets = [part for key, value in QUICK.items() for part in ("--set", f"{key}={value}")]
        start = (
            "personalize",
            photos,
            "--class-noun",
            "robot",
            "--base",
            tiny_base,
            "--runs",
            tmp_path,
            "--name",
            "run",
        )
        return femtobooth(*start, *sets, *flags)

    return call


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in run.glob("checkpoints/step-*"))


def test_a_learning_rate_that_is_far_too_high(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first step is taken with gradients that are finite; the second finds what it made of the weights."""
    assert train("--unet-lr", "1e30", "--set", "validation.every=1", "--set", "validation.encoder=bundled") == 2
    run, errors = tmp_path / "run", capsys.readouterr().err
    assert "no checkpoint was good before; train again with a lower --unet-lr (it was 1e+30)" in errors
    assert not (run / "model").exists()
    facts = json.loads((run / "run.json").read_text())
    assert facts["status"] == "failed"
    assert "NaN" in facts["error"] or "nan" in facts["error"]
    points = json.loads((run / "validation" / "validation.json").read_text())["points"]
    assert [point["step"] for point in points] == [0]


@pytest.mark.parametrize(("value", "log_every"), [("nan", 1), ("inf", 1), ("nan", 9)])
def test_the_last_good_checkpoint_is_named(
    train: Callable[..., int],
    femtobooth: FemtoBooth,
    tmp_path: Path,
    value: str,
    log_every: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The loss of the third step is not finite: the weights after the second are to blame, those after the first are
    not. Where it is read only once its step was taken, nothing of that step is kept either.
    """
    real = dreambooth.sample_losses

    def losses(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        return real(*arguments) * (float(value) if len(calls) == 3 else 1.0)

    calls: list[int] = []
    monkeypatch.setattr(dreambooth, "sample_losses", losses)
    assert train("--set", f"training.log_every={log_every}") == 2
    run, errors = tmp_path / "run", capsys.readouterr().err
    assert f"the loss is {value} in step 3" in errors
    assert f"the last good checkpoint is {run / 'checkpoints' / 'step-000001'}" in errors
    assert checkpoints(run) == ["step-000001", "step-000002"]
    assert not (run / "model").exists()
    assert f"the loss is {value} in step 3" in json.loads((run / "run.json").read_text())["error"]
    monkeypatch.setattr(dreambooth, "sample_losses", real)  # had it been the machine
    assert femtobooth("personalize", "--resume", run) == 0
    facts = json.loads((run / "run.json").read_text())
    assert (facts["status"], facts["error"]) == ("done", None)


def test_weights_that_are_not_finite_are_not_saved(
    train: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing looks at the last step's weights any more, but what saves them."""
    real = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *arguments: Any, **named: Any) -> Any:
        done = real(self, *arguments, **named)
        taken.append(1)
        if len(taken) == 4:
            with torch.no_grad():
                self.param_groups[0]["params"][0].view(-1)[0] = float("inf")
        return done

    taken: list[int] = []
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    assert train() == 2
    assert checkpoints(tmp_path / "run") == ["step-000001", "step-000002", "step-000003"]
    assert not (tmp_path / "run" / "model").exists()


def test_a_model_that_draws_nan_is_no_result(
    train: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Finite weights, and yet nothing that can be looked at."""
    real = outcome.weights_from

    def broken(*arguments: Any, **named: Any) -> Any:
        model = real(*arguments, **named)
        with torch.no_grad():
            model.unet.conv_out.weight.fill_(3e38)
        return model

    monkeypatch.setattr(outcome, "weights_from", broken)
    assert train() == 2
    assert "draws NaN or infinite values instead of a picture" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"
    assert not (tmp_path / "run" / "model").exists()
