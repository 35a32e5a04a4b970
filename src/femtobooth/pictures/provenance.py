"""Tell which pictures are generated, by the file's own text, its bytes or its looks; those only ever train.

A picture counts as generated where any of these says so:

    record        in the PNG, which every command that generates writes: survives moving, renaming and merging
    file name     listed by a `provenance.json` beside or above it, whatever its ending is now
    SHA-256       listed there: survives renaming
    looks         near the perceptual hash that is listed there: survives saving as JPEG under another name

What is neither a PNG with its record nor under such a file (exported to JPEG and moved away) cannot be told from a
photo.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import PhotoError
from ..core.events import warn
from . import archive_paths, duplicates, records
from .archive_paths import sha256_of
from .images import Skipped, decode

MANIFEST = "provenance.json"


@dataclass(frozen=True)
class Origin:
    """What is known of a generated picture."""

    photos: frozenset[str] = frozenset()
    """SHA-256 of the photos that its model was trained on or chosen by: no fair test of what trains on the picture."""
    judge: str = ""
    """Hash of the recognizer that chose it."""


@dataclass
class _Listed:
    """One manifest."""

    origin: Origin = Origin()
    names: set[str] = field(default_factory=set)  # absolute paths without their ending
    digests: set[str] = field(default_factory=set)
    signs: list[str] = field(default_factory=list)


class Provenance:
    """Which files are generated."""

    def __init__(self) -> None:
        self._manifests: dict[Path, _Listed | None] = {}

    def generated(self, path: Path) -> bool:
        """Tell whether a picture is generated. Raises PhotoError for a provenance.json that cannot be understood."""
        return self.origin(path) is not None

    def origin(self, path: Path, views: np.ndarray | None = None) -> Origin | None:
        """Find what is known of a generated picture; None for one that none of the signs gives away.

        `views` (from `duplicates.views`) spare decoding it. Raises PhotoError for a provenance.json that cannot be
        understood.
        """
        places = {path.absolute(), path.resolve()}
        above = [found for folder in {up for place in places for up in place.parents} if (found := self._read(folder))]
        listed = [found for found in above if any(_stem(place) in found.names for place in places)]
        text = _in_file(path)
        if above and text is None and not listed:
            listed = _by_content(path, above, views)
        if text is None and not listed:
            return None
        known = [*(found.origin for found in listed), *([text] if text else [])]
        return Origin(
            frozenset().union(*(one.photos for one in known)), next((one.judge for one in known if one.judge), "")
        )

    def _read(self, folder: Path) -> _Listed | None:
        if folder not in self._manifests:
            self._manifests[folder] = _manifest(folder / MANIFEST)
        return self._manifests[folder]


def _stem(path: Path) -> str:
    return str(path.with_suffix(""))


def _by_content(path: Path, above: Iterable[_Listed], views: np.ndarray | None) -> list[_Listed]:
    try:
        digest = sha256_of(path)
    except OSError:  # reported elsewhere
        return []
    found = [one for one in above if digest in one.digests]
    if found or not any(one.signs for one in above):
        return found
    if views is None:
        picture = decode(path)
        views = None if isinstance(picture, Skipped) else duplicates.views(picture.image)
    return [one for one in above if views is not None and duplicates.any_alike(one.signs, views)]


def _in_file(path: Path) -> Origin | None:
    """Say what the record in a PNG tells; None for a file without one."""
    found = records.read(path)
    if found is None:
        return None
    try:
        return _origin(found[records.CHOSEN])
    except (KeyError, TypeError, ValueError, AttributeError):
        return Origin()


def _origin(facts: Mapping[str, Any]) -> Origin:
    return Origin(frozenset(map(str, facts.get("photos") or ())), str((facts.get("encoder") or {}).get("hash") or ""))


def _manifest(file: Path) -> _Listed | None:
    """Read what a manifest lists: paths from its folder, or objects that hold one as `file`, and `sha256` and `signs`.

    Other programs write files of this name too; those are passed over with a warning. One that is ours, or may be, and
    cannot be understood is an error: it may hide generated pictures.
    """
    if not archive_paths.is_file(file):
        return None
    found = _Listed()
    try:
        with archive_paths.opened(file) as opened:
            raw = opened.read()
        if not _ours(raw):
            warn(f"{file}: is no list of generated pictures as femtobooth writes it; passed over")
            return None
        facts = json.loads(raw)
        entries = [{"file": one} if isinstance(one, str) else one for one in facts["generated"]]
        if isinstance(facts["generated"], str) or not all(isinstance(one["file"], str) for one in entries):
            raise TypeError("`generated` is no list of paths")
        found.origin = _origin(facts)
        for one in entries:
            place = file.parent / one["file"]
            found.names |= {_stem(place.absolute()), _stem(place.resolve())}
            found.digests |= {str(one["sha256"])} if "sha256" in one else set()
            if one.get("signs"):
                bytes.fromhex(one["signs"])
                found.signs.append(one["signs"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PhotoError(
            f"{file}: which pictures are generated cannot be read ({error})",
            'it must hold {"generated": ["path from its folder", ...]}; remove it if it is no file of femtobooth\'s',
        ) from None
    return found


def _ours(raw: bytes) -> bool:
    """Tell whether a manifest is femtobooth's or a user's in its form: it names femtobooth, or lists what is generated;
    damaged or not.
    """
    try:
        facts = json.loads(raw)
    except (ValueError, RecursionError):
        return bool(re.search(rb'"femtobooth"|"generated"\s*:\s*\[', raw))
    return isinstance(facts, dict) and ("femtobooth" in facts or isinstance(facts.get("generated"), list))
