"""What a DreamBooth training reads: latents of the photos, and of class images."""

from __future__ import annotations

import numpy as np
from lightning.pytorch import Trainer

from ...core.events import stage
from ...generator import prior
from ...generator.families.family import Family
from ...generator.latents import LatentSet, encode
from ...generator.photos import Photo, load_class_images
from ...generator.prompts import filled
from ...generator.settings import PersonalizeSettings


def latents(
    lightning: Trainer,
    settings: PersonalizeSettings,
    model: Family,
    token: str,
    photos: list[Photo],
    size: int,
) -> tuple[LatentSet, LatentSet | None]:
    """Encode photos and class images with the VAE, once; the class images are drawn first where they are missing."""
    captions = [[filled(text, token, settings.photos.class_noun) for text in photo.captions] for photo in photos]
    pictures = np.stack([photo.pixels for photo in photos])
    apart = settings.loss.background == "class"

    def subject() -> LatentSet:
        return encode(model, pictures, captions, settings.photos.flip, "subject" if apart else "all")

    if settings.prior.weight == 0:
        return subject(), None
    strategy = lightning.strategy
    processes = prior.Processes(lightning.global_rank, lightning.world_size, strategy.barrier, strategy.broadcast)
    images: list[np.ndarray] = []
    prompts: list[list[str]] = []
    wanted = prior.prompts(settings.prior, settings.photos.class_noun)
    if settings.prior.folder:
        own = load_class_images(settings.prior.folder, size)
        images = [np.stack([one.pixels for one in own])]
        prompts = [
            [filled(text, token, settings.photos.class_noun) for text in one.captions] or [wanted[0]] for one in own
        ]
        wanted = wanted[1:]
    with stage("class images"):
        for prompt in wanted:
            images.append(prior.class_images(model, prompt, settings.prior, size, processes))
            prompts += [[prompt]] * len(images[-1])
    # All encoded after the class images, whose drawing must see the base as it is.
    kept = encode(model, np.concatenate(images), prompts, taught=settings.prior.target == "base")
    if apart:  # class images as they are twice, so that they keep two thirds of the samples
        caption = filled(settings.prior.prompt.replace("{class}", "{token} {class}"), token, settings.photos.class_noun)
        kept += kept + kept.background(model, images[0], caption)
    return subject(), kept
