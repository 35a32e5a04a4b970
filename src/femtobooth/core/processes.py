"""Which of the processes of one run this is, and what was typed to start it."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path


def typed() -> str:
    """Give the command line of this process as a shell reads it, its program by name only."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def rank() -> int:
    """Tell 0 in the first process of a run, else its rank as torchrun, Lightning or SLURM tell it.

    SLURM comes last: what Lightning starts inside an allocation inherits SLURM_PROCID=0 in every process. Started
    by hand on each machine (NODE_RANK), all processes of the machines after the first count as later ones.
    """
    given = {
        name: int(value)
        for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
        if (value := os.environ.get(name, "")).isdigit()
    }
    if "RANK" in given:
        return given["RANK"]
    if "LOCAL_RANK" in given or "NODE_RANK" in given:
        return given.get("LOCAL_RANK", 0) + given.get("NODE_RANK", 0)
    return given.get("SLURM_PROCID", 0)


def world() -> int:
    """Count the processes of a run that a launcher started all of: torchrun, or srun; else 1."""
    names = ("RANK", "WORLD_SIZE") if "RANK" in os.environ else ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
    own, several = (os.environ.get(name, "") for name in names)
    started_by_lightning = "RANK" not in os.environ and not {"LOCAL_RANK", "NODE_RANK"}.isdisjoint(os.environ)
    return int(several) if own.isdigit() and several.isdigit() and not started_by_lightning else 1


def first_here() -> bool:
    """Tell whether this is the first process of a run on its machine."""
    return next((one for name in ("LOCAL_RANK", "SLURM_LOCALID") if (one := os.environ.get(name))), "0") == "0"
