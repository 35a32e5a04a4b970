"""Evaluate a recognizer where a picture may have several labels: what `evaluate-classifier` does with such a model."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...core.claims import Output
from ...core.errors import ModelError, PhotoError
from ...core.events import conclude, progress, progress_bar, table, warn
from ...core.files import write_json, write_text
from ...core.names import stored
from ...pages.classifier import between, percent
from ...pages.labels import multi_label_page, worst
from ...pictures.archive_paths import sha256_of
from ...pictures.images import Skipped, find_pictures, read_picture
from ...pictures.provenance import Provenance
from ...recognizer import multilabel
from ...recognizer.evaluation import multi_label_rejection
from ...recognizer.finetuning import dataset, deciding
from ...recognizer.finetuning.examples import Example
from ...recognizer.inference.predict import predict, workers_for
from ...recognizer.inference.sources import Source
from ...recognizer.model import artifact
from ...recognizer.model.backbone import Recognizer
from ...recognizer.model.engine import Engine
from ...recognizer.model.saliency import grad_cam, overlay
from ...recognizer.settings import EvaluateClassifierSettings
from . import header

MOST_MAPS = 3  # of a picture


def run(settings: EvaluateClassifierSettings, engine: Engine, output: Output) -> dict[str, Any]:
    """Evaluate a multi-label recognizer; returns what report.json holds. Raises InputError kinds before anything is
    written.
    """
    read = dataset.read(settings.data, multi_label=True)
    examples, remarks = read.to_measure(settings.split)
    provenance = Provenance()
    fresh = _fresh(settings, engine, [one for one in examples if not provenance.generated(one.path)], remarks)
    labels = engine.labels
    given = {label for one in fresh for label in one.labels}
    unknown = sorted(given - {*labels.names})
    if not given & {*labels.names}:
        few = ", ".join(labels.names[:4])
        raise PhotoError(
            f"{settings.data}: none of its labels ({', '.join(unknown[:4])}) is one of the model's",
            f"name them as the model's are ({few}{', ...' if len(labels) > 4 else ''})",
        )
    if unknown:
        remarks.append(f"Labels that the model does not know were passed over: {', '.join(unknown[:8])}.")
    outputs, kept, unreadable = _outputs(settings, engine, fresh)
    logits = outputs["logits"].astype(np.float64)
    truth = multilabel.matrix(labels, [one.labels for one in kept])
    probabilities = labels.probabilities(logits, engine.temperature)
    decided = labels.decided(probabilities)
    report = {
        **header.facts(settings, engine, remarks, [*read.skipped, *unreadable]),
        **multilabel.measure(labels, probabilities, decided, truth, seed=settings.seed),
        "rejection": _rejection(settings, engine, outputs.get("embedding"), provenance, remarks),
    }
    wrong = deciding.wrong(labels, decided, truth)
    told = [
        {"path": str(one.path), "label": one.label, "missing": missing, "too_many": more}
        for one, (missing, more) in zip(kept, wrong, strict=True)
    ]
    maps, report["no_maps"] = _maps(settings, engine, worst(told)[: settings.mistakes])
    page = multi_label_page(report, told, maps)
    with output.folder() as temporary:
        write_text(temporary / "report.html", page)
        write_json(temporary / "report.json", report)
        with (temporary / "predictions.csv").open("w", newline="", encoding="utf-8") as opened:
            writer = csv.writer(opened)
            writer.writerow(["path", "labels", "said", "missing", "too_many", *labels.names])
            names = np.array(labels.names, object)
            for one, said, (missing, more), row in zip(kept, decided, wrong, probabilities, strict=True):
                cells = ["|".join(part) for part in (one.labels, names[said], missing, more)]
                writer.writerow([stored(one.path), *cells, *(f"{value:.6f}" for value in row)])
    _tell(report, output.path)
    return report


def _fresh(
    settings: EvaluateClassifierSettings, engine: Engine, examples: list[Example], remarks: list[str]
) -> list[Example]:
    """Leave out what the model was trained on, or its 8-bit ranges were set on. Raises PhotoError where
    none is left.
    """
    provenance = engine.description.provenance
    seen = frozenset(provenance.get("trained_on") or ()) | artifact.ranges_from(provenance)
    fresh = examples
    if seen and not settings.include_training:
        fresh = [one for one in examples if sha256_of(one.path) not in seen]
        if len(fresh) < len(examples):
            count = len(examples) - len(fresh)
            remarks.append(f"{count} of {len(examples)} pictures were left out: the model has seen them.")
    if not fresh:
        raise PhotoError(
            f"{settings.data}: the model has seen all of its real pictures",
            "give other pictures; `include_training=true` measures on these, which flatters it",
        )
    return fresh


def _maps(
    settings: EvaluateClassifierSettings, engine: Engine, mistakes: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, list[tuple[str, np.ndarray]]], str]:
    """Draw what speaks for the wrong labels of pictures, by their paths, or say why not."""
    drawn: dict[str, list[tuple[str, np.ndarray]]] = {}
    try:
        recognizer = Recognizer.load(settings.model)
        for one in progress(mistakes, "maps of mistakes"):
            names = [*one["missing"], *one["too_many"]][:MOST_MAPS]
            pixels = engine.preprocess.pixels(read_picture(Path(one["path"])).image)
            batch = recognizer.preprocess.normalize(torch.from_numpy(pixels)[None]).expand(len(names), -1, -1, -1)
            maps = grad_cam(recognizer.model, batch, [engine.labels.names.index(name) for name in names])
            drawn[one["path"]] = [(name, overlay(pixels, found)) for name, found in zip(names, maps, strict=True)]
    except ModelError as error:
        return {}, f"There are no maps of evidence: {error.problem}."
    return drawn, ""


def _rejection(
    settings: EvaluateClassifierSettings,
    engine: Engine,
    known: np.ndarray | None,
    provenance: Provenance,
    remarks: list[str],
) -> dict[str, Any] | None:
    """Say which pictures `classify` rejects, by the embeddings (N, D) of known ones; None where it rejects none."""
    if known is None or engine.rejection is None or "threshold" not in engine.rejection:
        if settings.out_of_distribution:
            remarks.append("The model rejects nothing: pictures out of distribution were not looked at.")
        return None
    ood = known[:0]
    if settings.out_of_distribution:
        found, _ = find_pictures([settings.out_of_distribution], recursive=True, archives=True)
        real = [Example(path, "") for path in found if not provenance.generated(path)]
        if len(real) < len(found):
            remarks.append(f"{len(found) - len(real)} generated pictures were left out: only real photos can test.")
        ood = _outputs(settings, engine, real)[0]["embedding"] if real else ood
    return multi_label_rejection(known, ood, engine.rejection, settings.seed)


def _outputs(
    settings: EvaluateClassifierSettings, engine: Engine, examples: Sequence[Example]
) -> tuple[dict[str, np.ndarray], list[Example], list[Skipped]]:
    """Compute outputs (N, ...) of the pictures that can be read. Raises PhotoError where none can."""
    rows, kept, skipped, start = list[dict[str, np.ndarray]](), list[Example](), list[Skipped](), 0
    sources = (Source(str(one.path), str(one.path), found=False) for one in examples)
    with progress_bar("pictures", len(examples)) as bar:
        for batch in predict(engine, sources, settings.batch_size, workers_for(settings.workers)):
            for one, error in zip(examples[start : start + len(batch.paths)], batch.errors, strict=True):
                if error is None:
                    kept.append(one)
                else:
                    skipped.append(Skipped(one.path, error))
            if batch.outputs:
                rows.append(batch.outputs)
            start += len(batch.paths)
            bar.advance(len(batch.paths))
    if not kept:
        raise PhotoError(f"{settings.data}: none of its {len(examples)} pictures can be read", "check the files")
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}, kept, skipped


def _tell(report: dict[str, Any], out: Path) -> None:
    for remark in report["remarks"]:
        warn(remark)
    names = {"map": "mAP", "macro_f1": "mean F1", "micro_f1": "F1 over all", "exact": "all labels right"}
    rows = [(name, percent(report[key][0]), between(report[key])) for key, name in names.items() if report[key]]
    rows += [(f"{name} right", percent(right[0]), between(right)) for name, right in report["groups"].items()]
    if rejection := report["rejection"]:
        rows.append(("rejected, of known pictures", percent(rejection["rejected"][0]), between(rejection["rejected"])))
        if ood := rejection["out_of_distribution"]:
            rows.append(("rejected, out of distribution", percent(ood["rejected"][0]), between(ood["rejected"])))
    title = f"{report['model']} on {report['data']}: {report['pictures']} pictures, {report['labels']} labels"
    table(title, ["", ">value", ">95 % interval"], rows, result=True)
    worst = sorted((one for one in report["per_label"] if one["f1"]), key=lambda one: one["f1"][0])[:5]
    told = [
        (
            one["label"],
            one["pictures"],
            f"{percent(one['f1'][0])} ({between(one['f1'])})",
            percent(one["average_precision"][0]),
        )
        for one in worst
    ]
    table("Weakest labels", ["label", ">pictures", ">F1", ">average precision"], told)
    conclude(f"page: {out / 'report.html'}")
