"""The photos of `export`: those that set the activation ranges of int8, and others to compare on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import PhotoError, SettingsError
from ..core.events import note, warn
from ..core.names import shown
from ..core.paths import expanded
from ..pictures.archive_paths import is_file, sha256_of
from ..pictures.images import Picture, decode, find_pictures
from ..recognizer import evaluation
from ..recognizer.finetuning import dataset, splitting
from ..recognizer.model.labels import Labels
from ..recognizer.model.preprocess import Preprocess
from ..recognizer.settings import ExportSettings

FEWEST = 8  # representative photos
Seen = tuple[np.ndarray, int | None, Path]  # pixels (H, W, 3), class and file of a photo


@dataclass(frozen=True)
class Photos:
    """Files and their true classes (index within the model's first group, None if not known)."""

    paths: list[Path]
    classes: list[int | None]

    def __len__(self) -> int:
        return len(self.paths)

    def where(self, chosen: Any) -> Photos:
        return Photos([self.paths[i] for i in chosen], [self.classes[i] for i in chosen])


def choose(settings: ExportSettings, source: Path, labels: Labels) -> tuple[Photos, Photos]:
    """Choose the representative photos, and others to compare on."""
    split = source / "split.csv"
    rows = splitting.read_split(split) if split.is_file() else []
    own = {
        part: _labelled([(Path(r["path"]), r["label"]) for r in rows if r["split"] == part], labels)
        for part in ("train", "val")
    }
    quantized = settings.precision == "int8"
    same = bool(
        settings.data
        and settings.representative_data
        and Path(settings.data).resolve() == Path(settings.representative_data).resolve()
    )
    given = read(settings.representative_data, labels) if settings.representative_data else None
    data = read(settings.data, labels) if settings.data and not same else None
    if not quantized:
        return Photos([], []), next((photos for photos in (data, given, own["val"]) if photos is not None), own["val"])
    if given is not None and data is None:
        representative = _limited(given.where(range(0, len(given), 2)), settings)
        return representative, _without(representative, given.where(range(1, len(given), 2)))
    representative = given if given is not None else own["train"]
    if not len(representative):
        raise SettingsError(
            "`precision=int8`: no representative photos", "give `representative_data`, a folder with 100 or more"
        )
    representative = _limited(representative, settings)
    return representative, _without(representative, data if data is not None else own["val"])


def _limited(photos: Photos, settings: ExportSettings) -> Photos:
    count = min(len(photos), settings.representative_photos)
    return photos.where([i * len(photos) // count for i in range(count)])


def _without(representative: Photos, data: Photos) -> Photos:
    """Return `data` without the files that set the ranges, whatever their names."""
    used = {sha256_of(path) for path in representative.paths if is_file(path)}
    kept = [i for i, path in enumerate(data.paths) if not is_file(path) or sha256_of(path) not in used]
    if len(kept) < len(data):
        warn(f"{len(data) - len(kept)} photos are among those that set the ranges; they are not compared on")
    return data.where(kept)


def read(given: str, labels: Labels) -> Photos:
    """Find labelled or unlabelled photos of a folder or CSV file. Raises PhotoError."""
    source = expanded(given)
    if dataset.is_labelled(source):
        examples, remarks = dataset.read(source, bool(labels.free)).to_measure()
        for remark in remarks:
            note(remark)
        return _labelled([(example.path, example.label) for example in examples], labels)
    paths, _ = find_pictures([source], recursive=True, archives=True)
    return Photos(paths, [None] * len(paths))


def _labelled(rows: list[tuple[Path, str]], labels: Labels) -> Photos:
    if labels.free:  # agreement judges: a picture has no one true class
        return Photos([path for path, _ in rows], [None] * len(rows))
    index = evaluation.classes_of(labels, list(dict.fromkeys(label for _, label in rows)))
    return Photos([path for path, _ in rows], [index[label] for _, label in rows])


def refuse_too_few(settings: ExportSettings, representative: Photos, data: Photos) -> None:
    if settings.precision == "int8" and len(representative) < FEWEST:
        raise PhotoError(
            f"{len(representative)} representative photos, fewer than {FEWEST}",
            "give `representative_data`, a folder with 100 or more",
        )
    if settings.parity and not len(data):
        raise SettingsError(
            "no photos to compare on", "give `data`, or `parity=false` for an export that nothing vouches for"
        )
    if settings.parity and not any(isinstance(decode(path), Picture) for path in data.paths):
        raise PhotoError(
            f"none of the {len(data)} photos to compare on can be read, such as {data.paths[0]}",
            "give others as `data`",
        )


def representative(photos: Photos, preprocess: Preprocess) -> list[Seen]:
    """Decode the photos that set the ranges. Raises PhotoError where too few of them can be read."""
    note(f"reading {len(photos)} representative photos")
    read = list(pixels(photos, preprocess))
    if len(read) < FEWEST:
        raise PhotoError(
            f"{len(read)} of {len(photos)} representative photos can be read, fewer than {FEWEST}",
            "give `representative_data`, a folder with 100 or more",
        )
    return read


def pixels(photos: Photos, preprocess: Preprocess) -> Iterator[Seen]:
    """Decode and resize photos (H, W, 3), with their classes and files. Raises PhotoError if none can be read."""
    failed = []
    for path, label in zip(photos.paths, photos.classes, strict=True):
        decoded = decode(path)
        if isinstance(decoded, Picture):
            yield preprocess.pixels(decoded.image), label, path
        else:
            failed.append(f"{shown(path)}: {decoded.reason}")
    if failed and len(failed) == len(photos):
        raise PhotoError(f"none of {len(failed)} photos can be read; the first: {failed[0]}", "give others")
    if failed:
        warn(f"{len(failed)} of {len(photos)} photos cannot be read; the first: {failed[0]}")
