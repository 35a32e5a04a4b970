"""Where the subject of a picture is: what differs from the colours of the border, and what photos of one subject have
in common.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from scipy import ndimage

THUMBNAIL_SIDE = 64  # pixels of the thumbnail that is judged
RIM = np.pad(np.zeros((THUMBNAIL_SIDE - 8, THUMBNAIL_SIDE - 8), bool), 4, constant_values=True)
"""The border whose colours are taken for the background's."""
MIN_SHARE, MAX_SHARE = 0.02, 0.9  # share of a picture that a subject takes
ALIKE = 8.0  # CIE Lab: standard deviation of one colour from photo to photo; lightness, which changes most, counts half
CELL, CELLS = 4.0, (13, 56, 56)  # of a histogram over half of the lightness (0..50), a and b (-112..112)
SHARED = 0.1  # a colour is the subject's where it is this common in the other photos' subjects, compared with its own
GROWN = (
    3.0  # and also outside of what stands out where it is so many times as common there as on its own photo's border,
)
COMMON = 0.01  # and at least this common
# of what stands out; where less is like the other photos' subjects, the light is not theirs, and all of it stays
KEPT = 0.4


def find_subject(pixels: np.ndarray) -> np.ndarray | None:
    """Find which pixels of a picture uint8 (H, W, 3) belong to its subject, bool (H, W); None where nothing stands out.

    The largest connected part of what is far (Mahalanobis, RGB) from the border's colours, weighted towards the middle
    and split by Otsu's threshold: the boundary prior of saliency detection (Wei et al. 2012, "Geodesic saliency using
    background priors"). A rough guess; less than 2 % or more than 90 % of the picture is taken for no subject.
    """
    return _enlarged(_standing_out(thumbnail(pixels)), pixels)


def find_subjects(pictures: Sequence[np.ndarray]) -> list[np.ndarray | None]:
    """Find the subject in each of several photos of it, uint8 (H, W, 3) of any sizes; as `find_subject`, but what they
    have in common.

    Of what stands out in one photo that stays whose colour also does in the middle one of the others (a hand that holds
    the subject in two of six photos goes), and what touches it and has such a colour comes in: cosegmentation by colour
    (Rother et al. 2006, "Cosegmentation of image pairs by histogram matching"). Fewer than three photos in which
    something stands out are taken one by one.
    """
    thumbnails = [thumbnail(one) for one in pictures]
    found = [_standing_out(one) for one in thumbnails]
    alone = {number: mask for number, mask in enumerate(found) if mask is not None}
    if len(alone) >= 3:
        cells = {number: _cells(thumbnails[number]) for number in alone}
        colours = {number: _histogram(cells[number][mask]) for number, mask in alone.items()}
        for number, mask in alone.items():
            others = [one for other, one in colours.items() if other != number]
            found[number] = _in_common(cells[number], mask, colours[number], others)
    return [_enlarged(mask, one) for mask, one in zip(found, pictures, strict=True)]


def likeness_of_subjects(pictures: Sequence[np.ndarray], masks: Sequence[np.ndarray | None]) -> list[float | None]:
    """Measure what share of each photo's subject, as `find_subjects` found it, has colours of the other photos'
    subjects.

    None where nothing was found, and for fewer than three photos. One of another subject has 0.1 and less, 0.4 at most;
    the same in another light 0.3 and more, 0.9 as a rule (six subjects of the DreamBooth dataset).
    """
    cells = [_cells(thumbnail(one)) for one in pictures]
    small = [
        None
        if mask is None
        else np.asarray(Image.fromarray(mask).resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.NEAREST))
        for mask in masks
    ]
    colours = {
        number: _histogram(cells[number][mask]) for number, mask in enumerate(small) if mask is not None and mask.any()
    }
    found: list[float | None] = [None] * len(cells)
    if len(colours) >= 3:
        for number, own in colours.items():
            mask, at = small[number], tuple(np.moveaxis(cells[number], -1, 0))
            theirs = np.median([one[at] for other, one in colours.items() if other != number], axis=0)
            found[number] = float((theirs > SHARED * own[at])[mask].mean())
    return found


def _in_common(cells: np.ndarray, mask: np.ndarray, own: np.ndarray, others: list[np.ndarray]) -> np.ndarray:
    """Find what of a photo of colours `cells` (S, S, 3), of which `mask` (S, S) stands out, has the colours of the
    other photos' subjects.
    """
    at = tuple(np.moveaxis(cells, -1, 0))
    theirs = np.median([one[at] for one in others], axis=0)  # (S, S)
    inside = mask & (theirs > SHARED * own[at])
    outside = ~mask & (theirs > np.maximum(GROWN * _histogram(cells[RIM])[at], COMMON))
    wanted = inside | outside
    found = _largest(ndimage.binary_closing(wanted) & (mask | wanted))
    kept = (found & mask).sum() / mask.sum()
    return found if kept > KEPT and found.mean() <= MAX_SHARE else mask


