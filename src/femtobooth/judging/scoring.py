"""Score a personalized model's pictures by one encoder: every score with its floor, its ceiling and its interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.metrics import Interval, bootstrap
from ..pictures.masks import HALF
from ..pictures.regions import only_subject, without_subject
from . import lpips, scores
from .encoders import Encoder
from .scores import PHOTOS
from .verdict import Evidence

Row = dict[str, Any]
"""score, encoder, weights, better (higher or lower), tuned (value, low, high), base (the floor), ceiling (the other end
of the scale), ceiling_of (what has that value), and more.
"""

FIDELITY, REGION = "subject fidelity", "subject fidelity, region"
MATCH, DRIFT = "prompt match, by example", "drift of its class (1 - cosine)"


@dataclass(frozen=True)
class Generated:
    """Everything that is scored: uint8 pictures (P, S, H, W, 3) for prompts and seeds, (C, H, W, 3) for a class."""

    tuned: np.ndarray
    base: np.ndarray
    classes: dict[str, tuple[np.ndarray, np.ndarray]]
    """Class prompt -> its pictures by the tuned model and by the base, from the same seeds; the subject's class first.
    """
    files: list[Path]


@dataclass(frozen=True)
class Real:
    """Photos, uint8 (H, W, 3), that pictures are compared with."""

    photos: Sequence[np.ndarray]
    """Those of the subject that pictures are compared with."""
    others: Sequence[np.ndarray] = ()
    """Further ones of the subject: what these get in place of pictures is the ceiling.

    Where there are none, it is what each of `photos` gets from the rest (leave-one-out); there is no ceiling where
    there is no rest.
    """
    gallery: Mapping[str, Sequence[np.ndarray]] = field(default_factory=dict)
    """Photos of look-alikes."""
    masks: Sequence[np.ndarray | None] = ()
    """Masks of `photos` and then of `others`, uint8 (H, W), where they came with some; none at all if not given."""

    @property
    def subjects(self) -> Real:
        """The photos with all but their subject painted grey: what their masks show, else what is found."""
        shown = [*self.photos, *self.others]
        parts = [mask if mask is None else mask >= HALF for mask in self.masks or [None] * len(shown)]
        alone = [only_subject(one, part) for one, part in zip(shown, parts, strict=True)]
        return Real(alone[: len(self.photos)], alone[len(self.photos) :])


def measure(encoder: Encoder, real: Real, generated: Generated, texts: Sequence[str], region: bool) -> list[Row]:
    """Take all scores by one encoder. `texts` say what each prompt asks for, without the identifier, which no encoder
    knows.

    With `region`, pictures are also scored with all but their subject painted grey, and with their subject painted
    grey.
    """
    prompts, count = generated.tuned.shape[:2]
    photos, others, tuned, base = _embedded(encoder, real, generated)
    rows = [_fidelity(encoder, FIDELITY, tuned, base, photos, others)]
    scenes = {"": (tuned, base)}
    if region:
        of_region = _embedded(encoder, real.subjects, generated, only_subject)
        rows.append(_fidelity(encoder, REGION, of_region[2], of_region[3], *of_region[:2]))
        nothing = Real([], [], {})
        scenes[", without region"] = _embedded(encoder, nothing, generated, without_subject)[2:]
    if real.gallery:
        rows.append(_gallery(encoder, real.gallery, tuned, base, photos, others))
    if encoder.texts:
        wanted = np.broadcast_to(encoder.texts(texts)[:, None], tuned.shape)
        rows += [
            _prompt_fidelity(encoder, f"prompt fidelity (CLIP-T){name}", *both, wanted) for name, both in scenes.items()
        ]
    if prompts > 1 and count > 1:
        rows += [_prompt_match(encoder, f"{MATCH}{name}", *both) for name, both in scenes.items()]
    if count > 1:
        ours, floor = (np.array([scores.diversity(row) for row in one]) for one in (tuned, base))
        apart = scores.diversity(photos) if len(photos) > 1 else None
        rows.append(_row(encoder, "diversity (1 - cosine)", "higher", bootstrap(np.mean, ours), floor.mean(), apart))
    return rows + _drift(encoder, generated, photos, rows[0]["ceiling"])


def evidence(rows: Sequence[Row], copied: Sequence[bool]) -> Evidence:
    """Gather what a verdict is made of from the rows of the first encoder; `copied` is which of the N pictures nearly
    copy a photo.

    Likeness is the mean of those of whole pictures and of regions, as where `filtering` lets pictures pass: by whole
    pictures alone a new background costs half of it, and by regions alone a patch of the right colours is perfect.
    """
    by_name = {row["score"]: row for row in rows if row["encoder"] == rows[0]["encoder"]}
    likeness = [by_name[name] for name in (FIDELITY, REGION) if name in by_name]
    ours, floor = (np.mean([row[key] for row in likeness], axis=0) for key in ("pictures", "base_pictures"))  # (P, S)
    match, drift = by_name.get(f"{MATCH}, without region", by_name.get(MATCH)), by_name.get(DRIFT)
    shows = np.ravel(match["pictures"]).astype(bool) if match else np.zeros(ours.size, bool)
    return Evidence(
        encoder=rows[0]["encoder"],
        pictures=ours.size,
        likeness=float(ours.mean()),
        floor=float(floor.mean()),
        gain=scores.over_prompts_and_seeds(ours - floor),
        ceiling=None if likeness[0]["ceiling"] is None else float(np.mean([row["ceiling"] for row in likeness])),
        obeyed=(match["tuned"][0], match["base"], match["chance"]) if match else None,
        drift=drift["tuned"][0] / drift["ceiling"] if drift and drift["ceiling"] else None,
        copies=sum(copied),
        astray=int((np.array(copied, bool) & ~shows).sum()),
    )


def diversity_by_lpips(generated: Generated, device: torch.device) -> Row:
    """Measure DIV as the paper has it (supplementary): mean LPIPS distance between the pictures of one prompt.

    Raises ModelError without LPIPS.
    """
    distances = lpips.open_distances(device)
    ours, floor = (
        np.array([scores.mean_pairwise(distances(list(row))) for row in one])
        for one in (generated.tuned, generated.base)
    )
    encoder = Encoder(
        lpips.NAME, f"AlexNet ({lpips.trunk_file().name}), linear weights v0.1", frozenset(), lambda _: np.empty(0)
    )
    return _row(encoder, "diversity (DIV)", "higher", bootstrap(np.mean, ours), floor.mean())


def _row(
    encoder: Encoder,
    score: str,
    better: str,
    tuned: Interval,
    base: float | None,
    ceiling: float | None = None,
    ceiling_of: str = PHOTOS,
    **more: Any,
) -> Row:
    named = {"score": score, "encoder": encoder.name, "weights": encoder.source, "better": better, "tuned": list(tuned)}
    floor, top = (None if value is None else float(value) for value in (base, ceiling))
    return {**named, "base": floor, "ceiling": top, "ceiling_of": None if top is None else ceiling_of, **more}


def _embedded(
    encoder: Encoder, real: Real, generated: Generated, change: Callable[[np.ndarray], np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, np.ndarray]:
    """Embed the photos (M, D), the others (or None), and the tuned model's and the base's pictures (P, S, D), which are
    changed before.
    """

    def embed(pictures: np.ndarray) -> np.ndarray:
        flat = list(pictures.reshape(-1, *pictures.shape[2:]))
        return encoder.images([change(one) for one in flat] if change else flat).reshape(*pictures.shape[:2], -1)

    tuned, base = embed(generated.tuned), embed(generated.base)
    photos = encoder.images(list(real.photos)) if len(real.photos) else np.empty((0, tuned.shape[-1]))
    return photos, encoder.images(list(real.others)) if len(real.others) else None, tuned, base


def _flat(grid: np.ndarray) -> np.ndarray:
    """Reshape (P, S, D) to (N, D)."""
    return grid.reshape(-1, grid.shape[-1])


def _fidelity(
    encoder: Encoder, name: str, tuned: np.ndarray, base: np.ndarray, photos: np.ndarray, others: np.ndarray | None
) -> Row:
    ours, floor = (scores.subject_fidelity(_flat(one), photos).reshape(one.shape[:2]) for one in (tuned, base))
    ceiling = None
    if others is not None:
        ceiling = scores.subject_fidelity(others, photos).mean()
    elif len(photos) > 1:
        ceiling = scores.leave_one_out(photos).mean()
    more: Row = {
        "gain": list(scores.over_prompts_and_seeds(ours - floor)),
        "pictures": ours.tolist(),
        "base_pictures": floor.tolist(),
    }
    return _row(encoder, name, "higher", scores.over_prompts_and_seeds(ours), floor.mean(), ceiling, **more)


def _gallery(
    encoder: Encoder,
    gallery: Mapping[str, Sequence[np.ndarray]],
    tuned: np.ndarray,
    base: np.ndarray,
    photos: np.ndarray,
    others: np.ndarray | None,
) -> Row:
    """Measure the share of pictures that are nearer to the subject than to every look-alike."""
    look_alikes = [encoder.images(list(one)) for one in gallery.values()]
    places, floor = (scores.ranks(_flat(one), photos, look_alikes).reshape(one.shape[:2]) for one in (tuned, base))
    ceiling = None
    if others is not None:
        ceiling = (scores.ranks(others, photos, look_alikes) == 1).mean()
    elif len(photos) > 1:
        alone = [scores.ranks(photos[[row]], np.delete(photos, row, axis=0), look_alikes) for row in range(len(photos))]
        ceiling = (np.concatenate(alone) == 1).mean()
    more: Row = {"among": [*gallery], "mean_rank": float(places.mean()), "chance": 1 / (len(gallery) + 1)}
    first = scores.share_over_prompts_and_seeds(places == 1)
    return _row(
        encoder, f"first of {len(gallery) + 1} in gallery", "higher", first, (floor == 1).mean(), ceiling, **more
    )


def _prompt_fidelity(encoder: Encoder, name: str, tuned: np.ndarray, base: np.ndarray, wanted: np.ndarray) -> Row:
    ours, floor = (scores.prompt_fidelity(_flat(one), _flat(wanted)).reshape(one.shape[:2]) for one in (tuned, base))
    return _row(encoder, name, "higher", scores.over_prompts_and_seeds(ours), floor.mean(), pictures=ours.tolist())


def _prompt_match(encoder: Encoder, name: str, tuned: np.ndarray, examples: np.ndarray) -> Row:
    shown = scores.prompt_match(tuned, examples)
    more: Row = {"chance": 1 / len(tuned), "pictures": shown.tolist()}
    found = scores.share_over_prompts_and_seeds(shown)
    return _row(encoder, name, "higher", found, scores.prompt_match(examples, examples).mean(), **more)


def _drift(encoder: Encoder, generated: Generated, photos: np.ndarray, likeness: float | None) -> list[Row]:
    """Measure how far the pictures of each class have moved, and those of the subject's own class towards its photos.

    `likeness` is that of the photos among each other. KID alone has no scale: beside it stands that to another class's
    pictures.
    """
    rows = []
    embedded = {
        prompt: [encoder.images(list(one)) for one in pictures] for prompt, pictures in generated.classes.items()
    }
    for index, (prompt, (now, before)) in enumerate(embedded.items()):
        if index == 0:
            near, floor = (scores.subject_fidelity(one, photos) for one in (now, before))
            rows.append(
                _row(encoder, "prior preservation (PRES)", "lower", bootstrap(np.mean, near), floor.mean(), likeness)
            )
            moved = 1 - np.diag(scores.cosines(now, before))
            rows.append(_row(encoder, DRIFT, "lower", bootstrap(np.mean, moved), 0.0, 1 - floor.mean()))
        name = "drift of its class (KID)" if index == 0 else f"drift of '{prompt}' (KID)"
        other = next((text for text in embedded if text != prompt), None)
        away = scores.kid(embedded[other][1], before, resamples=1).value if other else None
        rows.append(
            _row(encoder, name, "lower", scores.kid(now, before), 0.0, away, f"the base's '{other}' in its place")
        )
    return rows
