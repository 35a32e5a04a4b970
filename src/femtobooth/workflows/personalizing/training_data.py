"""What a DreamBooth training reads: latents of the photos, and of class images or the photos as their class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from lightning.pytorch import Trainer

from ...core.events import stage, warn
from ...generator import prior
from ...generator.captions import of_class
from ...generator.families.family import Family
from ...generator.latents import Latents, LatentSet, encode, together
from ...generator.loss_masks import MAX_WEIGHT
from ...generator.photos import Photo, in_proportion, load_class_images, shape_counts
from ...generator.prompts import filled
from ...generator.settings import PersonalizeSettings
from ...generator.tags import shuffled
from ...pictures.framing import Framing
from ...pictures.regions import subject_masks
from ...pictures.squares import Shape


def latents(
    lightning: Trainer,
    settings: PersonalizeSettings,
    model: Family,
    token: str,
    photos: list[Photo],
    size: int,
) -> tuple[Latents, Latents | None]:
    """Encode photos and class images with the VAE, once; the class images are drawn first where they are missing.

    With `prior.target` photos the second set is that of the photos under captions of their class. Of photos in buckets
    there is a set for each shape, and class images have the photos' shapes in the photos' proportion.
    """
    noun = settings.photos.class_noun
    captions = [[filled(text, token, noun) for text in own] for own in _orders(settings, model, token, photos)]
    if settings.prior.weight and settings.prior.target == "photos":
        named = [(photo.path, own) for photo, own in zip(photos, captions, strict=True)]
        plain = of_class(named, model.tokenizer, token, noun)
    counts, apart = shape_counts(photos), settings.loss.background == "class"
    views = [[photo.pixels for photo in photos]]
    if settings.photos.flip:
        views.append([one[:, ::-1] for one in views[0]])
    found = [subject_masks(view) for view in views] if apart else []  # by what photos of all shapes have in common
    images = _class_images(lightning, settings, model, token, counts, size) if settings.prior.uses_images else {}
    # All encoded after the class images, whose drawing must see the base as it is.
    around_them = subject_masks([one for some in images.values() for one in some.of_noun]) if apart and images else []
    taught: list[LatentSet] = []
    kept: list[LatentSet] = []
    for shape in counts:
        rows = [row for row, photo in enumerate(photos) if photo.shape == shape]
        some, said = [photos[row] for row in rows], [captions[row] for row in rows]
        taught.append(
            encode(
                model,
                np.stack([photo.pixels for photo in some]),
                said,
                settings.photos.flip,
                "subject" if apart else "all",
                repeats=[photo.repeats for photo in some],
                masks=[photo.mask for photo in some],
                outside=settings.loss.unmasked_weight,
                subjects=[[view[row] for row in rows] for view in found],
                framings=[photo.framing for photo in some],
            )
        )
        if settings.prior.weight and settings.prior.target == "photos":
            kept.append(_as_their_class(taught[-1], model, said, [plain[row] for row in rows], apart))
        elif images:
            one = images[shape]
            by_base = settings.prior.target == "base"
            kept.append(encode(model, one.pixels, one.captions, taught=by_base, framings=one.framings))
            if apart:  # class images as they are twice, so that they keep two thirds of the samples
                ours, around_them = around_them[: len(one.of_noun)], around_them[len(one.of_noun) :]
                caption = filled(settings.prior.prompt.replace("{class}", "{token} {class}"), token, noun)
                kept[-1] += kept[-1] + kept[-1].background(model, one.of_noun, caption, ours)
    visits = list(counts.values())
    return together(taught, visits), together(kept, visits) if kept else None


@dataclass(frozen=True)
class _ClassImages:
    """Class images of one shape."""

    pixels: np.ndarray
    """(N, H, W, 3), uint8; those of the class noun first."""
    captions: list[list[str]]
    framings: list[Framing | None]
    count: int
    """How many are of the class noun."""

    @property
    def of_noun(self) -> np.ndarray:
        """Those of the class noun."""
        return self.pixels[: self.count]


def _class_images(
    lightning: Trainer, settings: PersonalizeSettings, model: Family, token: str, counts: Mapping[Shape, int], size: int
) -> dict[Shape, _ClassImages]:
    """Load or draw the class images of each shape, as many as its share of `counts` is."""
    noun, strategy = settings.photos.class_noun, lightning.strategy
    processes = prior.Processes(lightning.global_rank, lightning.world_size, strategy.barrier, strategy.broadcast)
    images: dict[Shape, list[np.ndarray]] = {shape: [] for shape in counts}
    captions: dict[Shape, list[list[str]]] = {shape: [] for shape in counts}
    framings: dict[Shape, list[Framing | None]] = {shape: [] for shape in counts}
    wanted = prior.prompts(settings.prior, noun)
    if settings.prior.folder:
        for one in load_class_images(settings.prior.folder, size if settings.photos.shapes == "square" else counts):
            images[one.shape].append(one.pixels[None])
            framings[one.shape].append(one.framing)
            captions[one.shape].append([filled(text, token, noun) for text in one.captions] or [wanted[0]])
    of_noun = {shape: len(some) for shape, some in images.items()}
    with stage("class images"):
        for number, prompt in enumerate(wanted):
            if number == 0 and settings.prior.folder:
                continue
            for shape, count in in_proportion(counts, settings.prior.images).items():
                some = settings.prior.model_copy(update={"images": count})
                images[shape].append(prior.class_images(model, prompt, some, shape, processes))
                captions[shape] += [[prompt]] * count
                framings[shape] += [None] * count  # they are whole
                of_noun[shape] = of_noun[shape] or count
    return {
        shape: _ClassImages(np.concatenate(some), captions[shape], framings[shape], of_noun[shape])
        for shape, some in images.items()
    }


def _orders(settings: PersonalizeSettings, model: Family, token: str, photos: list[Photo]) -> list[Sequence[str]]:
    """Give the captions of each photo, in many orders of their tags where that is wanted."""
    if not settings.photos.shuffle_tags:
        return [photo.captions for photo in photos]
    how = (model.tokenizer, token, settings.photos.class_noun)
    found: list[Sequence[str]] = [
        shuffled(photo.captions, settings.photos.keep_tags, settings.training.seed, number, *how)
        for number, photo in enumerate(photos)
    ]
    if all(len(orders) == len(photo.captions) for orders, photo in zip(found, photos, strict=True)):
        warn("`photos.shuffle_tags`: no caption has tags to shuffle; commas separate them")
    return found


def _as_their_class(
    subject: LatentSet, model: Family, captions: list[list[str]], plain: list[tuple[str, ...]], apart: bool
) -> LatentSet:
    """Give the photos for the prior: whole, under the captions `plain` of their class, the target the teacher's.

    With `apart` (`loss.background` class) a third of what the prior samples has the photos' own captions and counts in
    their background only.
    """
    kept = subject.relabelled(model, plain, torch.ones(()))
    if apart:
        most = subject.mask.amax(dim=(2, 3, 4), keepdim=True)
        around = 1 - subject.mask / most.clamp(min=1e-9)  # (N, F, 1, h, w): what the photos do not teach
        around /= around.mean(dim=(2, 3, 4), keepdim=True).clamp(min=1 / MAX_WEIGHT)
        kept += kept + subject.relabelled(model, captions, around)
    return kept
