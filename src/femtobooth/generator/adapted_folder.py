"""model/ of a run that trained an adapter: a few MB, and which base they change.

README.md, overview.png               as every personalized model has them
femtobooth.json                       the subject, and `adapter`: what it is, its files, and its base by name and hash
NAME.safetensors                      the adapter in kohya's layout, which femtobooth and most programs read
pytorch_lora_weights.safetensors      the same for diffusers, of a LoRA
embeddings/TOKEN.safetensors          a word that trained beside it, where one did, as a textual-inversion file

A folder that was copied elsewhere says no more than the name of a base that is a path; in a run, run.json says where it
lies.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..core.errors import ModelError
from ..core.files import atomic_folder, content_hash, read_object
from ..core.paths import existing
from ..core.tensors import DAMAGED
from . import adapter_layers, adapters, cards
from .adapter_base import Base
from .adapters import Adapter
from .families.family import Family
from .formats import adapter_header, adapter_keys, adapter_reading, adapter_writing, word_files
from .formats.adapter_header import About
from .formats.folder import checked_subject
from .locate import BUNDLED, SUBJECT_FILE
from .lora_reference import embeddings
from .settings import RECOMMENDABLE, PersonalizeSettings
from .tokens import TokenEmbedding

WORDS = "embeddings"  # the folder that other programs keep them in, where the name of a file is the word


@dataclass(frozen=True)
class Learned:
    """What a run has learned beside a base: small changes of its layers, and the embeddings of words."""

    adapter: Adapter
    words: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    """(D,) for each text encoder, by word; none where no word trained."""

    @staticmethod
    def take(model: Family, settings: PersonalizeSettings, words: Sequence[str], dtype: torch.dtype) -> Learned:
        """Take what trained out of a model, which is its base again; as exact as it will be in files of `dtype`.

        `words` are those that stand for subjects, in their order.
        """
        rows = TokenEmbedding.rows(model)
        taken = {
            word: tuple(row.cpu().to(dtype).float() for row in own)
            for word, own in (zip(words, rows, strict=True) if rows else ())
        }
        held = adapter_layers.read(model).modules
        modules = {
            name: {kind: tensor.to(dtype).float() for kind, tensor in tensors.items()} for name, tensors in held.items()
        }
        adapter_layers.remove(model)
        TokenEmbedding.remove(model, write=False)
        return Learned(Adapter(modules), taken)

    def put_into(self, model: Family) -> Family:
        """Merge it into its base, in place, and return that. Raises ModelError where it does not fit."""
        adapters.apply(model, self.adapter)
        for word, rows in self.words.items():
            TokenEmbedding.teach(model, word, rows)
        return model


def describe(settings: PersonalizeSettings, name: str, learned: Learned) -> dict[str, Any]:
    """Say what femtobooth.json says of an adapter: what it is, which files hold it, and its base, without a path."""
    lora = settings.lora
    words = [f"{WORDS}/{word}.safetensors" for word in learned.words]
    return {
        "kind": lora.kind,
        "rank": lora.rank,
        "alpha": None if lora.kind == "oft" else adapter_layers.scaled_alpha(lora),
        "targets": lora.targets,
        "base": Path(settings.base).name if settings.base != BUNDLED and existing(settings.base) else settings.base,
        "weights": f"{name}.safetensors",
        "embedding": words if len(words) > 1 else next(iter(words), None),
    }


def save(
    folder: Path, learned: Learned, model: Family, about: About, card: str, dtype: torch.dtype, picture: Path
) -> None:
    """Write the folder, which appears whole, in place of what was there; `model.subject` holds `adapter` (`describe`).

    Raises ModelError for a family whose adapters have no files yet.
    """
    if not model.KOHYA:
        raise ModelError(f"{model.source}: adapters of this family of models have no files yet", "train another part")
    described, metadata = model.subject["adapter"], adapter_header.header(learned.adapter, model, about)
    with atomic_folder(folder, overwrite=True) as temporary:
        weights, names = temporary / described["weights"], adapter_keys.kohya_names(model)
        adapter_writing.write_kohya(weights, learned.adapter, metadata, dtype, names=names)
        if described["kind"] == "lora":
            path = temporary / adapter_writing.DIFFUSERS_NAME
            adapter_writing.write_diffusers(path, learned.adapter, metadata, dtype)
        for (word, rows), path in zip(learned.words.items(), embeddings(temporary, described), strict=True):
            path.parent.mkdir(exist_ok=True)
            word_files.write(path, model, word, rows, dtype)
        (temporary / cards.README).write_text(card, encoding="utf-8")
        if picture.is_file():
            shutil.copyfile(picture, temporary / cards.PICTURE)
        (temporary / SUBJECT_FILE).write_text(json.dumps(model.subject, indent=2) + "\n", encoding="utf-8")


def load(folder: Path, source: str, load_base: Callable[[str, str | None], Family], tokenizer: str | None) -> Family:
    """Load the base that a folder's adapter belongs to, and merge the adapter into it.

    `load_base` loads what a name and a tokenizer stand for; where that has no numbers, nothing is merged.
    Raises ModelError where the base is not where it was or is another one, or where a file is missing or damaged.
    """
    found = Files.of(folder)
    base = Base.of(folder, tokenizer).load(source, load_base)
    if not base.hash:  # shapes alone, which an adapter leaves as they are
        return replace(base, source=source)
    return found.named(found.read(base).put_into(base), source)


@dataclass(frozen=True)
class Files:
    """What lies in such a folder, and what that says of itself."""

    folder: Path
    subject: Mapping[str, Any]
    described: Mapping[str, Any]
    base_hash: str
    weights: Path
    words: tuple[Path, ...]

    @staticmethod
    def of(folder: Path) -> Files:
        """Find them. Raises ModelError where one is missing or damaged."""
        given = read_object(folder / SUBJECT_FILE)
        try:
            subject = checked_subject(given)
            described, wanted = dict(given["adapter"]), str(subject["base_hash"])
            weights = folder / str(described["weights"])
            words = embeddings(folder, described)
        except (ValueError, TypeError, KeyError):
            raise ModelError(
                f"{folder / SUBJECT_FILE}: says too little of its adapter, or is damaged", DAMAGED
            ) from None
        if missing := next((path for path in (weights, *words) if not path.is_file()), None):
            raise ModelError(f"{missing}: missing", DAMAGED)
        return Files(folder, subject, described, wanted, weights, words)

    def read(self, base: Family) -> Learned:
        """Read what was learned beside a base. Raises ModelError where a file is damaged or does not fit."""
        return Learned(
            adapter_reading.read(self.weights, base),
            {word: rows for path in self.words for word, rows in _read_words(path).items()},
        )

    def named(self, base: Family, source: str) -> Family:
        """Say of a base, with what was learned in it, what it is then called."""
        readme = cards.read_readme(self.folder)
        files = content_hash([self.weights, *self.words], self.folder)
        return replace(
            base,
            source=source,
            hash=hashlib.sha256(f"{base.hash}\0{files}".encode()).hexdigest(),
            card=cards.parse_card(readme, self.folder / cards.README, RECOMMENDABLE),
            readme=readme,
            subject={key: value for key, value in self.subject.items() if key != "adapter"},
        )


def _read_words(path: Path) -> dict[str, tuple[Tensor, ...]]:
    """Read a textual-inversion file: of its word the rows (D,) for each text encoder."""
    return word_files.words(path, load_file(path))
