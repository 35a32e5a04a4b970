"""labelled pictures -> dataset report -> linear probe -> fine-tuning -> run folder with a recognizer that knows your
classes.

runs/NAME/config.yaml         every setting, resolved; `--config` with it repeats the run
          run.json            status, model, classes, versions
          split.csv           every picture: class, part, group of near-duplicates, SHA-256
          report.json, .html  what is wrong with the data; probe and fine-tuning compared
          probe.safetensors   the linear probe's layer, from which fine-tuning starts
          logs/               metrics.csv, TensorBoard
          checkpoints/        to resume from
          model/              the result: a recognizer artifact
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from ..core import config, locks, metrics
from ..core.claims import Output
from ..core.errors import CheckpointError, Interrupted, ModelError, SettingsError, command
from ..core.events import note, table
from ..core.files import read_object, sweep, timestamp, write_json, write_text
from ..core.machine import environment
from ..core.paths import expanded
from ..core.processes import rank
from ..core.run import read, recorded, settings_of
from ..pages.finetune import draw
from ..recognizer.finetuning import comparison, dataset, finetuner, finishing, probe, splitting
from ..recognizer.finetuning.probe import Embedded, Head
from ..recognizer.finetuning.survey import Finding, Survey, label_issues, survey
from ..recognizer.model.backbone import Recognizer
from ..recognizer.settings import FinetuneSettings
from ..training import checkpoints, tracking, trainer
from ..training.settings import ResumeSettings

RUN_FOLDER = "FEMTOBOOTH_RUN"  # tells the processes that Lightning starts which run they belong to
OWNS = (  # what lies in a run folder; exports/ have markers of their own
    "config.yaml", "run.json", "split.csv", "report.json", "report.html", "probe.safetensors", "logs/metrics.csv",
    "logs/events.out.tfevents.*", "logs/hparams.yaml", "logs/wandb/*", "checkpoints/step-*/state.ckpt",
    "checkpoints/step-*/manifest.json", "model/*.json", "model/*.safetensors",
)  # fmt: skip
PASSES, LEAST_STEPS = 25, 60


def run(settings: FinetuneSettings) -> dict[str, Any]:
    """Fine-tune from the start; returns what run.json holds. Raises InputError kinds before anything is written."""
    settings = _settled(settings)
    note(f"{settings.data}: a classifier of its classes, from {settings.model}")
    output = _output(settings)
    if rank() == 0:
        output.check()
    trainer.check(_training(settings, 1))
    tracking.check(settings.training)
    read = dataset.read(settings.data)
    source = _load(settings)
    found, findings = survey(
        read,
        settings.validation,
        settings.training.seed,
        bool(settings.patience),
        [*map(Path, settings.synthesized)],
        settings.copies,
    )
    _refuse_judge(source, found, settings)
    started = time.monotonic()
    embedded = probe.embed(source, found.paths, found.digests)
    head, baseline, issues = _probe(found, embedded, settings, started)
    findings.append(label_issues(found, issues))
    settings = settings.model_copy(update={"training": _training(settings, len(found.part("train")))})
    facts = {
        "status": "started",
        "settings": settings.model_dump(mode="json"),
        "model": settings.model,
        "model_hash": source.hash,
        "classes": found.classes,
        "behind_generated": found.behind,
        "environment": environment(),
    }
    report = {"data": _data_report(found, findings), "probe": baseline}
    _show(found, findings, baseline, settings)
    if rank():
        return _train(output.path, settings, source, found, head, checkpoint=None)

    def begin(folder: Path) -> None:
        write_text(folder / "config.yaml", config.dump(settings.model_copy(update={"overwrite": False})))
        splitting.write_split(folder / "split.csv", found.rows())
        save_file({"weight": head.weight, "bias": head.bias}, folder / "probe.safetensors")
        write_json(folder / "report.json", report)
        write_json(folder / "run.json", facts)

    with output.claimed(begin) as folder, recorded(folder):
        note(f"run folder: {folder}\n")
        return _train(folder, settings, source, found, head, checkpoint=None)


def resume(settings: ResumeSettings) -> dict[str, Any]:
    """Go on with an interrupted run exactly where its newest good checkpoint stands."""
    folder = Path(settings.run)
    facts = read_run(folder)
    if facts["status"] == "done":
        note(f"{folder} is finished already; its model is in {folder / 'model'}")
        return facts
    if rank():
        return _go_on(folder, facts)
    with locks.held(folder), recorded(folder):
        return _go_on(folder, facts)


def _go_on(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    if rank() == 0:
        sweep(folder)
    settings = settings_of(folder, facts, FinetuneSettings)
    source = _load(settings)
    if source.hash != facts["model_hash"]:
        raise ModelError(
            f"{settings.model}: not the model that {folder} was started from",
            "put the same one back, or start a new run",
        )
    found = Survey.restored(splitting.read_split(folder / "split.csv"), facts["classes"], folder / "split.csv")
    stored = load_file(folder / "probe.safetensors")
    checkpoint = checkpoints.newest(folder / "checkpoints")
    return _train(folder, settings, source, found, Head(stored["weight"], stored["bias"]), checkpoint)


def read_run(folder: Path) -> dict[str, Any]:
    """A run's run.json. Raises ModelError where `folder` is no run of finetune."""
    return read(folder, "finetune", ("classes", "model_hash"))


