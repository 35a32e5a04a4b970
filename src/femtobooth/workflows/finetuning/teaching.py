"""Who teaches a fine-tuning, and what: the teacher is opened here, and its classes are matched with the data's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...core.errors import ModelError, PhotoError, SettingsError
from ...core.events import note
from ...core.paths import expanded
from ...recognizer.evaluation import classes_of
from ...recognizer.finetuning import finishing, probe, teacher, unlabelled
from ...recognizer.finetuning.probe import Embedded, Head
from ...recognizer.finetuning.run import FinetunedRun
from ...recognizer.finetuning.survey import Survey
from ...recognizer.finetuning.teacher import Lesson, Teacher
from ...recognizer.finetuning.unlabelled import Unlabelled
from ...recognizer.inference.engines import open_engine
from ...recognizer.model.backbone import Recognizer
from ...recognizer.model.formats import PROGRAMS, exported
from ...recognizer.settings import DistillSettings, FinetuneSettings

PROBE = "teacher_probe.safetensors"


def settled(settings: DistillSettings) -> DistillSettings:
    """Make paths absolute, so that config.yaml means the same from any folder."""
    teacher, folders = settings.teacher, [str(expanded(path).resolve()) for path in settings.unlabelled]
    if teacher is not None and (path := expanded(teacher)).exists():
        teacher = str(path.resolve())
    return settings.model_copy(update={"teacher": teacher, "unlabelled": folders})


def opened(settings: DistillSettings) -> Lesson | None:
    """Open the teacher, and read the unlabelled pictures; None without a teacher. Raises ModelError and PhotoError."""
    if settings.teacher is None:
        return None
    return Lesson(_open(settings.teacher), unlabelled.read(settings.unlabelled))


def _open(reference: str) -> Teacher:
    """Open weights in PyTorch, which a resumed run opens again to the same bits, an export in its own runtime."""
    found = exported(reference)
    if found is None:
        recognizer = Recognizer.load(reference, any_head=True)
        return teacher.of_recognizer(reference, recognizer)
    if found.format in PROGRAMS:
        raise ModelError(
            f"`distill.teacher={reference}`: a {PROGRAMS[found.format]} export, which is a program, and was not run",
            "give the model that it was exported from, or an ONNX export",
        )
    return teacher.of_engine(reference, open_engine(reference, threads=torch.get_num_threads()))


def matched(lesson: Lesson, found: Survey, settings: FinetuneSettings) -> Lesson:
    """Find the teacher's logits of the data's classes, or fit its probe, say what it teaches, and leave out unlabelled
    copies of what validates. Raises SettingsError where it has nothing to teach.
    """
    distill, own = settings.distill, lesson.teacher
    own = _probed(own, found, settings) if distill.probe else own.with_classes(_columns(own, found))
    if not own.answers and not distill.features:
        raise SettingsError(
            f"`distill.teacher={own.name}`: has not all classes of the data, and `distill.features=0`",
            "let its embeddings teach, or `distill.probe=true`, or take a teacher of these classes",
        )
    apart = lesson.unlabelled.apart_from(found) if lesson.unlabelled.paths else lesson.unlabelled
    taught = Lesson(own, apart)
    also = f", also on {len(apart.paths)} pictures without labels" if apart.paths else ""
    note(f"teacher: {own.name} ({own.described.architecture}) teaches {' and '.join(teaches(taught, distill))}{also}")
    return taught


def _probed(own: Teacher, found: Survey, settings: FinetuneSettings) -> Teacher:
    """Fit a linear layer to a teacher's embeddings of the training pictures, calibrated on cross-validated answers.

    Raises SettingsError where it has no embeddings.
    """
    embedding = own.says_of(found.paths).embedding
    if embedding is None:
        raise SettingsError(
            f"`distill.probe=true`: {own.name} says no embeddings", "take the model that it was exported from"
        )
    seen, train = embedding.numpy(), found.part("train")
    balanced = settings.class_weights == "balanced"
    if found.several:
        return replace(own, probe=probe.fit_multi_label(seen[train], found.truth[train], found.several, balanced))
    head = probe.fit(seen[train], found.labels[train], len(found.classes), balanced)
    crossed = finishing.cross_validated(found, Embedded(seen, seen), settings)
    known = np.flatnonzero(np.isfinite(crossed).all(axis=1))
    heat = probe.calibrated(crossed[known], found.labels[known]) if len(known) else 1.0
    weight = np.ascontiguousarray(
        head.weight / heat, np.float32
    )  # as it lies in the run's file, from which a run goes on
    return replace(own, probe=Head(weight, (head.bias / heat).astype(np.float32)))


def _columns(own: Teacher, found: Survey) -> list[int] | None:
    theirs, wanted = own.described.labels, found.as_labels
    if theirs.free or wanted.free:
        return list(range(len(wanted))) if teacher.same_labels(theirs, wanted) else None
    try:
        fitting = classes_of(theirs, wanted.names)
    except PhotoError:  # a name that fits several of its classes
        return None
    columns = [column for name in wanted.names if (column := fitting[name]) is not None]
    return columns if len({*columns}) == len(wanted) else None


def teaches(lesson: Lesson, settings: DistillSettings) -> list[str]:
    """Say what a teacher's loss is made of: its answers, its embeddings or both."""
    answers = "the answers of a linear probe on it" if settings.probe else "its answers"
    told = [answers] if lesson.teacher.answers and settings.weight else []
    return told + (["its embeddings"] if settings.features else [])


