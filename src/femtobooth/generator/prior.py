"""Class images for prior preservation: drawn by the base itself, cached, reused, topped up, resumed.

A cache folder belongs to one recipe: base hash, prompt, sampling settings, size and first seed. Image i has seed
first + i and is stored losslessly as 000i.png, which carries the recipe's key and i, so that neither a stray file
nor another recipe's image is ever taken for it. Images are drawn in whole aligned batches, whoever draws them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core import cache
from ..core.errors import FemtoboothError
from ..core.events import note, progress_bar
from ..pictures import records
from .families.family import Family
from .sampling import sample
from .settings import PriorSettings


@dataclass(frozen=True)
class Processes:
    """Who draws: this process's rank, how many there are, and how they wait for each other."""

    rank: int = 0
    world: int = 1
    barrier: Callable[[], Any] = lambda: None
    broadcast: Callable[[Any], Any] = lambda value: value
    """Gives every process what the first one has."""


def prompts(settings: PriorSettings, class_noun: str) -> list[str]:
    """The class prompt, and the same for each of the other classes to keep."""
    return [settings.prompt.replace("{class}", noun) for noun in (class_noun, *settings.other_classes)]


def recipe(model: Family, prompt: str, settings: PriorSettings, size: int) -> dict[str, Any]:
    """Everything that decides what the class images of one prompt look like."""
    return {
        "base": model.hash,
        "prompt": prompt,
        "size": size,
        "first_seed": settings.seed,
        **settings.sampling.model_dump(),
    }


def key_of(facts: dict[str, Any]) -> str:
    """SHA-256 of a recipe, hexadecimal."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def folder_of(facts: dict[str, Any]) -> Path:
    """Where the class images of a recipe are kept."""
    slug = re.sub(r"[^a-z0-9]+", "-", facts["prompt"].lower()).strip("-")[:40]
    return cache.cache_folder() / "class-images" / f"{slug}-{key_of(facts)[:16]}"


def class_images(
    model: Family, prompt: str, settings: PriorSettings, size: int, processes: Processes | None = None
) -> np.ndarray:
    """The (N, size, size, 3) uint8 class images of one prompt; those that are missing are drawn first.

    With several processes each draws its share of the missing batches, and all return all images.
    """
    processes = processes or Processes()
    facts = recipe(model, prompt, settings, size)
    key, folder, batch = key_of(facts), folder_of(facts), settings.sampling_batch
    batches = range(0, settings.images, batch)
    missing = [
        start
        for start in batches
        if any(_read(folder, i, key, size) is None for i in range(start, min(start + batch, settings.images)))
    ]
    missing = processes.broadcast(missing)  # one list for all, even where the cache is being filled by someone else
    have = settings.images - sum(min(batch, settings.images - start) for start in missing)
    own: dict[int, np.ndarray] = {}  # what this process drew, also where the cache cannot be written
    if not missing:
        note(f"class images: {settings.images} of '{prompt}' from {folder}")
    else:
        if processes.rank == 0:
            cache.write(folder / "manifest.json", json.dumps({"key": key, **facts}, indent=2).encode())
        mine = missing[processes.rank :: processes.world]
        with progress_bar(f"class images: {prompt}", settings.images, done=have) as bar:
            for turn, start in enumerate(mine):
                # Always a whole batch, even where only a few are missing: a forward pass of another shape may
                # round differently, and image i must not depend on who draws it when.
                seeds = [settings.seed + i for i in range(start, start + batch)]
                drawn = sample(model, [prompt] * batch, seeds, settings.sampling, (size, size), batch_size=batch)
                for i, picture in enumerate(drawn[: settings.images - start], start):
                    _write(folder, i, key, picture, {**facts, "sampling": settings.sampling.model_dump()}, batch)
                    own[i] = picture
                together = missing[
                    turn * processes.world : (turn + 1) * processes.world
                ]  # what all of them drew meanwhile
                bar.advance(sum(min(batch, settings.images - first) for first in together))
    processes.barrier()
    found = (own[i] if i in own else _read(folder, i, key, size) for i in range(settings.images))
    images = [image for image in found if image is not None]
    if len(images) < settings.images:
        raise FemtoboothError(
            f"{folder}: {settings.images - len(images)} class images are not there although they were drawn",
            "start again; machines that train together must share $FEMTOBOOTH_CACHE",
        )
    return np.stack(images)


def _path(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.png"


def _write(folder: Path, index: int, key: str, picture: np.ndarray, facts: dict[str, Any], batch: int) -> None:
    settings = {"width": facts["size"], "height": facts["size"], "sampling": facts["sampling"]}
    record = records.record(
        "class image",
        facts["prompt"],
        facts["first_seed"] + index,
        {"hash": facts["base"]},
        settings,
        f"{key} {index}",
        {"batch": [index % batch, batch]},
    )
    cache.write(_path(folder, index), records.encode(picture, record))


def _read(folder: Path, index: int, key: str, size: int) -> np.ndarray | None:
    """Image `index` of the recipe, or None where it is missing, damaged or another recipe's."""
    return records.decode(cache.read(_path(folder, index)), "class image", f"{key} {index}", size)
