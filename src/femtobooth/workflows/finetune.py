"""labelled pictures -> dataset report -> linear probe -> fine-tuning -> run folder with a recognizer that knows your
classes.

runs/NAME/config.yaml         every setting, resolved; `--config` with it repeats the run
          run.json            status, model, classes, versions
          split.csv           every picture: class, part, group of near-duplicates, SHA-256
          report.json, .html  what is wrong with the data; probe and fine-tuning compared
          probe.safetensors   the linear probe's layer, from which fine-tuning starts
          teacher_probe.safetensors  the linear probe on a teacher's embeddings, where it answers in its place
          unlabelled.csv      pictures without labels of which a teacher says something, where there are any
          logs/               metrics.csv, TensorBoard
          checkpoints/        to resume from
          model/              the result: a recognizer artifact, which timm loads too, with a card
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..core import config, locks
from ..core.errors import ModelError, command
from ..core.event_log import remembering
from ..core.events import artifact, note, stage
from ..core.files import sweep, write_json, write_text
from ..core.paths import expanded
from ..core.processes import rank
from ..core.run import SETTINGS_FILE, Progress
from ..pages.finetune import finetune_page
from ..recognizer.finetuning import (
    comparison,
    dataset,
    deciding,
    finetuner,
    finishing,
    guidance,
    probe,
    splitting,
    unlabelled,
)
from ..recognizer.finetuning.dataset_report import Finding, label_issues
from ..recognizer.finetuning.distillation import Distiller
from ..recognizer.finetuning.probe import Embedded, Head
from ..recognizer.finetuning.run import FinetunedRun
from ..recognizer.finetuning.survey import Survey
from ..recognizer.finetuning.surveying import survey
from ..recognizer.finetuning.teacher import Lesson
from ..recognizer.model import hub_upload
from ..recognizer.model.backbone import Recognizer
from ..recognizer.settings import FinetuneSettings
from ..training import averages, team, trainer
from ..training.session import Fitted, fit
from ..training.settings import ResumeSettings
from ..training.team import Team
from . import training_on_ray
from .finetuning import card, teaching, told
from .finetuning.teaching import SentLesson

PASSES, LEAST_STEPS, WARMUP_PART = 25, 60, 3


@dataclass(frozen=True)
class Sent:
    """What the first process of several tells the others, which read the pictures and the recognizer from their own
    disks.
    """

    folder: Path
    settings: FinetuneSettings
    model_hash: str
    found: Survey
    head: Head
    lesson: SentLesson | None


@remembering
def run(settings: FinetuneSettings) -> FinetunedRun:
    """Fine-tune a recognizer from the start; returns the run, finished unless Lightning started this process.

    Raises InputError kinds before anything is written.
    """
    with training_on_ray.started("finetune", settings):
        return team.trained(partial(_begin, settings), Sent, partial(_follow, own=_settled(settings)), FinetunedRun)


def _begin(settings: FinetuneSettings, ours: Team) -> FinetunedRun:
    settings = _settled(settings)
    note(f"{settings.data}: a classifier of its classes, from {settings.model}")
    output = FinetunedRun.place(settings)
    if rank() == 0:
        output.check()
    settings.refuse_at_once()
    trainer.check(_training(settings, 1))
    if settings.push and rank() == 0:
        hub_upload.check(settings.push, settings.public)
    with stage("data"):
        read = dataset.read(settings.data, settings.multi_label)
        source = _load(settings)
        lesson = teaching.opened(settings.distill)
        found, findings = survey(
            read,
            settings.validation,
            settings.training.seed,
            bool(settings.patience),
            [*map(Path, settings.synthesized)],
            settings.copies,
            settings.multi_label,
            lesson.known if lesson else (),
        )
        _refuse_judge(source, found, settings, lesson)
        lesson = teaching.matched(lesson, found, settings) if lesson else None
    started = time.monotonic()
    with stage("linear probe"):
        embedded = probe.embed(source, found.paths, found.digests)
        head, baseline, issues = _probe(found, embedded, settings, started)
    findings.append(label_issues(found, issues))
    settings = settings.model_copy(update={"training": _training(settings, len(found.part("train")))})
    told.data(found, findings, baseline, settings)
    if rank():
        return _train(output.path, None, settings, source, found, head, lesson)

    def begin(folder: Path) -> None:
        write_text(folder / SETTINGS_FILE, config.dump(settings.model_copy(update={"overwrite": False})))
        splitting.write_split(folder / "split.csv", found.rows())
        head.save(folder / "probe.safetensors")
        expected = told.expectation(found, baseline, settings) if not settings.probe_only else None
        facts = {"data": _data_report(found, findings), "probe": baseline, "guidance": {"before": expected}}
        write_json(folder / "report.json", facts)
        known: dict[str, Any] = {"model": settings.model, "model_hash": source.hash, "classes": found.classes}
        known["multi_label"] = found.several.to_dict() if found.several else None
        if lesson:
            known["teacher"] = teaching.facts(lesson, settings.distill)
            lesson.unlabelled.write(folder / unlabelled.FILE)
            if lesson.teacher.probe:
                lesson.teacher.probe.save(folder / teaching.PROBE)
        progress = Progress(steps=None if settings.probe_only else settings.training.steps)
        FinetunedRun.create(folder, settings, **known, behind_generated=found.behind, progress=progress)

    with output.claimed(begin) as folder, FinetunedRun.open(folder).working() as run:
        note(f"run folder: {folder}\n")
        ours.share(Sent(folder, settings, source.hash, found, head, teaching.sent(lesson)))
        done = _train(folder, run, settings, source, found, head, lesson)
    return _pushed(done, settings)


def _pushed(run: FinetunedRun, settings: FinetuneSettings) -> FinetunedRun:
    """Send the model of a finished run to the hub where that was asked for."""
    if settings.push and run.status == "done":
        with stage("push"):
            note(f"sent to {hub_upload.push(run.folder / 'model', settings.push, settings.public)}")
    return run


def _follow(sent: Sent | None, own: FinetuneSettings | None = None) -> None:
    """Train as the first process says, with the pictures and the recognizer of this machine.

    Raises PhotoError or ModelError where they are not the same.
    """
    if sent is None or sent.settings.probe_only:  # nothing trains that this process could share
        return
    own = own or sent.settings
    source = _load(sent.settings.model_copy(update={"model": own.model}))
    if source.hash != sent.model_hash:
        raise ModelError(f"{own.model}: not the model of the first machine", "put the same files on every machine")
    theirs, here = ([Path(one.data), *map(Path, one.synthesized)] for one in (sent.settings, own))
    found = sent.found.moved(dict(zip(theirs, here, strict=True)))
    found.refuse_changed(found.part("train", "stop"), "put the same pictures on every machine")
    lesson = sent.lesson.opened(sent.settings.distill, own.distill) if sent.lesson else None
    with _trained(sent.folder, None, sent.settings, source, found, sent.head, lesson):
        pass  # the rest is the first process's


def resume(settings: ResumeSettings) -> FinetunedRun:
    """Go on with an interrupted run exactly where its newest good checkpoint stands."""
    with training_on_ray.resumed(settings, FinetunedRun, FinetuneSettings):
        return team.trained(partial(_resume, Path(settings.run)), Sent, _follow, FinetunedRun)


def _resume(folder: Path, ours: Team) -> FinetunedRun:
    run = FinetunedRun.open(folder)
    if run.status == "done":
        ours.share(None)
        note(f"{folder} is finished already; its model is in {folder / 'model'}")
        return run
    if rank():
        return _go_on(run, None, ours)
    with locks.held(folder):
        sweep(folder)
        with FinetunedRun.open(folder).working() as run:
            done = _go_on(run, run, ours)
        return _pushed(done, done.settings_to_resume(FinetuneSettings))


def _go_on(known: FinetunedRun, run: FinetunedRun | None, ours: Team) -> FinetunedRun:
    settings = known.settings_to_resume(FinetuneSettings)
    source = _load(settings)
    if source.hash != known.model_hash:
        raise ModelError(
            f"{settings.model}: not the model that {known.folder} was started from",
            "put the same one back, or start a new run",
        )
    found, head = known.survey(), known.head()
    lesson = teaching.again(known, found, settings.distill)
    ours.share(Sent(known.folder, settings, source.hash, found, head, teaching.sent(lesson)))
    return _train(known.folder, run, settings, source, found, head, lesson)


def _settled(settings: FinetuneSettings) -> FinetuneSettings:
    """Make paths absolute, so that config.yaml means the same from any folder."""
    model = expanded(settings.model)
    reference = str(model.resolve()) if model.exists() else settings.model
    data, *synthesized = (str(expanded(path).resolve()) for path in (settings.data, *settings.synthesized))
    distill = teaching.settled(settings.distill)
    changed = {"data": data, "synthesized": synthesized, "model": reference, "distill": distill}
    return settings.model_copy(update=changed)


def _refuse_judge(source: Recognizer, found: Survey, settings: FinetuneSettings, lesson: Lesson | None) -> None:
    """Raise ModelError where the model to train, or the one before it, chose the generated pictures: it would learn its
    own taste.
    """
    judges = found.judges | (lesson.unlabelled.judges if lesson else frozenset())
    if judges & {source.hash, source.provenance.get("model_hash")}:
        raise ModelError(
            f"{settings.model}: chose the generated pictures itself, so they cannot train it",
            (
                f"`{command('synthesize', '--overwrite', '--recognizer', settings.model)}` "
                "lets another choose them; or train another `model`"
            ),
        )


def _training(settings: FinetuneSettings, pictures: int) -> Any:
    """Return the training settings with numbers of steps."""
    own = settings.training
    at_once = own.batch_size * own.accumulate * own.devices * own.nodes
    steps = own.steps or max(LEAST_STEPS, math.ceil(PASSES * pictures / at_once))
    warmup = own.warmup if "warmup" in own.model_fields_set else min(own.warmup, steps // WARMUP_PART)
    return own.model_copy(update={"steps": steps, "warmup": warmup})


def _load(settings: FinetuneSettings) -> Recognizer:
    source = Recognizer.load(settings.model, any_head=True)
    source.preprocess = finetuner.preprocess_at(source.preprocess, settings.size)
    return source


def _probe(
    found: Survey, embedded: Embedded, settings: FinetuneSettings, started: float
) -> tuple[Head, dict[str, Any], Sequence[tuple[int, int | str, float]]]:
    """Fit the probe's layer to the training part; returns it, what is known of it, and its label issues."""
    balanced = settings.class_weights == "balanced"
    classes = len(found.classes)
    logits = finishing.cross_validated(found, embedded, settings)
    sure = np.isfinite(logits).all(axis=1)
    train, val = found.part("train"), found.part("val")
    inner = finishing.cross_validated(found, embedded, settings, ["train"])  # validation has no part in the start
    out = np.isfinite(inner).all(axis=1)
    if labels := found.several:
        head = probe.fit_multi_label(embedded.prelogits[train], found.truth[train], labels, balanced)
        head = replace(head, temperature=deciding.boldness(labels, inner[out], found.truth[out]))
        held = (logits[sure], found.truth[sure], found.groups[sure])
        checked = (head.logits(embedded.prelogits[val]), found.truth[val], found.groups[val])
        facts = {
            "cross_validated": deciding.measured(labels, *held) if sure.any() else None,
            "folds": probe.FOLDS,
            "validation": deciding.measured(labels, *checked) if len(val) else None,
            "seconds": round(time.monotonic() - started, 1),
        }
        return head, facts, deciding.label_issues(labels, logits, found.truth)
    head = probe.fit(embedded.prelogits[train], found.labels[train], classes, balanced)
    head = replace(head, temperature=probe.boldness(inner[out], found.labels[out]))
    said = head.logits(embedded.prelogits[val])
    facts = {
        "cross_validated": comparison.measured(logits[sure], found.labels[sure]) if sure.any() else None,
        "folds": probe.FOLDS,
        "validation": comparison.measured(said, found.labels[val]) if len(val) else None,
        "seconds": round(time.monotonic() - started, 1),
    }
    return head, facts, probe.label_issues(logits, found.labels)


