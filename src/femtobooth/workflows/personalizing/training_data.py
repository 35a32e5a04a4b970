"""What a DreamBooth training reads: latents of the photos, and of class images or the photos as their class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from lightning.pytorch import Trainer

from ...core.events import stage, warn
from ...generator import prior
from ...generator.captions import of_class
from ...generator.families.family import Family
from ...generator.latents import LatentSet, encode
from ...generator.loss_masks import MAX_WEIGHT, Region
from ...generator.photos import Photo, load_class_images
from ...generator.prompts import filled
from ...generator.settings import PersonalizeSettings
from ...generator.tags import shuffled


def latents(
    lightning: Trainer,
    settings: PersonalizeSettings,
    model: Family,
    token: str,
    photos: list[Photo],
    size: int,
) -> tuple[LatentSet, LatentSet | None]:
    """Encode photos and class images with the VAE, once; the class images are drawn first where they are missing.

    With `prior.target` photos the second set is that of the photos under captions of their class.
    """
    noun = settings.photos.class_noun
    captions = [[filled(text, token, noun) for text in own] for own in _orders(settings, model, token, photos)]
    pictures = np.stack([photo.pixels for photo in photos])
    apart = settings.loss.background == "class"

    def subject() -> LatentSet:
        region: Region = "subject" if apart else "all"
        repeats = [photo.repeats for photo in photos]
        masks, outside = [photo.mask for photo in photos], settings.loss.unmasked_weight
        return encode(
            model, pictures, captions, settings.photos.flip, region, repeats=repeats, masks=masks, outside=outside
        )

    if settings.prior.weight == 0:
        return subject(), None
    if settings.prior.target == "photos":
        return _as_their_class(subject(), settings, model, token, photos, captions)
    strategy = lightning.strategy
    processes = prior.Processes(lightning.global_rank, lightning.world_size, strategy.barrier, strategy.broadcast)
    images: list[np.ndarray] = []
    prompts: list[list[str]] = []
    wanted = prior.prompts(settings.prior, noun)
    if settings.prior.folder:
        own = load_class_images(settings.prior.folder, size)
        images = [np.stack([one.pixels for one in own])]
        prompts = [[filled(text, token, noun) for text in one.captions] or [wanted[0]] for one in own]
        wanted = wanted[1:]
    with stage("class images"):
        for prompt in wanted:
            images.append(prior.class_images(model, prompt, settings.prior, size, processes))
            prompts += [[prompt]] * len(images[-1])
    # All encoded after the class images, whose drawing must see the base as it is.
    kept = encode(model, np.concatenate(images), prompts, taught=settings.prior.target == "base")
    if apart:  # class images as they are twice, so that they keep two thirds of the samples
        caption = filled(settings.prior.prompt.replace("{class}", "{token} {class}"), token, noun)
        kept += kept + kept.background(model, images[0], caption)
    return subject(), kept


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
    subject: LatentSet,
    settings: PersonalizeSettings,
    model: Family,
    token: str,
    photos: list[Photo],
    captions: list[list[str]],
) -> tuple[LatentSet, LatentSet]:
    """Give the photos, and the same for the prior: whole, under captions of their class, the target the teacher's.

    With `loss.background` class, a third of what the prior samples has the photos' own captions and counts in their
    background only.
    """
    named = [(photo.path, own) for photo, own in zip(photos, captions, strict=True)]
    plain = of_class(named, model.tokenizer, token, settings.photos.class_noun)
    kept = subject.relabelled(model, plain, torch.ones(()))
    if settings.loss.background == "class":
        most = subject.mask.amax(dim=(2, 3, 4), keepdim=True)
        around = 1 - subject.mask / most.clamp(min=1e-9)  # (N, F, 1, h, w): what the photos do not teach
        around /= around.mean(dim=(2, 3, 4), keepdim=True).clamp(min=1 / MAX_WEIGHT)
        kept += kept + subject.relabelled(model, captions, around)
    return subject, kept
