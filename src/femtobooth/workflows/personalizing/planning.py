"""What a training will need of memory, phase by phase, told without weights and without the device it is for.

Weights, gradients, optimizer state, averages and the teacher are counted to the byte (`generator.memory`), what passes
through the networks by going through them without numbers (`generator.activations`). Two sums are made of each phase:
what lies on an accelerator, which parts leave that have nothing to do there, and what the process holds where a CPU
trains, Python and its libraries included.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import Any, Literal, TypeVar

import psutil

from ...core import tensors as stored
from ...generator import activations, frozen, tokens
from ...generator.deterministic import SAMPLES
from ...generator.dreambooth import DreamBooth
from ...generator.families.family import Family
from ...generator.latents import at_once
from ...generator.memory import Part, held, parts
from ...generator.settings import PersonalizeSettings
from ...generator.subject_settings import AUTO
from ...training.averages import average_of
from ...training.settings import TrainingSettings
from . import scored, told

Where = Literal["accelerator", "process"]
"""What is to hold a training: the memory of an accelerator, or main memory, where a CPU trains."""
Found = TypeVar("Found")
WORDS = ("sks", *tokens.EVERYDAY_WORDS)  # in the place of identifiers that the base would choose


@dataclass(frozen=True)
class Phase:
    """A part of a run, and the most bytes that it holds."""

    name: str
    passing: int
    """What passes through the networks."""
    accelerator: int
    """All that lies on an accelerator."""
    process: int
    """All that the process holds where a CPU trains."""


@dataclass(frozen=True)
class Plan:
    """All that a run holds."""

    parts: tuple[Part, ...]
    phases: tuple[Phase, ...]

    def peak(self, where: Where) -> Phase:
        """Give the phase that holds most."""
        return max(self.phases, key=lambda phase: int(getattr(phase, where)))

    def plain(self) -> dict[str, Any]:
        """Give it as JSON values."""
        return {"parts": [asdict(one) for one in self.parts], "phases": [asdict(one) for one in self.phases]}


@dataclass
class Planner:
    """Plans runs from one base, which was loaded without weights, at one size; what they share is found once."""

    base: Family
    size: int
    files: Path
    """Where the base lies: a folder or a single file."""
    libraries: int = field(default_factory=lambda: int(psutil.Process().memory_info().rss))
    """What Python and its libraries hold before there is a model."""
    _found: dict[str, Any] = field(default_factory=dict)

    def plan(self, settings: PersonalizeSettings) -> Plan:
        """Plan a run with these settings."""
        module, training, prior = self._module(settings), settings.training, settings.prior
        rows = told.memory(module, settings)
        vae = next(part for part in rows if part.name == "vae")
        encoders = [part for part in rows if part.name in self.base.TEXT_ENCODERS]
        freed = self._encoder if "lora" in settings.train.parts else 0
        away = (
            vae.total - freed + (0 if any(part.trained for part in encoders) else sum(part.total for part in encoders))
        )
        total, gradients = _sum(rows, "total") - freed, _sum(rows, "gradients")
        before = _sum(rows, "weights") + _sum(rows, "teacher")
        apart = self.libraries + (module.anchor.kept_bytes if module.anchor else 0)
        phases: list[Phase] = []

        def phase(name: str, bytes_: int, passing: int, leaving: int = 0) -> None:
            phases.append(Phase(name, passing, bytes_ + passing - leaving, apart + bytes_ + passing))

        def in_main_memory(name: str, bytes_: int, passing: int) -> None:
            phases.append(Phase(name, passing, 0, self.libraries + bytes_ + passing))

        base = _sum(parts(self._base(settings), None, [], TrainingSettings()), "weights")
        in_main_memory("loading", base, self._loading)
        in_main_memory("identifier", base, self._listening(settings))
        encoding, decoding = self._pictures(settings.samples.sampling.tiles)
        if draws_class_images(settings):
            drawn = self._sampled(settings, prior.sampling_batch, prior.sampling.guidance)
            phase("class images", before, max(drawn, self._pictures(prior.sampling.tiles)[1]))
        phase("encoding photos", before, encoding * at_once(settings.train.held))

        passed = self._pass(settings, module, *rows_of(settings))
        # The gradients of a step lie there until the next one knows its loss; with accumulation they stay.
        steady = 0 if training.accumulate > 1 else gradients
        phase("training", total, max(passed.forward, passed.backward - steady), away)
        drawn = max(self._sampled(settings, settings.samples.batch_size, settings.samples.sampling.guidance), decoding)
        aside = gradients if average_of(training) else 0  # of the weights that the average takes the place of
        phase("samples", total, aside + drawn)
        if scored.interval(settings):
            phase("validation", total, max(aside + drawn, self._sampled(settings, SAMPLES, guidance=1)))
        kept = total - gradients - _sum(rows, "optimizer")
        written = 0 if "lora" in settings.train.parts else max(part.weights for part in rows) + gradients
        phase("result", kept, max(drawn, written))  # copied to be written, and read from the last checkpoint
        return Plan(tuple(rows), tuple(phases))

    def least(self, settings: PersonalizeSettings, where: Where) -> int:
        """Count what training holds whatever passes through the networks: quicker than a plan."""
        rows = told.memory(self._module(settings), settings)
        return _sum(rows, "total") if where == "process" else _sum([one for one in rows if one.trained], "total")

    # --- what is found once

    def _once(self, key: object, find: Callable[[], Found]) -> Found:
        if (name := repr(key)) not in self._found:
            self._found[name] = find()
        found: Found = self._found[name]
        return found

    def _module(self, settings: PersonalizeSettings) -> DreamBooth:
        """Make what trains, of networks that have shapes alone."""
        prior = settings.prior
        key = (settings.train, settings.lora, prior.target, prior.weight, prior.weights, settings.loss.background)

        def make() -> DreamBooth:
            training = settings.training.model_copy(update={"gradient_checkpointing": False})
            plain = settings.model_copy(update={"training": training})
            nouns = {
                any_word if one.identifier.token == AUTO else one.identifier.token: one.photos.class_noun
                for one, any_word in zip(settings.each.values(), cycle(WORDS), strict=False)
            }
            return DreamBooth(copy.deepcopy(self._base(settings)), plain, nouns, lambda _: None)

        return self._once(key, make)

    def _pass(self, settings: PersonalizeSettings, module: DreamBooth, rows: int, taught: int) -> activations.Pass:
        """Find what a step's passes hold."""
        training = settings.training
        reads = [part for part in told.memory(module, settings) if part.name in self.base.TEXT_ENCODERS]
        captions = captions_of(settings) if any(part.trained for part in reads) else 0
        taught = taught if module.teacher else 0
        facts = (rows, taught, min(captions, rows), self.size, training.precision)

        def find() -> activations.Pass:
            model, teacher = copy.deepcopy((module.model, module.teacher))
            return activations.training_pass(model, teacher, *facts, checkpointing=training.gradient_checkpointing)

        return self._once((id(module), facts, training.gradient_checkpointing), find)

    def _base(self, settings: PersonalizeSettings) -> Family:
        """Give the base as it is held beside what trains."""

        def make() -> Family:
            base = copy.deepcopy(self.base)
            frozen.hold(base, settings.train.held)
            return base

        return self._once(("base", settings.train.held), make)

    def _sampled(self, settings: PersonalizeSettings, pictures: int, guidance: float) -> int:
        """Count what the denoiser holds to draw pictures; guidance takes two rows for each, where it is not told."""
        return self._row(settings) * pictures * (2 if guidance > 1 and not self.base.embeds_guidance else 1)

    def _row(self, settings: PersonalizeSettings) -> int:
        base = self._base(settings)
        return self._once(("row", base.held), lambda: activations.sampling_pass(base, self.size))

    def _listening(self, settings: PersonalizeSettings) -> int:
        """Count what the denoiser holds while a base is asked what words mean to it."""
        base, how = self._base(settings), tokens.Listening.to(self.base)
        size = how.cells * base.vae_factor
        return len(how.timesteps) * self._once(("row", base.held, size), lambda: activations.sampling_pass(base, size))

    def _pictures(self, tiles: bool) -> tuple[int, int]:
        return self._once(("pictures", tiles), lambda: activations.picture_passes(self.base, self.size, tiles))

    @cached_property
    def _encoder(self) -> int:
        """Count what is freed of the VAE when an adapter begins to train."""
        vae = self.base.vae
        less = copy.deepcopy(self.base)
        less.drop_encoder()
        return held(vae.parameters()) - held(less.vae.parameters())

    @cached_property
    def _loading(self) -> int:
        """Count what lies in main memory beside weights when most does while the base is loaded: a tensor as it is read
        and as it is held, or the whole file where that is a pickle, which is mapped.
        """
        if self.files.is_file() and self.files.suffix != ".safetensors":
            return self.files.stat().st_size
        networks = (getattr(self.base, name) for name in self.base.NETWORKS)
        return stored.MAPPED + 2 * max(held([one]) for network in networks for one in network.parameters())


def _sum(parts: list[Part], kind: str) -> int:
    return sum(int(getattr(part, kind)) for part in parts)


def draws_class_images(settings: PersonalizeSettings) -> bool:
    """Tell whether the base has to draw class images."""
    prior = settings.prior
    own = prior.folder is not None and not prior.other_classes
    return prior.weight > 0 and prior.target != "photos" and not own


def rows_of(settings: PersonalizeSettings) -> tuple[int, int]:
    """Give how many pictures go through the networks in a micro-step, and for how many the teacher says the target."""
    photos, prior = settings.training.batch_size, settings.prior
    others = (prior.batch_size or photos) if prior.weight else 0
    return photos + others, others


def captions_of(settings: PersonalizeSettings) -> int:
    """Say how many different captions a micro-step has, at the most; one a photo, where files may say them."""
    rows, others = rows_of(settings)
    of_class = len(settings.nouns) + (len(settings.each) if settings.loss.background == "class" else 0)
    return rows - others + min(others, of_class + len(settings.prior.other_classes))
