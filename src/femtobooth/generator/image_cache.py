"""Keep pictures of prompts and seeds on disk: generated again only where model, prompt, seed or sampling changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core import cache
from ..core.files import atomic_file
from ..pictures import records
from . import sampling
from .families.family import Family
from .sampling_settings import SamplingSettings

Job = tuple[str, int]  # prompt and seed


def generate_missing(
    model: Family,
    folder: Path,
    jobs: Sequence[Job],
    settings: SamplingSettings,
    batch_size: int,
    size: int,
    bar: Any,
) -> tuple[np.ndarray, list[Path]]:
    """Return pictures uint8 (N, size, size, 3) of prompts and seeds, and their files in `folder`.

    Whole batches are generated where one picture of them is missing or damaged, since a picture is exact only in its
    own batch; `bar` moves by one for each denoising step of each picture.
    """
    how = {"model": model.hash, "size": size, "batch": batch_size, **settings.keyed(model.empty_is_none)}
    keys = [
        hashlib.sha256(json.dumps({**how, "prompt": text, "seed": seed}, sort_keys=True).encode()).hexdigest()
        for text, seed in jobs
    ]
    paths = [folder / f"{key[:16]}.png" for key in keys]
    shape = {"width": size, "height": size, "sampling": settings.model_dump()}
    found = np.empty((len(jobs), size, size, 3), np.uint8)
    for first in range(0, len(jobs), batch_size):
        rows = range(first, min(first + batch_size, len(jobs)))
        stored = [_read(paths[row], keys[row], size) for row in rows]
        if any(picture is None for picture in stored):
            texts, seeds = zip(*(jobs[row] for row in rows), strict=True)
            made = sampling.sample(model, [*texts], [*seeds], settings, (size, size), batch_size=len(rows), bar=bar)
            for row, picture in zip(rows, made, strict=True):
                place = {"batch": [row - first, len(rows)]}
                record = records.record("cached", *jobs[row], {"hash": model.hash}, shape, keys[row], place)
                _write(paths[row], picture, record)
            stored = list(made)
        else:
            bar.advance(len(rows) * settings.steps)
        found[rows.start : rows.stop] = np.stack(stored)  # type: ignore[arg-type]
    return found, paths


def _write(path: Path, picture: np.ndarray, record: dict[str, Any]) -> None:
    with atomic_file(path) as temporary:
        temporary.write_bytes(cache.sealed(records.encode(picture, record)))


def _read(path: Path, key: str, size: int) -> np.ndarray | None:
    return records.decode(cache.read(path), "cached", key, (size, size))
