"""Name the pictures that `generate` and `synthesize` write, and read a record as the recipe to make one again."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import ConfigDict, Field, ValidationError

from ..core.config import Seed, Settings
from ..core.errors import InputError, shortened
from ..core.files import atomic_file
from ..core.machine import FloatPrecision
from ..core.older_runs import upgraded
from ..generator.sampling_settings import SamplingSettings
from ..pictures import records
from ..pictures.sheets import sheet

MAX_BATCH_PIXELS = 2**26  # of a batch that is generated again; a record is a stranger's
REMADE = {
    "class image": "a class image, which training makes again by itself",
    "cached": "from the picture cache, which evaluate and synthesize fill again by themselves",
}


class _Part(Settings):
    model_config = ConfigDict(extra="ignore")


class Source(_Part):
    """A file that a picture started from."""

    path: str = Field(min_length=1, max_length=4096)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Lora(_Part):
    """An adapter that drew with the model: where it lay, how strongly it drew, and what it was."""

    path: str = Field(min_length=1, max_length=4096)
    strength: float = Field(allow_inf_nan=False)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Model(_Part):
    """Where the model that made a picture lay, and what it was."""

    source: str = Field(min_length=1, max_length=4096)
    hash: str = Field(pattern="^[0-9a-f]{64}$")


class How(_Part):
    """The settings that shape one picture."""

    tokenizer: str | None = Field(None, max_length=4096)
    width: int = Field(ge=8, multiple_of=8)
    height: int = Field(ge=8, multiple_of=8)
    strength: float = Field(0.7, gt=0, le=1)
    precision: FloatPrecision = "fp32"
    device: str = Field("auto", max_length=40)
    sampling: SamplingSettings


class Recipe(_Part):
    """How a picture was made, enough to make it again."""

    prompt: str = Field(max_length=20_000)
    seed: Seed
    model: Model
    settings: How
    batch: list[int] = Field(min_length=2, max_length=2)
    """Its place in a batch, and how large that was."""
    init_image: Source | None = None
    mask: Source | None = None
    loras: list[Lora] = Field([], max_length=64)


def name(row: int, prompt: str, seed: int, highest: int) -> str:
    """Make a file name that sorts by prompt, then seed: 00-a-sks-dog-on-the-moon-seed3.png."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:60].strip("-") or "picture"
    return f"{row:02d}-{slug}-seed{seed:0{len(str(highest))}d}.png"


def read(path: Path) -> tuple[Recipe, dict[str, Any], np.ndarray]:
    """Read a generated PNG: its record, checked like any input, as the recipe; all of it as it stands; and the pixels.

    Raises InputError for a picture without a record, or with one that no picture of this size can have.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            found, size = records.of_text(image.text), image.size  # type: ignore[attr-defined]
            pixels = np.asarray(image.convert("RGB")) if found else np.empty(0)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        problem = f"`image={path}`: cannot be read ({shortened(str(error))})"
        raise InputError(problem, "give a PNG that femtobooth generate wrote") from None
    if not found:
        raise _no_record(path)
    if (remade := REMADE.get(str(found["kind"]))) is not None:
        raise InputError(f"`image={path}`: is {remade}", "give a PNG that femtobooth generate wrote")
    try:
        record = Recipe.model_validate(upgraded(found))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(map(str, fault["loc"]))
        problem = (
            f"`image={path}`: its record is not one of femtobooth's ({shortened(place)}: {shortened(fault['msg'])})"
        )
        raise InputError(problem, "give the PNG as femtobooth wrote it") from None
    except RecursionError:
        raise _no_record(path) from None
    row, rows = record.batch
    if (
        not 0 <= row < rows
        or rows * size[0] * size[1] > MAX_BATCH_PIXELS
        or size != (record.settings.width, record.settings.height)
    ):
        how = f"{record.settings.width}x{record.settings.height} pixels, number {row} of {rows} at a time"
        raise InputError(
            f"`image={path}`: its record does not fit the picture ({how})", "give the PNG as femtobooth wrote it"
        )
    return record, found, pixels


def _no_record(path: Path) -> InputError:
    return InputError(
        f"`image={path}`: holds no record of how it was made",
        "give the PNG as femtobooth wrote it; editors and chats drop its text",
    )


def is_ours(path: Path) -> bool:
    """Tell whether a file is a picture with a recipe, which generating it again may replace."""
    try:
        read(path)
    except InputError:
        return False
    return True


def save_grid(path: Path, prompts: Sequence[str], seeds: Sequence[int], pictures: Sequence[np.ndarray]) -> None:
    """Write all pictures as a labelled grid, a row for each prompt."""
    count = len(seeds)
    rows = [pictures[first : first + count] for first in range(0, len(pictures), count)]
    with atomic_file(path) as temporary:
        sheet(rows, list(prompts[: len(rows)]), [f"seed {seed}" for seed in seeds]).save(temporary, format="PNG")
