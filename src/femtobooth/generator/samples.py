"""Sample the same prompts and seeds every N steps: what the model has learned so far, for people."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image

from ..core import requests
from ..core.events import progress_bar
from ..core.files import atomic_file, atomic_folder
from ..pictures.sheets import sheet
from ..training.averages import Average
from ..training.callbacks import StepCallback
from ..training.tracking import log_picture
from .families.family import Family
from .sampling import sample
from .settings import SampleSettings


def generate_samples(
    model: Family, prompts: list[str], settings: SampleSettings, size: int, label: str = "samples"
) -> np.ndarray:
    """Generate (prompts, images, size, size, 3) uint8 pictures; a function of the weights and the settings alone."""
    texts = [prompt for prompt in prompts for _ in range(settings.images)]
    seeds = [settings.seed + column for _ in prompts for column in range(settings.images)]
    with progress_bar(label, len(texts), parts=settings.sampling.steps) as bar:
        pictures = sample(model, texts, seeds, settings.sampling, (size, size), batch_size=settings.batch_size, bar=bar)
    return pictures.reshape(len(prompts), settings.images, *pictures.shape[1:])


def save_samples(folder: Path, name: str, prompts: list[str], pictures: np.ndarray) -> np.ndarray:
    """Write `folder/name/00-0.png` ... and `folder/name.png`, a labelled sheet, which is returned (H, W, 3)."""
    with atomic_folder(folder / name, overwrite=True) as temporary:
        for row, shots in enumerate(pictures):
            for column, shot in enumerate(shots):
                Image.fromarray(shot).save(temporary / f"{row:02d}-{column}.png")
    labelled = sheet([list(shots) for shots in pictures], prompts, [])
    with atomic_file(folder / f"{name}.png") as temporary:
        labelled.save(temporary, format="PNG")
    return np.asarray(labelled.convert("RGB"))


@contextmanager
def as_it_is(module: Any, average: Average | None) -> Iterator[Family]:
    """Make the model in training fit to be sampled from, for the time inside: VAE and text encoders are beside it, and
    the average in it if there is one.
    """
    model: Family = module.model
    networks = [getattr(model, name) for name in model.NETWORKS]
    away = [network for network in networks if network.device != model.device]
    model.to(model.device)
    with average.applied(module) if average is not None else nullcontext():
        yield model
    if model.device.type == "cuda":
        for network in away:
            network.to("cpu")
        torch.cuda.empty_cache()


class Samples(StepCallback):
    """Samples before the first step (`step-000000`), every `settings.every` steps, and when a request in the run's
    folder asks for it, in the first process only.
    """

    def __init__(
        self, folder: Path, prompts: list[str], settings: SampleSettings, size: int, average: Average | None
    ) -> None:
        self.folder, self.prompts, self.settings, self.size, self.average = folder, prompts, settings, size, average

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if trainer.global_step == 0:
            self._sample(trainer, pl_module, 0)

    def on_optimizer_step(self, trainer: Trainer, module: LightningModule, step: int, outputs: Any) -> None:
        due = self.settings.every and step % self.settings.every == 0
        asked = trainer.is_global_zero and requests.asked(self.folder.parent, "sample")
        if (due or asked) and step < trainer.max_steps:
            self._sample(trainer, module, step)
        if asked:
            requests.forget(self.folder.parent, "sample")

    def _sample(self, trainer: Trainer, module: Any, step: int) -> None:
        if not trainer.is_global_zero:
            return
        with as_it_is(module, self.average if step else None) as model:
            pictures = generate_samples(model, self.prompts, self.settings, self.size)
        name = f"step-{step:06d}"
        labelled = save_samples(self.folder, name, self.prompts, pictures)
        log_picture(trainer, "samples", labelled, step, self.folder / f"{name}.png")
