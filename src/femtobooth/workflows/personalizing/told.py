"""What `femtobooth personalize` says of what trains."""

from __future__ import annotations

from ...core import machine
from ...core.events import table
from ...generator.dreambooth import DreamBooth
from ...generator.memory import Part, parts, told
from ...training.optimizers import KINDS


def memory(module: DreamBooth) -> list[Part]:
    """Count what a training holds of each part."""
    settings = module.settings
    frozen = machine.dtype(settings.train.frozen_precision if "lora" in settings.train.parts else "fp32")
    return parts(module.model, module.teacher, module.optimizer_groups(), settings.training, frozen)


def what_trains(module: DreamBooth) -> None:
    """Tell what trains of a model, at which rate, and what that takes of memory."""
    training, rows = module.settings.training, memory(module)
    found = " x what it finds" if KINDS[training.optimizer].multiplies else ""
    kept = module.anchor.kept_bytes if module.anchor else 0
    beside = [("base's values, in main memory", "", "", "", told(kept), "", "", "", "")] if kept else []
    extra = [name for name in ("average", "teacher") if any(getattr(row, name) for row in rows)]
    kinds = ["weights", "gradients", "optimizer", *extra]
    table(
        f"What trains; passes in {training.precision}, activations come on top",
        ["part", ">trained", ">frozen", ">learning rate", *(f">{kind}" for kind in kinds)],
        [
            (
                row.name,
                f"{row.trained:,}",
                f"{row.frozen:,}",
                f"{row.learning_rate:g}{found}" if row.learning_rate else "-",
                *(told(getattr(row, kind)) for kind in kinds),
            )
            for row in rows
        ]
        + [row[: 4 + len(kinds)] for row in beside]
        + [("total", "", "", "", told(sum(row.total for row in rows) + kept), *[""] * (len(kinds) - 1))],
    )
