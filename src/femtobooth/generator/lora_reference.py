"""Which adapter a person means by FILE:0.8, and where that lies: told without importing torch."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from ..core.errors import ModelError, shortened
from ..core.files import content_hash, read_object, sha256_of
from ..core.paths import existing, expanded, nearest
from .locate import SUBJECT_FILE, adapter_in
from .prompts import called_in, known_of

DIFFUSERS_NAME = "pytorch_lora_weights.safetensors"
"""What diffusers calls the file of an adapter in a folder."""
NAMES = (DIFFUSERS_NAME, "adapter.safetensors", "adapter_model.safetensors")
"""Under which names an adapter lies in a folder of others."""


@dataclass(frozen=True)
class Lora:
    """An adapter's file, and how strongly it draws."""

    reference: str
    """As it was given: a file, a run, or a folder."""
    strength: float
    weights: Path
    words: tuple[Path, ...] = ()
    """Where the embeddings of words that trained beside it lie."""
    subject: dict[str, Any] | None = None
    """What it has learned, where a run of femtobooth says so: token and class noun, or those of several `subjects`."""

    @property
    def name(self) -> str:
        """What people call it; without what other programs would misread in a prompt."""
        plain = self.weights.name if self.weights.name not in NAMES else expanded(self.reference).resolve().name
        return "".join("-" if letter in "<>:,\"'\n" else letter for letter in plain.removesuffix(".safetensors"))

    @property
    def hash(self) -> str:
        """SHA-256 of its file; with those of words, over all."""
        if not self.words:
            return sha256_of(self.weights)
        return content_hash([self.weights, *self.words], self.weights.parent)

    def record(self) -> dict[str, Any]:
        """Say which it is, for the record of a picture."""
        known = {"path": self.reference, "strength": self.strength, "sha256": self.hash, "name": self.name}
        return known | {"tensors_sha256": tensors_hash(self.weights)}


def parse(text: str) -> tuple[str, float]:
    """Split FILE:STRENGTH; without a strength it is 1. What is there under the whole name is never split.

    Raises ValueError for a strength that is not finite.
    """
    reference, colon, strength = text.rpartition(":")
    if not colon or not reference or existing(text):
        return text, 1.0
    try:
        value = float(strength)
    except ValueError:
        return text, 1.0  # a drive of Windows, or a colon in a name
    if not math.isfinite(value):
        raise ValueError(f"{shortened(strength)} is no strength")
    return reference, value


def find(text: str) -> Lora:
    """Find what FILE:STRENGTH means: a file, a run with an adapter, or a folder that holds one. Raises ModelError."""
    reference, strength = parse(text)
    path = existing(reference)
    if path is None:
        near = nearest(reference)
        raise ModelError(
            f"{shortened(reference, 200)}: no such file or folder",
            f"did you mean {near}?" if near else "give a LoRA's .safetensors file, or a run that trained one",
        )
    if path.is_file():
        return Lora(reference, strength, path)
    for folder in (path / "model", path):
        if described := adapter_in(folder):
            subject = read_object(folder / SUBJECT_FILE)
            words = embeddings(folder, described)
            weights = folder / str(described.get("weights"))
            if missing := next((one for one in (weights, *words) if not one.is_file()), None):
                raise ModelError(f"{missing}: missing", "copy or download it again")
            return Lora(reference, strength, weights, words, _known(subject) or None)
        for name in NAMES:
            if (folder / name).is_file():
                return Lora(reference, strength, folder / name)
    raise ModelError(
        f"{path}: holds no adapter", f"give a .safetensors file, a run with an adapter, or a folder with {NAMES[0]}"
    )


def embeddings(folder: Path, described: Mapping[str, Any]) -> tuple[Path, ...]:
    """Say where the words lie that trained beside an adapter, by what its folder's femtobooth.json says of it."""
    given = described.get("embedding") or []
    return tuple(folder / str(name) for name in (given if isinstance(given, list) else [given]))


def _known(subject: Mapping[str, Any]) -> dict[str, Any]:
    """Take what it has learned, and nothing where that is no text."""
    try:
        found = called_in(subject)
    except ValueError:
        return {}
    return known_of(found) if found else {}


def tensors_hash(path: Path) -> str:
    """Compute the SHA-256 of a safetensors file without its header, hexadecimal: what A1111 knows an adapter by; ""
    for any other file.
    """
    with path.open("rb") as file:
        start = file.read(9)
        if start[8:] != b"{":
            return ""
        file.seek(8 + struct.unpack("<Q", start[:8])[0])
        return hashlib.file_digest(file, "sha256").hexdigest()


def _strength(text: str) -> str:
    parse(text)
    return text


Loras = list[Annotated[str, Field(min_length=1), AfterValidator(_strength)]]
"""LoRAs as people name them: FILE, or FILE:0.8."""