def _cells(small: np.ndarray) -> np.ndarray:
    """Find where in the histogram the colours of a thumbnail (S, S, 3) lie, int (S, S, 3)."""
    return ((lab(small) * (0.5, 1, 1) + (0, 112, 112)) // CELL).astype(int)


def _histogram(cells: np.ndarray) -> np.ndarray:
    """Compute how common each colour is among (n, 3), 0..1: a histogram smoothed by a Gaussian of `ALIKE`, 1 where all
    are that colour.
    """
    counts = np.zeros(CELLS)
    np.add.at(counts, tuple(cells.T), 1 / len(cells))
    width = ALIKE / CELL
    return ndimage.gaussian_filter(counts, width, mode="constant", truncate=3) * (np.sqrt(2 * np.pi) * width) ** 3


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """Make a picture uint8 (H, W, 3) as small as it is judged here, squashed to (THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3);
    its own thumbnail is itself.
    """
    return np.asarray(Image.fromarray(pixels).resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX))


def _enlarged(mask: np.ndarray | None, pixels: np.ndarray) -> np.ndarray | None:
    size = (pixels.shape[1], pixels.shape[0])
    return None if mask is None else np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))


def _largest(mask: np.ndarray) -> np.ndarray:
    """Find the largest connected part of a mask, its holes filled."""
    parts, count = ndimage.label(mask)
    return ndimage.binary_fill_holes(parts == 1 + int(np.bincount(parts.ravel())[1:].argmax())) if count else mask


def _standing_out(small: np.ndarray) -> np.ndarray | None:
    """Find the subject, as `find_subject` does, of a thumbnail (THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3)."""
    colours = small.astype(np.float64)
    border = colours[RIM]
    inverse = np.linalg.inv(
        np.cov(border.T) + 25 * np.eye(3)
    )  # 5 levels of noise: a plain border has no spread of its own
    offset = colours - np.median(border, axis=0)
    distance = np.sqrt(np.einsum("ijk,kl,ijl->ij", offset, inverse, offset))
    axis = np.linspace(-1, 1, THUMBNAIL_SIDE)
    distance = ndimage.gaussian_filter(distance * np.exp(-(axis[:, None] ** 2 + axis[None] ** 2)), 1)
    mask = _largest(distance > _otsu(distance))
    return mask if MIN_SHARE <= mask.mean() <= MAX_SHARE else None


def subject_mask(pixels: np.ndarray) -> np.ndarray:
    """Find which pixels of a picture uint8 (H, W, 3) are taken for its subject, bool (H, W): the middle half where
    nothing stands out.
    """
    return _or_middle(find_subject(pixels), pixels)


def subject_masks(pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Find the `subject_mask` of several photos of one subject, by what they have in common."""
    return [_or_middle(mask, one) for mask, one in zip(find_subjects(pictures), pictures, strict=True)]


def _or_middle(mask: np.ndarray | None, pixels: np.ndarray) -> np.ndarray:
    if mask is None:
        height, width = pixels.shape[:2]
        mask = np.zeros((height, width), bool)
        mask[round(height / 4) : round(height * 3 / 4), round(width / 4) : round(width * 3 / 4)] = True
    return mask


def only_subject(pixels: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Make a picture with everything but its subject, or but `mask`, painted grey, uint8 (H, W, 3)."""
    return np.where((subject_mask(pixels) if mask is None else mask)[..., None], pixels, np.uint8(128))


def without_subject(pixels: np.ndarray) -> np.ndarray:
    """Make a picture with its subject painted grey, uint8 (H, W, 3)."""
    return np.where(subject_mask(pixels)[..., None], np.uint8(128), pixels)


def lab(rgb: np.ndarray) -> np.ndarray:
    """Convert sRGB uint8 (..., 3) to CIE Lab (D65), float64."""
    values = rgb.astype(np.float64) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ (to_xyz / to_xyz.sum(1, keepdims=True)).T
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def _otsu(values: np.ndarray) -> float:
    """Find the threshold that parts values with the most variance between the two sides (Otsu 1979)."""
    counts, edges = np.histogram(values, bins=64)
    middles, total = (edges[:-1] + edges[1:]) / 2, counts.sum()
    below = np.cumsum(counts)
    weighted = np.cumsum(counts * middles)
    above = total - below
    with np.errstate(invalid="ignore", divide="ignore"):
        between = below * above * (weighted / below - (weighted[-1] - weighted) / above) ** 2
    return float(edges[1 + int(np.nan_to_num(between).argmax())])
