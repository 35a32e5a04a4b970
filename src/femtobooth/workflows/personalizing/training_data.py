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
from ...generator.photos import in_proportion, load_class_images, shape_counts
from ...generator.prompts import filled
from ...generator.settings import PersonalizeSettings
from ...generator.tags import shuffled
from ...generator.taught import Taught
from ...pictures.crops import Shape
from ...pictures.framing import Framing
from ...pictures.regions import subject_masks


def latents(
    lightning: Trainer, settings: PersonalizeSettings, model: Family, subjects: Sequence[Taught], size: int
) -> tuple[Latents, Latents | None]:
    """Encode photos and class images with the VAE, once; the class images are drawn first where they are missing.

    Photos of several subjects are in one set, from which each is sampled as often; class images of a noun are made once
    for all subjects of it. With `prior.target` photos the second set is that of the photos under captions of their
    class. Of photos in buckets there is a set for each shape, and class images have the photos' shapes in the photos'
    proportion.
    """
    photos = [photo for one in subjects for photo in one.photos]
    captions = _captions(settings, model, subjects)
    of_photos = settings.prior.weight > 0 and settings.prior.target == "photos"
    plain = _of_classes(model, subjects, captions) if of_photos else []
    counts, apart = shape_counts(photos), settings.loss.background == "class"
    views = [[photo.pixels for photo in photos]]
    if settings.photos.flip:
        views.append([one[:, ::-1] for one in views[0]])
    found = [_masks_of_each(view, subjects) for view in views] if apart else []
    images = _class_images(lightning, settings, model, subjects, counts, size) if settings.prior.uses_images else {}
    # All encoded after the class images, whose drawing must see the base as it is.
    around = _class_masks(images) if apart and images else {}
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
        if of_photos:
            kept.append(_as_their_class(taught[-1], model, said, [plain[row] for row in rows], apart))
        elif images:
            one = images[shape]
            by_base = settings.prior.target == "base"
            kept.append(encode(model, one.pixels, one.captions, taught=by_base, framings=one.framings))
            if apart:
                kept[-1] = _with_backgrounds(kept[-1], one, around[shape], settings, model, subjects)
    visits = list(counts.values())
    return together(taught, visits), together(kept, visits) if kept else None


# --- photos


def _masks_of_each(pictures: Sequence[np.ndarray], subjects: Sequence[Taught]) -> list[np.ndarray]:
    """Find the subject of each photo, by what the photos of that subject, of all shapes, have in common."""
    masks: list[np.ndarray] = []
    for one in subjects:
        masks += subject_masks(list(pictures[len(masks) : len(masks) + len(one.photos)]))
    return masks


def _captions(settings: PersonalizeSettings, model: Family, subjects: Sequence[Taught]) -> list[list[str]]:
    """Give the captions of each photo of all subjects, in many orders of their tags where that is wanted."""
    found: list[list[str]] = []
    for one in subjects:
        found += [[one.fill(text) for text in own] for own in _orders(model, one, len(found))]
    if settings.photos.shuffle_tags and sum(map(len, found)) == sum(
        len(photo.captions) for one in subjects for photo in one.photos
    ):
        warn("`photos.shuffle_tags`: no caption has tags to shuffle; commas separate them")
    return found


def _orders(model: Family, subject: Taught, first: int) -> list[Sequence[str]]:
    """Give the captions of each photo of a subject, whose photos are numbered from `first` on."""
    photos, seed = subject.settings.photos, subject.settings.training.seed
    if not photos.shuffle_tags:
        return [photo.captions for photo in subject.photos]
    how = (model.reader, *subject.called)
    return [
        shuffled(photo.captions, photos.keep_tags, seed, number, *how)
        for number, photo in enumerate(subject.photos, first)
    ]


def _of_classes(model: Family, subjects: Sequence[Taught], captions: list[list[str]]) -> list[tuple[str, ...]]:
    """Say the captions of each photo as captions of its class."""
    plain: list[tuple[str, ...]] = []
    for one in subjects:
        own = captions[len(plain) : len(plain) + len(one.photos)]
        named = [(photo.path, texts) for photo, texts in zip(one.photos, own, strict=True)]
        plain += of_class(named, model.reader, *one.called)
    return plain


def _as_their_class(
    photos: LatentSet, model: Family, captions: list[list[str]], plain: list[tuple[str, ...]], apart: bool
) -> LatentSet:
    """Give the photos for the prior: whole, under the captions `plain` of their class, the target the teacher's.

    With `apart` (`loss.background` class) a third of what the prior samples has the photos' own captions and counts in
    their background only.
    """
    kept = photos.relabelled(model, plain, torch.ones(()))
    if apart:
        most = photos.mask.amax(dim=(2, 3, 4), keepdim=True)
        around = 1 - photos.mask / most.clamp(min=1e-9)  # (N, F, 1, h, w): what the photos do not teach
        around /= around.mean(dim=(2, 3, 4), keepdim=True).clamp(min=1 / MAX_WEIGHT)
        kept += kept + photos.relabelled(model, captions, around)
    return kept


