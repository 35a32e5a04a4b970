"""Copies of the same picture: perceptual hashes, and groups of pictures that show the same shot.

A hash is the sign pattern of the lowest 255 cosine frequencies of a 64x64 grey thumbnail about their median (pHash:
Zauner 2010, "Implementation and benchmarking of perceptual image hash functions", section 3.2.1, with 16x16 in place
of 8x8 coefficients). On 230 photos, different shots (also of one subject on one table) differ in at least 32 % of the
bits; resized, recompressed, grey, brighter or slightly turned copies nearly always in less than 20 %. In smooth
pictures most of those signs are noise; there the coefficients themselves tell: their correlation is at least .988
between a picture and its resized or recompressed copy, and at most .968 between different ones. Mirrored copies and
centred crops of up to 10 % are found through the views of the mirrored and of the trimmed picture; tighter and
off-centre crops are not.

A hash sees the whole: the shots of a fixed camera, or small digits, look alike to it. What tells them from copies is a
region that differs, in brightness or colour, while the rest is the same to the pixel, or differs by far (`differ`). Of
shots with an object of 6 % of the width 98 % are told apart, of copies none but one in twelve that was turned or
trimmed by a few per cent. A group is only of
pictures that are all copies of each other (complete linkage), so that a chain of likenesses is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.fft import dctn

HASH_SIDE, FREQUENCIES = 64, 16
SAME = 0.25
"""Share of differing bits up to which two pictures are copies of each other."""
ALIKE = 0.985
"""Correlation of low frequencies from which on they are, too."""
MIN_STRUCTURE = 4.0
"""Standard deviation (of 0..255) below which a thumbnail has no structure to hash."""
TRIMS = (0.0, 0.1)  # shares of width and height cut off, half on each side
COMPARED_SIDE = 32
"""Side of the colour thumbnails in which a region is looked for."""
STANDS_OUT, TIMES = 15.0, 12.0
"""Least difference (of 0..255, mean of 3x3 pixels) of a region that differs, and least multiple of what the rest
differs by.
"""
GREY = 2.0
"""Standard deviation of chroma (of 0..255) below which a picture is grey, and colours say nothing."""
GAINS = np.array([[0.4, 0, 0], [2.5, 1.6, 1.6]], np.float32)
"""Least and greatest gain of brightness and of both chroma between copies."""
FAR = 100.0
"""Difference of a region from which on it differs, whatever the rest does: edited copies reach it in 1 of 7 when they
are turned by 2 degrees, else hardly ever; 97 % of pairs of digits do that are alike to the hash.
"""
NEIGHBOURS = 32
"""Pictures that each is compared with, the likest first; more of one shot become several groups."""


def views(image: Image.Image) -> np.ndarray | None:
    """Compute the low frequencies of a picture as it is, mirrored, trimmed, and both: float32 (4, 255) of norm 1; None
    for one without structure.
    """
    found = []
    for trim in TRIMS:
        width, height = image.size
        box = (trim * width / 2, trim * height / 2, width - trim * width / 2, height - trim * height / 2)
        grey = np.asarray(
            image.convert("L").resize((HASH_SIDE, HASH_SIDE), Image.Resampling.LANCZOS, box=box), np.float32
        )
        if grey.std() < MIN_STRUCTURE:
            return None
        for side in (grey, grey[:, ::-1]):
            low = dctn(side, norm="ortho")[:FREQUENCIES, :FREQUENCIES].ravel()[1:]  # without the mean brightness
            found.append(low / np.linalg.norm(low))
    return np.stack(found)


def signs(views: np.ndarray) -> str:
    """Compute the hash of a picture as it is, hexadecimal, from its `views`: short enough for a manifest."""
    return np.packbits(views[0] > np.median(views[0])).tobytes().hex()


def any_alike(listed: Sequence[str], views: np.ndarray) -> bool:
    """Tell whether a picture's `views` are near any of the hashes that `signs` made."""
    if not listed:
        return False
    length = views.shape[1]
    known = np.array(
        [np.unpackbits(np.frombuffer(bytes.fromhex(one), np.uint8), count=length) for one in listed], bool
    )  # (M, 255)
    own = views > np.median(views, axis=1, keepdims=True)  # (4, 255)
    return bool(((known[:, None] != own).mean(axis=2) <= SAME).any())


def thumbnails(image: Image.Image) -> np.ndarray:
    """Shrink a picture, as it is and trimmed, to uint8 (2, COMPARED_SIDE, COMPARED_SIDE, 3) in YCbCr: what `differ`
    compares.
    """
    width, height = image.size
    boxes = [
        (trim * width / 2, trim * height / 2, width - trim * width / 2, height - trim * height / 2) for trim in TRIMS
    ]
    coloured = image.convert("YCbCr")
    return np.stack(
        [np.asarray(coloured.resize((COMPARED_SIDE, COMPARED_SIDE), Image.Resampling.BOX, box=box)) for box in boxes]
    )


