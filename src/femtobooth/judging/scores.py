"""Scores of a personalized generator: pure functions of embeddings, each with its source.

Embeddings are (N, D) arrays, one row a picture, of any length; cosines are of their directions and run from -1 to 1.
`grid` is (P, S): one value for each of P prompts and S seeds. Every function raises ValueError for empty input.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ..core.metrics import Floats, Interval, bootstrap, wilson

# Means over 30 subjects x 25 prompts x 4 pictures: Ruiz et al. 2023 (arXiv 2208.12242), table 1. None: not published.
PUBLISHED = (
    ("real photos", 0.774, 0.885, None),
    ("DreamBooth (Imagen)", 0.696, 0.812, 0.306),
    ("DreamBooth (Stable Diffusion)", 0.668, 0.803, 0.305),
    ("Textual Inversion (Stable Diffusion)", 0.569, 0.780, 0.255),
)
"""Name, subject fidelity by DINO, subject fidelity by CLIP (CLIP-I), prompt fidelity by CLIP (CLIP-T)."""


def cosines(first: ArrayLike, second: ArrayLike) -> Floats:
    """Cosine of each row of one with each row of the other, (N, M)."""
    return _directions(first) @ _directions(second).T


def subject_fidelity(pictures: ArrayLike, photos: ArrayLike) -> Floats:
    """Mean cosine of each picture with all photos (N,); their mean is the paper's DINO or CLIP-I score (section 4.1).

    Of class pictures, drawn without the identifier, the same is the paper's PRES (supplementary): there, lower is
    better.
    """
    return cosines(pictures, photos).mean(axis=1)


def leave_one_out(photos: ArrayLike) -> Floats:
    """Mean cosine of each photo with the others (N,): what a perfect generator would reach (the paper's "real images").

    Raises ValueError for fewer than two photos.
    """
    matrix = cosines(photos, photos)
    if len(matrix) < 2:
        raise ValueError("one photo cannot be compared with others")
    return (matrix.sum(axis=1) - np.diag(matrix)) / (len(matrix) - 1)


def prompt_fidelity(pictures: ArrayLike, texts: ArrayLike) -> Floats:
    """Cosine of each picture with the text at the same place (N,); their mean is CLIP-T (section 4.1)."""
    return np.asarray((_directions(pictures) * _directions(texts)).sum(axis=1), np.float64)


def mean_pairwise(distances: ArrayLike) -> float:
    """Mean over all pairs of a symmetric matrix (S, S): of LPIPS distances between pictures of one prompt, the paper's
    DIV (supplementary).

    Raises ValueError for fewer than two pictures.
    """
    matrix = np.asarray(distances, np.float64)
    if len(matrix) < 2:
        raise ValueError("one picture has nothing to differ from")
    return float(matrix[~np.eye(len(matrix), dtype=bool)].mean())


def diversity(pictures: ArrayLike) -> float:
    """Mean of 1 - cosine over all pairs of pictures of one prompt, 0 to 2: the paper's DIV with an encoder in place of
    LPIPS.
    """
    return mean_pairwise(1 - cosines(pictures, pictures))


def prompt_match(pictures: ArrayLike, examples: ArrayLike) -> Floats:
    """Whether each picture resembles the examples of its own prompt more than those of any other: 1 or 0, (P, S).

    Both are (P, S, D), example (p, s) drawn by another model from the same noise as picture (p, s). Examples of the
    picture's own seed have no say, since shared noise makes pictures alike whatever the prompt. By chance 1/P match.
    For encoders that read no text; the idea of nearest class means (Snell et al. 2017, arXiv 1703.05175). Raises
    ValueError for fewer than 2 prompts or seeds.
    """
    drawn, shown = np.asarray(pictures, np.float64), np.asarray(examples, np.float64)
    prompts, seeds, length = shown.shape
    if prompts < 2 or seeds < 2:
        raise ValueError("needs at least 2 prompts and 2 seeds")
    shown = _directions(shown.reshape(-1, length)).reshape(shown.shape)
    others = (shown.sum(axis=1, keepdims=True) - shown) / (seeds - 1)  # (P, S, D)
    found = np.empty((prompts, seeds))
    for seed in range(seeds):
        found[:, seed] = cosines(drawn[:, seed], others[:, seed]).argmax(axis=1) == np.arange(prompts)
    return found


def ranks(pictures: ArrayLike, photos: ArrayLike, gallery: list[np.ndarray]) -> np.ndarray:
    """Place of the true subject among look-alikes for each picture, int (N,): 1 where it is the nearest.

    `gallery` holds the embeddings (M, D) of each look-alike's photos; subjects are compared by `subject_fidelity`, a
    tie counts as lost.
    """
    own = subject_fidelity(pictures, photos)
    return np.asarray(
        1 + sum((subject_fidelity(pictures, other) >= own).astype(np.int64) for other in gallery), np.int64
    )


def kid(first: ArrayLike, second: ArrayLike, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> Interval:
    """Squared distance of two distributions by the kernel (cosine + 1)^3, without bias: 0 in the mean for equal ones,
    may be below 0.

    Kernel Inception Distance (Binkowski et al. 2018, arXiv 1801.01401, section 3) with rows scaled to length sqrt(D),
    so that encoders of any scale can be used. Row i of both (N, D) is drawn from the same noise, so the estimator is
    that of paired samples, which leaves out k(x_i, y_i) (Gretton et al. 2012, eq. 4). The interval resamples pairs
    (N,), never comparing a pair with itself. Raises ValueError for fewer than two pairs or unequal numbers.
    """
    x, y = _directions(first), _directions(second)
    if x.shape != y.shape or len(x) < 2:
        raise ValueError("needs two equally long lists of at least 2 pictures")
    cross = (x @ y.T + 1) ** 3
    terms = (x @ x.T + 1) ** 3 + (y @ y.T + 1) ** 3 - cross - cross.T  # (N, N)

    def estimate(rows: np.ndarray) -> float:
        apart = rows[:, None] != rows[None]
        return float(terms[np.ix_(rows, rows)][apart].mean()) if apart.any() else 0.0

    return bootstrap(estimate, np.arange(len(x)), level=level, resamples=resamples, seed=seed)


def over_prompts_and_seeds(grid: ArrayLike, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean of a grid (P, S) and its percentile interval when prompts and seeds are both drawn anew (Owen 2007, the
    pigeonhole bootstrap).

    Pictures of one prompt, and of one seed, resemble each other; resampling single pictures would claim too much.
    """
    values = np.asarray(grid, np.float64)
    if values.size == 0:
        raise ValueError("nothing to measure: no values")
    random = np.random.default_rng(seed)
    prompts, seeds = (random.integers(0, size, (resamples, size)) for size in values.shape)
    drawn = values[prompts[:, :, None], seeds[:, None, :]].mean(axis=(1, 2))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def share_over_prompts_and_seeds(grid: ArrayLike) -> Interval:
    """The same for a grid of 1 and 0; where all are equal, which no resampling can doubt, Wilson's interval of the P
    prompts.
    """
    found = over_prompts_and_seeds(grid)
    if found.low < found.high:
        return found
    prompts = len(np.asarray(grid))
    return wilson(round(found.value * prompts), prompts) if found.value in (0.0, 1.0) else found


def _directions(rows: ArrayLike) -> Floats:
    values = np.asarray(rows, np.float64)
    if values.size == 0:
        raise ValueError("nothing to measure: no pictures")
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
