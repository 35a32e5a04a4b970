"""Copies of the same picture: perceptual hashes, and groups of pictures that show the same shot.

A hash is the sign pattern of the lowest 255 cosine frequencies of a 64x64 grey thumbnail about their median (pHash:
Zauner 2010, "Implementation and benchmarking of perceptual image hash functions", section 3.2.1, with 16x16 in place
of 8x8 coefficients). On 230 photos, different shots (also of one subject on one table) differ in at least 32 % of the
bits; resized, recompressed, grey, brighter or slightly turned copies nearly always in less than 20 %. In smooth pictures
most of those signs are noise; there the coefficients themselves tell: their correlation is at least .988 between a
picture and its resized or recompressed copy, and at most .968 between different ones. Mirrored copies and centred
crops of up to 10 % are found through the views of the mirrored and of the trimmed picture; tighter and off-centre
crops are not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from scipy.fft import dctn

SIDE, FREQUENCIES = 64, 16
SAME = 0.25
"""Share of differing bits up to which two pictures are copies of each other."""
ALIKE = 0.985
"""Correlation of low frequencies from which on they are, too."""
PLAIN = 4.0
"""Standard deviation (of 0..255) below which a thumbnail has no structure to hash."""
TRIMS = (0.0, 0.1)  # shares of width and height cut off, half on each side


def views(image: Image.Image) -> np.ndarray | None:
    """Low frequencies of a picture as it is, mirrored, trimmed, and both: float32 (4, 255) of norm 1; None for one without structure."""
    found = []
    for trim in TRIMS:
        width, height = image.size
        box = (trim * width / 2, trim * height / 2, width - trim * width / 2, height - trim * height / 2)
        grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS, box=box), np.float32)
        if grey.std() < PLAIN:
            return None
        for side in (grey, grey[:, ::-1]):
            low = dctn(side, norm="ortho")[:FREQUENCIES, :FREQUENCIES].ravel()[1:]  # without the mean brightness
            found.append(low / np.linalg.norm(low))
    return np.stack(found)


def signs(views: np.ndarray) -> str:
    """The hash of a picture as it is, hexadecimal, from its `views`: short enough for a manifest."""
    return np.packbits(views[0] > np.median(views[0])).tobytes().hex()


def any_alike(listed: Sequence[str], views: np.ndarray) -> bool:
    """Whether a picture's `views` are near any of the hashes that `signs` made."""
    if not listed:
        return False
    length = views.shape[1]
    known = np.array([np.unpackbits(np.frombuffer(bytes.fromhex(one), np.uint8), count=length) for one in listed], bool)  # (M, 255)
    own = views > np.median(views, axis=1, keepdims=True)  # (4, 255)
    return bool(((known[:, None] != own).mean(axis=2) <= SAME).any())


def groups(pictures: list[np.ndarray | None], digests: list[str], block: int = 512) -> np.ndarray:
    """A group number for each of N pictures, int (N,): pictures linked by equal bytes or near views share one.

    `pictures` from `views`, `digests` of the files. The number is that of the group's first picture.
    """
    parent = list(range(len(digests)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    def join(i: int, j: int) -> None:
        a, b = sorted((root(i), root(j)))
        parent[b] = a

    first: dict[str, int] = {}
    for index, digest in enumerate(digests):
        join(index, first.setdefault(digest, index))
    having = [index for index, own in enumerate(pictures) if own is not None]
    if having:
        low = np.stack([own for own in pictures if own is not None])  # (M, 4, 255)
        count, length = low.shape[1:]
        signs = np.where(low > np.median(low, axis=2, keepdims=True), np.float32(1), np.float32(-1))
        flat_low, flat_signs = low.reshape(-1, length).T, signs.reshape(-1, length).T
        for start in range(0, len(having), block):
            rows = slice(start, start + block)
            near = signs[rows, 0] @ flat_signs >= length * (1 - 2 * SAME)  # (block, 4 M)
            near |= low[rows, 0] @ flat_low >= ALIKE
            for i, j in np.argwhere(near):
                join(having[start + i], having[j // count])
    return np.array([root(index) for index in range(len(digests))], np.int64)
