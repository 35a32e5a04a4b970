"""femtobooth models: the generators and recognizers that are available here and now, and how to get others."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..core.events import note, table
from ..generator.available import Generator
from ..generator.available import available as generators_in
from ..recognizer.model import weights
from .personalizing.needs import Needs, needed
from .settings import ModelsSettings

TRAINED = {"lora": "LoRA", "attention": "attention", "everything": "all"}


def run(settings: ModelsSettings) -> dict[str, Any]:
    """List generators under `generators`, and the built-in, trained, cached and default recognizers under `models`.

    Raises ModelError for a base that is asked for and is not there.
    """
    generators = generators_in(Path(settings.runs), settings.bases)
    needs = [needed(one) for one in generators]
    _tell(generators, needs)
    if settings.bases:
        return {"generators": [_plain(*one) for one in zip(generators, needs, strict=True)]}
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
    return {
        "generators": [_plain(*one) for one in zip(generators, needs, strict=True)],
        "models": [asdict(model) for model in models],
    }


def _tell(generators: list[Generator], needs: list[Needs]) -> None:
    """Tell the generators: what each is, how large, and in how much of an accelerator's memory what of it trains."""
    rows = [
        (
            one.name,
            f"{one.family}, {one.size} px" if one.size else one.family,
            one.source,
            f"{_count(one.parameters)}, {one.bytes / 1e9:.2g} GB" if one.bytes else "-",
            " / ".join(f"{need[name]['accelerator'] / 2**30:.2g}" if name in need else "-" for name in TRAINED)
            if need
            else "-",
            (one.licence or "not stated") + (", gated" if one.gated else ""),
        )
        for one, need in zip(generators, needs, strict=True)
        if one.ready
    ]
    trained = " / ".join(TRAINED.values())
    title = f"Generators (give the name of one as the base); GiB of GPU memory that training {trained} takes"
    table(title, ("=model", "family", "from", "size", ">GiB", "licence"), rows, result=True)
    for one in generators:
        if not one.ready:
            note(one.how + (f"\n     licence: {one.licence}" if one.licence else ""))


def _plain(one: Generator, needs: Needs) -> dict[str, Any]:
    """Give it as JSON values."""
    known = {name: value for name, value in asdict(one).items() if name not in ("key", "path")}
    return known | {"training_bytes": needs}


def _count(numbers: int) -> str:
    return f"{numbers / 1e9:.2f} B" if numbers >= 1e9 else f"{numbers / 1e6:.1f} M"
