"""The pictures that `generate` and `synthesize` write: their names, and the record of how one was made in its PNG text chunks."""

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

from ..core.errors import InputError
from ..core.runs import atomic_file
from ..core.sheets import sheet

KEY = "femtobooth"  # of the PNG text chunk that `regenerate` reads


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
    """The text of the AUTOMATIC1111 web UI."""
    how, sampling = record["settings"], record["settings"]["sampling"]
    facts = {
        "Steps": sampling["steps"],
        "Sampler": sampling["sampler"],
        "CFG scale": f"{sampling['guidance']:g}",
        "CFG rescale": f"{sampling['guidance_rescale']:g}" if sampling["guidance_rescale"] else None,
        "Seed": record["seed"],
        "Size": f"{how['width']}x{how['height']}",
        "Model hash": record["model"]["hash"][:10],
        "Model": Path(record["model"]["source"]).name,
        "Denoising strength": f"{how['strength']:g}" if "init_image" in record else None,
        "Version": f"femtobooth {record[KEY]}",
    }
    negative = f"Negative prompt: {sampling['negative']}\n" if sampling["negative"] else ""
    return f"{record['prompt']}\n{negative}" + ", ".join(f"{key}: {value}" for key, value in facts.items() if value is not None)


def read(path: Path) -> tuple[dict[str, Any], np.ndarray]:
    """What is stored in a picture, and its pixels uint8 (H, W, 3). Raises InputError for one that femtobooth did not write."""
    try:
        with Image.open(path) as image:
            text, pixels = getattr(image, "text", {}), np.asarray(image.convert("RGB"))
    except OSError as error:
        raise InputError(f"--from {path}: cannot be read ({error})", "give a PNG that femtobooth generate wrote") from None
    try:
        record = json.loads(text[KEY])
        _ = record["prompt"], record["seed"], record["model"]["hash"], record["settings"]["sampling"], record["batch"]
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"--from {path}: holds no record of how it was made", "give the PNG as femtobooth wrote it; editors and chats drop its text"
        ) from None
    return record, pixels


def save_grid(path: Path, prompts: Sequence[str], seeds: Sequence[int], pictures: Sequence[np.ndarray]) -> None:
    count = len(seeds)
    rows = [pictures[first : first + count] for first in range(0, len(pictures), count)]
    with atomic_file(path) as temporary:
        sheet(rows, list(prompts[: len(rows)]), [f"seed {seed}" for seed in seeds]).save(temporary, format="PNG")
