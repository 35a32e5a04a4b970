"""Checkpoints on a real Trainer with a small module: intervals, signals, damage."""

from __future__ import annotations

import math
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from femtobooth.core import requests
from femtobooth.core.errors import CheckpointError, Interrupted, NotFiniteError
from femtobooth.training import averages, checkpoints, trainer
from femtobooth.training.callbacks import StepCallback
from femtobooth.training.module import NumberedSteps
from femtobooth.training.randomness import generator
from femtobooth.training.settings import TrainingSettings
from femtobooth.training.tracking import CurveFile

pytestmark = pytest.mark.usefixtures("terminal")


class _Line(NumberedSteps):
    """Fits a line to noise that is a function of the micro-step."""

    def __init__(self, settings: TrainingSettings) -> None:
        super().__init__(settings)
        self.line, self.seen = nn.Linear(3, 1), list[int]()
        with torch.no_grad():
            self.line.weight.fill_(0.5)
            self.line.bias.fill_(0.1)

    def training_step(self, micro_step: int) -> torch.Tensor:
        self.seen.append(micro_step)
        x = torch.randn(4, 3, generator=generator(0, micro_step))
        loss = (self.line(x) - x.sum(dim=1, keepdim=True)).square().mean()
        for logger in self.loggers:
            logger.log_metrics({"loss": loss.item()}, self.global_step + 1)
        return loss

    def optimizer_groups(self) -> list[dict[str, Any]]:
        return [{"params": self.parameters(), "lr": 1.0 if self.regime.optimizer == "prodigy" else 0.05}]


class _Look(StepCallback):
    """Looks at the average after each step, as samples and validation do."""

    def __init__(self, average: averages.Average) -> None:
        self.average = average

    def on_optimizer_step(self, trainer: Any, module: Any, step: int, outputs: Any) -> None:
        with self.average.applied(module):
            assert math.isfinite(sum(float(parameter.sum()) for parameter in module.parameters()))


class _Send(Callback):
    """Sends a signal, or writes a request into the run's folder, at a micro-step."""

    def __init__(self, what: int | requests.Request, micro_step: int) -> None:
        self.what, self.micro_step = what, micro_step

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: int, batch_idx: int) -> None:
        if batch == self.micro_step:
            if isinstance(self.what, str):
                requests.ask(Path(trainer.default_root_dir), self.what)
            else:
                signal.raise_signal(self.what)


def _fit(
    folder: Path, steps: int = 10, send: tuple[int | requests.Request, int] | None = None, **changes: Any
) -> tuple[_Line, checkpoints.Checkpoints]:
    usual = {"schedule": "cosine", "warmup": 2, "ema": 0.9}
    settings = TrainingSettings(
        steps=steps, accumulate=2, checkpoint_every=3, keep_checkpoints=2, accelerator="cpu", **(usual | changes)
    )
    found = checkpoints.newest(folder / "checkpoints")
    step = int(found.name[5:]) if found else 0
    signals = checkpoints.Signals("resume it")
    saver = checkpoints.Checkpoints(
        folder / "checkpoints", settings.checkpoint_every, settings.keep_checkpoints, signals
    )
    average = averages.average_of(settings)
    assert average is not None
    callbacks = [average, _Look(average), saver, *([_Send(*send)] if send else [])]
    module = _Line(settings)
    lightning = trainer.build(settings, folder, callbacks, [CurveFile(folder / "logs", step)])
    with signals:
        lightning.fit(module, ckpt_path=found / checkpoints.STATE if found else None, weights_only=True)
    module.average = dict(average.weights(module))  # type: ignore[assignment]
    return module, saver


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def _same(first: _Line, second: _Line) -> bool:
    pairs = [*zip(first.parameters(), second.parameters(), strict=True)]
    pairs += [(first.average[name], second.average[name]) for name in first.average]  # type: ignore[operator, index, union-attr]
    return all(torch.equal(a, b) for a, b in pairs)


def test_the_newest_are_kept_and_the_last_step_is_saved(tmp_path: Path) -> None:
    module, _ = _fit(tmp_path)
    assert _names(tmp_path) == ["step-000009", "step-000010"]
    assert module.seen == list(range(20))


@pytest.mark.parametrize(
    "micro_step", [4, 7, 18, 19]
)  # the first and the second half of an accumulation; the last step
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_stops_and_resumes_bit_for_bit(tmp_path: Path, signum: int, micro_step: int) -> None:
    whole, _ = _fit(tmp_path / "whole")
    before = signal.getsignal(signum)
    stopped, saver = _fit(tmp_path / "cut", send=(signum, micro_step))
    assert saver.stopped_by == signum
    assert signal.getsignal(signum) == before
    step = micro_step // 2 + 1
    assert stopped.seen == list(range(2 * step))
    assert _names(tmp_path / "cut")[-1] == f"step-{step:06d}"
    resumed, _ = _fit(tmp_path / "cut")
    assert resumed.seen == list(range(2 * step, 20))
    assert _same(whole, resumed)
    assert (tmp_path / "cut/logs/metrics.csv").read_text() == (tmp_path / "whole/logs/metrics.csv").read_text()


