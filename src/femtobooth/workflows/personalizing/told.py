"""What `femtobooth personalize` says of what trains."""

from __future__ import annotations

import torch

from ...core import machine
from ...core.events import table
from ...generator.dreambooth import DreamBooth
from ...generator.memory import estimate
from ...training.optimizers import KINDS


def parts(module: DreamBooth) -> None:
    """Tell what trains of a model, at which rate, and what that takes of memory."""
    training, rates = module.settings.training, {group["name"]: group["lr"] for group in module.optimizer_groups()}
    networks = {**module.model.trainable, "vae": module.model.vae}
    modules: dict[str, tuple[torch.nn.Module, float | None]] = {
        name: (part, rates.get(name)) for name, part in networks.items()
    }
    found = " x what it finds" if KINDS[training.optimizer].multiplies else ""
    copied = set() if module.teacher is None or module.teacher is module.model else set(rates)
    held = machine.dtype(module.settings.train.frozen_precision).itemsize
    frozen = dict.fromkeys(module.model.trainable, held)
    rows = estimate(modules, training.optimizer, bool(training.ema), copied, frozen)

    def size(count: float) -> str:
        return f"{count / 2**30:.2f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:.1f} MiB"

    total = sum(row["weights"] + row["gradients"] + row["optimizer"] for row in rows)
    kept = module.anchor.kept_bytes if module.anchor else 0
    total += kept
    beside = [("base's values, in main memory", "", "", "", size(kept), "", "")] if kept else []
    table(
        f"What trains; passes in {training.precision}, activations come on top",
        ["part", ">trained", ">frozen", ">learning rate", ">weights", ">gradients", ">optimizer"],
        [
            (
                row["part"],
                f"{row['trained']:,}",
                f"{row['frozen']:,}",
                f"{row['learning_rate']:g}{found}" if row["learning_rate"] else "-",
                *(size(row[kind]) for kind in ("weights", "gradients", "optimizer")),
            )
            for row in rows
        ]
        + beside
        + [("total", "", "", "", size(total), "", "")],
    )