def _settled(settings: FinetuneSettings) -> FinetuneSettings:
    """Paths made absolute, so that config.yaml means the same from any folder."""
    model = expanded(settings.model)
    reference = str(model.resolve()) if model.exists() else settings.model
    data, *synthesized = (str(expanded(path).resolve()) for path in (settings.data, *settings.synthesized))
    return settings.model_copy(update={"data": data, "synthesized": synthesized, "model": reference})


def _refuse_judge(source: Recognizer, found: Survey, settings: FinetuneSettings) -> None:
    """Raise ModelError where the model to train, or the one before it, chose the generated pictures: it would learn its
    own taste.
    """
    if found.judges & {source.hash, source.provenance.get("model_hash")}:
        raise ModelError(
            f"{settings.model}: chose the generated pictures itself, so they cannot train it",
            (
                f"`{command('synthesize', '--overwrite', '--recognizer', settings.model)}` "
                "lets another choose them; or train another --model"
            ),
        )


def _training(settings: FinetuneSettings, pictures: int) -> Any:
    """The training settings with a number of steps."""
    own = settings.training
    if own.steps:
        return own
    at_once = own.batch_size * own.accumulate * own.devices * own.nodes
    return own.model_copy(update={"steps": max(LEAST_STEPS, math.ceil(PASSES * pictures / at_once))})


def _output(settings: FinetuneSettings) -> Output:
    """Where the run goes."""
    if rank() and RUN_FOLDER in os.environ:
        return Output(Path(os.environ[RUN_FOLDER]), "finetune")
    if rank() and not settings.name:
        raise SettingsError(
            "--name: a run started by torchrun or SLURM needs a name that its processes share", "add --name NAME"
        )
    stem = re.sub(r"[^\w-]+", "-", Path(settings.data).stem)
    return Output(
        Path(settings.runs) / (settings.name or f"{stem}-{timestamp()}"),
        "finetune",
        settings.overwrite,
        inputs=[settings.data, *settings.synthesized, settings.model],
        owns=OWNS,
        known=lambda folder: "classes" in read_object(folder / "run.json"),
        numbered=not settings.name,
        option="--name",
    )


def _load(settings: FinetuneSettings) -> Recognizer:
    source = Recognizer.load(settings.model)
    source.preprocess = finetuner.preprocess_at(source.preprocess, settings.size)
    return source


def _probe(
    found: Survey, embedded: Embedded, settings: FinetuneSettings, started: float
) -> tuple[Head, dict[str, Any], list[tuple[int, int, float]]]:
    """The probe's layer, fitted to the training part; what is known of it; and its label issues."""
    balanced = settings.class_weights == "balanced"
    classes = len(found.classes)
    logits = finishing.cross_validated(found, embedded, settings)
    sure = np.isfinite(logits).all(axis=1)
    train, val = found.part("train"), found.part("val")
    head = probe.fit(embedded.prelogits[train], found.labels[train], classes, balanced)
    facts = {
        "cross_validated": comparison.measured(logits[sure], found.labels[sure]) if sure.any() else None,
        "folds": probe.FOLDS,
        "validation": comparison.measured(head.logits(embedded.prelogits[val]), found.labels[val])
        if len(val)
        else None,
        "seconds": round(time.monotonic() - started, 1),
    }
    return head, facts, probe.label_issues(logits, found.labels)


