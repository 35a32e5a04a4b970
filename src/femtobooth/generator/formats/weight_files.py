"""Which files of a folder hold a part's weights, and JSON as models have it: told without importing torch."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

from ...core.errors import ModelError
from ...core.events import note
from ..locate import DAMAGED

MAX_CONFIG_BYTES = 8 << 20
_SHARD = re.compile(r"-\d+-of-\d+\.safetensors$")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file's mapping. Raises ModelError where it is missing, damaged, or larger than any config."""
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ModelError(f"{path}: {path.stat().st_size / 1e6:.0f} MB, more than any config has", DAMAGED)
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ModelError(f"{path}: cannot be loaded ({error.strerror})", DAMAGED) from None
    except (ValueError, RecursionError):
        raise ModelError(f"{path}: cannot be loaded (no JSON)", DAMAGED) from None
    if not isinstance(content, dict):
        raise ModelError(f"{path}: holds a {type(content).__name__}, not a config", DAMAGED)
    return content


def weight_files(folder: Path, stem: str, told: bool = True) -> list[Path]:
    """Find the safetensors files of a part: the plain one, else shards, else those of a variant such as fp16, which is
    noted where it is to be `told`. Raises ModelError where there are none, or a shard is missing.
    """
    whole = folder / f"{stem}.safetensors"
    if whole.is_file():
        return [whole]
    indexes = sorted(
        folder.glob(f"{stem}*.index*.json"), key=lambda path: (path.name != f"{whole.name}.index.json", path.name)
    )
    variants = [path for path in sorted(folder.glob(f"{stem}.*.safetensors")) if not _SHARD.search(path.name)]
    plain = [path for path in indexes if path.name == f"{whole.name}.index.json"]
    chosen = sorted((*(plain or (*variants, *indexes)),), key=lambda path: ("non_ema" in path.name, path.name))
    if not chosen:
        others = sorted(path.name for path in folder.glob(f"*{stem}*") if path.is_file())
        held = f"only {others[0]}, which is not opened" if others else f"no {whole.name}"
        raise ModelError(
            f"{folder}: holds {held}",
            "take the model's safetensors files; pickled weights are read from single .ckpt files only",
        )
    if not plain and told:
        note(f"{folder}: takes {chosen[0].name}")
    return _shards(chosen[0]) if chosen[0].suffix == ".json" else [chosen[0]]


def header(path: Path) -> dict[str, Any]:
    """Read a safetensors file's header: name to dtype and shape; {} for any other file."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            return dict(json.loads(file.read(length))) if length < 10**8 else {}
    except (OSError, struct.error, ValueError, TypeError, RecursionError):
        return {}


def _shards(index: Path) -> list[Path]:
    named = read_json(index).get("weight_map")
    names = sorted({str(name) for name in named.values()}) if isinstance(named, dict) else []
    if not names or any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
        raise ModelError(f"{index}: lists no .safetensors files of its folder", DAMAGED)
    for name in names:
        if not (index.parent / name).is_file():
            raise ModelError(f"{index.parent / name}: missing, though {index.name} lists it", DAMAGED)
    return [index.parent / name for name in names]
