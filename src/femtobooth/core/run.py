"""run.json, what a run knows of itself: read with care, true about how the run ended, and about the settings it was
started with.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from . import config, older_runs
from .config import Model
from .errors import Interrupted, ModelError, SettingsError
from .files import read_object, write_json

FILE = "run.json"
AGAIN = "restore it from a backup, or start a new run"
# Settings that shape nothing of a result, or whose place may have moved: what they led to is known by its hash.
FREE = {
    "name", "runs", "overwrite", "base", "model", "data", "synthesized", "tokenizer", "workers", "photos.paths",
    "prior.folder", "training.trackers", "training.log_every", "training.checkpoint_every", "training.keep_checkpoints",
    "training.accelerator",
}  # fmt: skip


def read(
    folder: Path, command: str, fields: Collection[str], option: str = "--resume ", instead: str = AGAIN
) -> dict[str, Any]:
    """Read a run's run.json, which must hold `fields`. Raises ModelError where `folder` is no run of `command`.

    The error names `option`, and where the run may be another command's, `instead` as the way out.
    """
    facts = older_runs.facts(read_object(folder / FILE))
    missing = [name for name in ("status", *fields) if name not in facts]
    if not missing:
        return facts
    if facts:
        problem = f"{option}{folder}: not a run of femtobooth {command}, or damaged: its {FILE} lacks {missing[0]}"
        raise ModelError(problem, instead)
    if (folder / FILE).is_file():
        raise ModelError(f"{option}{folder}: its {FILE} is empty or damaged", AGAIN)
    raise ModelError(
        f"{option}{folder}: not a run folder (no {FILE})", f"give the folder that {command} printed, such as runs/NAME"
    )


@contextmanager
def recorded(folder: Path) -> Iterator[None]:
    """Keep run.json true while a run is worked on, and where that ends before it is done: interrupted, or failed and
    why.
    """
    facts = read_object(folder / FILE)
    if facts.get("status") != "started":
        write_json(
            folder / FILE, {name: value for name, value in facts.items() if name != "error"} | {"status": "started"}
        )
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, Interrupted | KeyboardInterrupt)
        how = (
            {"status": "interrupted"} if stopped else {"status": "failed", "error": f"{error}" or type(error).__name__}
        )
        facts = read_object(folder / FILE)
        if facts and facts["status"] != "done":
            with suppress(Exception):  # a full disk, which is the error that is on its way
                write_json(folder / FILE, facts | how)
        raise


def settings_of(folder: Path, facts: Mapping[str, Any], model: type[Model]) -> Model:
    """The settings of a run that is to go on.

    Raises SettingsError where config.yaml is not what the run was started with.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise SettingsError(f"{path}: missing", AGAIN)
    try:
        settings = config.resolve(model, older_runs.read_settings(path))
    except SettingsError as error:
        raise SettingsError(
            error.problem if str(path) in error.problem else f"{path}: {error.problem}", error.way_out or AGAIN
        ) from None
    _refuse_changed(path, facts, settings)
    return settings


def _refuse_changed(path: Path, facts: Mapping[str, Any], settings: config.Settings) -> None:
    before, now = _flat(older_runs.upgraded(facts.get("settings") or {})), _flat(settings.model_dump(mode="json"))
    changed = [name for name in before.keys() & now.keys() if before[name] != now[name] and name not in FREE]
    if changed:
        some = ", ".join(f"{name} ({before[name]!r} then, {now[name]!r} now)" for name in sorted(changed)[:3])
        raise SettingsError(f"{path}: changed since the run was started: {some}", "put it back, or start a new run")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found
