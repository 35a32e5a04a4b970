"""What every report of a recognizer begins with: what was evaluated, on what, and what was left out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...core.machine import environment
from ...core.names import stored
from ...pictures.images import Skipped
from ...recognizer.model.engine import Engine
from ...recognizer.settings import EvaluateClassifierSettings


def facts(
    settings: EvaluateClassifierSettings, engine: Engine, remarks: list[str], skipped: Iterable[Skipped]
) -> dict[str, Any]:
    """Tell model, data, versions, remarks and files that were left out, as report.json has them."""
    return {
        "model": settings.model,
        "data": Path(settings.data).resolve().name,
        "engine": engine.name,
        "hash": engine.hash,
        "preprocess": engine.preprocess.to_dict(),
        "seed": settings.seed,
        "environment": environment(),
        "remarks": remarks,
        "skipped": [{"path": stored(one.path), "reason": one.reason} for one in skipped],
    }
