"""femtobooth caption: photos and a captioner on this machine -> `photo.txt` beside each photo that has no caption yet.

A caption says everything but the subject best in words that are right, so a person reads and corrects them; nothing
here is part of training.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core import machine
from ..core.errors import PhotoError
from ..core.events import conclude, note, progress, table, warn
from ..core.files import atomic_file
from ..core.names import shown, stored
from ..core.paths import expanded
from ..generator.captions import ENDINGS, Captions, caption_files, captions_of
from ..generator.prompts import SUBJECT
from ..pictures.images import Skipped, decode, find_pictures, is_other
from ..pictures.masks import without_masks
from .settings import CaptionSettings


def run(settings: CaptionSettings) -> dict[str, Any]:
    """Write a caption beside each picture that has none; returns `captions` by file, `left` and `skipped`.

    With `overwrite` pictures that have captions get new ones too. Raises PhotoError where there is no picture, and
    ModelError for what is no captioner.
    """
    found, others = find_pictures(settings.paths)
    paths = without_masks(found)
    if not paths:
        where = ", ".join(map(shown, settings.paths))
        raise PhotoError(f"no picture in {where}", "give JPEG, PNG or WebP photos, or the folder they are in")
    known = captions_of(paths)
    left = [] if settings.overwrite else [path for path in paths if known.texts[path]]
    skipped = {stored(one.path): one.reason for one in others if one.path not in known.files}
    if left:
        note(f"left as they are, as they have captions: {', '.join(shown(path.name) for path in left)}")
    made = _write([path for path in paths if path not in left], known, settings, skipped)
    rows = [[shown(Path(file).name), shown(Path(text_file).name), text] for file, (text_file, text) in made.items()]
    if rows:
        table("captions", ["picture", "file", "caption"], rows)
    for file, reason in skipped.items():
        warn(f"{shown(file)}: no caption ({reason})")
    about = f"; {SUBJECT} stands for the subject" if settings.class_noun else f"; write {SUBJECT} for the subject"
    conclude(f"{len(made)} captions written: read and correct them before training{about}")
    return {
        "model": settings.model,
        "captions": {file: text for file, (_, text) in made.items()},
        "files": [text_file for text_file, _ in made.values()],
        "left": [stored(path) for path in left],
        "skipped": skipped,
    }


def _write(
    paths: Sequence[Path], known: Captions, settings: CaptionSettings, skipped: dict[str, str]
) -> dict[str, tuple[str, str]]:
    """Caption pictures, each written as it is made; returns the file and its text by picture."""
    made: dict[str, tuple[str, str]] = {}
    if not paths:
        return made
    from ..generator.captioner import Captioner

    device = machine.device(settings.device)
    captioner = Captioner.load(expanded(settings.model), device, settings.prompt)
    for path in progress(paths, "captions"):
        picture = decode(path)
        if isinstance(picture, Skipped):
            skipped[stored(path)] = picture.reason
            continue
        text = captioner.caption(picture.image, settings.tokens)
        if not text:
            skipped[stored(path)] = "the model says nothing of it"
            continue
        text = naming(text, settings.class_noun) if settings.class_noun else text
        file = place(path, known)
        with atomic_file(file, replace=settings.overwrite or file in known.files) as temporary:
            temporary.write_text(f"{text}\n", encoding="utf-8")
        made[stored(path)] = (stored(file), text)
    return made


def naming(caption: str, noun: str) -> str:
    """Put [V] before the class noun of a caption, or before the caption where that does not name it."""
    found = re.search(rf"(?<!\w){re.escape(noun)}(?!\w)", caption, re.IGNORECASE)
    if found is None:
        return f"a {SUBJECT} {noun}, {caption}"
    return f"{caption[: found.start()]}{SUBJECT} {caption[found.start() :]}"


def place(picture: Path, known: Captions) -> Path:
    """Say where a picture's caption goes: into the file that is read today, if it has one; else `photo.txt`, or
    `photo.jpg.txt` where another picture has the same name but for its ending.
    """
    own = caption_files(picture)
    if own:
        return own[0]
    twins = [
        other
        for other in picture.parent.iterdir()
        if other.stem == picture.stem and other != picture and other.is_file() and not is_other(other)
    ]
    return picture.with_name(picture.name + ENDINGS[0]) if twins else picture.with_suffix(ENDINGS[0])
