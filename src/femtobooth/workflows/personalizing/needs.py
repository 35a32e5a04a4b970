"""What of a base can be trained in how much memory, told at once: planned once for each architecture, and kept.

Published architectures come planned (assets/plans.json, made by benchmarks/plans.py); what is kept of others lies in
the cache, by the shapes of their tensors and femtobooth's version.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import __version__
from ...core import cache as kept
from ...core import config
from ...core.errors import FemtoboothError
from ...core.events import stage
from ...generator.available import Generator
from ...generator.settings import PersonalizeSettings

if TYPE_CHECKING:
    from ...generator.families.family import Family

Needs = Mapping[str, Mapping[str, int]]
"""Bytes by what trains and where: on an accelerator, or in the process where a CPU trains, without its libraries."""
LEAST: dict[str, Any] = {
    "photos": {"paths": ["-"], "class_noun": "thing"},
    "prior": {"weight": 0},
    "samples": {"batch_size": 1},
    "training": {"batch_size": 1, "gradient_checkpointing": True},
}
TRAINED: dict[str, dict[str, Any]] = {
    "lora": {
        "train": {"parts": ["lora"], "frozen_precision": "bf16"},
        "lora": {"rank": 16, "text_encoder": False},
        "training": {"precision": "bf16"},
    },
    "attention": {"train": {"parts": ["attention"]}},
    "everything": {"train": {"parts": ["unet", "text_encoder"]}},
}
"""What trains, as settings beside `LEAST`: one photo a step, gradient checkpointing, the class kept by no images."""


def needed(one: Generator) -> Needs:
    """Tell what a base needs; {} where that cannot be known from its files."""
    if not one.key or one.path is None:
        return {}
    if one.key in shipped():
        return {name: dict(each) for name, each in shipped()[one.key].items() if name in TRAINED}
    place = kept.cache_folder() / "plans" / f"{one.key}-{__version__}.json"
    if (data := kept.read(place)) is not None:
        return dict(json.loads(data))
    with stage(f"planning {one.name}, once"):
        found = _planned(one)
    kept.write(place, json.dumps(found).encode())
    return found


@cache
def shipped() -> dict[str, dict[str, Any]]:
    """Read what is known of published architectures: by key its name and its needs."""
    text = (resources.files("femtobooth") / "assets" / "plans.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def _planned(one: Generator) -> Needs:
    from ...generator.load import load

    try:
        base = load(str(one.path), weights=False)
    except FemtoboothError:  # a tokenizer, say, which lies elsewhere
        return {}
    return plans(base, Path(str(one.path)))


def plans(base: Family, files: Path) -> Needs:
    """Plan what a base without weights needs, at its own size."""
    from .planning import Planner

    planner = Planner(base, base.size, files, libraries=0)
    found: dict[str, dict[str, int]] = {}
    for name, settings in TRAINED.items():
        if name == "everything" and len(base.can_train()) == 1:  # whose text encoder never trains
            settings = {"train": {"parts": ["unet"]}}  # noqa: PLW2901
        try:
            plan = planner.plan(config.resolve(PersonalizeSettings, LEAST, settings))
        except FemtoboothError:  # which this family cannot
            continue
        found[name] = {where: int(getattr(plan.peak(where), where)) for where in ("accelerator", "process")}
    return found
