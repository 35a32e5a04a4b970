"""Pictures without labels, of which a teacher says something; nothing that validates is among them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ...core.errors import PhotoError
from ...core.events import note, progress_bar
from ...pictures import duplicates
from ...pictures.archive_paths import sha256_of
from ...pictures.images import Skipped, decode, find_pictures, read_picture
from ...pictures.provenance import Provenance
from .survey import Survey, moved, refuse_changed

FILE = "unlabelled.csv"


@dataclass(frozen=True)
class Unlabelled:
    """N readable pictures, each file once."""

    paths: Sequence[Path] = ()
    digests: Sequence[str] = ()
    """SHA-256 of the files."""
    behind: frozenset[str] = frozenset()
    """SHA-256 of the photos that the models behind generated ones had learned from."""
    judges: frozenset[str] = frozenset()
    """Hashes of the recognizers that chose generated ones."""
    looks: Sequence[tuple[np.ndarray | None, np.ndarray]] = field(default=(), repr=False)
    """What `duplicates` compares: views and thumbnails of each."""

    def apart_from(self, found: Survey) -> Unlabelled:
        """Leave out copies of pictures that validate or stop, by bytes or looks, and files that train with a label.

        Raises PhotoError where nothing is left.
        """
        held = found.part("val", "stop")
        looks = [_looks(found.paths[i]) for i in held] + list(self.looks)
        digests = [*(found.digests[i] for i in held), *self.digests]
        groups = duplicates.groups([views for views, _ in looks], digests, [small for _, small in looks])
        judging, labelled = set(groups[: len(held)].tolist()), set(found.digests)
        kept = [
            i
            for i, digest in enumerate(self.digests)
            if digest not in labelled and int(groups[len(held) + i]) not in judging
        ]
        if not kept:
            raise PhotoError(
                "`distill.unlabelled`: all of its pictures are among the labelled ones", "give others, or leave it out"
            )
        if left := len(self.paths) - len(kept):
            note(f"{left} unlabelled pictures are left out: they validate, or have a label")
        paths, digests = [self.paths[i] for i in kept], [self.digests[i] for i in kept]
        return replace(self, paths=paths, digests=digests, looks=[self.looks[i] for i in kept])

    def moved(self, places: Mapping[Path, Path]) -> Unlabelled:
        """Give it for pictures that lie elsewhere (`survey.moved`). Raises PhotoError where these are others."""
        paths = moved(self.paths, places)
        refuse_changed(paths, self.digests, "put the same pictures on every machine")
        return replace(self, paths=paths)

    def write(self, file: Path) -> None:
        """Write the list of a run: path, sha256."""
        with file.open("w", newline="", encoding="utf-8", errors="surrogateescape") as opened:
            writer = csv.writer(opened)
            writer.writerow(["path", "sha256"])
            writer.writerows(zip(self.paths, self.digests, strict=True))


def read(folders: Sequence[str]) -> Unlabelled:
    """Read the pictures of folders, with all below them, and of archives. Raises PhotoError where there is none."""
    if not folders:
        return Unlabelled()
    provenance, behind, judges = Provenance(), set[str](), set[str]()
    kept: dict[str, tuple[Path, tuple[np.ndarray | None, np.ndarray]]] = {}
    paths, skipped = find_pictures(folders, recursive=True, archives=True)
    with progress_bar("reading unlabelled pictures", len(paths)) as bar:
        for path in paths:
            picture = decode(path)
            if isinstance(picture, Skipped):
                skipped.append(picture)
            else:
                looks = duplicates.views(picture.image), duplicates.thumbnails(picture.image)
                kept.setdefault(sha256_of(path), (path.absolute(), looks))
                if origin := provenance.origin(path, looks[0]):
                    behind |= origin.photos
                    judges |= {origin.judge} - {""}
            bar.advance()
    if not kept:
        why = f" ({skipped[0].path}: {skipped[0].reason})" if skipped else ""
        raise PhotoError(f"`distill.unlabelled`: no picture can be read{why}", "give a folder of pictures")
    return Unlabelled(
        [path for path, _ in kept.values()],
        list(kept),
        frozenset(behind),
        frozenset(judges),
        [looks for _, looks in kept.values()],
    )


def restored(file: Path, behind: Sequence[str] = ()) -> Unlabelled:
    """Read what `write` wrote. Raises PhotoError where pictures are gone or not what they were."""
    try:
        with file.open(newline="", encoding="utf-8", errors="surrogateescape") as opened:
            digests = {Path(row["path"]): row["sha256"] for row in csv.DictReader(opened)}
    except (OSError, UnicodeDecodeError, csv.Error, KeyError) as error:
        raise PhotoError(f"{file}: cannot be read ({error})", "start the run again") from None
    found = Unlabelled([*digests], [*digests.values()], frozenset(behind))
    refuse_changed(found.paths, found.digests, f"put back the pictures that {file} lists, or start a new run")
    return found


def _looks(path: Path) -> tuple[np.ndarray | None, np.ndarray]:
    image = read_picture(path).image
    return duplicates.views(image), duplicates.thumbnails(image)