def facts(lesson: Lesson, settings: DistillSettings) -> dict[str, Any]:
    """Make what run.json says of the teacher."""
    described = lesson.teacher.described
    return {
        "model": lesson.teacher.name,
        "architecture": described.architecture,
        "parameters": described.parameters,
        "hash": described.hash,
        "teaches": teaches(lesson, settings),
        "unlabelled": len(lesson.unlabelled.paths),
        "behind_unlabelled": sorted(lesson.unlabelled.behind),
    }


def again(known: FinetunedRun, found: Survey, settings: DistillSettings) -> Lesson | None:
    """Open the teacher of a run that goes on, and its pictures. Raises ModelError where it is not the same one."""
    if settings.teacher is None or known.teacher is None:
        return None
    own = _open(settings.teacher)
    if own.described.hash != known.teacher["hash"]:
        raise ModelError(
            f"{settings.teacher}: not the teacher that {known.folder} was started with",
            "put the same one back, or start a new run",
        )
    if settings.probe:
        own = replace(own, probe=Head.load(known.folder / PROBE))
    else:
        own = own.with_classes(_columns(own, found))
    file = known.folder / unlabelled.FILE
    behind = known.teacher.get("behind_unlabelled", ())
    return Lesson(own, unlabelled.restored(file, behind) if known.teacher["unlabelled"] else unlabelled.Unlabelled())


@dataclass(frozen=True)
class SentLesson:
    """A lesson as it travels to other machines, which have the teacher and the pictures on their own disks."""

    teacher: str
    hash: str
    columns: Sequence[int] | None
    probe: Head | None
    unlabelled: Unlabelled

    def opened(self, theirs: DistillSettings, here: DistillSettings) -> Lesson:
        """Open the teacher of this machine, and find its pictures, by their names here.

        Raises ModelError and PhotoError where they are others.
        """
        own = _open(here.teacher or self.teacher)
        if own.described.hash != self.hash:
            raise ModelError(f"{own.name}: not the teacher of the first machine", "put the same files on every machine")
        places = dict(zip(map(Path, theirs.unlabelled), map(Path, here.unlabelled), strict=True))
        return Lesson(replace(own.with_classes(self.columns), probe=self.probe), self.unlabelled.moved(places))


def sent(lesson: Lesson | None) -> SentLesson | None:
    """Say what other machines must know of a lesson."""
    if lesson is None:
        return None
    own = lesson.teacher
    return SentLesson(own.name, own.described.hash, own.columns, own.probe, replace(lesson.unlabelled, looks=()))