@pytest.mark.parametrize("optimizer", ["adafactor", "prodigy", "schedulefree"])
def test_every_optimizer_resumes_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    """Stopped in step 5, whatever is looked at after each step; what it comes to is in the last checkpoint."""
    given = {"schedule": "constant", "ema": 0.0} if optimizer == "schedulefree" else {}
    whole, _ = _fit(tmp_path / "whole", optimizer=optimizer, **given)
    _fit(tmp_path / "cut", send=(signal.SIGTERM, 9), optimizer=optimizer, **given)
    resumed, _ = _fit(tmp_path / "cut", optimizer=optimizer, **given)
    assert resumed.seen == list(range(10, 20))
    assert _same(whole, resumed)
    folders = [tmp_path / name / "checkpoints" for name in ("whole", "cut")]
    states = [checkpoints.state_of(found) for folder in folders if (found := checkpoints.newest(folder))]
    first, second = (averages.result(state, whole) for state in states)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(first[name], whole.average[name]) for name in first)  # type: ignore[operator, index]
    assert not torch.equal(first["line.weight"], whole.line.weight)


def test_a_signal_after_the_last_save_is_no_less_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(lightning: Any, *arguments: Any) -> Path:
        saved = real(lightning, *arguments)
        if lightning.global_step == lightning.max_steps:
            signal.raise_signal(signal.SIGTERM)
        return saved

    real = checkpoints.save
    monkeypatch.setattr(checkpoints, "save", save)
    assert _fit(tmp_path)[1].stopped_by == signal.SIGTERM


def test_nothing_takes_an_interruption_for_a_fault() -> None:
    """It may be raised anywhere, also where a library's faults are caught."""
    signals = checkpoints.Signals("resume it")
    with pytest.raises(Interrupted), signals:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception:
            pytest.fail("it was swallowed")


@pytest.mark.parametrize("what", [signal.SIGUSR1, "save"])
def test_what_is_asked_to_save_goes_on(tmp_path: Path, what: int | requests.Request) -> None:
    module, saver = _fit(tmp_path, steps=2, send=(what, 0))
    assert saver.stopped_by is None
    assert _names(tmp_path) == ["step-000001", "step-000002"]
    assert module.seen == [0, 1, 2, 3]
    assert not (tmp_path / "requests").exists()


def test_a_request_to_stop_is_a_signal_s_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole, _ = _fit(tmp_path / "whole")
    stopped, saver = _fit(tmp_path / "cut", send=("stop", 4))
    assert (saver.stopped_by, stopped.seen) == (signal.SIGINT, list(range(6)))
    resumed, _ = _fit(tmp_path / "cut")
    assert resumed.seen == list(range(6, 20))
    assert _same(whole, resumed)


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "manifest"])
def test_a_damaged_checkpoint_is_said_and_passed_over(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, _ = _fit(tmp_path)
    folder = tmp_path / "checkpoints"
    state = folder / "step-000010" / "state.ckpt"
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 1
    {
        "truncate": lambda: state.write_bytes(data[:100]),
        "flip": lambda: state.write_bytes(data),
        "remove": state.unlink,
        "manifest": lambda: (folder / "step-000010" / "manifest.json").write_text("{"),
    }[damage]()
    assert checkpoints.newest(folder) == folder / "step-000009"
    assert "step-000010" in capsys.readouterr().err
    resumed, _ = _fit(tmp_path)
    assert resumed.seen == [18, 19]
    assert _same(whole, resumed)


@pytest.mark.parametrize("listed", ["{}", '{"sha256": {}}', '{"sha256": []}', "[]", '{"sha256": {"other": "1"}}'])
def test_a_manifest_that_lists_no_state_is_damage(tmp_path: Path, listed: str) -> None:
    _fit(tmp_path, steps=2)
    (tmp_path / "checkpoints" / "step-000002" / "manifest.json").write_text(listed)
    assert checkpoints.fault(tmp_path / "checkpoints" / "step-000002")


def test_all_damaged_is_an_error_and_none_is_not(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path / "checkpoints") is None
    _fit(tmp_path, steps=1)
    (tmp_path / "checkpoints/step-000001/state.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
        checkpoints.newest(tmp_path / "checkpoints")


def test_an_unfinished_save_is_no_checkpoint(tmp_path: Path) -> None:
    _fit(tmp_path, steps=3)
    (tmp_path / "checkpoints" / ".tmp-abc-step-000009").mkdir()
    found = checkpoints.newest(tmp_path / "checkpoints")
    assert found is not None
    assert found.name == "step-000003"


@pytest.mark.parametrize("where", ["gradient", "loss"])
@pytest.mark.parametrize(("scale", "stops"), [(None, True), (65536.0, False), (0.5, True)])
def test_a_scaler_may_leave_steps_out_while_it_finds_its_scale(
    tmp_path: Path, where: str, scale: float | None, stops: bool
) -> None:
    """16-bit training overflows now and then; once the scale is below 1 there is nothing left to find."""
    module = _Line(TrainingSettings(accelerator="cpu", trackers=[]))
    module.trainer = trainer.build(module.regime, tmp_path, [], [])
    if scale:
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(torch.ones(1))
        module.trainer.precision_plugin.scaler = scaler  # type: ignore[attr-defined]
    module.line(torch.ones(1, 3)).sum().backward()
    module.on_before_backward(torch.tensor(float("nan") if where == "loss" else 1.0))
    if where == "gradient":
        assert module.line.weight.grad is not None
        module.line.weight.grad[0, 0] = float("inf")
    with pytest.raises(NotFiniteError, match=f"the {where} is .* in step 1") if stops else nullcontext():
        module.on_before_optimizer_step(torch.optim.SGD(module.parameters()))
