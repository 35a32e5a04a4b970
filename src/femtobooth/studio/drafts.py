"""Keep a subject that is being prepared: which uploads are its photos and what was chosen, until it is taught.

FOLDER/.studio/drafts/ID.json
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from ..core import events
from ..core.errors import PhotoError
from ..core.files import read_object, write_json
from ..generator.photos import load_photos
from ..generator.subject_settings import PhotoSettings
from .uploads import Upload, Uploads

ID = re.compile(r"[0-9a-f]{16}")
OWN_CAPTION = ("own caption", "own captions")


class Draft(BaseModel):
    """Hold what was chosen so far."""

    id: str
    created: datetime
    photos: list[str] = []
    """Ids of uploads."""
    settings: dict[str, Any] = {}
    """Nested, as a form gave them."""
    preset: str = "balanced"
    base: str = "bundled"
    """What it is taught to, as settings name it."""
    job: str | None = None
    """The job that it became."""


@dataclass(frozen=True)
class Found:
    """Hold what was found in the photos of a draft, by their ids."""

    notes: dict[str, list[str]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    """Why a photo is not used."""
    squares: dict[str, np.ndarray] = field(default_factory=dict)
    """What is learned from, (size, size, 3) uint8."""
    warnings: list[str] = field(default_factory=list)


class Drafts:
    """The drafts of a studio."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def new(self) -> Draft:
        """Begin an empty one, which `keep` writes."""
        return Draft(id=secrets.token_hex(8), created=datetime.now(UTC))

    def get(self, draft_id: str) -> Draft | None:
        """Find a draft by its id."""
        held = read_object(self.folder / f"{draft_id}.json") if ID.fullmatch(draft_id) else None
        return Draft.model_validate(held) if held else None

    def listed(self) -> list[Draft]:
        """List those that were not taught, the newest first."""
        found = [self.get(path.stem) for path in self.folder.glob("*.json")]
        waiting = [one for one in found if one and one.photos and one.job is None]
        return sorted(waiting, key=lambda one: one.created, reverse=True)

    def keep(self, draft: Draft) -> None:
        """Write what was chosen."""
        write_json(self.folder / f"{draft.id}.json", draft.model_dump(mode="json"))

    def remove(self, draft: Draft) -> None:
        """Forget a draft."""
        (self.folder / f"{draft.id}.json").unlink(missing_ok=True)


def look(photos: Sequence[Upload], uploads: Uploads, settings: PhotoSettings, size: int) -> Found:
    """Find what `personalize` would say of the photos, and how it would cut them."""
    if not photos:
        return Found()
    warnings: list[str] = []

    def hear(event: events.Event) -> None:
        if event.kind == "warning":
            warnings.append(_named(event.data["text"], photos))

    paths = [str(uploads.path(one)) for one in photos]
    try:
        with events.listening(hear):
            learned, rows = load_photos(settings.model_copy(update={"paths": paths}), size)
    except PhotoError as error:
        return Found(warnings=[_named(error.problem, photos)])
    ids = {Path(path).name: one.id for path, one in zip(paths, photos, strict=True)}
    notes: dict[str, list[str]] = {}
    skipped: dict[str, str] = {}
    for row in rows:
        if not (number := ids.get(Path(row["file"]).name)):
            continue
        texts = [_named(text, photos) for text in row["notes"] if text not in OWN_CAPTION]
        if row["status"] == "skipped":
            skipped[number] = "; ".join(texts)
        else:
            notes[number] = texts
    squares = {ids[photo.path.name]: photo.pixels for photo in learned}
    return Found(notes, skipped, squares, warnings)


def _named(text: str, photos: Sequence[Upload]) -> str:
    """Put the names that people know into a text about files."""
    for one in photos:
        text = text.replace(f"{one.id}.png", one.name)
    return text
