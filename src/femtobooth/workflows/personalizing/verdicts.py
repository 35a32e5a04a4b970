"""What a personalize run came to, from the pictures that are drawn before and after training anyway."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ...core.errors import InputError
from ...core.files import sha256_of
from ...generator import locate
from ...generator.photos import Photo
from ...generator.prompts import bare, filled, names_subject
from ...generator.settings import PersonalizeSettings
from ...judging import verdict
from ...judging.encoders import Encoder, open_encoder, usable
from ...judging.memorization import near_copies
from ...judging.scoring import Generated, Real, evidence, measure
from ...judging.verdict import Verdict

UNKNOWN_BASE = (
    "The bundled base draws 64x64 icons and knows no photographs; for photos take a Stable Diffusion 1.x or 2.x."
)


def of_samples(
    settings: PersonalizeSettings,
    photos: Sequence[Photo],
    held_out: Sequence[Photo],
    before: np.ndarray,
    after: np.ndarray,
    encoder: Encoder | None,
    device: torch.device,
) -> Verdict:
    """Judge the samples (P, S, H, W, 3) of the tuned model, `after`, by those of its base, `before`, and by photos.

    `encoder` is what scored during training; where nothing did, the one that would have. It scores on `device`.
    """
    ours = [row for row, prompt in enumerate(settings.samples.prompts) if names_subject(prompt)]
    if not ours:
        return verdict.unjudged("no sample prompt names the subject ([V])", verdict.EVALUATE)
    noun, scored = settings.photos.class_noun, held_out or photos
    texts = [filled(bare(settings.samples.prompts[row]), "", noun) for row in ours]
    of_others = [row for row in range(len(after)) if row not in ours] if after.shape[1] > 1 else []
    of_class = {settings.samples.prompts[row]: (after[row], before[row]) for row in of_others}
    pictures = list(after[ours].reshape(-1, *after.shape[2:]))
    try:
        judge = (encoder or open_encoder(settings.validation.encoder or usable(())[0])).to(device)
        judge.refuse_trained_on(sha256_of(photo.path) for photo in [*photos, *held_out] if photo.path.is_file())
    except InputError as error:
        return verdict.unjudged(error.problem, "Next: femtobooth evaluate, with this run and another encoder.")
    others, masked = (photos, [*scored, *photos]) if held_out else ([], scored)
    masks = [photo.mask for photo in masked]
    real = Real([photo.pixels for photo in scored], [photo.pixels for photo in others], masks=masks)
    rows = measure(judge, real, Generated(after[ours], before[ours], of_class, []), texts, region=True)
    copied = near_copies(pictures, [photo.pixels for photo in photos])
    return verdict.judge(evidence(rows, copied), bundled=settings.base == locate.BUNDLED)
