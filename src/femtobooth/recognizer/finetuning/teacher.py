"""A teacher: a frozen recognizer, in PyTorch or another runtime, whose answers and embeddings another one learns.

It sees what the student sees, at its own size and by its own preprocessing: the same crop, flip and RandAugment of the
same picture, blended in the same shares. A target that was computed once, for the whole picture, would say what is in
parts that the crop left out (Beyer et al. 2022, arXiv 2106.05237, section 3.1). Only where augmentation is off, and so
every pass shows the same pixels, is each picture asked about once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...core.events import progress_bar
from ...pictures.images import read_picture
from ..model.artifact import Description
from ..model.backbone import Recognizer
from ..model.engine import Engine
from ..model.labels import Labels
from .probe import Head
from .unlabelled import Unlabelled

Run = Callable[[Tensor], Mapping[Any, Tensor]]
"""uint8 (B, H, W, 3) to what the teacher says, float32: `logits` (B, n), and `embedding` (B, D) where it has one."""


class Said(NamedTuple):
    """What a teacher says of B pictures: teacher targets."""

    logits: Tensor | None
    """float32 (B, C): of the student's classes, calibrated; None where it does not have them all."""
    embedding: Tensor | None
    """float32 (B, D)."""


@dataclass(frozen=True)
class Teacher:
    """A frozen recognizer that teaches."""

    name: str
    """What was given."""
    described: Description
    run: Run
    columns: Sequence[int] | None = None
    """Its logit of each of the student's classes (C,); None where it does not have them all."""
    has_head: bool = True
    """Whether its last layer came with it, so that its logits mean something."""
    probe: Head | None = None
    """A linear layer over its embeddings, calibrated, which answers in the place of its own last layer."""

    @property
    def answers(self) -> bool:
        """Whether it says something of the student's classes."""
        return self.columns is not None or self.probe is not None

    def says(self, pixels: Tensor) -> Said:
        """Compute teacher targets of uint8 (B, H, W, 3) of its own size, on the device of the pixels."""
        with torch.no_grad():
            outputs = self.run(pixels)
            logits, embedding = outputs["logits"].float(), outputs.get("embedding")
            embedding = None if embedding is None else embedding.float()
            if self.probe is not None and embedding is not None:
                weight, bias = (torch.from_numpy(part).to(embedding) for part in (self.probe.weight, self.probe.bias))
                return Said(torch.nn.functional.linear(embedding, weight, bias), embedding)
            if self.columns is None:
                return Said(None, embedding)
            return Said(calibrated(logits, self.described, self.columns), embedding)

    def says_of(self, paths: Sequence[Path], batch: int = 16) -> Said:
        """Compute teacher targets (N, ...) of files as they are, in order, on the CPU."""
        found: list[Said] = []
        with progress_bar("asking the teacher", len(paths)) as bar:
            for start in range(0, len(paths), batch):
                images = [read_picture(path).image for path in paths[start : start + batch]]
                pixels = np.stack([self.described.preprocess.pixels(image) for image in images])
                found.append(self.says(torch.from_numpy(pixels)))
                bar.advance(len(images))
        logits, embeddings = zip(*found, strict=True)
        return Said(*(None if any(one is None for one in part) else torch.cat(part) for part in (logits, embeddings)))

    def with_classes(self, columns: Sequence[int] | None) -> Teacher:
        """Return the same, which knows its logit of each of the student's classes."""
        return replace(self, columns=columns if self.has_head else None)


def calibrated(logits: Tensor, described: Description, columns: Sequence[int]) -> Tensor:
    """Take columns (C,) of logits (B, n), over the temperature, or scaled and shifted label by label, as calibrated.

    Column by column, for which a device need not be waited for.
    """
    labels = described.labels
    scales, offsets = (
        labels.scales or (1 / described.temperature,) * len(labels),
        labels.offsets or (0.0,) * len(labels),
    )
    return torch.stack([logits[:, column] * scales[column] + offsets[column] for column in columns], dim=1)


def of_recognizer(name: str, recognizer: Recognizer) -> Teacher:
    """Make a teacher of a recognizer in PyTorch, which goes to the device where the student is."""
    recognizer.freeze()

    def run(pixels: Tensor) -> Mapping[Any, Tensor]:
        if recognizer.device != pixels.device:
            recognizer.to(pixels.device)
        return recognizer.outputs(recognizer.preprocess.normalize(pixels))

    weight = getattr(recognizer.model.get_classifier(), "weight", None)
    has_head = not isinstance(weight, Tensor) or bool(weight.any())  # a file without one is given zeros
    return Teacher(name, recognizer.describe(), run, has_head=has_head)


def of_engine(name: str, engine: Engine) -> Teacher:
    """Make a teacher of an export in the runtime of its format."""

    def run(pixels: Tensor) -> Mapping[Any, Tensor]:
        outputs = engine.run(np.ascontiguousarray(pixels.cpu().numpy()))
        return {name: torch.tensor(value, device=pixels.device) for name, value in outputs.items()}

    return Teacher(name, engine.description, run)


@dataclass(frozen=True)
class Lesson:
    """What a run is taught besides labels: by whom, and on which pictures without them."""

    teacher: Teacher
    unlabelled: Unlabelled = field(default_factory=Unlabelled)

    @property
    def known(self) -> set[str]:
        """SHA-256 of the pictures that the teacher, or a generator behind unlabelled ones, was trained on."""
        return {*self.teacher.described.provenance.get("trained_on", ()), *self.unlabelled.behind}

    @property
    def learned_from(self) -> set[str]:
        """SHA-256 of all pictures that the student learns from by way of it."""
        return self.known | {*self.unlabelled.digests}


def same_labels(one: Labels, other: Labels) -> bool:
    """Tell whether logits mean the same: names in their order, in the same groups."""
    return (one.names, one.groups, one.free) == (other.names, other.groups, other.free)
