"""What is sampled during training to be scored, how often, and by what."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...core.errors import SettingsError
from ...generator import taught
from ...generator.prompts import Prompt, of_templates
from ...generator.settings import PersonalizeSettings, SampleSettings
from ...generator.taught import Taught
from ...judging.encoders import Encoder, open_encoder, usable

POINTS = 6  # scorings of a run by default, half of it where they decide nothing
MIN_STEPS = 30  # optimizer steps from which on a run is scored


def interval(settings: PersonalizeSettings) -> int:
    """Give the optimizer steps between scorings; 0 without validation.

    Raises SettingsError for stop_when_done without any.
    """
    steps, given = settings.training.steps, settings.validation
    every = given.every
    if every is None:
        points = POINTS if given.select == "best" or given.stop_when_done else POINTS // 2
        every = -(-steps // points) if steps >= MIN_STEPS else 0
    if given.stop_when_done and not every:
        raise SettingsError(
            "`validation.stop_when_done`: this run has no validation",
            "give such as `validation.every=50`",
        )
    return every


def chosen_encoder(settings: PersonalizeSettings) -> Encoder | None:
    """Choose the encoder that scores; None without validation. Raises ModelError where it is not available."""
    return open_encoder(settings.validation.encoder or usable(())[0]) if interval(settings) else None


def image_settings(settings: PersonalizeSettings) -> SampleSettings:
    """Say how validation images are sampled; prompts are templates, the class last."""
    given = settings.validation
    sampling = settings.samples.sampling.model_copy(update={"sampler": given.sampler, "steps": given.steps})
    prompts = [*given.prompts, settings.prior.prompt]
    return settings.samples.model_copy(
        update={"prompts": prompts, "images": given.images, "seed": given.seed, "sampling": sampling}
    )


def outside_prompts(settings: PersonalizeSettings) -> list[str]:
    """Give the prompts of things outside the class: those that name none of the class nouns' words."""
    words = "|".join(re.escape(word) for noun in settings.nouns for word in noun.split())
    named = re.compile(rf"(?<!\w)(?:{words})(?:e?s)?(?!\w)", re.IGNORECASE)
    return [prompt for prompt in settings.validation.outside if not named.search(prompt)]


@dataclass(frozen=True)
class Scored:
    """What is drawn of a subject, and what that is compared with."""

    name: str
    prompts: list[Prompt]
    photos: list[np.ndarray]
    """(H, W, 3), uint8."""
    others: list[np.ndarray]
    """Further photos of one of several subjects: how alike they are to `photos` is the ceiling, if there are some."""


def scored_of(settings: PersonalizeSettings, subjects: Mapping[str, Taught]) -> list[Scored]:
    """Say what is scored of each subject. Raises SettingsError for a prompt that shows none, or several of them."""
    prompts = of_templates(settings.validation.prompts, taught.called(subjects))
    found = []
    for name, one in subjects.items():
        ours = prompts if len(subjects) == 1 else [prompt for prompt in prompts if prompt.of == name]
        if not ours:
            raise SettingsError(
                f"`validation.prompts`: none shows {name}", 'such as "a [V] {class}", which shows each subject'
            )
        others = one.photos if one.held_out and len(subjects) > 1 else []
        found.append(Scored(name, ours, [photo.pixels for photo in one.scored], [photo.pixels for photo in others]))
    if lost := next((one for one in prompts if one.of is None), None) if len(subjects) > 1 else None:
        raise SettingsError(
            f"`validation.prompts`: {lost.text!r} shows no single subject", "leave it out; samples.prompts may hold it"
        )
    return found
