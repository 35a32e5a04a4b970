"""Which of the processes of one run this is."""

from __future__ import annotations

import os


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