def _data_report(found: Survey, findings: list[Finding]) -> dict[str, Any]:
    counts = {
        name: dict(Counter(part for part, label in zip(found.parts, found.labels, strict=True) if label == index))
        | {"generated": int((found.generated & (found.labels == index)).sum())}
        for index, name in enumerate(found.classes)
    }
    return {"pictures": len(found.paths), "classes": counts, "findings": [finding.as_dict() for finding in findings]}


def _show(found: Survey, findings: list[Finding], baseline: dict[str, Any], settings: FinetuneSettings) -> None:
    parts = Counter(found.parts)
    said = ", ".join(f"{parts[name]} {name}" for name in ("train", "stop", "val", "left out") if parts[name])
    title = f"Data report: {len(found.paths)} pictures of {len(found.classes)} classes ({said})"
    rows = [(one.what, one.count, one.about, one.example) for one in findings if one.count]
    if rows:
        table(title, ["finding", ">count", "what it means", "for example"], rows)
    else:
        note(title)
    note(f"not found: {', '.join(one.what for one in findings if not one.count)}\n")
    if baseline["cross_validated"]:
        crossed = baseline["cross_validated"]
        note(
            f"linear probe: {comparison.shares(crossed['accuracy'])} right in "
            f"{baseline['folds']}-fold cross-validation over "
            f"{crossed['pictures']} pictures, after {baseline['seconds']} s"
        )
    checked = baseline["validation"]
    if checked and checked["right"] == checked["pictures"] and not settings.probe_only and settings.result == "better":
        note(
            f"it names all {checked['pictures']} validation pictures right: fine-tuning "
            "can only match that, and win by surer answers;"
            " --probe-only leaves it out"
        )
    note("")


def _train(
    folder: Path, settings: FinetuneSettings, source: Recognizer, found: Survey, head: Head, checkpoint: Path | None
) -> dict[str, Any]:
    """Train from `checkpoint` or from the start, then write the result; returns what run.json then holds."""
    if settings.probe_only:
        return {} if rank() else _finish(folder, settings, None, found, head, {})
    started, own = time.monotonic(), settings.training
    recognizer = finetuner.with_classes(source, found.classes, head)
    train, stop = found.part("train"), found.part("stop")
    module = finetuner.Finetuner(recognizer, settings, [found.paths[i] for i in train], found.labels[train])
    step = checkpoints.step_of(checkpoint) if checkpoint else 0
    if step:
        note(f"resuming {folder} at step {step}")
    with checkpoints.Signals(command("finetune", "--resume", folder)) as signals:
        saver = checkpoints.Checkpoints(folder / "checkpoints", own.checkpoint_every, own.keep_checkpoints, signals)
        average = trainer.MovingAverage(own.ema) if own.ema else None
        early = None
        if settings.patience:

            def save() -> None:
                signals.save = True

            paths = [found.paths[i] for i in stop]
            early = finetuner.EarlyStop(
                paths, found.labels[stop], settings.check_every, settings.patience, average, save
            )
        trackers = tracking.loggers(own, folder / "logs", folder.resolve().name, step)
        for tracker in trackers:
            tracker.log_hyperparams(settings.model_dump())
        callbacks = [part for part in (average, early) if part]
        lightning = trainer.build(own, folder, [*callbacks, saver, trainer.StepBar()], trackers)
        if step < own.steps and not _stopped_early(checkpoint, settings):
            os.environ[RUN_FOLDER] = str(folder.resolve())
            try:
                with checkpoints.last_good_named(lightning, folder / "checkpoints", _calmer(settings)):
                    lightning.fit(
                        module, ckpt_path=checkpoint / checkpoints.STATE if checkpoint else None, weights_only=True
                    )
            finally:
                os.environ.pop(RUN_FOLDER, None)
        if saver.stopped_by:
            raise Interrupted(f"stopped at step {lightning.global_step} and saved", signals.way_out, saver.stopped_by)
        if rank():
            return {}
        trainer.release(lightning, module)
        newest = checkpoints.newest(folder / "checkpoints")
        cost = {"steps": load_weights(newest, module, settings), "seconds": round(time.monotonic() - started, 1)}
        with checkpoints.last_good_named(lightning, folder / "checkpoints", _calmer(settings)):
            return _finish(folder, settings, recognizer.freeze(), found, head, cost)


