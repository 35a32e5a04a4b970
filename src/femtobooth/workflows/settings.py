"""Settings of the commands in which generator and recognizer meet. The text under each field is its help."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from ..core.config import Seed, Settings, SettingsOf, Words
from ..generator.settings import PersonalizeSettings, SamplingSettings, of_card


class EvaluateSettings(Settings):
    run: str = Field(min_length=1)
    """Run folder that `femtobooth personalize` made."""
    encoders: Words = []
    """What scores: dino, clip, bundled, tf_efficientnet_lite0, a path or timm's name. If not given, those of dino and
    clip \
that are in the hub's cache, else those that need no hub."""
    photos: list[str] = []
    """Photos of the subject to score against; if not given, those that the run held out of training, else those it was
    trained on.
    """
    prompts: list[str] = [
        "a [V] {class}",
        "a [V] {class} on the beach",
        "a [V] {class} in the snow",
        "a [V] {class} on the moon",
    ]
    """What to draw and score; [V] is the subject, {class} the class noun."""
    count: int = Field(4, ge=1)
    """Pictures for each prompt."""
    class_prompt: str = "a {class}"
    """Prompt of the pictures that tell how far the class has drifted."""
    class_count: int = Field(16, ge=2)
    """Pictures of the class, and of each other class, by the tuned model and by the base."""
    other_classes: Words = ["cat", "car"]
    """Further classes whose drift is measured."""
    gallery: str | None = None
    """Folder with a folder of photos for each look-alike, among which the subject is ranked."""
    region: bool = True
    """Also compare the subject's region alone, so that copied backgrounds earn nothing."""
    seed: Seed = 500
    """Seed of the first picture; picture i of each prompt has seed + i."""
    batch_size: int = Field(4, ge=1)
    """Pictures drawn at a time."""
    device: str = "auto"
    """Where to draw: auto, cpu, cuda, cuda:1, mps."""
    sampling: SamplingSettings = SamplingSettings()

    @classmethod
    def recommended(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """How the run's own card recommends to draw."""
        return _sampling(given.get("run"))


class ProtocolSettings(EvaluateSettings):
    protocol: Literal["dreambooth"]
    """dreambooth: personalize and measure every subject of a dataset by the paper's protocol, its prompts and 4
    pictures of each.
    """
    run: str = Field(min_length=1)
    """Run folder that `femtobooth personalize` made; with --protocol, folder of the dataset, laid out as
    google/dreambooth's.
    """
    subjects: Words = []
    """Subjects of the dataset; all that are there if not given (with --protocol)."""
    runs: str = Field("runs/dreambooth", min_length=1)
    """Folder for the run of each subject (with --protocol)."""
    personalize: Annotated[dict[str, Any], SettingsOf(PersonalizeSettings)] = {}
    """Settings of `femtobooth personalize` for every subject."""

    @classmethod
    def recommended(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Nothing here: every subject's model has a card of its own."""
        return {} if "protocol" in given else super().recommended(given)


class SynthesizeSettings(Settings):
    runs: list[str] = Field(min_length=1)
    """Run folders that `femtobooth personalize` made, one for each subject."""
    labels: Words = []
    """Class name of each run, in order; the runs' names if not given."""
    out: str = Field("synthesized", min_length=1)
    """Folder for the labelled pictures."""
    template: str = "a {scale} {style} [V] {class} {background}"
    """Prompt of every picture; [V] is the subject, {class} the class noun."""
    backgrounds: Words = [
        "on the beach", "in the snow", "on the grass", "in the city", "on a wooden floor", "in the desert",
        "in the mountains", "at sunset", "under water", "on a white background", "on a blue background",
        "on a green background",
    ]  # fmt: skip
    """What stands for {background}, one after the other; the defaults are what the bundled base knows."""
    scales: Words = ["", "small"]
    """What stands for {scale}."""
    styles: Words = ["", "glossy"]
    """What stands for {style}."""
    count: int = Field(1, ge=1)
    """Pictures for each prompt of the grid."""
    negatives: bool = False
    """Also keep the same prompts without the subject, drawn by the base, as a class of their own under the class noun.
    """
    encoder: str | None = None
    """What judges: dino, clip, bundled, tf_efficientnet_lite0, a path or timm's name; the first that works here if not
    given.
    """
    recognizer: str | None = None
    """The model that will be trained on the pictures, which must not judge them."""
    passing: float = Field(0.05, ge=0, lt=1)
    """Share of the base's pictures without the subject that may pass; sets the threshold."""
    threshold: float | None = Field(None, ge=-1, le=1)
    """Likeness to the photos (mean cosine) that a picture must exceed, in place of the one from `passing`."""
    seed: Seed = 10_000
    """Seed of the first picture; every further picture has the next one."""
    batch_size: int = Field(4, ge=1)
    """Pictures drawn at a time."""
    device: str = "auto"
    """Where to draw: auto, cpu, cuda, cuda:1, mps."""
    overwrite: bool = False
    """Choose anew in a folder that is finished, or was begun with other settings; only what synthesize wrote there is
    replaced.
    """
    sampling: SamplingSettings = SamplingSettings()

    @classmethod
    def recommended(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """How the first run's own card recommends to draw."""
        return _sampling(next(iter(given.get("runs") or ()), None))


class CompareSettings(Settings):
    models: list[str]
    """Two or more of: a run, a model folder or file, an exported artifact, timm's name, bundled (generator:bundled and
    \
recognizer:bundled where it could be either)."""
    data: str | None = None
    """Labelled pictures that the classifiers are measured on: one folder a class, or a CSV file of paths and labels."""
    evaluations: list[str] = ["evaluation"]
    """Folders that `femtobooth evaluate-classifier` wrote; read where they belong to exactly the weights that are
    compared.
    """
    prompts: list[str] = [
        "a [V] {class}",
        "a [V] {class} on the beach",
        "a [V] {class} on the moon",
        "a cat in the snow",
    ]
    """What every generator draws; [V] is the subject of those that have one, {class} the class noun."""
    class_noun: str | None = None
    """What stands for {class}; that of the first personalized model if not given, else cat."""
    count: int = Field(2, ge=1)
    """Pictures for each prompt."""
    seed: Seed = 500
    """Seed of the first picture; picture i of each prompt has seed + i, the same for every generator."""
    batch_size: int = Field(8, ge=2)
    """The larger of the two batch sizes that are timed; the other is 1."""
    rounds: int = Field(9, ge=6)
    """Rounds of timing, in each of which every model has its turn; an interval needs 6."""
    speed: bool = True
    """Time the models; without, what takes longest is left out."""
    trust: bool = False
    """Run TorchScript artifacts: they are programs, so only those of someone you trust."""
    disagreements: int = Field(12, ge=0)
    """Photos to show on which the classifiers disagree."""
    threads: int | None = Field(None, ge=1)
    """Threads of every model; as many as cores if not given."""
    device: str = "auto"
    """Where PyTorch computes: auto, cpu, cuda, cuda:1, mps; other runtimes use the CPU."""
    fresh: bool = False
    """Measure again what the cache holds from before."""
    out: str | None = None
    """Page to write; comparisons/A-vs-B-TIME.html if not given."""
    overwrite: bool = False
    """Replace that page, if compare wrote it."""
    sampling: SamplingSettings = SamplingSettings()

    @field_validator("models")
    @classmethod
    def _two(cls, models: list[str]) -> list[str]:
        if len(models) < 2:
            raise ValueError("fewer than two models")
        return models

    @classmethod
    def recommended(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """How the card of the first generator recommends to draw."""
        from .comparing.candidates import BUNDLED, generators

        first = next(generators(given.get("models") or [BUNDLED]), None)
        return {"sampling": of_card(first, "generate").get("sampling", {})} if first else {}


class ReportSettings(Settings):
    run: str = Field(min_length=1)
    """Run folder, finished or not."""


class ModelsSettings(Settings):
    runs: str = "runs"
    """Folder that holds the runs."""


class DemoSettings(Settings):
    runs: str = "runs"
    """Folder that holds the runs."""


def _sampling(run: str | None) -> Mapping[str, Any]:
    """How to draw with a finished run, or with the bundled base where none is given; nothing for what will be
    refused.
    """
    if run and not (Path(run) / "model" / "model_index.json").is_file():
        return {}
    return {"sampling": of_card(run, "generate").get("sampling", {})}