def differ(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Tell whether two pictures of one scene show something else in a region of it, bool (P,), of thumbnails uint8 (P,
    COMPARED_SIDE, COMPARED_SIDE, 3).

    Brightness, contrast and saturation of the whole may differ (a linear fit of each channel), and one may be grey.
    """
    one, two = (part.reshape(len(first), -1, 3).astype(np.float32) for part in (first, second))
    swapped = one[..., 0].std(axis=1) < two[..., 0].std(
        axis=1
    )  # the darker or flatter one predicts the other: white is clipped
    target, source = np.where(swapped[:, None, None], two, one), np.where(swapped[:, None, None], one, two)
    grey = np.minimum(one[..., 1:].std(axis=1).max(axis=1), two[..., 1:].std(axis=1).max(axis=1)) < GREY
    kept = np.ones((*target.shape[:2], 1), np.float32)
    for _ in range(2):  # the second fit leaves out the quarter that fits least
        count = kept.sum(axis=1, keepdims=True)
        mean, wanted = ((kept * part).sum(axis=1, keepdims=True) / count for part in (source, target))
        spread = (kept * (source - mean) ** 2).sum(axis=1, keepdims=True)
        gain = (kept * (source - mean) * (target - wanted)).sum(axis=1, keepdims=True) / np.maximum(spread, 1e-3)
        gain = np.clip(gain, *GAINS)
        off = np.abs(np.clip(gain * (source - mean) + wanted, 0, 255) - target)
        limit = np.partition(off[..., 0], 3 * off.shape[1] // 4, axis=1)[:, 3 * off.shape[1] // 4]
        kept = (off[..., :1] <= limit[:, None, None]).astype(np.float32)
    largest = np.where(grey[:, None], off[..., 0], off.max(axis=2))
    peak = ndimage.uniform_filter(largest.reshape(-1, COMPARED_SIDE, COMPARED_SIDE), (0, 3, 3)).max(axis=(1, 2))
    usual = np.partition(largest, 3 * largest.shape[1] // 4, axis=1)[:, 3 * largest.shape[1] // 4]
    return (peak >= FAR) | ((peak >= STANDS_OUT) & (peak >= TIMES * np.maximum(usual, 1.0)))


def groups(
    pictures: Sequence[np.ndarray | None],
    digests: Sequence[str],
    small: Sequence[np.ndarray] | None = None,
    block: int = 512,
    advance: Callable[[int], None] = lambda _: None,
) -> np.ndarray:
    """Give a group number to each of N pictures, int (N,): pictures of equal bytes share one, and those that are all
    near each other.

    `pictures` from `views`, `digests` of the files. With `small` from `thumbnails`, pictures with a region that differs
    are not near. The number is that of the group's first picture. `advance` is told how many pictures were compared.
    """
    first: dict[str, int] = {}
    same = [first.setdefault(digest, index) for index, digest in enumerate(digests)]
    having = [(index, own) for index, own in enumerate(pictures) if own is not None and same[index] == index]
    members = {index: {index} for index in first.values()}
    near: dict[int, set[int]] = {index: set() for index in members}
    pairs: list[tuple[float, int, int]] = []
    if having:
        numbers, low = [index for index, _ in having], np.stack([own for _, own in having])
        coloured = None if small is None else np.stack([small[index] for index in numbers])
        for alike, a, b in _near_pairs(low, coloured, block, advance):
            i, j = numbers[a], numbers[b]
            pairs.append((-alike, i, j))
            near[i].add(j)
            near[j].add(i)
    group = {index: index for index in members}
    for _, i, j in sorted(pairs):
        a, b = sorted((group[i], group[j]))
        if a != b and all(members[b] <= near[one] for one in members[a]):
            members[a] |= members.pop(b)
            group |= dict.fromkeys(members[a], a)
    return np.array([group[index] for index in same], np.int64)


def _near_pairs(
    low: np.ndarray, small: np.ndarray | None, block: int, advance: Callable[[int], None]
) -> Iterator[tuple[float, int, int]]:
    """Yield correlation and indices of near pairs of M pictures:

    `views` (M, 4, 255) and `thumbnails` (M, 2, COMPARED_SIDE, COMPARED_SIDE, 3).
    """
    count, length = low.shape[1:]
    signs = np.where(low > np.median(low, axis=2, keepdims=True), np.float32(1), np.float32(-1))
    flat_low, flat_signs = low.reshape(-1, length).T, signs.reshape(-1, length).T
    for start in range(0, len(low), block):
        rows = slice(start, start + block)
        alike = low[rows, 0] @ flat_low  # (block, 4 M)
        near = (signs[rows, 0] @ flat_signs >= length * (1 - 2 * SAME)) | (alike >= ALIKE)
        likeness = np.where(near, alike, -2).reshape(len(near), -1, count)
        view, best = likeness.argmax(axis=2), likeness.max(axis=2)
        best[np.arange(len(best)), start + np.arange(len(best))] = -2  # itself
        if best.shape[1] > NEIGHBOURS:
            best[best < -np.partition(-best, NEIGHBOURS, axis=1)[:, NEIGHBOURS : NEIGHBOURS + 1]] = -2
        found, others = np.nonzero(best > -2)
        for first in range(0, len(found), block):
            i, j = found[first : first + block], others[first : first + block]
            if small is not None:
                place = view[i, j]
                second = small[j, place // 2]
                second = np.where((place % 2 == 1)[:, None, None, None], second[:, :, ::-1], second)
                same = ~differ(small[start + i, 0], second)
                i, j = i[same], j[same]
            yield from zip(best[i, j].tolist(), (start + i).tolist(), j.tolist(), strict=True)
        advance(len(best))
