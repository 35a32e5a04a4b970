"""Settings of `femtobooth compare`. The text under each field is its help."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, field_validator

from ...core.config import Seed, Settings
from ...core.fields import Argument, Flag, Flags
from ...generator.sampling_settings import SamplingSettings
from ...generator.settings import of_card
from .candidates import BUNDLED, generators


class CompareSettings(Settings):
    models: Annotated[list[str], Argument("*", names="model", needed=True)]
    """Two or more of: a run, a model folder or file, an exported artifact, timm's name, bundled (generator:bundled and
    \
recognizer:bundled where it could be either)."""
    data: Annotated[str | None, Flag("--data", common=True, group="recognizers", names="file")] = None
    """Labelled pictures that the classifiers are measured on: one folder a class, or a CSV file of paths and labels."""
    evaluations: Annotated[list[str], Flag("--evaluations", group="recognizers", names="path")] = ["evaluation"]
    """Folders that `femtobooth evaluate-classifier` wrote; read where they belong to exactly the weights that are
    compared.
    """
    prompts: Annotated[list[str], Flag("--prompts", common=True, group="generators")] = [
        "a [V] {class}",
        "a [V] {class} on the beach",
        "a [V] {class} on the moon",
        "a cat in the snow",
    ]
    """What every generator generates; [V] is the subject of those that have one, {class} the class noun."""
    class_noun: Annotated[str | None, Flag("--class-noun", group="generators")] = None
    """What stands for {class}; that of the first personalized model if not given, else cat."""
    count: Annotated[int, Flag("-n", common=True, unit="pictures", group="generators")] = Field(2, ge=1)
    """Pictures for each prompt."""
    seed: Annotated[Seed, Flag("--seed", group="generators")] = 500
    """Seed of the first picture; picture i of each prompt has seed + i, the same for every generator."""
    batch_size: Annotated[int, Flag("--batch-size", unit="pictures", group="timing")] = Field(8, ge=2)
    """The larger of the two batch sizes that are timed; the other is 1."""
    rounds: Annotated[int, Flag("--rounds", unit="rounds", group="timing")] = Field(9, ge=6)
    """Rounds of timing, in each of which every model has its turn; an interval needs 6."""
    speed: Annotated[bool, Flag("--speed", common=True, group="timing")] = True
    """Time the models; without, what takes longest is left out."""
    trust: Annotated[bool, Flag("--trust", group="recognizers")] = False
    """Run TorchScript artifacts: they are programs, so only those of someone you trust."""
    disagreements: Annotated[int, Flag("--disagreements", unit="photos", group="recognizers")] = Field(12, ge=0)
    """Photos to show on which the classifiers disagree."""
    threads: Annotated[int | None, Flag("--threads", unit="threads", group="hardware")] = Field(None, ge=1)
    """Threads of every model; as many as cores if not given."""
    device: Annotated[str, Flag("--device", common=True, group="hardware")] = "auto"
    """Where PyTorch computes: auto, cpu, cuda, cuda:1, mps; other runtimes use the CPU."""
    fresh: Annotated[bool, Flag("--fresh", group="timing")] = False
    """Measure again what the cache holds from before."""
    out: Annotated[str | None, Flag("--out", common=True, group="output", names="path")] = None
    """Page to write; comparisons/A-vs-B-TIME.html if not given."""
    overwrite: Annotated[bool, Flag("--overwrite", common=True, group="output")] = False
    """Replace that page, if compare wrote it."""
    sampling: Annotated[SamplingSettings, Flags("sampling", without=("negative", "guidance_rescale", "tiles"))] = (
        SamplingSettings()
    )

    @field_validator("models")
    @classmethod
    def _two(cls, models: list[str]) -> list[str]:
        if len(models) < 2:
            raise ValueError("fewer than two models")
        return models

    @classmethod
    def recommended(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Say how the card of the first generator recommends to draw."""
        first = next(generators(given.get("models") or [BUNDLED]), None)
        return {"sampling": of_card(first, "generate").get("sampling", {})} if first else {}
