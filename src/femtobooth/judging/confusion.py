"""Tell several subjects of one model apart: who was drawn when who was asked for, and whether both are in one picture.

A picture is recognized as the subject whose photos it is most like (`scores.subject_fidelity`); with regions, likeness
is the mean of that of whole pictures and that of their subjects alone. All pictures are uint8 (H, W, 3).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..core.metrics import wilson
from ..pictures.regions import only_subject
from . import scores
from .encoders import Encoder
from .verdict import LEARNED_SHARE

WINDOW_SHARE, STEPS = 0.6, 3  # of a picture's side that a window takes; windows across, and down
RULE = (
    f"A picture is looked at through {STEPS} x {STEPS} windows of {WINDOW_SHARE:.0%} of its side. A subject is found "
    "where one of them is most like it of all subjects and its likeness is at least "
    f"{LEARNED_SHARE:.0%} of the way from the best window of the untuned base's pictures of the same prompts to its "
    "photos among each other."
)


class Galleries:
    """The photos of several subjects, or of look-alikes, by one encoder."""

    def __init__(self, encoder: Encoder, photos: Mapping[str, Sequence[np.ndarray]], region: bool = True) -> None:
        self.encoder, self.region, self.names = encoder, region, list(photos)
        self.photos = [self._embedded(list(some)) for some in photos.values()]

    def _embedded(self, pictures: list[np.ndarray]) -> list[np.ndarray]:
        """Embed pictures (N, D): whole, and their subjects alone."""
        views = [pictures, [only_subject(one) for one in pictures]] if self.region else [pictures]
        return [self.encoder.images(view) for view in views]

    def likeness(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Measure how alike pictures are to the photos of each: (N, K), cosines from -1 to 1."""
        views = self._embedded(list(pictures))
        return np.stack([_mean(scores.subject_fidelity, views, photos) for photos in self.photos], axis=1)

    def own(self) -> list[np.ndarray]:
        """Measure how alike the photos of each are among each other (n,); nothing of a single photo."""
        return [
            np.mean([scores.leave_one_out(view) for view in photos], axis=0) if len(photos[0]) > 1 else np.zeros(0)
            for photos in self.photos
        ]

    def photos_recognized(self) -> tuple[int, int]:
        """Count the photos that are recognized where each is compared with the others, and all that can be."""
        right = total = 0
        for index, (photos, own) in enumerate(zip(self.photos, self.own(), strict=True)):
            others = [
                _mean(scores.subject_fidelity, photos, one) for one in self.photos[:index] + self.photos[index + 1 :]
            ]
            right += int((own > np.max(others, axis=0)).sum()) if len(own) and others else 0
            total += len(own)
        return right, total


def _mean(measure: Any, views: Sequence[np.ndarray], photos: Sequence[np.ndarray]) -> np.ndarray:
    return np.asarray(np.mean([measure(view, own) for view, own in zip(views, photos, strict=True)], axis=0))


def counts(recognized: Mapping[str, Sequence[int]], columns: int) -> np.ndarray:
    """Count who was recognized, a row for each who was asked for: int (K, columns)."""
    return np.stack([np.bincount(np.asarray(row, np.int64), minlength=columns) for row in recognized.values()])


def confusion(
    galleries: Galleries, pictures: Mapping[str, Sequence[np.ndarray]], base: Mapping[str, Sequence[np.ndarray]]
) -> dict[str, Any]:
    """Say who was recognized when who was asked for, by the tuned model and, as a control, by its untuned base.

    Returns asked (K names), recognized (names of the galleries, the subjects first), counts and base (K, columns),
    right (a share with its 95 % Wilson interval for each asked) and photos (how many real photos are told apart, of how
    many): what an encoder cannot tell apart in photos, it cannot in pictures.
    """
    found, floor = (
        counts({name: galleries.likeness(some).argmax(axis=1) for name, some in given.items()}, len(galleries.names))
        for given in (pictures, base)
    )
    right = [
        wilson(int(row[galleries.names.index(name)]), int(row.sum())) for name, row in zip(pictures, found, strict=True)
    ]
    return {
        "encoder": galleries.encoder.name,
        "asked": list(pictures),
        "recognized": galleries.names,
        "counts": found.tolist(),
        "base": floor.tolist(),
        "right": [list(one) for one in right],
        "photos": list(galleries.photos_recognized()),
    }


def windows(picture: np.ndarray) -> list[np.ndarray]:
    """Cut a picture into overlapping squares or, of an oblong one, pieces of its shape."""
    height, width = (max(round(side * WINDOW_SHARE), 1) for side in picture.shape[:2])
    tops, lefts = (
        np.linspace(0, side - part, STEPS).round().astype(int)
        for side, part in zip(picture.shape[:2], (height, width), strict=True)
    )
    return [picture[top : top + height, left : left + width] for top, left in itertools.product(tops, lefts)]


def together(
    galleries: Galleries,
    pair: tuple[str, str],
    pictures: Sequence[np.ndarray],
    base: Sequence[np.ndarray],
) -> dict[str, Any]:
    """Say by `RULE` whether each of two subjects is found in pictures that both were asked for in.

    Returns subjects, of (pictures), found (of each a share with its 95 % Wilson interval), both (the same) and base,
    what the untuned base's pictures get by the same rule: each and both.
    """
    own = [likeness.mean() if len(likeness) else 1.0 for likeness in galleries.own()]
    seen, floor = (
        np.stack([galleries.likeness(windows(one)) for one in some]) for some in (pictures, base)
    )  # (N, windows, K)
    most = floor.max(axis=1).mean(axis=0)
    least = most + LEARNED_SHARE * (np.array(own) - most)
    places = [galleries.names.index(name) for name in pair]

    def found(likeness: np.ndarray) -> np.ndarray:
        """Tell who is in each picture, bool (N, 2)."""
        nearest = likeness.argmax(axis=2)
        return np.stack([((nearest == k) & (likeness[:, :, k] >= least[k])).any(axis=1) for k in places], axis=1)

    ours, control = found(seen), found(floor)
    return {
        "subjects": list(pair),
        "of": len(ours),
        "found": [list(wilson(int(row.sum()), len(ours))) for row in ours.T],
        "both": list(wilson(int(ours.all(axis=1).sum()), len(ours))),
        "base": [*(int(row.sum()) for row in control.T), int(control.all(axis=1).sum())],
    }