def _data_report(found: Survey, findings: list[Finding]) -> dict[str, Any]:
    counts = {
        name: dict(Counter(part for part, has in zip(found.parts, found.having(index), strict=True) if has))
        | {"generated": int((found.generated & found.having(index)).sum())}
        for index, name in enumerate(found.classes)
    }
    return {"pictures": len(found.paths), "classes": counts, "findings": [finding.as_dict() for finding in findings]}


def _train(
    folder: Path,
    run: FinetunedRun | None,
    settings: FinetuneSettings,
    source: Recognizer,
    found: Survey,
    head: Head,
    lesson: Lesson | None,
) -> FinetunedRun:
    """Train the recognizer, then write the result; `run` is the first process's."""
    if settings.probe_only:
        if run is None:
            raise SystemExit(0)  # nothing trains that this process, which is not the first, could share
        return _finish(run, settings, None, found, head, {}, None)
    started = time.monotonic()
    with _trained(folder, run, settings, source, found, head, lesson) as (recognizer, module, fitted):
        if run is None:
            return FinetunedRun.open(folder)
        step = finetuner.load_result(module, fitted.state(), settings)
        cost = {"steps": step, "seconds": round(time.monotonic() - started, 1)}
        with stage("result"):
            return _finish(run, settings, recognizer.freeze(), found, head, cost, lesson)


