"""Choose the generated pictures that are good enough to train on: like the subject and no other, no copy of a photo,
and each only once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..core.events import progress
from ..pictures import duplicates
from ..pictures.regions import only_subject
from . import scores
from .encoders import Encoder
from .memorization import near_copies
from .verdict import PARTLY_SHARE

KEPT, EMPTY, UNLIKE, OTHER, COPY, TWICE = "kept", "empty", "unlike", "another subject", "copy of a photo", "twice"
REASONS = (EMPTY, UNLIKE, OTHER, COPY, TWICE)
PROGRESS_PICTURES = 8  # pictures between two moves of the bar
# Pictures without the subject that a threshold needs, or more where fewer than one in this many may pass.
MIN_BASE_PICTURES = 20


@dataclass(frozen=True)
class Filtered:
    """What was decided of N generated pictures, and on what grounds. Scores are those of `likeness`."""

    verdicts: list[str]
    """For each picture `kept`, or why not: empty (without structure), unlike (the subject), another subject (more like
    its photos), copy of a photo, twice (a near-duplicate).
    """
    scores: np.ndarray  # (N,)
    threshold: float
    """A picture must score more than this."""
    photos: np.ndarray  # (n,): each photo with the others; empty for a single photo
    base: np.ndarray  # (M,): pictures of the same prompts without the subject

    @property
    def photos_pass(self) -> int:
        """Count the photos that would pass themselves: few, and the encoder does not know this subject."""
        return int((self.photos > self.threshold).sum())

    @property
    def base_passes(self) -> int:
        """Count the pictures without the subject that would pass."""
        return int((self.base > self.threshold).sum())


def needed(share: float) -> int:
    """Count how many pictures without the subject tell which score `share` (0..1) of them exceed."""
    return max(MIN_BASE_PICTURES, math.ceil(1 / share) if share else 0)


def limit(base: np.ndarray, share: float) -> float:
    """Find the score that at most `share` (0..1) of the pictures without the subject exceed (false acceptance)."""
    ordered = np.sort(base)[::-1]
    return float(ordered[min(int(share * len(ordered)), len(ordered) - 1)])


def filtered(
    encoder: Encoder,
    photos: Sequence[np.ndarray],
    base: Sequence[np.ndarray],
    pictures: Sequence[np.ndarray],
    share: float,
    threshold: float | None = None,
    others: Sequence[Sequence[np.ndarray]] = (),
) -> Filtered:
    """Judge `pictures` uint8 (H, W, 3) by their likeness to the subject's `photos`, and to those of the `others`.

    A score is the mean of two cosines (`scores.subject_fidelity`): of the whole pictures, and of their subjects'
    regions alone, so that a copied background earns half at most. Without a `threshold` it comes from `base`, pictures
    of the same prompts by the untuned model, of which at most `share` may pass; and it is never less than a quarter of
    the way from their mean to that of the photos among each other, below which a subject counts as not learned. What is
    more like the photos of another subject would be filed under the wrong name. Of near-duplicates the best stays.
    """
    given = [*photos, *base, *pictures, *itertools.chain(*others)]
    parts = []
    for start in progress(range(0, len(given), PROGRESS_PICTURES), f"judging by {encoder.name}"):
        chunk = given[start : start + PROGRESS_PICTURES]
        parts.append((encoder.images(chunk), encoder.images([only_subject(one) for one in chunk])))
    ends = np.cumsum([len(some) for some in (photos, base, pictures, *others)])[:-1]
    (real, floor, found, *foreign), (real_region, floor_region, found_region, *foreign_region) = (
        np.split(np.concatenate(side), ends) for side in zip(*parts, strict=True)
    )

    def likeness(
        whole: np.ndarray, region: np.ndarray, to: np.ndarray = real, to_region: np.ndarray = real_region
    ) -> np.ndarray:
        return (scores.subject_fidelity(whole, to) + scores.subject_fidelity(region, to_region)) / 2

    own = (scores.leave_one_out(real) + scores.leave_one_out(real_region)) / 2 if len(real) > 1 else np.zeros(0)
    of_base, ours = likeness(floor, floor_region), likeness(found, found_region)
    quarter = of_base.mean() + PARTLY_SHARE * (own.mean() - of_base.mean()) if len(own) else -1.0
    least = max(limit(of_base, share), float(quarter)) if threshold is None else threshold
    theirs = np.full(len(pictures), -np.inf)
    for whole, region in zip(foreign, foreign_region, strict=True):
        theirs = np.maximum(theirs, likeness(found, found_region, whole, region))
    views = [duplicates.views(Image.fromarray(one)) for one in pictures]
    verdicts = [
        EMPTY if view is None else UNLIKE if score <= least else OTHER if score < other else KEPT
        for view, score, other in zip(views, ours, theirs, strict=True)
    ]
    passed = [index for index, verdict in enumerate(verdicts) if verdict == KEPT]
    if passed:
        for index, copy in zip(passed, near_copies([pictures[index] for index in passed], photos), strict=True):
            verdicts[index] = COPY if copy else KEPT
    passed = [index for index in passed if verdicts[index] == KEPT]
    for place in repeated([views[index] for index in passed], ours[passed]):
        verdicts[passed[place]] = TWICE
    return Filtered(verdicts, ours, least, own, of_base)


def repeated(views: Sequence[np.ndarray | None], better: np.ndarray) -> list[int]:
    """Find which of N pictures (`duplicates.views`) repeat another: of each group of near-duplicates all but the
    `better` (N,) one.
    """
    if not views:
        return []
    groups = duplicates.groups(list(views), [str(index) for index in range(len(views))])
    best = {
        group: max(np.flatnonzero(groups == group), key=lambda index: (better[index], -index))
        for group in np.unique(groups)
    }
    return [index for index, group in enumerate(groups) if best[group] != index]
