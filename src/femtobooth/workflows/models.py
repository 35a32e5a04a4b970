"""femtobooth models: the recognizers that are available here and now, and how to get the others."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..core.events import note, table
from ..recognizer.model import weights
from .settings import ModelsSettings


def run(settings: ModelsSettings) -> dict[str, Any]:
    """List the built-in, trained, cached and default recognizers; returns them under `models`."""
    models = weights.available(Path(settings.runs))
    rows = [
        (
            model.name,
            model.source,
            f"{model.parameters / 1e6:.2f} M" if model.parameters else "-",
            f"{model.size[0]}x{model.size[1]}" if model.parameters else "-",
            model.licence.partition(";")[0] or "not stated",
            "ready" if model.ready else "not here",
        )
        for model in models
    ]
    columns = ("=model", "from", ">parameters", ">pixels", "licence", "status")
    table("Recognizers (give the name of one as a model)", columns, rows, result=True)
    for model in models:
        if not model.ready:
            note(f"{model.name}: {model.how}")
    return {"models": [asdict(model) for model in models]}
