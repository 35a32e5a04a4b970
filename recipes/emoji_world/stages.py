"""What the training stages share: training on the product's own trainer from the newest checkpoint, and reading the
result.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule

from femtobooth.core.errors import CheckpointError
from femtobooth.core.events import note
from femtobooth.training import checkpoints, trainer
from femtobooth.training.settings import TrainingSettings
from femtobooth.training.tracking import loggers


def fit(module: LightningModule, settings: TrainingSettings, where: Path, callbacks: Sequence[Callback]) -> int | None:
    """Train under `where` from its newest checkpoint, or from the start; returns the signal that stopped it, or
    None.
    """
    found = checkpoints.newest(where / "checkpoints")
    step = checkpoints.step_of(found) if found else 0
    if found:
        note(f"going on from step {step}")
    with checkpoints.Signals("the same command resumes") as signals:
        saver = checkpoints.Checkpoints(
            where / "checkpoints", settings.checkpoint_every, settings.keep_checkpoints, signals
        )
        lightning = trainer.build(
            settings, where, [*callbacks, saver], loggers(settings, where / "logs", where.name, step)
        )
        torch.use_deterministic_algorithms(
            False
        )  # a sixth faster on a CPU, where the same steps still give the same bits
        lightning.fit(module, ckpt_path=found / checkpoints.STATE if found else None, weights_only=True)
    return saver.stopped_by


def averaged(where: Path) -> tuple[dict[str, torch.Tensor], int]:
    """The newest checkpoint under `where`, moving averages in place of what trains, and its step.

    Raises CheckpointError.
    """
    found = checkpoints.newest(where / "checkpoints")
    if found is None:
        raise CheckpointError(f"{where}: no checkpoint there", "train this stage first (README.md)")
    state = torch.load(found / checkpoints.STATE, map_location="cpu", weights_only=True)
    return state["state_dict"] | state["callbacks"][trainer.MovingAverage.__name__]["average"], checkpoints.step_of(
        found
    )


def commit() -> str:
    """The repository's commit, marked where tracked files differ from it."""
    told = []
    for command in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        done = subprocess.run(["git", *command], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)  # noqa: S603, S607
        told.append("unknown" if done.returncode else done.stdout.strip())
    return told[0] + (" with changes" if told[1] else "")