# --- class images


@dataclass(frozen=True)
class _ClassImages:
    """Class images of one shape."""

    pixels: np.ndarray
    """(N, H, W, 3), uint8; those of the class nouns first, noun by noun."""
    captions: list[list[str]]
    framings: list[Framing | None]
    counts: dict[str, int]
    """How many are of each noun."""

    def place(self, noun: str) -> tuple[int, int]:
        """Say where those of a noun begin, and how many there are."""
        nouns = [*self.counts]
        return sum(self.counts[one] for one in nouns[: nouns.index(noun)]), self.counts[noun]


def _class_images(
    lightning: Trainer,
    settings: PersonalizeSettings,
    model: Family,
    subjects: Sequence[Taught],
    counts: Mapping[Shape, int],
    size: int,
) -> dict[Shape, _ClassImages]:
    """Load or draw the class images of each shape, as many as its share of `counts` is."""
    nouns, strategy = list(dict.fromkeys(one.called.noun for one in subjects)), lightning.strategy
    processes = prior.Processes(lightning.global_rank, lightning.world_size, strategy.barrier, strategy.broadcast)
    images: dict[Shape, list[np.ndarray]] = {shape: [] for shape in counts}
    captions: dict[Shape, list[list[str]]] = {shape: [] for shape in counts}
    framings: dict[Shape, list[Framing | None]] = {shape: [] for shape in counts}
    of_nouns: dict[Shape, dict[str, int]] = {shape: {} for shape in counts}
    wanted = [*nouns, *settings.prior.other_classes]
    wanted = list(dict.fromkeys(wanted)) if len(nouns) > 1 else wanted
    if settings.prior.folder:
        (noun,) = nouns
        prompt = prior.prompts(settings.prior, noun)[0]
        wanted_shapes = size if settings.photos.shapes == "square" else counts
        first = processes.rank == 0
        ours = load_class_images(settings.prior.folder, wanted_shapes) if first else None
        for one in processes.broadcast(ours, 0):
            images[one.shape].append(one.pixels[None])
            framings[one.shape].append(one.framing)
            captions[one.shape].append([filled(text, "", noun) for text in one.captions] or [prompt])
        of_nouns = {shape: {noun: len(some)} for shape, some in images.items()}
    with stage("class images"):
        for number, noun in enumerate(wanted):
            if number == 0 and settings.prior.folder:
                continue
            prompt = settings.prior.prompt.replace("{class}", noun)
            for shape, count in in_proportion(counts, settings.prior.images).items():
                some = settings.prior.model_copy(update={"images": count})
                images[shape].append(prior.class_images(model, prompt, some, shape, processes))
                captions[shape] += [[prompt]] * count
                framings[shape] += [None] * count  # they are whole
                if number < len(nouns):
                    of_nouns[shape][noun] = count
                elif not sum(of_nouns[shape].values()):  # one's own folder has none of this shape
                    of_nouns[shape] = {nouns[0]: count}
    return {
        shape: _ClassImages(np.concatenate(some), captions[shape], framings[shape], of_nouns[shape])
        for shape, some in images.items()
    }


def _class_masks(images: Mapping[Shape, _ClassImages]) -> dict[Shape, dict[str, list[np.ndarray]]]:
    """Find the subject of each class image of each noun, by what those of all shapes have in common."""
    found: dict[Shape, dict[str, list[np.ndarray]]] = {shape: {} for shape in images}
    for noun in next(iter(images.values())).counts:
        places = {shape: one.place(noun) for shape, one in images.items()}
        pictures = [
            picture
            for shape, (first, count) in places.items()
            for picture in images[shape].pixels[first : first + count]
        ]
        masks = iter(subject_masks(pictures))
        for shape, (_, count) in places.items():
            found[shape][noun] = [next(masks) for _ in range(count)]
    return found


def _with_backgrounds(
    kept: LatentSet,
    images: _ClassImages,
    masks: Mapping[str, Sequence[np.ndarray]],
    settings: PersonalizeSettings,
    model: Family,
    subjects: Sequence[Taught],
) -> LatentSet:
    """Give what each subject brings: class images of its noun and of the other classes twice, so that they keep two
    thirds of the samples, and those of its noun with its identifier, of which only the background counts.
    """
    parts: list[LatentSet] = []
    of_nouns = sum(images.counts.values())
    for one in subjects:
        first, count = images.place(one.called.noun)
        ours = kept.some(first, count)
        if len(kept) > of_nouns:
            ours += kept.some(of_nouns, len(kept) - of_nouns)
        caption = one.fill(settings.prior.prompt.replace("{class}", "{token} {class}"))
        pictures = images.pixels[first : first + count]
        parts += [ours, ours, kept.background(model, pictures, caption, masks[one.called.noun], first)]
    found = parts[0]
    for part in parts[1:]:
        found += part
    return found