def _calmer(settings: FinetuneSettings) -> str:
    """What to try where training left the finite numbers."""
    return f"train again with a lower --lr (it was {settings.learning_rate:g})"


def _stopped_early(checkpoint: Path | None, settings: FinetuneSettings) -> bool:
    if checkpoint is None or not settings.patience:
        return False
    return int(_state(checkpoint)["callbacks"][finetuner.EarlyStop.__name__]["misses"]) >= settings.patience


def _state(checkpoint: Path) -> dict[str, Any]:
    return dict(torch.load(checkpoint / checkpoints.STATE, map_location="cpu", weights_only=True, mmap=True))


def load_weights(checkpoint: Path | None, module: finetuner.Finetuner, settings: FinetuneSettings) -> int:
    """Put the result of training into the module; returns the step it is of.

    With early stopping the weights of the lowest loss; else the last ones, or their moving average.
    """
    if checkpoint is None or (
        checkpoints.step_of(checkpoint) != settings.training.steps and not _stopped_early(checkpoint, settings)
    ):
        raise CheckpointError(
            "the checkpoint of the last step is missing or damaged", "--resume the run to train the last steps again"
        )
    state = _state(checkpoint)
    weights, step = dict(state["state_dict"]), int(state["global_step"])
    if settings.patience:
        early = state["callbacks"][finetuner.EarlyStop.__name__]
        weights, step = early["weights"], int(early["best_step"])
    elif settings.training.ema:
        weights |= state["callbacks"][trainer.MovingAverage.__name__]["average"]
    module.load_state_dict(weights)
    return step


def _finish(
    folder: Path, settings: FinetuneSettings, tuned: Recognizer | None, found: Survey, head: Head, cost: dict[str, Any]
) -> dict[str, Any]:
    """Write model/ and the report; only then is the run done.

    `cost` is what fine-tuning took, of which the probe's result has no part.
    """
    facts = read_run(folder)
    result, more = finishing.finish(settings, _load(settings), tuned, found, head, facts)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8")) | more
    compared, probed = report["comparison"], {"seconds": report["probe"]["seconds"]}
    facts |= {"costs": {"probe": probed} | ({"finetuned": cost} if tuned is not None else {})}
    facts |= facts["costs"][compared["result"]]
    facts |= {
        "status": "done",
        "result": compared["result"],
        "verdict": compared["verdict"],
        "temperature": result.temperature,
    }
    result.save(folder / "model", overwrite=True)
    write_json(folder / "report.json", report)
    write_text(folder / "report.html", draw(folder, report, facts, settings))
    write_json(folder / "run.json", facts)
    _tell(folder, report)
    return facts


def _tell(folder: Path, report: dict[str, Any]) -> None:
    compared, calibration = report["comparison"], report["calibration"]
    rows = []
    for name, facts, key in (
        ("linear probe", report["probe"]["validation"], "probe"),
        ("fine-tuned", report.get("finetuned"), "finetuned"),
    ):
        if facts:
            loss = f"{compared['log_loss'][key]:.3f}" if "log_loss" in compared else "–"  # noqa: RUF001
            rows.append((name, f"{facts['right']} of {facts['pictures']}", comparison.shares(facts["accuracy"]), loss))
    if rows:
        table("On the validation pictures (95% intervals)", ["", ">right", ">accuracy", ">calibrated log loss"], rows)
    note(compared["verdict"])
    note(
        f"the result is the {'linear probe' if compared['result'] == 'probe' else 'fine-tuned network'} "
        f"(rule: {compared['rule']})"
    )
    unsettled = metrics.unsettled(calibration["temperature"])
    unsettled = f" ({unsettled})" if unsettled else ""
    note(
        f"temperature {calibration['temperature']:.2f} from {calibration['from']}{unsettled}; "
        f"rejection {calibration['rejection']}"
    )
    note(f"done: {folder / 'report.html'} shows it; use it with\n  {command('classify', '--model', folder, 'PHOTOS')}")
