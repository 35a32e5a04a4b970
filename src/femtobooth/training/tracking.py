"""Where losses, learning rates and pictures go: TensorBoard, CSV, Weights & Biases."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from ..core.events import emit, picture
from ..core.files import atomic_file
from ..core.processes import rank
from .settings import TrainingSettings


class Measured(Logger):
    """Takes what is measured and nothing else: one of its kind a run."""

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Leave hyperparameters out: the run's config.yaml holds them."""


class CurveFile(Measured):
    """metrics.csv: one row a step, one column a metric. A resumed run drops rows past its step and goes on.

    The file is rewritten whole and atomically, every 20 rows and whenever a checkpoint is saved, so that a
    checkpoint never knows more than its curve.
    """

    def __init__(self, folder: Path, resumed_step: int = 0) -> None:
        super().__init__()
        self.path = folder / "metrics.csv"
        self.rows: dict[int, dict[str, str]] = {}
        if resumed_step and self.path.is_file():
            with self.path.open(newline="", encoding="utf-8") as file:
                read = {
                    int(row.pop("step")): {name: value for name, value in row.items() if value}
                    for row in csv.DictReader(file)
                }
            self.rows = {step: row for step, row in read.items() if step <= resumed_step}

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.rows.setdefault(step or 0, {}).update({name: repr(float(value)) for name, value in metrics.items()})
        if len(self.rows) % 20 == 0:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        columns = ["step", *sorted({name for row in self.rows.values() for name in row})]
        with atomic_file(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows({"step": step, **row} for step, row in sorted(self.rows.items()))

    def finalize(self, status: str) -> None:
        self.save()


class Told(Measured):
    """Tells whoever listens what was measured (core/events.py)."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        emit("metrics", step=step or 0, values={name: float(value) for name, value in metrics.items()})


def loggers(settings: TrainingSettings, folder: Path, name: str, resumed_step: int = 0) -> list[Logger]:
    """Make the trackers that the settings name, writing under `folder`, and the one that tells listeners; a resumed run
    goes on in the same curves. Only the first process has any.
    """
    settings.refuse_at_once()
    if rank():
        return []
    folder.mkdir(parents=True, exist_ok=True)
    made: list[Logger] = []
    if "tensorboard" in settings.trackers:
        purge = {"purge_step": resumed_step + 1} if resumed_step else {}
        made.append(TensorBoardLogger(folder, name="", version="", default_hp_metric=False, **purge))
    if "csv" in settings.trackers:
        made.append(CurveFile(folder, resumed_step))
    if "wandb" in settings.trackers:
        made.append(_wandb(folder, name))
    return [*made, Told()]


def _wandb(folder: Path, name: str) -> Logger:
    from lightning.pytorch.loggers import WandbLogger

    return WandbLogger(name=name, id=name, save_dir=folder, project="femtobooth", resume="allow", log_model=False)


def log_picture(trainer: Trainer, tag: str, pixels: np.ndarray, step: int, path: Path | None = None) -> None:
    """Send one uint8 picture (H, W, 3) to every tracker that shows pictures, and tell where its file is."""
    if path:
        picture(path, tag=tag, step=step)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(tag, pixels, step, dataformats="HWC")
        elif type(logger).__name__ == "WandbLogger":
            logger.log_image(key=tag, images=[pixels], step=step)
