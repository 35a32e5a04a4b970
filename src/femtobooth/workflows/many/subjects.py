"""Read who is to be taught, from a .jsonl file or a folder of folders, and settle the settings of each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core import config
from ...core.config import Layer, merge, nested
from ...core.errors import PhotoError, SettingsError, shortened
from ...core.paths import expanded
from ...generator.settings import PersonalizeSettings
from ...pictures.images import find_pictures
from .dreambooth_lists import LISTS, read_lists
from .settings import TrainManySettings

DECIDED = (
    *("name", "runs", "overwrite", "plan", "memory", "subjects", "photos.paths", "photos.class_noun"),
    *("executor", "address"),
)
"""Settings of personalize that are not for all subjects."""


@dataclass(frozen=True)
class Subject:
    """One who is taught."""

    name: str
    given: Mapping[str, Any]
    """What `femtobooth personalize` is given."""
    settings: PersonalizeSettings
    """The same, settled."""


def read(settings: TrainManySettings) -> list[Subject]:
    """List the subjects in their order.

    Raises SettingsError for a line that cannot be used, or a name that comes twice; PhotoError for a folder without
    folders of photos.
    """
    for path in DECIDED:
        if _at(settings.personalize, path) is not None:
            raise SettingsError(f"`personalize.{path}`: each subject has its own", "leave it out")
    place = expanded(settings.subjects)
    found: list[Subject] = []
    for where, row in _of_folder(place) if place.is_dir() else _of_file(place):
        found.append(_subject(where, row, settings))
    names = [one.name.casefold() for one in found]
    if twice := next((one.name for one in found if names.count(one.name.casefold()) > 1), None):
        raise SettingsError(f"{place}: two subjects are called {shortened(twice)}", "give each a name of its own")
    return found


def _at(given: Any, path: str) -> Any:
    for key in path.split("."):
        given = given.get(key) if isinstance(given, Mapping) else None
    return given


def _of_file(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read the lines of a file, each with what it is called; paths of photos are relative to the file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{path}: cannot be read ({error})", "give a UTF-8 file of one JSON object a line"
        ) from None
    lines = [(f"{path}, line {number}", line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise SettingsError(f"{path}: names no subject", "give one JSON object a line")
    for where, line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            example = '{"name": "rex", "photos": "photos/rex", "class_noun": "dog"}'
            raise SettingsError(f"{where}: is no JSON object", f"such as {example}")
        yield where, _beside(path.parent, row)


def _beside(folder: Path, row: dict[str, Any]) -> dict[str, Any]:
    """Make the paths of photos in a row those that are meant beside its file."""
    photos = row.get("photos")
    paths = photos.get("paths") if isinstance(photos, dict) else photos
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, list):
        return row
    paths = [str(folder / expanded(one)) if isinstance(one, str) else one for one in paths]
    return {**row, "photos": {**photos, "paths": paths} if isinstance(photos, dict) else paths}


def _of_folder(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """List the folders of photos in a folder, with the classes that a list as google/dreambooth's says."""
    classes = read_lists(folder / LISTS)[0] if (folder / LISTS).is_file() else {}
    places = [one for one in sorted(folder.iterdir()) if one.is_dir() and not one.name.startswith(".")]
    places = [one for one in places if find_pictures([one])[0]]
    if not places:
        raise PhotoError(f"{folder}: holds no folder of photos", "it needs one for each subject, named as the subject")
    for place in places:
        row: dict[str, Any] = {"name": place.name, "photos": [str(place)]}
        if place.name in classes:
            row["class_noun"] = classes[place.name]
        yield str(place), row


def _subject(where: str, row: dict[str, Any], settings: TrainManySettings) -> Subject:
    """Settle a row. Raises SettingsError, which says where it stands."""
    name, given = row.get("name"), row.get("photos")
    if not isinstance(name, str) or not isinstance(given, list | dict):
        raise SettingsError(f"{where}: needs name and photos", "give each subject both")
    photos = given if isinstance(given, dict) else {"paths": given}
    noun = row.get("class_noun", photos.get("class_noun", settings.class_noun))
    if not isinstance(noun, str):
        raise SettingsError(f"{where}: does not say what {shortened(name)} is", "give its class_noun, or `class_noun`")
    more = {key: value for key, value in row.items() if key not in ("name", "photos", "class_noun")}
    for path in DECIDED:
        if _at(more, path) is not None or path in more:
            raise SettingsError(f"{where}: {path}: no setting of one subject", "leave it out")
    own = merge(*(nested(key, value) for key, value in more.items()))
    photos = merge(own.pop("photos", {}), photos, {"class_noun": noun})
    layer = Layer(merge(own, {"name": name, "photos": photos}))
    layer.names = {key: f"{where}: {key}" for key in _dotted(layer)}
    layers = [settings.personalize, layer, {"runs": settings.runs}]
    try:
        found = config.settle(PersonalizeSettings, *layers)
        found.refuse_at_once()
    except SettingsError as error:
        problem = error.problem if where in error.problem else f"{where}: {error.problem}"
        raise SettingsError(problem, error.way_out, error.details) from None
    return Subject(name, merge(*layers), found)


def _dotted(given: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in given.items():
        yield prefix + key
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{key}.")
