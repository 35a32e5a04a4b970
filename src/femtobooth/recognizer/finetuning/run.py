"""A run of `femtobooth finetune`: what its run.json says besides, and what lies in its folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ...core.claims import Output
from ...core.run import Run
from ..model.labels import Labels
from ..settings import FinetuneSettings

if TYPE_CHECKING:
    from .probe import Head
    from .survey import Survey


class FinetunedRun(Run):
    """A run of finetune."""

    KIND: ClassVar[str] = "finetune"
    OWNS: ClassVar[Sequence[str]] = (  # exports/ have markers of their own
        "config.yaml", "run.json", "split.csv", "report.json", "report.html", "probe.safetensors", "unlabelled.csv",
        "teacher_probe.safetensors",
        "logs/metrics.csv", "logs/events.out.tfevents.*", "logs/hparams.yaml", "logs/wandb/*",
        "checkpoints/step-*/state.ckpt", "checkpoints/step-*/manifest.json", "model/*.json",
        "model/*.safetensors", "model/README.md",
    )  # fmt: skip

    model: str
    """The recognizer that it started from."""
    model_hash: str
    classes: list[str]
    multi_label: dict[str, Any] | None = None
    """What `Labels.to_dict` gives, where a picture may have several."""
    behind_generated: list[str] = []
    """SHA-256 of the photos from which the generators of its generated pictures had learned."""
    teacher: dict[str, Any] | None = None
    """Who taught it, where somebody did: model, architecture, parameters, hash, what teaches, unlabelled pictures."""
    costs: dict[str, dict[str, Any]] = {}
    """Seconds, and steps, that the probe and fine-tuning took."""
    result: Literal["probe", "finetuned"] | None = None
    """Which of the two is in model/."""
    steps: int | None = None
    """The step whose weights are in model/; None for the probe."""
    verdict: str | None = None
    """What comparing the two came to."""
    temperature: float | None = None

    @classmethod
    def place(cls, settings: FinetuneSettings) -> Output:
        """Say where a run with these settings goes."""
        stem = re.sub(r"[^\w-]+", "-", Path(settings.data).stem)
        taught = [one for one in (settings.distill.teacher, *settings.distill.unlabelled) if one]
        inputs = [settings.data, *settings.synthesized, settings.model, *taught]
        return cls.output(settings.runs, settings.name, stem, settings.overwrite, inputs)

    def made_with(self) -> FinetuneSettings:
        """Read the settings that it was made with. Raises SettingsError."""
        return self.read_settings(FinetuneSettings)

    def survey(self) -> Survey:
        """Read how its pictures were split. Raises PhotoError where split.csv is missing or damaged."""
        from .splitting import read_split
        from .survey import Survey

        path = self.folder / "split.csv"
        several = Labels.from_dict(self.multi_label) if self.multi_label else None
        return Survey.restored(read_split(path), self.classes, path, several)

    def head(self) -> Head:
        """Read the linear probe's layer."""
        from .probe import Head

        return Head.load(self.folder / "probe.safetensors")
