"""One fit from its newest checkpoint, or from the start: signals, checkpoints, trackers, heartbeat, and what is left
afterwards.

    with fit(module, settings, folder, [average, validator], [samples], way_out=run.resume_command, run=run) as fitted:
        weights = fitted.state()["state_dict"]

All that holds while steps are taken also holds inside of `with`, where the result is written: a signal stops at once
and tells how to go on, and where something is NaN or infinite the last good checkpoint is named.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ..core.errors import CheckpointError, Interrupted
from ..core.events import note, stage
from ..core.processes import rank
from ..core.run import RUN_FOLDER, Run
from . import checkpoints, team, trainer
from .callbacks import StepCallback
from .settings import TrainingSettings
from .tracking import loggers

State = dict[str, Any]
"""What a checkpoint holds: state_dict (trained weights), callbacks (their states by name), global_step, ..."""


@dataclass(frozen=True)
class Fitted:
    """What a fit came to."""

    folder: Path
    step: int
    """Optimizer steps that are done."""
    device: torch.device
    """Where it trained; the module is still there."""

    def state(self) -> State:
        """Read the checkpoint of the last step. Raises CheckpointError where it is missing or damaged."""
        checkpoint = checkpoints.newest(self.folder / "checkpoints")
        if checkpoint is None or checkpoints.step_of(checkpoint) != self.step:
            raise CheckpointError(
                "the checkpoint of the last step is missing or damaged",
                "resume the run to train the last steps again",
            )
        return checkpoints.state_of(checkpoint)


@contextmanager
def fit(
    module: LightningModule,
    settings: TrainingSettings,
    folder: Path,
    callbacks: Sequence[Callback],
    after: Sequence[Callback] = (),
    *,
    way_out: str,
    calmer: str = "see what it trains on, or train with a lower learning rate",
    run: Run | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
    ended: Callable[[State], bool] = lambda state: False,
    deterministic: bool | Literal["warn"] = "warn",
) -> Iterator[Fitted]:
    """Train `module` under `folder` from its newest undamaged checkpoint; yields what that came to.

    `callbacks` see each step before its checkpoint is written, and their states are in it; those in `after` see it
    afterwards. `way_out` is the command that goes on with an interrupted fit, `calmer` what to try where training left
    the finite numbers, `ended` whether a checkpoint says that training is over before its last step. Training keeps the
    progress of `run`, and sends `hyperparameters` to every tracker.

    Raises Interrupted after a signal, with everything saved; NotFiniteError; CheckpointError where every checkpoint is
    damaged; SettingsError where hardware or a tracker is missing.
    """
    ours, way_out = team.current(), way_out + team.again.get()
    ours.way_out = way_out if team.again.get() else f"{way_out}, on every machine"
    found = ours.checkpoint(checkpoints.newest(folder / "checkpoints"))
    step = checkpoints.step_of(found) if found else 0
    if step:
        note(f"resuming {folder} at step {step}")
    with checkpoints.Signals(way_out) as signals:
        saver = checkpoints.Checkpoints(
            folder / "checkpoints", settings.checkpoint_every, settings.keep_checkpoints, signals
        )
        trackers = loggers(settings, folder / "logs", folder.resolve().name, step)
        for tracker in trackers if hyperparameters else ():
            tracker.log_hyperparams(dict(hyperparameters or {}))
        pulse = [Pulse(run)] if run else []
        lightning = trainer.build(settings, folder, [*callbacks, saver, *after, *pulse], trackers, deterministic)
        with checkpoints.last_good_named(lightning, folder / "checkpoints", calmer):
            if step < settings.steps and not (found and ended(checkpoints.state_of(found))):
                with stage("training"), _named_for_children(folder), ours.heeding():
                    lightning.fit(module, ckpt_path=found / checkpoints.STATE if found else None, weights_only=True)
                step = lightning.global_step
            if saver.stopped_by:
                ours.leave()  # as all do
                raise Interrupted(f"stopped at step {step} and saved", way_out, saver.stopped_by)
            device = lightning.strategy.root_device
            if rank() == 0:
                trainer.release(lightning, module)
            yield Fitted(folder, step, device)


@contextmanager
def _named_for_children(folder: Path) -> Iterator[None]:
    """Tell the processes that Lightning starts, for the time inside, which run they belong to; what a launcher has said
    stays for the next training, which Lightning would take away.
    """
    said = {"WORLD_SIZE": value} if (value := os.environ.get("WORLD_SIZE")) else {}
    os.environ[RUN_FOLDER] = str(folder.resolve())
    try:
        yield
    finally:
        os.environ.pop(RUN_FOLDER, None)
        os.environ |= said


class Pulse(StepCallback):
    """Notes in a run how far training is, in the first process; the run writes that with its next heartbeat."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.run.at(trainer.global_step, int(trainer.max_steps))

    def on_optimizer_step(self, trainer: Trainer, module: LightningModule, step: int, outputs: Any) -> None:
        self.run.at(step)
