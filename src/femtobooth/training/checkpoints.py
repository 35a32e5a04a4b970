"""Checkpoints that are whole or not there: written aside, hashed, flushed, renamed; the newest k are kept.

checkpoints/step-000300/state.ckpt      everything Lightning needs to go on: weights that train, optimizer,
                                        scheduler, scaler, loop counters, moving average
checkpoints/step-000300/manifest.json   step, and the SHA-256 of every file
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer

from ..core import older_runs, requests
from ..core.errors import CheckpointError, Interrupted, NotFiniteError
from ..core.events import note, warn
from ..core.files import TEMPORARY, atomic_folder, sha256_of, write_json, writing
from .callbacks import StepCallback

MANIFEST = "manifest.json"
STATE = "state.ckpt"
SAVE: int | None = getattr(signal, "SIGUSR1", None)  # which Windows lacks
SIGNALS = tuple(number for number in (signal.SIGINT, signal.SIGTERM, SAVE) if number is not None)


def save(trainer: Trainer, folder: Path, keep: int) -> Path:
    """Write the checkpoint of the trainer's current step (called by every process); returns its folder."""
    with writing(folder):
        return _save(trainer, folder, keep)


def _save(trainer: Trainer, folder: Path, keep: int) -> Path:
    step = trainer.global_step
    target = folder / f"step-{step:06d}"
    staging = trainer.strategy.broadcast(folder / f"{TEMPORARY}writing-{target.name}")
    if trainer.is_global_zero:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    for logger in trainer.loggers:
        logger.save()  # a checkpoint never knows more than its curve
    trainer.strategy.barrier()
    try:
        trainer.save_checkpoint(staging / STATE)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)  # half a state must not keep the disk full
        raise
    trainer.strategy.barrier()
    if trainer.is_global_zero:
        with atomic_folder(target, overwrite=True) as temporary:
            shutil.move(staging / STATE, temporary / STATE)
            hashes = {
                path.relative_to(temporary).as_posix(): sha256_of(path)
                for path in sorted(temporary.rglob("*"))
                if path.is_file()
            }
            write_json(temporary / MANIFEST, {"step": step, "sha256": hashes})
        shutil.rmtree(staging)
        for old in _all(folder)[:-keep]:
            shutil.rmtree(old)
    return target


def step_of(checkpoint: Path) -> int:
    """Read the optimizer step of a checkpoint folder."""
    return int(checkpoint.name.removeprefix("step-"))


def state_of(checkpoint: Path) -> dict[str, Any]:
    """Read what a checkpoint folder holds, its tensors mapped from the file."""
    state = torch.load(checkpoint / STATE, map_location="cpu", weights_only=True, mmap=True)
    return older_runs.checkpoint(dict(state))


def _all(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("step-*") if path.name[5:].isdigit()), key=step_of)


def fault(checkpoint: Path) -> str | None:
    """Say what is wrong with a checkpoint folder, or None: every file it lists must be there, bit for bit."""
    try:
        hashes = dict(json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return "its manifest is missing or unreadable"
    if STATE not in hashes:
        return "its manifest lists no state"
    for name, expected in hashes.items():
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        if sha256_of(checkpoint / name) != expected:
            return f"{name} is damaged"
    return None


def newest(folder: Path) -> Path | None:
    """Find the newest undamaged checkpoint under `folder`; a damaged one is named in a warning and passed over.

    None where there is none at all. Raises CheckpointError where all are damaged.
    """
    found = _all(folder)[::-1]
    for checkpoint in found:
        problem = fault(checkpoint)
        if problem is None:
            return checkpoint
        warn(f"{checkpoint}: {problem}; going back to the checkpoint before it")
    if found:
        raise CheckpointError(
            f"{folder}: every checkpoint is damaged",
            "start again with `overwrite=true`, or restore the folder from a backup",
        )
    return None


class Signals:
    """What SIGINT, SIGTERM and SIGUSR1 do, from the start of a run to its end.

    While steps are taken (`stepping`) the first two ask to save and stop after the current one, and a second SIGINT
    stops at once; before and after they stop at once, as everything finished by then is on disk. SIGUSR1 asks to save
    and go on; Windows has no such signal. `way_out` tells the user how to resume.
    """

    def __init__(self, way_out: str) -> None:
        self.way_out = way_out
        self.stepping = False
        self.stop: int | None = None
        self.save = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        self._previous = {signum: signal.getsignal(signum) for signum in SIGNALS}
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ValueError):
            for signum, handler in self._previous.items():
                signal.signal(signum, handler)

    def install(self) -> None:
        """Take the three signals; again after Lightning has put its own handlers there."""
        with suppress(ValueError):  # only a program's main thread has signals
            for signum in SIGNALS:
                signal.signal(signum, self._handle)

    def _handle(self, signum: int, _: FrameType | None) -> None:
        name = signal.Signals(signum).name
        if signum == SAVE:
            self.save = True
        elif not self.stepping or self.stop == signal.SIGINT == signum:
            raise Interrupted(f"stopped at once by {name}; what was finished is kept", self.way_out, signum)
        else:
            self.stop = signum
            note(f"{name}: saving after this step, then stopping")


