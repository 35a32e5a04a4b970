"""What a personalize run left on disk, read, for its page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ..generator.photos import Photo
from ..generator.prompts import of_templates
from ..generator.run import PersonalizedRun
from ..generator.settings import PersonalizeSettings
from ..judging.memorization import Nearest
from ..judging.verdict import Verdict

Samples = Mapping[tuple[int, int], Image.Image]
"""Pictures that were sampled at one step, by (prompt, seed)."""


@dataclass(frozen=True)
class ClassImages:
    """Hold class images of one prompt: those that are shown, how many there are, and where they are from."""

    prompt: str
    shown: list[Image.Image]
    count: int
    source: str


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """Hold what a personalize run left on disk, read."""

    known: PersonalizedRun
    """What run.json holds."""
    settings: PersonalizeSettings
    photos_of: Mapping[str, list[Photo]]
    """The photos of each subject, by name."""
    preflight: list[dict[str, Any]]
    """What was found in the photo folder, a row a file."""
    samples: Mapping[int, Samples]
    """By optimizer step, those of the step that became the model last."""
    class_images: list[ClassImages]
    metrics: list[dict[str, str]]
    """Rows of logs/metrics.csv."""
    evaluation: Mapping[str, Any] | None
    verdict: Verdict | None
    verdicts: Mapping[str, Verdict]
    """Of each of several subjects."""
    nearest: Mapping[tuple[int, int], Nearest]
    """For each last sample of the subject, the training photo that it comes nearest to."""

    @property
    def photos(self) -> list[Photo]:
        """Those of all subjects."""
        return [photo for photos in self.photos_of.values() for photo in photos]

    @property
    def prompts(self) -> list[str]:
        """Prompts of the samples, as the model reads them."""
        return [one.text for one in of_templates(self.settings.samples.prompts, self.known.called)]

    @property
    def copies(self) -> int:
        """Count near-copies of training photos among the last samples of the subject."""
        return sum(one.copied for one in self.nearest.values())
