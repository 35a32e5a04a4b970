"""A personalized model's pictures scored by one encoder: every score with its floor, its ceiling and its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..core import scores
from ..core.metrics import Interval, bootstrap
from ..core.regions import only_subject, without_subject
from . import duplicates
from .encoders import Encoder


@dataclass(frozen=True)
class Drawn:
    """Everything that is scored: uint8 pictures (P, S, H, W, 3) for prompts and seeds, (C, H, W, 3) for a class."""

    tuned: np.ndarray
    base: np.ndarray
    classes: dict[str, tuple[np.ndarray, np.ndarray]]
    """Class prompt -> its pictures by the tuned model and by the base, from the same seeds; the subject's class first."""
    files: list[Path]


def measure(
    encoder: Encoder,
    photos: Sequence[np.ndarray],
    drawn: Drawn,
    texts: Sequence[str],
    gallery: Mapping[str, Sequence[np.ndarray]],
    region: bool,
) -> list[dict[str, Any]]:
    """All scores by one encoder, as rows: score, better (higher or lower), tuned, base (the floor), photos (the ceiling), encoder.

    `texts` say what each prompt asks for, without the identifier, which no encoder knows.
    """
    rows: list[dict[str, Any]] = []
    count = drawn.tuned.shape[1]

    def add(score: str, better: str, tuned: Interval, base: float | None = None, ceiling: float | None = None, **more: Any) -> None:
        rows.append(
            {
                "score": score,
                "encoder": encoder.name,
                "weights": encoder.source,
                "better": better,
                "tuned": list(tuned),
                "base": base,
                "ceiling": ceiling,
                **more,
            }
        )

    def embedded(pictures: np.ndarray) -> np.ndarray:
        """(P, S, H, W, 3) to (P, S, D)."""
        return encoder.images(list(pictures.reshape(-1, *pictures.shape[2:]))).reshape(*pictures.shape[:2], -1)

    def grid(values: np.ndarray) -> np.ndarray:
        return values.reshape(-1, count)

    def fidelity(name: str, tuned: np.ndarray, base: np.ndarray, real: np.ndarray) -> None:
        ours, floor = (grid(scores.subject_fidelity(one.reshape(-1, one.shape[-1]), real)) for one in (tuned, base))
        ceiling = float(scores.leave_one_out(real).mean()) if len(real) > 1 else None
        gain = scores.over_prompts_and_seeds(ours - floor)
        add(name, "higher", scores.over_prompts_and_seeds(ours), float(floor.mean()), ceiling, gain=list(gain), pictures=ours.tolist())

    real, tuned, base = encoder.images(photos), embedded(drawn.tuned), embedded(drawn.base)
    flat = tuned.reshape(-1, tuned.shape[-1])
    fidelity("subject fidelity", tuned, base, real)
    if region:
        parts = [np.array([[only_subject(one) for one in row] for row in pictures]) for pictures in (drawn.tuned, drawn.base)]
        fidelity("subject fidelity, region", embedded(parts[0]), embedded(parts[1]), encoder.images([only_subject(one) for one in photos]))
    if gallery:
        places = scores.ranks(flat, real, [encoder.images(list(one)) for one in gallery.values()])
        first = scores.share_over_prompts_and_seeds(grid(places == 1))
        floor = scores.ranks(base.reshape(flat.shape), real, [encoder.images(list(one)) for one in gallery.values()])
        more = {"among": [*gallery], "mean_rank": float(places.mean())}
        add(f"first of {len(gallery) + 1} in gallery", "higher", first, float((floor == 1).mean()), 1.0, **more)

    if encoder.texts:
        read = np.repeat(encoder.texts(texts), count, axis=0)
        ours, floor = (grid(scores.prompt_fidelity(one.reshape(flat.shape), read)) for one in (tuned, base))
        add("prompt fidelity (CLIP-T)", "higher", scores.over_prompts_and_seeds(ours), float(floor.mean()), pictures=ours.tolist())
    if len(texts) > 1 and count > 1:
        kinds = {"prompt match, by example": (tuned, base)}
        if region:
            rests = [np.array([[without_subject(one) for one in row] for row in pictures]) for pictures in (drawn.tuned, drawn.base)]
            kinds["prompt match, without region"] = (embedded(rests[0]), embedded(rests[1]))
        for name, (ours, examples) in kinds.items():
            found = scores.share_over_prompts_and_seeds(scores.prompt_match(ours, examples))
            add(name, "higher", found, float(scores.prompt_match(examples, examples).mean()), chance=1 / len(texts))
    if count > 1:
        ours, floor = (np.array([scores.diversity(row) for row in one]) for one in (tuned, base))
        add("diversity (1 - cosine)", "higher", bootstrap(np.mean, ours), float(floor.mean()))
    for index, (prompt, (now, before)) in enumerate(drawn.classes.items()):
        ours, theirs = encoder.images(list(now)), encoder.images(list(before))
        if index == 0:
            near, floor = scores.subject_fidelity(ours, real), scores.subject_fidelity(theirs, real)
            add("prior preservation (PRES)", "lower", bootstrap(np.mean, near), float(floor.mean()))
        name = "drift of its class (KID)" if index == 0 else f"drift of '{prompt}' (KID)"
        add(name, "lower", scores.kid(ours, theirs), 0.0)
    return rows


def near_copies(pictures: Sequence[np.ndarray] | np.ndarray, photos: Sequence[np.ndarray]) -> list[bool]:
    """Whether each picture is a near-copy of a photo (perceptual hash): a sign that training memorized it."""
    known = [duplicates.views(Image.fromarray(photo)) for photo in photos]
    digests = [f"photo {index}" for index in range(len(known))]
    found = []
    for picture in pictures:
        views = [*known, duplicates.views(Image.fromarray(picture))]
        found.append(bool(duplicates.groups(views, [*digests, "picture"])[-1] != len(known)))
    return found