class Checkpoints(StepCallback):
    """Saves every `every` optimizer steps, at the end, where a callback before it ends training, and when a signal or
    a request in the run's folder (`core.requests`) asks for it.

    After a signal that stops, `stopped_by` is its number, also where it came in the last step or after it; after a
    request it is SIGINT's.
    """

    def __init__(self, folder: Path, every: int, keep: int, signals: Signals) -> None:
        self.folder, self.every, self.keep, self.signals = folder, every, keep, signals
        self.stopped_by: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.signals.install()
        self.signals.stepping = True

    def on_optimizer_step(self, trainer: Trainer, module: Any, step: int, outputs: Any) -> None:
        # Every process must agree, wherever the signal arrived; the largest signal number wins.
        asked = 1.0 * (self.signals.stop or 0), 1.0 * self.signals.save
        if trainer.is_global_zero:
            ended = signal.SIGINT if requests.asked(self.folder.parent, "stop") else 0
            asked = max(asked[0], 1.0 * ended), max(asked[1], 1.0 * requests.asked(self.folder.parent, "save"))
        if trainer.world_size > 1:
            agreed = module.all_gather(torch.tensor(asked)).reshape(-1, 2).max(dim=0).values
            asked = float(agreed[0]), float(agreed[1])
        stop, save_now = int(asked[0]), bool(asked[1])
        due = self.every and step % self.every == 0
        if due or stop or save_now or trainer.should_stop or step >= trainer.max_steps:
            module.refuse_not_finite(step)
            save(trainer, self.folder, self.keep)
            self.signals.save = False
            if save_now and trainer.is_global_zero:
                requests.forget(self.folder.parent, "save")
        if stop:
            self.stopped_by = stop
            trainer.should_stop = True
            if trainer.is_global_zero:
                requests.forget(self.folder.parent, "stop")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.signals.stepping = False
        self.stopped_by = self.stopped_by or self.signals.stop


@contextmanager
def last_good_named(trainer: Trainer, folder: Path, way_out: str) -> Iterator[None]:
    """Add to a NotFiniteError from inside which checkpoint to trust, and a way out.

    The weights of the last step, or of the step before the one that the error names, led to it.
    """
    try:
        yield
    except NotFiniteError as error:
        saved = _all(folder)
        taken = trainer.global_step if error.step is None else error.step - 1
        last = taken or max(map(step_of, saved), default=0)
        good = [one for one in saved if step_of(one) < last and fault(one) is None]
        kept = f"the last good checkpoint is {good[-1]}" if good else "no checkpoint was good before"
        raise NotFiniteError(error.problem, f"{kept}; {way_out}") from None


class StreamedFile(TorchCheckpointIO):
    """Checkpoint files written straight to disk; Lightning's own writer holds a second copy in memory."""

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return older_runs.checkpoint(super().load_checkpoint(*args, **kwargs))

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        with open(path, "wb") as file:  # which says why it cannot be written, as torch's own file does not
            torch.save(checkpoint, file)