@contextmanager
def _trained(
    folder: Path,
    run: FinetunedRun | None,
    settings: FinetuneSettings,
    source: Recognizer,
    found: Survey,
    head: Head,
    lesson: Lesson | None,
) -> Iterator[tuple[Recognizer, finetuner.Finetuner, Fitted]]:
    """Train the recognizer from the newest checkpoint or from the start; yields it with what that came to."""
    own = settings.training
    recognizer = finetuner.with_classes(source, found.as_labels, head.softened())
    train, stop = found.part("train"), found.part("stop")
    taught = [found.paths[i] for i in train], found.targets[train]
    module = (
        Distiller(recognizer, settings, *taught, lesson)
        if lesson
        else finetuner.Finetuner(recognizer, settings, *taught)
    )
    average = averages.average_of(own)
    early = None
    if patience := settings.patience:
        aside = [found.paths[i] for i in stop], found.targets[stop]
        early = finetuner.EarlyStop(*aside, settings.check_every, patience, average)
    with fit(
        module,
        own,
        folder,
        [part for part in (average, early) if part],
        [trainer.StepBar()],
        way_out=command("finetune", "--resume", folder),
        calmer=f"train again with a lower `learning_rate` (it was {settings.learning_rate:g})",
        run=run,
        hyperparameters=settings.model_dump(),
        ended=lambda state: bool(patience) and finetuner.stopped_early(state, patience),
    ) as fitted:
        yield recognizer, module, fitted


