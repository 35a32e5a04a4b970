"""Read what older versions wrote into a run folder: each name that has changed since stands here, and only here.

Before 2026-12 the group `samples` of settings was `preview` and the group `validation` was `watch`; their folders were
previews/ and watch/, with watch/watch.json in the latter; `loss.background` was `loss.surroundings`; number formats
were 32, 16, 16-mixed and bf16-mixed. run.json had no `kind`, `created` and `subjects` (one `token` and `class_noun`
instead), called a run that was worked on `started`, and `versions` `environment`.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .config import Layer, read_yaml
from .files import atomic_file

FILE, SETTINGS_FILE = "run.json", "config.yaml"
GROUPS = {"preview": "samples", "watch": "validation"}  # of settings, and fields of run.json
SETTINGS = {**GROUPS, "surroundings": "background"}  # groups, and settings in them
PRECISIONS = {"32": "fp32", "16": "fp16", "16-mixed": "fp16", "bf16-mixed": "bf16"}
PLACES = {"samples": "previews", "validation": "watch", "validation/validation.json": "watch/watch.json"}
# The bundled base until November 2026, whose text encoder's keys lacked `text_model.`: runs that began on it go on.
SAME_WEIGHTS = {
    "a0eeb89c800f6e94ad33e79a343449bda2327cdd1b370f4b94a9e592ece4b0a1": (
        "d590e4ba49a0c4ba40bd00aafdc4f4a8f7a457387f936aa07bcefb42b7fc0a6b"
    )
}
"""Hashes of bases whose weights lie in other files today, with the hash that they have now."""


def read_settings(path: Path) -> Layer:
    """Read a YAML file of settings, of an older version too. Raises SettingsError naming the file."""
    given = read_yaml(path)
    layer = Layer(upgraded(given))
    layer.names = {
        ".".join(SETTINGS.get(part, part) for part in dotted.split(".")): name for dotted, name in given.names.items()
    }
    return layer


def upgraded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Say settings of an older version, from a run or from the record in a picture, in today's names and values."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        today = SETTINGS.get(name, name)
        if isinstance(value, Mapping):
            found[today] = upgraded(value)
        elif name in ("precision", "save_precision"):
            found[today] = PRECISIONS.get(str(value), value)
        else:
            found[today] = value
    return found


def facts(folder: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """Give the fields of a run.json that lies in `folder` today's names and values."""
    named = {GROUPS.get(name, name): value for name, value in with_base_of_today(found).items()}
    if isinstance(named.get("settings"), Mapping):
        named["settings"] = upgraded(named["settings"])
    if named.get("status") == "started":
        named["status"] = "running"
    if "kind" not in named and ("token" in named or "classes" in named):
        _upgrade(folder, named)
    return named


def _upgrade(folder: Path, named: dict[str, Any]) -> None:
    """Bring run.json of before 2026-12 up, in place."""
    named["kind"] = "personalize" if "token" in named else "finetune"
    named["versions"] = named.pop("environment", {})
    began = folder / SETTINGS_FILE if (folder / SETTINGS_FILE).is_file() else folder / FILE
    named["created"] = datetime.fromtimestamp(began.stat().st_mtime, UTC)
    planned = named.get("settings", {}).get("training", {}).get("steps")
    saved = [int(path.name[5:]) for path in folder.glob("checkpoints/step-*") if path.name[5:].isdigit()]
    named["progress"] = {"step": named.get("trained_steps", max(saved, default=0)), "steps": planned}
    if "token" in named:
        pictures = {
            name: sorted(path.relative_to(folder).as_posix() for path in folder.glob(f"{name}/[0-9]*.png"))
            for name in ("photos", "held_out")
        }
        subject = {"token": named.pop("token"), "class_noun": named.pop("class_noun", None), **pictures}
        named["subjects"] = {"V": subject}


def with_base_of_today(found: Mapping[str, Any]) -> dict[str, Any]:
    """Give what says on which base a model was made the hash that this base has today."""
    named = dict(found)
    if "base_hash" in named:
        named["base_hash"] = SAME_WEIGHTS.get(named["base_hash"], named["base_hash"])
    return named


def checkpoint(state: dict[str, Any]) -> dict[str, Any]:
    """Give the callbacks whose state a checkpoint holds today's names; returns `state`, changed."""
    callbacks = state.get("callbacks") or {}
    if watch := callbacks.pop("Watch", None):
        spent = watch["seconds"]
        callbacks["Validator"] = watch | {"seconds": {"validation": spent["watching"], "training": spent["training"]}}
    return state


def place(folder: Path, name: str) -> Path:
    """Find `name`, a path in a run folder as it is today: there, or where an older version put it."""
    today = folder / name
    return folder / PLACES[name] if name in PLACES and not today.exists() else today


def bring_up(folder: Path) -> None:
    """Rename what an older version wrote into a run that is to go on, which from now on is written under today's names.

    The caller must hold the run's lock.
    """
    for name, older in PLACES.items():
        parent, _, own = name.rpartition("/")
        written = folder / parent / Path(older).name  # a file's folder was renamed before it
        if written.exists() and not (folder / parent / own).exists():
            written.rename(folder / parent / own)
    curves = folder / "logs" / "metrics.csv"
    if not curves.is_file():
        return
    with curves.open(newline="", encoding="utf-8") as file:
        header, *rows = [*csv.reader(file)] or [[]]
    today = [column(name) for name in header]
    if today != header:
        with atomic_file(curves) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([today, *rows])


def column(name: str) -> str:
    """Give a column of logs/metrics.csv today's name."""
    group, slash, rest = name.partition("/")
    return (GROUPS.get(group, group) if slash else group) + slash + rest
