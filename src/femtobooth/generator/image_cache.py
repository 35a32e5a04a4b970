"""Pictures of prompts and seeds that stay on disk: drawn again only where model, prompt, seed or sampling changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from ..core import cache
from ..core.files import atomic_file
from . import sampling
from .families.family import Family
from .settings import SamplingSettings

KEY = "femtobooth-evaluation"  # the PNG text chunk that tells what a picture is
Job = tuple[str, int]  # prompt and seed


def draw_missing(
    model: Family,
    folder: Path,
    jobs: Sequence[Job],
    settings: SamplingSettings,
    batch_size: int,
    size: int,
    bar: Any,
) -> tuple[np.ndarray, list[Path]]:
    """Pictures uint8 (N, size, size, 3) of prompts and seeds, and their files in `folder`.

    Whole batches are drawn where one picture of them is missing or damaged, since a picture is exact only in its own
    batch; `bar` moves by one for each denoising step of each picture.
    """
    how = {"model": model.hash, "size": size, "batch": batch_size, **settings.model_dump()}
    keys = [
        hashlib.sha256(json.dumps({**how, "prompt": text, "seed": seed}, sort_keys=True).encode()).hexdigest()
        for text, seed in jobs
    ]
    paths = [folder / f"{key[:16]}.png" for key in keys]
    found = np.empty((len(jobs), size, size, 3), np.uint8)
    for first in range(0, len(jobs), batch_size):
        rows = range(first, min(first + batch_size, len(jobs)))
        stored = [_read(paths[row], keys[row], size) for row in rows]
        if any(picture is None for picture in stored):
            texts, seeds = zip(*(jobs[row] for row in rows), strict=True)
            drawn = sampling.sample(model, [*texts], [*seeds], settings, (size, size), batch_size=len(rows), bar=bar)
            for row, picture in zip(rows, drawn, strict=True):
                _write(paths[row], keys[row], jobs[row], picture)
            stored = list(drawn)
        else:
            bar.advance(len(rows) * settings.steps)
        found[rows.start : rows.stop] = np.stack(stored)  # type: ignore[arg-type]
    return found, paths


def _write(path: Path, key: str, job: Job, picture: np.ndarray) -> None:
    with atomic_file(path) as temporary:
        temporary.write_bytes(cache.sealed(encoded(picture, {KEY: key, "parameters": f"{job[0]}\nSeed: {job[1]}"})))


def _read(path: Path, key: str, size: int) -> np.ndarray | None:
    return decoded(cache.read(path), {KEY: key}, size)


def encoded(picture: np.ndarray, said: Mapping[str, str]) -> bytes:
    """A picture uint8 (H, W, 3) as a PNG file with text chunks."""
    text = PngImagePlugin.PngInfo()
    for name, value in said.items():
        text.add_text(name, value)
    file = BytesIO()
    Image.fromarray(picture).save(file, format="PNG", pnginfo=text)
    return file.getvalue()


def decoded(png: bytes | None, said: Mapping[str, str], size: int) -> np.ndarray | None:
    """The picture uint8 (size, size, 3) of a PNG file with these text chunks; None for any other."""
    if png is None:
        return None
    try:
        with Image.open(BytesIO(png)) as image:
            image.load()
            text = getattr(image, "text", {})
            sound = (
                image.size == (size, size)
                and image.mode == "RGB"
                and all(text.get(name) == value for name, value in said.items())
            )
            return np.asarray(image) if sound else None
    except (OSError, SyntaxError, ValueError):
        return None
