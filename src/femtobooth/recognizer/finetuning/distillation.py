"""Distillation: a recognizer that learns from a teacher besides its labels, on pictures with and without them.

    loss = (1 - w) labels + w T^2 KL(teacher's answers || its own) + f ||P embedding - teacher's||^2 / D

Answers (Hinton et al. 2015, arXiv 1503.02531) where the teacher has the same classes, or a probe, else w = 0.
Embeddings (Romero et al. 2015, arXiv 1412.6550) of any teacher, standardized in each dimension, so that 1 is what the
mean would get; P is a linear layer that learns with the student and is not part of the result. Labels teach on pictures
that have one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..model.backbone import Recognizer
from ..settings import FinetuneSettings
from . import losses
from .augmentation import TaughtPictures, View, blend, is_fixed, seeded
from .finetuner import Finetuner
from .teacher import Lesson, Said

MOST_FOR_STATISTICS = 512
"""Pictures, evenly from all, by which the teacher's embeddings are standardized."""
FLAT = 1e-6
"""Standard deviation under which a dimension of embeddings counts as constant."""


class Distiller(Finetuner):
    """Trains all of a recognizer on labelled files, as `Finetuner`, and by a lesson."""

    LOSSES: ClassVar[Sequence[str]] = ("train", "labels", "answers", "embeddings")

    def __init__(
        self,
        recognizer: Recognizer,
        settings: FinetuneSettings,
        paths: Sequence[Path],
        labels: np.ndarray,
        lesson: Lesson,
    ) -> None:
        super().__init__(recognizer, settings, paths, labels)
        self.lesson, self.teacher = lesson, lesson.teacher
        self.answers = settings.distill.weight if self.teacher.answers else 0.0
        self.known: Said | None = None
        """What it says of every picture, the labelled ones first, where all are always the same."""
        every = [*paths, *lesson.unlabelled.paths]
        fixed = is_fixed(settings.augment)
        embeddings = None
        if fixed:
            self.known = self.teacher.says_of(every)
            embeddings = self.known.embedding
        elif settings.distill.features:
            chosen = np.unique(np.linspace(0, len(every) - 1, min(len(every), MOST_FOR_STATISTICS)).round().astype(int))
            embeddings = self.teacher.says_of([every[i] for i in chosen]).embedding
        self.projection: nn.Linear | None = None
        if settings.distill.features and embeddings is not None:
            deviation, mean = torch.std_mean(embeddings.double(), dim=0, correction=0)
            self.register_buffer("centre", mean.float())
            self.register_buffer("spread", torch.where(deviation < FLAT, 1.0, deviation).float())
            with seeded(settings.training.seed, "projection"):
                self.projection = nn.Linear(recognizer.model.num_features, embeddings.shape[1])

    def optimizer_groups(self) -> list[dict[str, Any]]:
        groups = super().optimizer_groups()
        if self.projection is not None:
            own = {"params": list(self.projection.parameters()), "lr": self.settings.learning_rate}
            groups.append({"name": "projection", **own, "weight_decay": 0.0, "starts": 0})
        return groups

    def train_dataloader(self) -> Any:
        teacher = None if self.known else self.teacher.described.preprocess
        more = self.lesson.unlabelled.paths
        nothing = np.zeros((len(more), *self.labels.shape[1:]), self.labels.dtype).tolist()
        pictures = TaughtPictures(
            self.pictures(self.paths, self.labels.tolist(), teacher=teacher),
            self.pictures(more, nothing, purpose="unlabelled", teacher=teacher) if more else None,
        )
        return DataLoader(pictures, batch_size=None, num_workers=self.settings.workers)

    def training_step(self, batch: Any) -> Tensor:
        micro_step, own, more = batch
        normalize = self.recognizer.preprocess.normalize
        with self.drawing(micro_step):
            images, targets, known = self.blended(normalize(own.pixels), own.labels)
            count = len(images)
            if more:
                images = torch.cat([images, self.blended(normalize(more.pixels), more.labels)[0]])
            outputs = self.recognizer.outputs(images)
        said = self._said(micro_step, own, more)
        labels = self.label_loss(outputs["logits"][:count], targets, known)
        answers = embeddings = labels.new_zeros(())
        if self.answers and said.logits is not None:
            temperature = self.settings.distill.temperature
            answers = losses.taught(self.recognizer.labels, outputs["logits"], said.logits, temperature)
        if self.projection is not None and said.embedding is not None:
            wanted = (said.embedding - self.centre) / self.spread
            embeddings = (self.projection(outputs["embedding"]).float() - wanted).square().mean()
        loss = (1 - self.answers) * labels + self.answers * answers + self.settings.distill.features * embeddings
        self._losses.append(torch.stack([loss, labels, answers, embeddings]).detach())
        return loss

    def _said(self, micro_step: int, own: View, more: View | None) -> Said:
        """Give teacher targets of the labelled and unlabelled pictures of a step, as the student sees them."""
        parts = [own, more] if more else [own]
        if self.known:
            firsts = (0, len(self.paths))
            rows = torch.cat([part.indices + first for part, first in zip(parts, firsts, strict=False)])
            self.known = Said(*(None if value is None else value.to(rows.device) for value in self.known))
            return Said(*(None if value is None else value[rows] for value in self.known))
        return self.teacher.says(torch.cat(self._seen(micro_step, parts)))

    def _seen(self, micro_step: int, parts: Sequence[View]) -> list[Tensor]:
        """Give what the teacher sees of the pictures of a step, blended as the student's were, by the same draws."""
        with self.drawing(micro_step):
            return [self._blended_pixels(part.teacher_pixels) for part in parts if part.teacher_pixels is not None]

    def _blended_pixels(self, pixels: Tensor) -> Tensor:
        """Blend pixels (B, H, W, 3), rounded to uint8 again."""
        if not self.settings.augment.mixup:
            return pixels
        planes = pixels.permute(0, 3, 1, 2).float()
        flat = torch.zeros(len(planes), dtype=torch.int64, device=planes.device)
        planes, _ = blend(planes.clone(memory_format=torch.contiguous_format), flat, self.settings.augment, 0.0, 2)
        return planes.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
