"""Checkpoints that are whole or not there: written aside, hashed, flushed, renamed; the newest k are kept.

checkpoints/step-000300/state.ckpt      everything Lightning needs to go on: weights that train, optimizer,
                                        scheduler, scaler, loop counters, moving average
checkpoints/step-000300/manifest.json   step, and the SHA-256 of every file
"""

from __future__ import annotations

import json
import shutil
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ..core.console import note, warn
from ..core.errors import CheckpointError
from ..core.runs import TEMPORARY, atomic_folder, sha256_of, write_json

MANIFEST = "manifest.json"
STATE = "state.ckpt"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def save(trainer: Trainer, folder: Path, keep: int) -> Path:
    """Write the checkpoint of the trainer's current step (called by every process); returns its folder."""
    step = trainer.global_step
    target = folder / f"step-{step:06d}"
    staging = trainer.strategy.broadcast(folder / f"{TEMPORARY}writing-{target.name}")
    if trainer.is_global_zero:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    for logger in trainer.loggers:
        logger.save()  # a checkpoint never knows more than its curve
    trainer.strategy.barrier()
    trainer.save_checkpoint(staging / STATE)
    trainer.strategy.barrier()
    if trainer.is_global_zero:
        with atomic_folder(target, overwrite=True) as temporary:
            shutil.move(staging / STATE, temporary / STATE)
            hashes = {path.relative_to(temporary).as_posix(): sha256_of(path) for path in sorted(temporary.rglob("*")) if path.is_file()}
            write_json(temporary / MANIFEST, {"step": step, "sha256": hashes})
        shutil.rmtree(staging)
        for old in sorted(folder.glob("step-*"))[:-keep]:
            shutil.rmtree(old)
    return target


def fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None: every file it lists must be there, bit for bit."""
    try:
        hashes = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return "its manifest is missing or unreadable"
    for name, expected in hashes.items():
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        if sha256_of(checkpoint / name) != expected:
            return f"{name} is damaged"
    return None


def newest(folder: Path) -> Path | None:
    """The newest undamaged checkpoint under `folder`; a damaged one is named in a warning and passed over.

    None where there is none at all. Raises CheckpointError where all are damaged.
    """
    found = sorted(folder.glob("step-*"), reverse=True)
    for checkpoint in found:
        problem = fault(checkpoint)
        if problem is None:
            return checkpoint
        warn(f"{checkpoint}: {problem}; going back to the checkpoint before it")
    if found:
        raise CheckpointError(f"{folder}: every checkpoint is damaged", "start again with --overwrite, or restore the folder from a backup")
    return None


class Checkpoints(Callback):
    """Saves every `every` optimizer steps, at the end, and on a signal.

    SIGUSR1 saves and goes on; SIGINT and SIGTERM save and stop after the current optimizer step (`stopped_by` is
    then the signal); a second SIGINT stops at once.
    """

    def __init__(self, folder: Path, every: int, keep: int) -> None:
        self.folder, self.every, self.keep = folder, every, keep
        self.stopped_by: int | None = None
        self._save_asked = False
        self._stop_asked: int | None = None
        self._step = 0
        self._previous: dict[int, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for signum in SIGNALS:  # before Lightning puts its own handlers there
            self._previous[signum] = signal.getsignal(signum)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                signal.signal(signum, self._on_signal)

    def _on_signal(self, signum: int, _: FrameType | None) -> None:
        if signum == signal.SIGUSR1:
            self._save_asked = True
            return
        if self._stop_asked == signal.SIGINT == signum:
            raise KeyboardInterrupt
        self._stop_asked = signum
        note(f"{signal.Signals(signum).name}: saving after this step, then stopping")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self._step:  # in the middle of an accumulation
            return
        self._step = trainer.global_step
        # Every process must agree, wherever the signal arrived; the largest signal number wins.
        asked = 1.0 * (self._stop_asked or 0), 1.0 * self._save_asked
        if trainer.world_size > 1:
            agreed = pl_module.all_gather(torch.tensor(asked)).reshape(-1, 2).max(dim=0).values
            asked = float(agreed[0]), float(agreed[1])
        stop, save_now = int(asked[0]), bool(asked[1])
        due = self.every and self._step % self.every == 0
        if due or stop or save_now or self._step >= trainer.max_steps:
            save(trainer, self.folder, self.keep)
            self._save_asked = False
        if stop and self._step < trainer.max_steps:
            self.stopped_by = stop
            trainer.should_stop = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if threading.current_thread() is threading.main_thread():
            for signum, handler in self._previous.items():
                signal.signal(signum, handler)
