"""subjects -> a run of personalize for each, some at a time or on a cluster, and one page of what came of all.

RUNS/NAME/            the run of a subject, as personalize alone makes it
     subjects.html    every subject's scores, chosen step, newest pictures, and what went wrong
     subjects.json    the same for programs
     .many/NAME/      what its process was told and says: settings.yaml, events.jsonl, log.txt

Stopped or killed at any point, the same command goes on: runs that are done stay as they are, others go on from their
checkpoints to the same bits. One that fails stops no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..core import locks
from ..core.config import read_yaml
from ..core.errors import ExistsError
from ..core.event_log import logged
from ..core.files import write_text, writing
from ..core.job import SETTINGS
from ..core.run import FREE, is_run
from ..core.strict_yaml import dump_yaml
from .many import summary
from .many.settings import TrainManySettings
from .many.standing import Standing, standing
from .many.subjects import Subject, read
from .many.together import together
from .many.work import PRIVATE, Ended, Work, training

HARMLESS = {name for name in FREE if name.startswith("training.")}
"""Settings that may be others when the command is given again."""


def run(settings: TrainManySettings) -> dict[str, Any]:
    """Teach all subjects; returns what subjects.json holds.

    Raises InputError kinds before anything is trained, and FemtoboothError at the end where a subject was not finished.
    """
    subjects, runs = read(settings), Path(settings.runs)
    works = [_work(one, runs) for one in subjects]
    for one, work in zip(subjects, works, strict=True):
        _refuse_another(one, work)
    private = runs / PRIVATE
    with writing(runs):
        private.mkdir(parents=True, exist_ok=True)

    def found(ended: Mapping[str, Ended]) -> list[Standing]:
        nouns = (one.settings.photos.class_noun for one in subjects)
        return [standing(work, noun, ended.get(work.name)) for work, noun in zip(works, nouns, strict=True)]

    def write(ended: Mapping[str, Ended]) -> None:
        summary.write(found(ended), runs)

    with locks.held(private, "wait until it is done, or choose another `runs`"), logged(private):
        for one, work in zip(subjects, works, strict=True):
            if not is_run(work.folder):
                work.place.mkdir(exist_ok=True)
                write_text(work.place / SETTINGS, dump_yaml(one.given))
        accelerated = any(one.settings.training.accelerator != "cpu" for one in subjects)
        last = found(together(works, settings, accelerated, write))
        result = summary.write(last, runs)
        summary.tell(last, runs)
    return result


def _work(subject: Subject, runs: Path) -> Work:
    folder, place = runs / subject.name, runs / PRIVATE / subject.name
    return Work(subject.name, place, folder, partial(training, folder, place / SETTINGS))


def _refuse_another(subject: Subject, work: Work) -> None:
    """Raise ExistsError where the run of a subject was begun with other settings, or by another command."""
    if not is_run(work.folder):
        return
    file = work.place / SETTINGS
    if not file.is_file():
        raise ExistsError(f"{work.folder} already exists, and was not begun by train-many", "choose another `runs`")
    before, now = _flat(read_yaml(file)), _flat(subject.given)
    names = sorted(before.keys() | now.keys())
    changed = [name for name in names if before.get(name) != now.get(name) and name not in HARMLESS]
    if changed:
        raise ExistsError(
            f"{work.folder}: was begun with other settings ({', '.join(changed[:3])})",
            "choose another `runs`, or the same settings",
        )


def _flat(given: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in given.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found
