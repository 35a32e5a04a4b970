"""A model's folder in diffusers' layout: read with every part checked, and written whole."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTokenizer

from ...core.errors import ModelError, first_line
from ...core.events import warn
from ...core.files import atomic_folder, content_hash
from ...core.machine import Precision
from ...core.older_runs import with_base_of_today
from .. import cards
from ..families import known
from ..families.family import Family
from ..locate import INDEX, SUBJECT_FILE
from ..prompts import called_in
from ..settings import RECOMMENDABLE
from . import mapped, parts
from .part_folder import build_part, fill_part, save_text_encoder
from .schedule import load_flow, load_scheduler
from .weight_files import read_json

OTHER_FOLDERS = {
    "text_encoder_2": "a Stable Diffusion XL or later, with a second text encoder",
    "transformer": f"a diffusion transformer of another kind, not a {known.NAMES}",
    "image_noising_scheduler": "an unCLIP model, which also reads an image",
    "prior": "a Kandinsky or unCLIP model",
    "controlnet": "a Stable Diffusion with a ControlNet",
}
MAX_TOKENIZER_BYTES = 64 << 20  # of the largest file of a tokenizer


def load_folder(
    family: type[Family],
    folder: Path,
    source: str | None = None,
    weights: bool = True,
    held: Precision = "fp32",
) -> Family:
    """Load a model of this family from a folder in diffusers' layout (safetensors only).

    What can train is `held` in this number format, the VAE in 32 bits.

    Without `weights` its networks have shapes alone, on torch's meta device, and its hash is "".
    Raises ModelError naming the part that is missing, incomplete, damaged or of another kind.
    """
    family = family.of_folder(folder, _index(folder))
    _refuse_other_family(family, folder)
    loaded = {name: build_part(folder / name, kind) for name, kind in family.NETWORKS.items()}
    family.refuse_misfits(loaded, folder)
    said = family.of_index(_index(folder))
    files = [path for part in family.folders() for path in (folder / part).iterdir() if _shapes_pictures(path)]
    fingerprint = content_hash([*files, *[folder / INDEX] * bool(said)], folder) if weights else ""

    def read() -> None:
        for name in family.NETWORKS:
            fill_part(loaded[name], folder / name, family.held_in(name, held))

    if weights:
        mapped.fill({**loaded}, fingerprint, held, read)
    for text_encoder, name in family.TEXT_ENCODERS.items():
        tokenizer = load_tokenizer(folder / name, family.TOKENIZERS.get(name, CLIPTokenizer))
        parts.fit_tokenizer(tokenizer, loaded[text_encoder], folder / name, "put this model's own tokenizer there")
        loaded[name] = tokenizer
    readme, usual = cards.read_readme(folder), cards.kind_of(folder, pipeline_name(folder))
    schedule = load_flow if family.FLOWS else load_scheduler
    return family(
        scheduler=schedule(read_json(folder / "scheduler" / "scheduler_config.json"), folder / "scheduler"),
        source=source or str(folder),
        held=held if weights else "fp32",
        hash=fingerprint,
        card=cards.with_pipeline(cards.parse_card(readme, folder / cards.README, RECOMMENDABLE), usual),
        readme=readme,
        subject=_read_subject(folder),
        **said,
        **loaded,
    )


def pipeline_name(folder: Path) -> str:
    """Read the name of the pipeline that a folder is of from its index; "" where that says none."""
    return str(_index(folder).get("_class_name", ""))


def _index(folder: Path) -> dict[str, Any]:
    """Read a folder's index; {} where it cannot be read, as its parts say all that most families need."""
    with contextlib.suppress(ModelError):
        return read_json(folder / INDEX)
    return {}


def _refuse_other_family(family: type[Family], folder: Path) -> None:
    """Raise ModelError for a folder that lacks a part, or is of another family of models by its index."""
    kind, wanted = pipeline_name(folder), family.folders()
    others = (words for name, words in OTHER_FOLDERS.items() if (folder / name).is_dir() and name not in wanted)
    if what := known.other(kind) or next(others, None):
        raise ModelError(f"{folder}: {what}", known.WAY_OUT)
    named = f" but a {kind[:80]}" if kind and not kind.startswith("StableDiffusion") else ""
    for part in wanted:
        if not (folder / part).is_dir():
            raise ModelError(
                f"{folder}: not a Stable Diffusion model{named}, its {part}/ folder is missing",
                f"a model folder holds {', '.join(f'{name}/' for name in wanted)} and {INDEX}",
            )


