"""Files of words that were trained (textual inversion): one tensor by the word, or, for several text encoders, one by
the name of each encoder, in a file that is called as the word is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..families.family import Family


def write(path: Path, model: Family, word: str, rows: Sequence[Tensor], dtype: torch.dtype) -> None:
    """Write what was learned for a word, a row (D,) for each text encoder; `path` is called as the word is."""
    names = [word] if len(rows) == 1 else [model.CLIPS[encoder][0] for encoder in model.CLIPS]
    held = {name: row.to(dtype)[None].contiguous() for name, row in zip(names, rows, strict=True)}
    save_file(held, path)


def words(path: Path, contents: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, ...]]:
    """Sort what a file holds: for each word a row (D,) of each text encoder."""
    if set(contents) == {"clip_l", "clip_g"}:  # of Stable Diffusion XL and 3, in their own order
        return {path.stem: tuple(contents[name].float().reshape(-1) for name in ("clip_l", "clip_g"))}
    return {word: (rows.float().reshape(-1),) for word, rows in contents.items()}
