"""labelled pictures -> how good a classifier is, how far its confidence can be believed, and where it errs: one page.

OUT/report.html      for people; one file that needs nothing else
    report.json      every figure, with confidence intervals
    predictions.csv  one line a picture
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.claims import Output
from ..core.errors import ModelError, PhotoError
from ..core.events import conclude, progress, progress_bar, table, warn
from ..core.files import write_json, write_text
from ..core.metrics import softmax
from ..core.names import shown, stored
from ..pages.classifier import Mistake, between, classifier_page, percent, says_top5
from ..pictures.archive_paths import sha256_of
from ..pictures.images import Skipped, find_pictures, read_picture
from ..pictures.provenance import Provenance
from ..recognizer import evaluation
from ..recognizer.evaluation import Predictions
from ..recognizer.finetuning import dataset
from ..recognizer.finetuning.examples import Example
from ..recognizer.inference.engines import open_engine
from ..recognizer.inference.predict import predict, workers_for
from ..recognizer.inference.sources import Source
from ..recognizer.model import artifact, weights
from ..recognizer.model.backbone import Recognizer
from ..recognizer.model.engine import Engine
from ..recognizer.model.formats import exported
from ..recognizer.model.rejection import is_rejected
from ..recognizer.model.saliency import grad_cam, overlay
from ..recognizer.settings import EvaluateClassifierSettings
from .evaluating import header
from .evaluating import labels as labels_of


def run(settings: EvaluateClassifierSettings) -> dict[str, Any]:
    """Evaluate a recognizer; returns what report.json holds. Raises InputError kinds before anything is written."""
    out = Path(settings.out)
    output = Output(
        out,
        "evaluate-classifier",
        settings.overwrite,
        inputs=[settings.model, settings.data, settings.out_of_distribution],
    )
    output.check()
    if _has_several(settings.model):
        engine = open_engine(settings.model, settings.engine, device=settings.device, trust=settings.trust)
        return labels_of.run(settings, engine, output)
    read = dataset.read(settings.data)
    examples, remarks = read.to_measure(settings.split)
    skipped = read.skipped
    provenance = Provenance()
    everything = len(examples)
    examples = [example for example in examples if not provenance.generated(example.path)]
    drawn = everything - len(examples)
    if not examples:
        raise PhotoError(
            f"{settings.data}: all {drawn} pictures are generated",
            "give real photos: nothing else can test a classifier",
        )
    engine = open_engine(settings.model, settings.engine, device=settings.device, trust=settings.trust)
    wanted = evaluation.classes_of(engine.labels, list(dict.fromkeys(example.label for example in examples)))
    known = [example for example in examples if wanted[example.label] is not None]
    ood = [example.path for example in examples if wanted[example.label] is None]
    others = [name for name, index in wanted.items() if index is None]
    if not known:
        raise PhotoError(
            f"{settings.data}: none of its {len(others)} classes ({_few(others)}) is one of the model's",
            f"name the folders as the model's classes ({_few(engine.labels.names[engine.labels.main])}), or by synset",
        )
    if others:
        remarks.append(
            f"{len(ood)} pictures of {len(others)} classes that the model "
            f"does not know ({_few(others)}) count as out-of-distribution."
        )
    if settings.out_of_distribution:
        found, left_out = find_pictures([settings.out_of_distribution], recursive=True, archives=True)
        real = [path for path in found if not provenance.generated(path)]
        drawn += len(found) - len(real)
        ood, skipped = ood + real, skipped + left_out
    if drawn:
        remarks.append(f"{drawn} generated pictures were left out: only real photos can test.")
    fresh, trained = (known, 0) if settings.include_training else _fresh(settings, engine, known, remarks)

    labels = np.array([wanted[example.label] for example in fresh], np.int64)
    predictions, unreadable = _predict(settings, engine, [example.path for example in fresh], labels, ood)
    skipped += unreadable
    if unreadable:
        remarks.append(f"{len(unreadable)} files could not be read; the page lists them at its end.")
    recognizer, no_maps = _recognizer(settings)
    rejection, distance_to = _centroids(engine, recognizer)
    report = {
        **header.facts(settings, engine, remarks, skipped),
        "left_out_training": trained,
        "left_out_ranges": len(known) - len(fresh) - trained,
        "distance_to": distance_to,
        **evaluation.measure(predictions, rejection, settings.bins, settings.seed),
    }
    if said := report["calibration"]["unsettled"]:
        remarks.append(
            f"The model's own temperature means nothing: {said}. Its calibration "
            "error here is no promise for other pictures."
        )
    mistakes, why = _mistakes(engine, recognizer, predictions, report["mistakes"][: settings.mistakes])
    report["no_maps"] = no_maps or why
    page = classifier_page(report, predictions, rejection, mistakes)
    with output.folder() as temporary:
        write_text(temporary / "report.html", page)
        write_json(temporary / "report.json", report)
        _write_predictions(temporary / "predictions.csv", predictions, rejection)
    _tell(report, out)
    return report


def _has_several(model: str) -> bool:
    """Tell whether a model is one of several labels a picture, without opening its weights."""
    found = exported(model)
    folder = found.folder if found else weights.resolve(model).path
    return (folder / artifact.DESCRIPTION).is_file() and bool(artifact.read(folder).labels.free)


def _fresh(
    settings: EvaluateClassifierSettings, engine: Engine, known: list[Example], remarks: list[str]
) -> tuple[list[Example], int]:
    """Return the pictures that the model has not seen, and how many it was trained on.

    Raises PhotoError where none is left.
    """
    provenance = engine.description.provenance
    trained_on, ranges = frozenset(provenance.get("trained_on") or ()), artifact.ranges_from(provenance)
    if not trained_on | ranges:
        return known, 0
    digests = [sha256_of(example.path) for example in progress(known, "looking for pictures that it has seen")]
    fresh = [example for example, digest in zip(known, digests, strict=True) if digest not in trained_on | ranges]
    trained = sum(digest in trained_on for digest in digests)
    set_ranges = len(known) - len(fresh) - trained
    if not fresh:
        raise PhotoError(
            f"{settings.data}: the model was trained on all {len(known)} pictures of its classes"
            + (f", or its 8-bit ranges were set on them ({set_ranges})" if set_ranges else ""),
            "give other pictures; `include_training=true` measures on these, which flatters it",
        )
    for count, why in ((trained, "the model was trained on them"), (set_ranges, "they set its 8-bit ranges")):
        if count:
            remarks.append(f"{count} of {len(known)} pictures were left out: {why}.")
    return fresh, trained


def _predict(
    settings: EvaluateClassifierSettings, engine: Engine, paths: list[Path], labels: np.ndarray, ood: list[Path]
) -> tuple[Predictions, list[Skipped]]:
    """Predict all pictures that can be read, and name those that cannot. Raises PhotoError if no labelled one can."""
    everything = [*paths, *ood]
    read: list[int] = []
    logits: list[np.ndarray] = []
    embeddings: list[np.ndarray] = []
    skipped: list[Skipped] = []
    start = 0
    with progress_bar("pictures", len(everything)) as bar:
        sources = (Source(str(path), str(path), found=False) for path in everything)
        for batch in predict(engine, sources, settings.batch_size, workers_for(settings.workers)):
            for index, error in enumerate(batch.errors, start):
                if error is None:
                    read.append(index)
                else:
                    skipped.append(Skipped(everything[index], error))
            if batch.outputs:
                logits.append(batch.outputs["logits"][:, engine.labels.main])
                if "embedding" in batch.outputs:
                    embeddings.append(batch.outputs["embedding"])
            start += len(batch.paths)
            bar.advance(len(batch.paths))
    if not read or read[0] >= len(paths):
        first = f"; the first: {shown(skipped[0].path)}: {skipped[0].reason}" if skipped else ""
        raise PhotoError(f"{settings.data}: none of its {len(paths)} pictures can be read{first}", "check the files")
    all_logits, cut = np.concatenate(logits).astype(np.float64), sum(index < len(paths) for index in read)
    all_embeddings = np.concatenate(embeddings) if embeddings else None
    files = tuple(everything[index] for index in read)
    return Predictions(
        names=tuple(evaluation.short_names(engine.labels.names[engine.labels.main], engine.labels.synsets)),
        paths=files[:cut],
        labels=labels[read[:cut]],
        logits=all_logits[:cut],
        embeddings=None if all_embeddings is None else all_embeddings[:cut],
        temperature=engine.temperature,
        ood_paths=files[cut:],
        ood_logits=all_logits[cut:],
        ood_embeddings=None if all_embeddings is None else all_embeddings[cut:],
    ), skipped


def _recognizer(settings: EvaluateClassifierSettings) -> tuple[Recognizer | None, str]:
    """Load the network itself, for what an engine does not give: gradients and the last layer; or why it is not to be
    had.
    """
    try:
        return Recognizer.load(settings.model), ""
    except ModelError as error:
        return None, f"There are no maps of evidence: {error.problem}."


def _centroids(engine: Engine, recognizer: Recognizer | None) -> tuple[dict[str, Any] | None, str]:
    """Choose what distances are measured to, in the form of `rejection.centroids`, and its name.

    The model's own class centroids, or, where it has none, the rows of its last layer, which are the directions that it
    learned for its classes (Techapanurak, Suganuma & Okatani 2019, arXiv 1905.10628: cosine similarity to the class
    weights).
    """
    if engine.rejection and "centroids" in engine.rejection:
        return engine.rejection, "nearest class centroid"
    if recognizer is None:
        return None, ""
    rows = (
        recognizer.model.get_classifier()
        .weight.detach()
        .flatten(1)
        .cpu()
        .numpy()
        .astype(np.float64)[engine.labels.main]
    )
    if rows.shape[1] != recognizer.model.num_features:  # a hidden layer between embedding and logits
        return None, ""
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return {"center": np.zeros(rows.shape[1]), "centroids": rows}, "nearest class vector of the last layer"


def _mistakes(
    engine: Engine, recognizer: Recognizer | None, predictions: Predictions, mistakes: Sequence[dict[str, Any]]
) -> tuple[list[Mistake], str]:
    """Collect mistakes with their pictures and maps, or why there are no maps."""
    why, drawn = "", []
    for mistake in progress(mistakes, "maps of mistakes"):
        pixels = engine.preprocess.pixels(read_picture(predictions.paths[mistake["position"]]).image)
        pair: list[np.ndarray | None] = [None, None]
        if recognizer is not None and not why:
            batch = recognizer.preprocess.normalize(torch.from_numpy(pixels)[None]).expand(2, -1, -1, -1)
            try:
                maps = grad_cam(recognizer.model, batch, [mistake["predicted_index"], mistake["true_index"]])
                pair = [overlay(pixels, one) for one in maps]
            except ModelError as error:
                why = f"There are no maps of evidence: {error.problem}."
        drawn.append(Mistake(mistake, pixels, *pair))
    return drawn, why


def _write_predictions(file: Path, predictions: Predictions, rejection: dict[str, Any] | None) -> None:
    """Write one line a picture, as `classify` would answer: `rejected` ones are out-of-distribution to it."""
    names = predictions.names
    away = (
        np.zeros(len(predictions.paths), bool)
        if predictions.embeddings is None
        else is_rejected(predictions.embeddings, rejection)
    )
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(["path", "label", "predicted", "confidence", "probability_of_label", "right", "rejected"])
        for path, label, row, out in zip(
            predictions.paths, predictions.labels.tolist(), predictions.probabilities, away, strict=True
        ):
            best = int(row.argmax())
            writer.writerow(
                [
                    stored(path),
                    names[label],
                    names[best],
                    f"{row[best]:.6f}",
                    f"{row[label]:.6f}",
                    best == label,
                    bool(out),
                ]
            )
        if predictions.ood_logits is not None:
            sure = softmax(predictions.ood_logits, predictions.temperature)
            away = np.zeros(len(sure), bool)
            if predictions.ood_embeddings is not None:
                away = is_rejected(predictions.ood_embeddings, rejection)
            for path, row, out in zip(predictions.ood_paths, sure, away, strict=True):
                writer.writerow([stored(path), "", names[int(row.argmax())], f"{row.max():.6f}", "", "", bool(out)])


def _tell(report: dict[str, Any], out: Path) -> None:
    calibration, ood = report["calibration"], report["out_of_distribution"]
    kept = report["rejection"]["right_and_kept"] if report["rejection"] else None
    rows = [
        ("top-1", percent(report["top1"][0]), between(report["top1"])),
        *(
            [(f"top-{report['top5_is_top']}", percent(report["top5"][0]), between(report["top5"]))]
            if says_top5(report)
            else []
        ),
        *([("right and not rejected", percent(kept[0]), between(kept))] if kept else []),
        ("mean over classes", percent(report["mean_class_accuracy"][0]), between(report["mean_class_accuracy"])),
        ("calibration error", percent(calibration["before"]["ece"][0]), between(calibration["before"]["ece"])),
    ]
    if calibration["after"]:
        rows.append(
            (
                "  after temperature scaling",
                percent(calibration["after"]["ece"][0]),
                between(calibration["after"]["ece"]),
            )
        )
    area = report["selective"]["aurc"]
    rows.append(("risk-coverage area", f"{area[0]:.3f}", f"{area[1]:.3f} to {area[2]:.3f}"))
    if ood:
        for name, key in (("embedding distance", "by_distance"), ("confidence", "by_confidence")):
            if ood[key]:
                area = ood[key]["auroc"]
                rows.append((f"OOD by {name}, AUROC", f"{area[0]:.3f}", f"{area[1]:.3f} to {area[2]:.3f}"))
    for remark in report["remarks"]:
        warn(remark)
    title = f"{report['model']} on {report['data']}: {report['pictures']} pictures of {report['classes']} classes"
    table(title, ["", ">value", ">95 % interval"], rows, result=True)
    worst = [entry for entry in report["per_class"] if entry["accuracy"][0] < 1][:5]
    if worst:
        told = [
            (
                entry["class"],
                f"{percent(entry['accuracy'][0])} of {entry['pictures']}",
                ", ".join(name for name, _ in entry["taken_for"]),
            )
            for entry in worst
        ]
        table("Weakest classes", ["class", ">top-1", "taken for"], told)
    conclude(f"page: {out / 'report.html'}")


def _few(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
