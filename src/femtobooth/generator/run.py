"""A run of `femtobooth personalize`: what its run.json says besides, and what lies in its folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, Field

from ..core.claims import Output
from ..core.errors import ModelError, PhotoError
from ..core.run import AGAIN, Run
from . import locate
from .families import known
from .prompts import ONLY, Called
from .settings import PersonalizeSettings

if TYPE_CHECKING:
    from ..core.machine import Precision
    from .families.family import Family
    from .photos import Photo

SUBJECT = ONLY
"""The name of the one subject of a run that gives it none: `[V]` in a prompt stands for it."""


class Subject(BaseModel):
    """One subject that a run teaches."""

    token: str
    """The identifier that stands for it in prompts."""
    class_noun: str
    photos: list[str]
    """The photos that it is trained on, as paths in the run folder."""
    repeats: list[int] = []
    """How often each of them is seen in one pass; none where that is once."""
    masks: list[str] = []
    """The masks that came with photos, as paths in the run folder."""
    held_out: list[str] = []
    """The photos of it that were kept out of training, as paths in the run folder; of one without a name all are."""

    @property
    def called(self) -> Called:
        """What it is called in prompts."""
        return Called(self.token, self.class_noun)


class PersonalizedRun(Run):
    """A run of personalize."""

    KIND: ClassVar[str] = "personalize"
    OWNS: ClassVar[Sequence[str]] = (  # evaluation/, images/ and exports/ have markers of their own, but older ones
        "config.yaml", "run.json", "preflight.json", "overview.png", "crops.png", "report.html", "photos/[0-9]*.png",
        "photos/[0-9]*.txt", "held_out/[0-9]*.png", "held_out/[0-9]*.txt", "logs/metrics.csv",
        "logs/events.out.tfevents.*", "logs/hparams.yaml", "logs/wandb/*", "samples/step-*.png",
        "validation/validation.json", "validation/curve.svg", "validation/step-*.png",
        "validation/outside/step-*.png",
        "validation/weights/step-*.safetensors", "checkpoints/step-*/state.ckpt",
        "checkpoints/step-*/manifest.json", "model/*.json", "model/README.md",
        "model/overview.png", "model/*.safetensors",
        "model/embeddings/*.safetensors", *(f"model/{part}/*" for part in known.FOLDERS),
        "evaluation/evaluation.json", "evaluation/grid.png", "evaluation/together.png", "evaluation/pictures/*.png",
        "images/*-seed*.png",
        "images/*/grid.png", "images/*/manifest.json", "previews/step-*.png", "watch/watch.json", "watch/curve.svg",
        "watch/step-*.png", "watch/weights/step-*.safetensors",
    )  # fmt: skip

    subjects: dict[str, Subject] = Field(min_length=1)
    """What it teaches, by the name that stands in brackets in prompts: V of one without a name."""
    base: str
    base_hash: str
    size: int
    """Side of the pictures that it trains on, in pixels."""
    held_out: list[str] = []
    """Names of the photos that were kept out of training."""
    trained_steps: int | None = None
    """The last optimizer step that was taken."""
    steps: int | None = None
    """The step whose weights are in model/."""
    selected: dict[str, Any] | None = None
    """Why it is that step."""
    validation: dict[str, Any] | None = None
    """What scored during training, and what that cost."""
    verdict: dict[str, Any] | None = None
    """What `judging.verdict` says of the result; of several subjects that of which least was learned."""
    verdicts: dict[str, dict[str, Any]] | None = None
    """The same of each of several subjects, by name."""
    peak_memory_gib: float | None = None

    @classmethod
    def place(cls, settings: PersonalizeSettings) -> Output:
        """Say where a run with these settings goes."""
        stem = re.sub(r"[^\w-]+", "-", "-".join(settings.subjects)[:60] or settings.photos.class_noun)
        photos = [path for one in settings.each.values() for path in one.photos.paths]
        inputs = [*photos, settings.base, settings.prior.folder, settings.tokenizer]
        return cls.output(settings.runs, settings.name, stem, settings.overwrite, inputs)

    @property
    def subject(self) -> Subject:
        """The only subject. Raises ModelError where there are several."""
        if len(self.subjects) > 1:
            raise ModelError(f"{self.folder}: teaches {', '.join(self.subjects)}", "name one of them")
        return next(iter(self.subjects.values()))

    @property
    def called(self) -> dict[str, Called]:
        """What the subjects are called in prompts, by name."""
        return {name: one.called for name, one in self.subjects.items()}

    @property
    def asking(self) -> str:
        """Give a prompt to try: of several subjects one that shows the first."""
        name, one = next(iter(self.called.items()))
        return f"a {'[V]' if len(self.subjects) == 1 else f'[V:{name}]'} {one.noun} on the moon"

    @classmethod
    def open_finished(cls, place: str, instead: str = AGAIN) -> Self:
        """Open a run whose model/ is there. Raises ModelError; `instead` is the way out for runs of other commands."""
        run = cls.open(Path(place), instead=instead)
        locate.locate(place)
        return run

    def made_with(self) -> PersonalizeSettings:
        """Read the settings that it was made with. Raises SettingsError."""
        return self.read_settings(PersonalizeSettings)

    def photos(self) -> list[Photo]:
        """Read the photos of all subjects as they are trained on. Raises PhotoError where one is missing or damaged."""
        return [photo for photos, _ in self.photos_of_each().values() for photo in photos]

    def photos_of_each(self) -> dict[str, tuple[list[Photo], list[Photo]]]:
        """Read the photos of each subject as they are trained on, and those that were kept out of training.

        Raises PhotoError where one is missing or damaged.
        """
        from .stored_photos import restore_photos

        masks = [Path(mask).name for one in self.subjects.values() for mask in one.masks]
        photos = restore_photos(self.folder / "photos", masks)
        return dealt(self.subjects, photos, self.held_out_photos())

    def held_out_photos(self) -> list[Photo]:
        """Read the photos that were kept out of training. Raises PhotoError where one is missing or damaged."""
        from .stored_photos import restore_photos

        folder = self.folder / "held_out"
        return restore_photos(folder) if self.held_out or folder.is_dir() else []

    def load_base(self, settings: PersonalizeSettings | None = None, held: Precision = "fp32") -> Family:
        """Load the base that it was started from; `settings` say where that lies, if not as they were then. What can
        train is `held` in this number format.

        Raises ModelError where another one is in its place.
        """
        from .load import load

        settings = settings or self.made_with()
        model = load(settings.base, settings.tokenizer, held=held)
        if model.hash != self.base_hash:
            raise ModelError(
                f"{settings.base}: not the base that {self.folder} was started from",
                "put the same base back, or start a new run",
            )
        return model


def dealt(
    subjects: Mapping[str, Subject], photos: Sequence[Photo], held_out: Sequence[Photo]
) -> dict[str, tuple[list[Photo], list[Photo]]]:
    """Deal restored photos, and those kept out of training, to the subjects whose they are.

    Raises PhotoError where one is missing. Runs of older versions list none for their only subject: all are its own.
    """
    found = {}
    alone = len(subjects) == 1
    for name, one in subjects.items():
        ours, kept = (
            list(some) if alone else [_named(some, path) for path in paths]
            for some, paths in ((photos, one.photos), (held_out, one.held_out))
        )
        often = one.repeats or [1] * len(ours)
        again = [replace(photo, repeats=count) for photo, count in zip(ours, often, strict=True)]
        found[name] = (again, kept)
    return found


def _named(photos: Sequence[Photo], path: str) -> Photo:
    name = Path(path).name
    if found := next((photo for photo in photos if photo.path.name == name), None):
        return found
    raise PhotoError(f"{path}: missing or damaged", "put it back, or start a new run")
