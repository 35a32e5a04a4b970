"""What photos are cropped around: what they have in common, and doubts about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..pictures.crops import SUBJECT_SHARE
from ..pictures.images import Picture, decode
from ..pictures.regions import find_subjects, likeness_of_subjects, thumbnail

CROPS = "crops.png"  # in a run folder: the photos as they are trained on
MIN_SIDE_PIXELS = 64  # below, there is nothing to learn a subject from
MIN_KEPT_SHARE = 0.3  # of a photo: a crop that keeps less may hold a detail, or something beside the subject
MIN_LIKENESS = 0.4  # of what is taken for the subject: below, its colours are not those of the other photos' subjects


@dataclass(frozen=True)
class FoundSubject:
    """What is taken for the subject of a photo."""

    mask: np.ndarray | None
    """bool (h, w), of any resolution."""
    likeness: float | None
    """Share of it that has colours of the other photos' subjects."""


def subjects_of(paths: Sequence[Path]) -> dict[Path, FoundSubject]:
    """Find what the photos have in common, in their thumbnails; each file is read once more, as not all may fit in
    memory at once.
    """
    thumbnails = {}
    for path in paths:
        picture = decode(path)
        if isinstance(picture, Picture) and min(picture.image.size) >= MIN_SIDE_PIXELS:
            thumbnails[path] = thumbnail(np.asarray(picture.image))
    small = list(thumbnails.values())
    masks = find_subjects(small)
    found = zip(masks, likeness_of_subjects(small, masks), strict=True)
    return {path: FoundSubject(mask, likeness) for path, (mask, likeness) in zip(thumbnails, found, strict=True)}


def doubtful_crops(paths: Sequence[Path], subjects: Mapping[Path, FoundSubject]) -> list[str]:
    """List warnings of what may have been taken for the subject instead of it."""
    known = [(path, subjects[path]) for path in paths if path in subjects and subjects[path].mask is not None]
    small = [f"{path.name} ({part:.0%})" for path, one in known if (part := _kept(one.mask)) < MIN_KEPT_SHARE]
    other = [path.name for path, one in known if one.likeness is not None and one.likeness < MIN_LIKENESS]
    warnings = []
    if small:
        warnings.append(
            f"the crop around what stands out keeps little of {', '.join(small)}; see in {CROPS} if it is the subject"
        )
    if other:
        warnings.append(
            f"what stands out in {', '.join(other)} has other colours than in "
            f"the rest; see in {CROPS} if it is the subject"
        )
    if warnings:
        warnings.append("where it is not, `photos.crop=smart` keeps the most detailed square, and center the middle")
    return warnings


def _kept(mask: np.ndarray | None) -> float:
    """Estimate the share of a photo that the crop around a mask keeps, roughly."""
    box = None if mask is None else Image.fromarray(mask).getbbox()
    if mask is None or box is None:
        return 1.0
    side = max((box[2] - box[0]) / mask.shape[1], (box[3] - box[1]) / mask.shape[0]) / SUBJECT_SHARE
    return min(side, 1.0) ** 2
