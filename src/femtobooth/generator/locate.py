"""Where a Stable Diffusion lies, and what its card recommends: told without loading it, and without importing torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import safetensors

from ..core.config import parse_yaml
from ..core.errors import ModelError
from ..core.paths import expanded

BUNDLED = "bundled"
SUBJECT_FILE = "femtobooth.json"  # lies in a personalized model's folder: token, class noun, provenance
PARTS = ("tokenizer", "text_encoder", "vae", "unet", "scheduler")
HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
METADATA = "femtobooth"  # in the safetensors header: JSON of what `single_file._describe` returns
DAMAGED = "copy or download it again"


def locate(reference: str) -> Path:
    """The model folder or single file that `reference` names; fetches what only a hub has. Raises ModelError."""
    path = bundled_folder() if reference == BUNDLED else expanded(reference)
    if (path / "model" / "model_index.json").is_file():
        return path / "model"
    if (path / "run.json").is_file():
        raise ModelError(f"{reference}: this run is not finished and has no model yet", f"femtobooth personalize --resume {reference}")
    if path.exists():
        return path
    if HUB_ID.match(reference) and not reference.startswith((".", "/")):
        return hub_folder(reference)
    raise ModelError(
        f"{reference}: no such base model, file or folder",
        "give `bundled`, a Stable Diffusion folder, a .safetensors or .ckpt file, a run, or a hub id like owner/name",
    )


def recommended(reference: str) -> dict[str, Any]:
    """The recommended settings on the card of what `reference` names, without loading it; {} where there is none."""
    path = locate(reference)
    return read_card(path) if path.is_dir() else parse_card(_readme_inside(path), path)


def bundled_folder() -> Path:
    """Where the bundled base lies in the installed package."""
    return Path(str(resources.files("femtobooth") / "assets" / "bundled"))


def hub_folder(repo: str) -> Path:
    """A hub repository's files, from the local cache where it is complete, else downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = ["model_index.json", "README.md", *(f"{part}/*{end}" for part in PARTS for end in (".json", ".txt", ".safetensors"))]
    unwanted = ["*.fp16.*", "*non_ema*", "*.bin"]
    try:
        return Path(snapshot_download(repo, allow_patterns=wanted, ignore_patterns=unwanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"--base {repo}: not in the local hub cache and the hub cannot be reached ({type(error).__name__})",
            f"where there is a network run `hf download {repo} --local-dir FOLDER`, copy FOLDER here, and give --base FOLDER",
        ) from None


def read_card(folder: Path) -> dict[str, Any]:
    """Recommended settings in the front matter of a model card: its `femtobooth:` mapping, or {}."""
    return parse_card(read_readme(folder), folder / "README.md")


def parse_card(text: str, path: Path) -> dict[str, Any]:
    """The `femtobooth:` mapping of a card's text; `path` is named in errors. Raises SettingsError."""
    if not text.startswith("---\n"):
        return {}
    matter = parse_yaml(text[3:].partition("\n---")[0], str(path))  # from the first fence's end, so that lines count as in the file
    value = matter.get("femtobooth") if isinstance(matter, dict) else None
    return value if isinstance(value, dict) else {}


def read_readme(folder: Path) -> str:
    path = folder / "README.md"
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _readme_inside(path: Path) -> str:
    """The model card in a single file that femtobooth wrote, else ""; nothing else of the file is read."""
    try:
        with safetensors.safe_open(path, "numpy") as opened:
            return str(parse_description(path, opened.metadata() or {}).get("readme", ""))
    except (safetensors.SafetensorError, OSError):  # a pickle, or damaged, which loading it will say
        return ""


def parse_description(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """What femtobooth wrote into the header of a single file; {} for a file of others. Raises ModelError where it is damaged."""
    if METADATA not in metadata:
        return {}
    wanted = {**dict.fromkeys(("unet", "vae", "text_encoder", "scheduler", "tokenizer", "subject"), dict), "readme": str}
    try:
        described = json.loads(metadata[METADATA])
        sound = all(isinstance(described[key], kind) for key, kind in wanted.items())
    except (ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise ModelError(f"{path}: its `{METADATA}` description is damaged", DAMAGED)
    return described
