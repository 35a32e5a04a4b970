"""What the training stages share: training on the product's own trainer from the newest checkpoint, and reading the
result.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule

from femtobooth.core.errors import CheckpointError, Interrupted
from femtobooth.core.events import note
from femtobooth.training import averages, checkpoints, session
from femtobooth.training.settings import TrainingSettings


def fit(module: LightningModule, settings: TrainingSettings, where: Path, callbacks: Sequence[Callback]) -> None:
    """Train under `where` from its newest checkpoint, or from the start; exits once a signal has stopped and saved it.

    Without PyTorch's deterministic algorithms, which take a sixth longer on a CPU, where the same steps give the same
    bits all the same.
    """
    try:
        with session.fit(
            module, settings, where, callbacks, way_out="the same command goes on from here", deterministic=False
        ):
            pass
    except Interrupted as stop:
        note("\n".join(stop.lines))
        raise SystemExit(stop.exit_code) from None


def averaged(where: Path) -> tuple[dict[str, torch.Tensor], int]:
    """The newest checkpoint under `where`, moving averages in place of what trains, and its step.

    Raises CheckpointError.
    """
    found = checkpoints.newest(where / "checkpoints")
    if found is None:
        raise CheckpointError(f"{where}: no checkpoint there", "train this stage first (README.md)")
    state = torch.load(found / checkpoints.STATE, map_location="cpu", weights_only=True)
    return state["state_dict"] | state["callbacks"][averages.MovingAverage.__name__]["average"], checkpoints.step_of(
        found
    )


def commit() -> str:
    """The repository's commit, marked where tracked files differ from it."""
    told = []
    for command in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        done = subprocess.run(["git", *command], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)  # noqa: S603, S607
        told.append("unknown" if done.returncode else done.stdout.strip())
    return told[0] + (" with changes" if told[1] else "")
