"""Settings as they come over a network: a file is named by a reference, never by a path, and no place is chosen.

upload:ID         a picture or a file that was sent here
set:ID            a folder of such pictures, or a list of them with their labels
run:ID            a run of the studio's folder
model:ID          a model that lies in models/ there
job:ID:FILE       a file that a job made, by the ids of both
bundled, dino     what is no path but a name, where nothing of that name lies here
"""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Mapping
from typing import Any

from ..core.config import Settings, merge, nested
from ..core.errors import SettingsError
from ..core.fields import Setting, settings
from ..core.paths import existing

REFUSED = {
    "trust": "runs a program that came with a model",
    "python": "names a program",
    "overwrite": "replaces what is there",
    "plan": "is asked for at its own address",
    "memory": "is asked for with a plan, at its own address",
    "prompts_file": "reads a file of this machine; give `prompts`",
    "from_file": "reads a file of this machine; give `paths`",
    "training.nodes": "reaches other machines",
    **dict.fromkeys(("push", "public"), "sends a model to the hub as whoever is logged in at this machine"),
    "column": "leads to files of this machine and addresses",
    **dict.fromkeys(("executor", "address", "actors", "gpus_per_actor", "part_size"), "reaches other machines"),
}
"""Settings that only somebody at this machine may give, and why."""
PLACES = ("runs", "out", "target")
"""Settings that say where something goes, which the studio does."""
WITH_NUMBER = "loras"
"""The setting whose files may be followed by :0.8."""
MOST_DEEP = 8
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,100}")
_REFERENCE = re.compile(r"(upload|set|run|job|model):[\w:-]{1,80}")

Find = Callable[[str, str], str | None]
"""Takes a reference and the dotted name of the setting that it is for; gives the path, None where it leads nowhere."""


def resolve(model: type[Settings], given: Mapping[str, Any], find: Find) -> dict[str, Any]:
    """Put paths in place of the references in settings. Raises SettingsError for what may not come from a network."""
    refuse_text(given)
    found: dict[str, Any] = dict(given)
    for one in settings(model):
        value = _at(given, one.path)
        if value is None:
            continue
        if one.path in REFUSED:
            raise SettingsError(f"`{one.path}`: {REFUSED[one.path]}", "use the command line for that, or leave it out")
        if is_place(one):
            raise SettingsError(f"`{one.path}`: the studio decides where things go", "leave it out")
        if one.names:
            found = merge(found, nested(one.path, _resolved(one, value, find)))
        elif held := _held(one):
            found = merge(found, nested(one.path, _each(one, held, value, find)))
    return found


def _held(one: Setting) -> type[Settings] | None:
    """Give the settings that a mapping's values are, such as those of several subjects. Raises for another mapping."""
    annotation = one.field.annotation
    if typing.get_origin(annotation) is not dict:
        return None
    _, held = typing.get_args(annotation)
    if not issubclass(held, Settings):
        raise TypeError(f"{one.path}: what it holds cannot be told")
    return held


def _each(one: Setting, held: type[Settings], value: Any, find: Find) -> Any:
    """Resolve the settings in a mapping; each has to be a mapping itself, no text that holds a path."""
    if not isinstance(value, Mapping):  # which validation refuses
        return value
    if not all(isinstance(inside, Mapping) for inside in value.values()):
        raise SettingsError(f"`{one.path}`: each is given as an object", 'such as {"paths": [...], ...}')
    return {name: resolve(held, inside, find) for name, inside in value.items()}


def is_place(one: Setting) -> bool:
    """Tell whether a setting says where something goes."""
    return one.path in PLACES and one.names == "path"


def _resolved(one: Setting, value: Any, find: Find) -> Any:
    if isinstance(value, list):
        return [_resolved(one, item, find) for item in value]
    if not isinstance(value, str):  # which validation refuses
        return value
    number = ""
    if one.path == WITH_NUMBER and (parts := re.fullmatch(r"(.+?)(:-?\d*\.?\d+)", value)) and parts[1].count(":"):
        value, number = parts[1], parts[2]
    if _REFERENCE.fullmatch(value):
        path = find(value, one.path)
        if path is None:
            raise SettingsError(f"`{one.path}`: {value} leads nowhere", "it may have been deleted; choose another one")
        return path + number
    if one.names in ("model", "base", "path") and (path := find(value, one.path)):
        return path + number
    if one.names in ("model", "base", "path") and _NAME.fullmatch(value) and existing(value) is None:
        return value + number
    raise SettingsError(
        f"`{one.path}`: a path of this machine is not taken from a network",
        "give upload:ID, run:ID, or a model that the list of models names",
    )


def refuse_text(given: Any, deep: int = 0) -> None:
    """Raise SettingsError for text that no file can hold, and for what is nested too deep."""
    if deep > MOST_DEEP:
        raise SettingsError("settings are nested too deep", "give them as the command's description has them")
    if isinstance(given, Mapping):
        for name, value in given.items():
            refuse_text(name, deep)
            refuse_text(value, deep + 1)
    elif isinstance(given, list):
        for value in given:
            refuse_text(value, deep + 1)
    elif isinstance(given, str) and re.search("[\0\ud800-\udfff]", given):
        raise SettingsError("a text holds what is no character", "take it out")


def _at(values: Any, path: str) -> Any:
    for key in path.split("."):
        values = values.get(key) if isinstance(values, Mapping) else None
    return values