def load_tokenizer(folder: Path, kind: Any = CLIPTokenizer) -> Any:
    """Load the tokenizer of this class in a folder, CLIP's if not given.

    Raises ModelError; without a vocabulary the library would make one of three tokens.
    """
    what = "CLIP tokenizer" if kind is CLIPTokenizer else kind.__name__
    files = [("tokenizer.json",), ("vocab.json", "merges.txt"), *[("spiece.model",)] * (kind is not CLIPTokenizer)]
    if not any(all((folder / name).is_file() for name in own) for own in files):
        raise ModelError(
            f"{folder}: no {what} there",
            f"a tokenizer folder holds {', or '.join(' and '.join(own) for own in files)}",
        )
    largest = max((path for path in folder.iterdir() if path.is_file()), key=lambda path: path.stat().st_size)
    if largest.stat().st_size > MAX_TOKENIZER_BYTES:
        raise ModelError(
            f"{largest}: {largest.stat().st_size / 1e6:.0f} MB, more than any tokenizer has",
            "copy or download it again",
        )
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise ModelError(
            f"{folder}: no {what} there ({first_line(error)})",
            "a tokenizer folder holds vocab.json and merges.txt",
        ) from error


def save_folder(
    model: Family,
    folder: Path,
    card: str,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
    picture: Path | None = None,
) -> None:
    """Write a model as a folder (`write_folder`) that appears whole. Raises ExistsError where `folder` exists."""
    with atomic_folder(folder, overwrite) as temporary:
        write_folder(model, temporary, card, dtype, picture)


def write_folder(
    model: Family, folder: Path, card: str, dtype: torch.dtype = torch.float32, picture: Path | None = None
) -> None:
    """Write diffusers' layout, which the family's pipeline loads with `from_pretrained`, into a folder.

    `card` becomes the README.md, with what the hub reads; `picture` lies beside it, where there is one. The parts in
    memory take on `dtype`.
    """
    pipeline = model.pipeline()
    if dtype != model.denoiser.dtype:
        pipeline = pipeline.to(dtype=dtype)
    pipeline.save_pretrained(folder, safe_serialization=True)
    for name, tokenizer in model.TEXT_ENCODERS.items():
        if isinstance(text_encoder := getattr(model, name), parts.CLIPS):
            save_text_encoder(text_encoder, folder / name)
        save_tokenizer(getattr(model, tokenizer), folder / tokenizer)
    for path in folder.rglob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("_name_or_path", None) is not None:  # a path of this machine
            path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / cards.README).write_text(cards.completed(card), encoding="utf-8")
    if picture and picture.is_file():
        shutil.copyfile(picture, folder / cards.PICTURE)
    if model.subject:
        (folder / SUBJECT_FILE).write_text(json.dumps(model.subject, indent=2) + "\n", encoding="utf-8")


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write tokenizer.json, and of CLIP's the vocab.json and merges.txt that older programs read."""
    backend = tokenizer.backend_tokenizer
    backend.no_padding()  # each call sets both anew; the last call's values are no part of the model
    backend.no_truncation()
    tokenizer.save_pretrained(folder)
    if isinstance(tokenizer, CLIPTokenizer):
        backend.model.save(str(folder))


def _read_subject(folder: Path) -> dict[str, Any]:
    """Read what a personalized model's folder says of its subject; with a warning where that cannot be read."""
    path = folder / SUBJECT_FILE
    if not path.is_file():
        return {}
    try:
        return checked_subject(read_json(path))
    except (ModelError, ValueError):
        warn(f"{path}: cannot be read, so [V] stands for nothing here")
        return {}


def checked_subject(subject: Mapping[str, Any]) -> dict[str, Any]:
    """Check what is known of a subject, or of several, and return it. Raises ValueError where token or class noun is no
    text.
    """
    called_in(subject)
    if any(not isinstance(subject.get(key, ""), str) for key in ("token", "class_noun")):
        raise ValueError("token and class_noun must be text")
    return with_base_of_today(subject)


def _shapes_pictures(path: Path) -> bool:
    """Tell whether a file of a model folder decides what it draws; cards and samples do not."""
    return path.is_file() and path.suffix in (".safetensors", ".json", ".txt", ".jinja")