def _finish(
    run: FinetunedRun,
    settings: FinetuneSettings,
    tuned: Recognizer | None,
    found: Survey,
    head: Head,
    cost: dict[str, Any],
    lesson: Lesson | None,
) -> FinetunedRun:
    """Write model/ and the report; only then is the run done.

    `cost` is what fine-tuning took, of which the probe's result has no part.
    """
    folder = run.folder
    result, more = finishing.finish(settings, _load(settings), tuned, found, head, run, lesson)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8")) | more
    compared, probed = report["comparison"], {"seconds": report["probe"]["seconds"]}
    run.costs = {"probe": probed} | ({"finetuned": cost} if tuned is not None else {})
    worth = None if found.several else guidance.after(compared, run.costs, told.per_class(found))
    report["guidance"] = {"before": None, **report.get("guidance", {}), "after": worth}
    result.save(folder / "model", overwrite=True)
    card.write(folder / "model", result, run, report, settings)
    write_json(folder / "report.json", report)
    write_text(folder / "report.html", finetune_page(run, report, settings))
    run.update(
        status="done",
        result=compared["result"],
        verdict=compared["verdict"],
        steps=run.costs[compared["result"]].get("steps"),
        temperature=result.temperature,
    )
    artifact(folder / "model", "model")
    artifact(folder / "report.html", "page")
    told.result(run, report)
    return run
