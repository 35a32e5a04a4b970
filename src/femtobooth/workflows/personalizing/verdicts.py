"""What a personalize run came to, from the pictures that are drawn before and after training anyway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ...core.errors import InputError
from ...core.files import sha256_of
from ...generator import locate
from ...generator.families.known import NAMES
from ...generator.prompts import Prompt
from ...generator.taught import Taught
from ...judging import verdict
from ...judging.encoders import Encoder, open_encoder, usable
from ...judging.memorization import near_copies
from ...judging.scoring import Generated, Real, evidence, measure
from ...judging.verdict import Verdict

UNKNOWN_BASE = f"The bundled base draws 64x64 icons and knows no photographs; for photos take a {NAMES}."


def of_samples(
    subjects: Mapping[str, Taught],
    prompts: Sequence[Prompt],
    before: np.ndarray,
    after: np.ndarray,
    encoder: Encoder | None,
    device: torch.device,
) -> dict[str, Verdict]:
    """Judge the samples (P, S, H, W, 3) of the tuned model, `after`, by those of its base, `before`, and by photos: of
    each subject.

    `encoder` is what scored during training; where nothing did, the one that would have. It scores on `device`.
    """
    tokens = {one.token for one in subjects.values()} if len(subjects) > 1 else set()
    classes = [row for row, one in enumerate(prompts) if not one.of and not tokens & set(one.text.split())]
    return {
        name: _of_subject(name, one, prompts, classes, before, after, encoder, device) for name, one in subjects.items()
    }


def _of_subject(
    name: str,
    subject: Taught,
    prompts: Sequence[Prompt],
    classes: Sequence[int],
    before: np.ndarray,
    after: np.ndarray,
    encoder: Encoder | None,
    device: torch.device,
) -> Verdict:
    """Judge the samples of one subject; `classes` are the rows of prompts that show none."""
    ours = [row for row, prompt in enumerate(prompts) if prompt.of == name]
    if not ours:
        return verdict.unjudged("no sample prompt names the subject ([V])", verdict.EVALUATE)
    settings, photos, held_out, scored = subject.settings, subject.photos, subject.held_out, subject.scored
    texts = [prompts[row].bare for row in ours]
    noun = subject.called.noun
    own_first = sorted(classes, key=lambda row: len(classes) > 1 and noun not in prompts[row].text)
    of_others = own_first if after.shape[1] > 1 else []
    of_class = {prompts[row].text: (after[row], before[row]) for row in of_others}
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
