"""Where the subject of a picture is: what differs from the colours of the border."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage

SIDE = 64  # pixels of the thumbnail that is judged


def find_subject(pixels: np.ndarray) -> np.ndarray | None:
    """Which pixels of a picture uint8 (H, W, 3) belong to its subject, bool (H, W); None where nothing stands out.

    The largest connected part of what is far (Mahalanobis, RGB) from the border's colours, weighted towards the middle and split by Otsu's
    threshold: the boundary prior of saliency detection (Wei et al. 2012, "Geodesic saliency using background priors").
    A rough guess; less than 2 % or more than 90 % of the picture is taken for no subject.
    """
    height, width = pixels.shape[:2]
    small = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BOX)
    colours = np.asarray(small, np.float64)
    rim = np.zeros((SIDE, SIDE), bool)
    rim[:4], rim[-4:], rim[:, :4], rim[:, -4:] = True, True, True, True
    border = colours[rim]
    inverse = np.linalg.inv(np.cov(border.T) + 25 * np.eye(3))  # 5 levels of noise: a plain border has no spread of its own
    offset = colours - np.median(border, axis=0)
    distance = np.sqrt(np.einsum("ijk,kl,ijl->ij", offset, inverse, offset))
    axis = np.linspace(-1, 1, SIDE)
    distance = ndimage.gaussian_filter(distance * np.exp(-(axis[:, None] ** 2 + axis[None] ** 2)), 1)
    parts, count = ndimage.label(distance > _otsu(distance))
    mask = np.zeros((SIDE, SIDE), bool)
    if count:
        sizes = np.bincount(parts.ravel())[1:]
        mask = ndimage.binary_fill_holes(parts == 1 + int(sizes.argmax()))
    if not 0.02 <= mask.mean() <= 0.9:
        return None
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))


def subject_mask(pixels: np.ndarray) -> np.ndarray:
    """Which pixels of a picture uint8 (H, W, 3) are taken for its subject, bool (H, W): the middle half where nothing stands out."""
    mask = find_subject(pixels)
    if mask is None:
        height, width = pixels.shape[:2]
        mask = np.zeros((height, width), bool)
        mask[round(height / 4) : round(height * 3 / 4), round(width / 4) : round(width * 3 / 4)] = True
    return mask


def only_subject(pixels: np.ndarray) -> np.ndarray:
    """A picture with everything but its subject painted grey, uint8 (H, W, 3)."""
    return np.where(subject_mask(pixels)[..., None], pixels, np.uint8(128))


def without_subject(pixels: np.ndarray) -> np.ndarray:
    """A picture with its subject painted grey, uint8 (H, W, 3)."""
    return np.where(subject_mask(pixels)[..., None], np.uint8(128), pixels)


def _otsu(values: np.ndarray) -> float:
    """The threshold that parts values with the most variance between the two sides (Otsu 1979)."""
    counts, edges = np.histogram(values, bins=64)
    middles, total = (edges[:-1] + edges[1:]) / 2, counts.sum()
    below = np.cumsum(counts)
    weighted = np.cumsum(counts * middles)
    above = total - below
    with np.errstate(invalid="ignore", divide="ignore"):
        between = below * above * (weighted / below - (weighted[-1] - weighted) / above) ** 2
    return float(edges[1 + int(np.nan_to_num(between).argmax())])
