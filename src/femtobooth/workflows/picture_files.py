"""The pictures that `generate` and `synthesize` write: their names, and the record of how one was made in its PNG text
chunks.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import ConfigDict, Field, ValidationError

from ..core.config import Seed, Settings
from ..core.errors import InputError, shortened
from ..core.files import atomic_file
from ..core.machine import FloatPrecision
from ..core.older_runs import upgraded
from ..core.paths import existing
from ..generator.settings import SamplingSettings
from ..pictures.sheets import sheet

KEY = "femtobooth"  # of the PNG text chunk that `regenerate` reads
MOST_PIXELS = 2**26  # of a batch that is drawn again; a record is a stranger's
SAMPLERS = {
    "ddim": "DDIM",
    "plms": "PLMS",
    "euler": "Euler",
    "euler-a": "Euler a",
    "dpmpp-2m": "DPM++ 2M",
    "unipc": "UniPC",
}


class _Part(Settings):
    model_config = ConfigDict(extra="ignore")


class Source(_Part):
    """A file that a picture was drawn from."""

    path: str = Field(min_length=1, max_length=4096)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Model(_Part):
    """Where the model that drew a picture lay, and what it was."""

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


class Record(_Part):
    """How a picture was made, enough to make it again."""

    prompt: str = Field(max_length=20_000)
    seed: Seed
    model: Model
    settings: How
    batch: list[int] = Field(min_length=2, max_length=2)
    """Its place in a batch, and how large that was."""
    init_image: Source | None = None
    mask: Source | None = None


def name(row: int, prompt: str, seed: int, highest: int) -> str:
    """A file name that sorts by prompt, then seed: 00-a-sks-dog-on-the-moon-seed3.png."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:60].strip("-") or "picture"
    return f"{row:02d}-{slug}-seed{seed:0{len(str(highest))}d}.png"


def save(picture: np.ndarray, path: Path, record: dict[str, Any]) -> None:
    """Write a PNG with two text chunks: `femtobooth` (JSON, complete) and `parameters` (what many viewers show)."""
    info = PngInfo()
    info.add_text("parameters", _parameters(record))
    info.add_text(KEY, json.dumps(record))
    with atomic_file(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG", pnginfo=info)


def _parameters(record: dict[str, Any]) -> str:
    """The text of the AUTOMATIC1111 web UI, as its `create_infotext` writes it.

    A hash can be looked up only where the model is one file: sites know models by the SHA-256 of that.
    """
    how, sampling = record["settings"], record["settings"]["sampling"]
    source = record["model"]["source"]
    file = existing(source)
    single = file is not None and file.is_file()
    facts = {
        "Steps": sampling["steps"],
        "Sampler": SAMPLERS[sampling["sampler"]],
        "CFG scale": f"{sampling['guidance']:g}",
        "CFG rescale": f"{sampling['guidance_rescale']:g}" if sampling["guidance_rescale"] else None,
        "Seed": record["seed"],
        "Size": f"{how['width']}x{how['height']}",
        "Model hash": record["model"]["hash"][:10] if single else None,
        "Model": Path(source).stem if single else Path(source).name,
        "Denoising strength": f"{how['strength']:g}" if "init_image" in record else None,
        "Version": f"femtobooth {record[KEY]}",
    }
    lines = [record["prompt"]] + ([f"Negative prompt: {sampling['negative']}"] if sampling["negative"] else [])
    return "\n".join(
        [*lines, ", ".join(f"{key}: {_quoted(value)}" for key, value in facts.items() if value is not None)]
    )


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search("[,:\n]", text) else text


def read(path: Path) -> tuple[Record, dict[str, Any], np.ndarray]:
    """The record of a generated PNG, checked like any input; all of it as it stands there; and the pixels.

    Raises InputError for a picture without a record, or with one that no picture of this size can have.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            text, size = image.text.get(KEY), image.size  # type: ignore[attr-defined]
            pixels = np.asarray(image.convert("RGB")) if text else np.empty(0)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        problem = f"`image={path}`: cannot be read ({shortened(str(error))})"
        raise InputError(problem, "give a PNG that femtobooth generate wrote") from None
    try:
        found = json.loads(text or "null")
        record = Record.model_validate(upgraded(found) if isinstance(found, dict) else found)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        if not isinstance(found, dict):
            raise _no_record(path) from None
        place = ".".join(map(str, fault["loc"]))
        problem = (
            f"`image={path}`: its record is not one of femtobooth's ({shortened(place)}: {shortened(fault['msg'])})"
        )
        raise InputError(problem, "give the PNG as femtobooth wrote it") from None
    except (ValueError, RecursionError):
        raise _no_record(path) from None
    row, rows = record.batch
    if (
        not 0 <= row < rows
        or rows * size[0] * size[1] > MOST_PIXELS
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
    """Whether a file is a picture that femtobooth drew."""
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
