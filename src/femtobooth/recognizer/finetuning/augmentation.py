"""Training pictures as a function of (seed, micro-step, rank): random crops, flips, RandAugment, mixup and CutMix, all
timm's.

timm draws from the global generators of Python, NumPy and PyTorch. `seeded` sets all three for one picture and puts
them back, so that a resumed run, another number of workers or anything else in the process changes no pixel.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.mixup import Mixup, mixup_target
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ...pictures.images import read_picture
from ...training.randomness import generator, shuffled_indices
from ..model.preprocess import Preprocess
from ..settings import AugmentSettings

KEPT_BYTES = 2**30  # of shrunk training pictures that stay in memory, in each process


@contextmanager
def seeded(seed: int, *purpose: int | str) -> Iterator[None]:
    """Seed the global generators for a while: inside, the global generators start from a number that only the arguments
    decide; afterwards they are as before.
    """
    number = generator(seed, *purpose).initial_seed()
    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)  # on GPUs too, where nothing else draws
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
        torch.set_rng_state(kept[2])


def augmenter(settings: AugmentSettings, preprocess: Preprocess) -> Callable[[Image.Image], np.ndarray]:
    """Make what turns a picture of mode RGB to a randomly changed uint8 (H, W, 3) of the size that the network
    reads.
    """
    steps: list[Callable[[Image.Image], Image.Image]] = []
    if settings.crop < 1:
        steps.append(
            RandomResizedCropAndInterpolation(
                preprocess.size, scale=(settings.crop, 1.0), interpolation=preprocess.interpolation
            )
        )
    else:
        steps.append(lambda image: Image.fromarray(preprocess.pixels(image)))
    if settings.flip:
        steps.append(lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else image)
    if settings.magnitude:
        mean = tuple(round(255 * value) for value in preprocess.mean)
        hints = {"translate_const": round(0.45 * min(preprocess.size)), "img_mean": mean}
        steps.append(rand_augment_transform(f"rand-m{settings.magnitude}-n{settings.operations}-mstd0.5-inc1", hints))

    def augment(image: Image.Image) -> np.ndarray:
        for step in steps:
            image = step(image)
        return np.array(image)

    return augment


class View(NamedTuple):
    """Training pictures of one micro-step."""

    indices: Tensor
    """int64 (B,): which pictures."""
    pixels: Tensor
    """uint8 (B, H, W, 3), randomly changed."""
    labels: Tensor
    """(B,), or (B, C) of several."""
    teacher_pixels: Tensor | None
    """uint8 (B, H', W', 3): the same views at the size that a teacher reads; None without one."""


class TrainingPictures(IterableDataset[tuple[int, Tensor, Tensor]]):
    """An endless stream of (micro-step, uint8 pixels (B, H, W, 3), labels (B,) or (B, C)) from micro-step `first` on.

    The processes of one micro-step take neighbouring entries of one shuffled order of the files. `purpose` tells the
    draws of streams apart; with the preprocessing of a `teacher`, `views` gives what that sees, too: the same crop,
    flip and RandAugment of the same picture at its own size.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Sequence[Any],
        preprocess: Preprocess,
        settings: AugmentSettings,
        batch_size: int,
        seed: int,
        first: int = 0,
        rank: int = 0,
        world: int = 1,
        purpose: str = "pictures",
        teacher: Preprocess | None = None,
    ) -> None:
        self.paths, self.labels = list(paths), torch.tensor(labels)
        self.preprocess, self.settings = preprocess, settings
        self.batch_size, self.seed, self.first, self.rank, self.world = batch_size, seed, first, rank, world
        self.purpose, self.teacher = purpose, teacher

    def __iter__(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        for micro_step, view in self.views():
            yield micro_step, view.pixels, view.labels

    def views(self) -> Iterator[tuple[int, View]]:
        """Yield micro-steps and their pictures; in a loader's worker, those of its turns."""
        worker = get_worker_info()  # the loader takes turns with its workers, which keeps the order
        own, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        read_by = [self.preprocess, *([self.teacher] if self.teacher else [])]
        augment = [augmenter(self.settings, one) for one in read_by]
        # A crop of the least share still has the network's size.
        side = max(round(max(one.size) / min(self.settings.crop**0.5, one.crop_pct)) for one in read_by)
        read = lru_cache(max(KEPT_BYTES // (4 * side * side), 1))(lambda index: _shrunk(self.paths[index], side))
        for micro_step in islice(count(self.first), own, None, workers):
            yield micro_step, self.view(micro_step, read, augment)

    def view(
        self, micro_step: int, read: Callable[[int], Image.Image], augment: Sequence[Callable[[Image.Image], Any]]
    ) -> View:
        """Make the pictures of one micro-step, as each of `augment` changes them by the same draws."""
        start = (micro_step * self.world + self.rank) * self.batch_size
        indices = shuffled_indices(self.seed, self.purpose, len(self.paths), start, self.batch_size)
        drawn = "augment" if self.purpose == "pictures" else f"augment {self.purpose}"
        pixels: list[list[np.ndarray]] = [[] for _ in augment]
        for position, index in enumerate(indices):
            for one, into in zip(augment, pixels, strict=True):
                with seeded(self.seed, drawn, micro_step, self.rank, position):
                    into.append(one(read(index)))
        own, *other = (torch.from_numpy(np.stack(part)) for part in pixels)
        return View(torch.tensor(indices), own, self.labels[indices], other[0] if other else None)


class TaughtPictures(IterableDataset[tuple[int, View, View | None]]):
    """An endless stream of (micro-step, labelled pictures, as many unlabelled ones or None)."""

    def __init__(self, labelled: TrainingPictures, unlabelled: TrainingPictures | None) -> None:
        self.labelled, self.unlabelled = labelled, unlabelled

    def __iter__(self) -> Iterator[tuple[int, View, View | None]]:
        more = self.unlabelled.views() if self.unlabelled else None
        for micro_step, view in self.labelled.views():
            yield micro_step, view, next(more)[1] if more else None


def is_fixed(settings: AugmentSettings) -> bool:
    """Tell whether every pass shows the same pixels."""
    return settings.crop == 1 and not (settings.flip or settings.magnitude or settings.mixup or settings.cutmix)


def _shrunk(path: Path, side: int) -> Image.Image:
    """Return the picture, made smaller where its shorter side is more than `side` pixels."""
    image = read_picture(path).image
    scale = side / min(image.size)
    if scale >= 1:
        return image
    return image.resize(
        (max(round(image.width * scale), side), max(round(image.height * scale), side)), Image.Resampling.LANCZOS
    )


def blend_multi_label(
    images: Tensor, targets: Tensor, known: Tensor, settings: AugmentSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """Mix, by Mixup or CutMix, normalized images (B, 3, H, W), and with them targets and what is known of them (B, C).

    Call it inside `seeded`.
    """
    if not (settings.mixup or settings.cutmix):
        return images, targets, known
    own, count = torch.arange(len(images), device=images.device), len(images)
    mix: Any = Mixup(mixup_alpha=settings.mixup, cutmix_alpha=settings.cutmix, label_smoothing=0, num_classes=count)
    images, shares = mix(images, own)  # (B, B): how much of each picture is in each
    return images, shares @ targets, (shares @ known >= 1 - 1e-4).float()


def blend(
    images: Tensor, labels: Tensor, settings: AugmentSettings, smoothing: float, classes: int
) -> tuple[Tensor, Tensor]:
    """Mix, by Mixup or CutMix, normalized images (B, 3, H, W), and soft targets (B, C) that sum to 1.

    Call it inside `seeded`.
    """
    if settings.mixup or settings.cutmix:
        mix: Any = Mixup(
            mixup_alpha=settings.mixup, cutmix_alpha=settings.cutmix, label_smoothing=smoothing, num_classes=classes
        )
        return mix(images, labels)
    return images, mixup_target(labels, classes, 1.0, smoothing)
