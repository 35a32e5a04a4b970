"""The result of a fine-tuning run: the better of probe and network, its temperature, its limit of rejection and how
good it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...core import metrics
from ...core.errors import NotFiniteError
from ...core.events import warn
from .. import multilabel
from ..model import rejection
from ..model.backbone import Recognizer
from ..settings import FinetuneSettings
from . import averaging, comparison, deciding, finetuner, probe, stratification
from .probe import Embedded, Head
from .run import FinetunedRun
from .survey import Survey
from .teacher import Lesson

LEFT_OUT = "fine-tuning was left out (probe_only)"


def cross_validated(
    found: Survey, embedded: Embedded, settings: FinetuneSettings, parts: Sequence[str] = ("train", "stop", "val")
) -> np.ndarray:
    """Compute out-of-fold logits (N, C) of all real pictures of some parts; nan for the others."""
    usable = found.part(*parts)
    balanced = settings.class_weights == "balanced"
    if found.several:
        fold = np.full(len(found.paths), -1)
        truth, held = found.truth[usable], found.only_train[usable]
        fold[usable] = stratification.folds(truth, found.groups[usable], held, settings.training.seed, probe.FOLDS)
        logits = np.full(found.truth.shape, np.nan)
        logits[usable] = probe.cross_validate_multi_label(
            embedded.prelogits[usable], truth, fold[usable], found.several, balanced
        )
        return logits
    fold = np.full(len(found.labels), -1)
    fold[usable] = probe.folds(
        found.labels[usable], found.groups[usable], found.only_train[usable], settings.training.seed
    )
    logits = np.full((len(fold), len(found.classes)), np.nan)
    logits[usable] = probe.cross_validate(
        embedded.prelogits[usable], found.labels[usable], fold[usable], len(found.classes), balanced
    )
    return logits


def finish(
    settings: FinetuneSettings,
    source: Recognizer,
    tuned: Recognizer | None,
    found: Survey,
    head: Head,
    run: FinetunedRun,
    lesson: Lesson | None = None,
) -> tuple[Recognizer, dict[str, Any]]:
    """Make the recognizer that becomes model/, and what the report says of it; without a `tuned` network the probe
    is the result.

    `source` is the network that the run started from, `lesson` what it was taught besides labels.
    """
    base = source.provenance
    embedded = probe.embed(source, found.paths, found.digests)
    val, train = found.part("val"), found.part("train")
    report: dict[str, Any] = {}
    tuned_train = tuned_val = tuned_logits = unchosen = np.zeros((0, 0))
    if tuned is not None:
        unchosen, report = _averaged(source, tuned, found, head)
        outputs = finetuner.outputs(tuned, [found.paths[i] for i in np.concatenate([train, val])])
        if not all(np.isfinite(values).all() for values in outputs.values()):
            raise NotFiniteError("training: what the network says is NaN or infinite after the last step")
        tuned_train, tuned_val = outputs["embedding"][: len(train)], outputs["embedding"][len(train) :]
        tuned_logits = outputs["logits"][len(train) :]
    if found.several:
        seen = tuned_logits, unchosen, tuned_train, tuned_val
        result, more = _multi_label(settings, source, tuned, found, head, embedded, *seen)
        report |= more | _of_teacher(lesson, found, run)
        result.provenance = _provenance(settings, base, found, run, report["comparison"]["result"], lesson)
        return result, report
    if tuned is None:
        compared: dict[str, Any] = {"pictures": len(val), "verdict": LEFT_OUT, "result": "probe", "rule": "as asked"}
    elif len(val):
        labels, probed = found.labels[val], head.logits(embedded.prelogits[val])
        compared = comparison.compare(probed, unchosen, labels, found.groups[val], settings.result)
        report["finetuned"] = comparison.measured(unchosen, labels)
        both = (comparison.told(logits, labels, found.groups[val], found.classes) for logits in (probed, unchosen))
        report["validated"] = [
            {"path": str(found.paths[i]), "label": found.classes[found.labels[i]], "probe": one, "finetuned": other}
            for i, one, other in zip(val, *both, strict=True)
        ]
    else:
        compared = _not_comparable(settings, "calibrated")
    members = found.labels[:, None] == np.arange(len(found.classes))
    crossed = cross_validated(found, embedded, settings)
    known = np.flatnonzero(np.isfinite(crossed).all(axis=1))
    if tuned is None or compared["result"] == "probe":
        result = finetuner.with_classes(source, found.as_labels, head).freeze()
        judged, logits, by = known, crossed[known], "cross-validated predictions"
        unchosen = logits
        centres = rejection.centroids(embedded.embedding[train], members[train])
        limit = rejection.limit(_held_out(found, embedded, known, settings))
    else:
        result, judged, logits, by = tuned, val, tuned_logits, "validation pictures"
        centres, limit = _of_tuned(tuned_train, tuned_val, members[train], found.groups[val])
    labels = found.labels[judged]
    result.temperature = probe.calibrated(logits, labels) if len(labels) else 1.0
    result.rejection = centres | {"threshold": limit.threshold, "how": limit.how, "false_rejection": 1 - limit.kept}
    calibrated = metrics.softmax(logits, result.temperature) if len(labels) else None
    report["comparison"] = compared
    report["judged"] = {
        "by": by,
        "measured": comparison.measured(unchosen, labels) if len(labels) else None,
        "pictures": [
            {"path": str(found.paths[i]), "label": found.classes[found.labels[i]], "named": found.classes[best]}
            for i, best in zip(judged, unchosen.argmax(axis=1) if len(labels) else [], strict=True)
        ],
    }
    report["calibration"] = {
        "temperature": result.temperature,
        "from": f"{len(labels)} {by}",
        "log_loss": metrics.negative_log_likelihood(calibrated, labels) if calibrated is not None else None,
        "rejected_below": limit.threshold,
        "rejection": limit.how,
    }
    report |= _of_teacher(lesson, found, run)
    result.provenance = _provenance(settings, base, found, run, compared["result"], lesson)
    return result, report


def _not_comparable(settings: FinetuneSettings, nor: str) -> dict[str, Any]:
    """Say which is the result where nothing validates."""
    warn(f"no picture to validate on: fine-tuning cannot be compared with the probe, nor {nor}")
    kept = "probe" if settings.result == "probe" else "finetuned"
    return {"pictures": 0, "verdict": "there is nothing to validate on", "result": kept, "rule": "not comparable"}


def _averaged(source: Recognizer, tuned: Recognizer, found: Survey, head: Head) -> tuple[np.ndarray, dict[str, Any]]:
    """Average the tuned weights with those that they began from, by the calibrated loss on the validation pictures;
    returns logits (N, C) of these that no picture chose itself, and what the report says.
    """
    val, labels = found.part("val"), found.several
    groups = found.groups[val]
    if not len(val):
        return np.zeros((0, len(found.classes))), {}

    def losses(logits: np.ndarray) -> np.ndarray:
        if labels is None:
            return comparison.calibrated_losses(logits, found.labels[val], groups)
        sure = deciding.cross_fitted(labels, logits, found.truth[val], groups)[0]
        return multilabel.log_loss(labels, sure, found.truth[val])

    start = finetuner.with_classes(source, found.as_labels, head.softened())
    made = averaging.average(start, tuned, [found.paths[i] for i in val], groups, losses)
    tried = [{"share": share, "log_loss": loss} for share, loss in made.losses.items()]
    return made.unchosen, {"averaged": {"share": made.share, "tried": tried}}


def _of_teacher(lesson: Lesson | None, found: Survey, run: FinetunedRun) -> dict[str, Any]:
    """Say who taught, and how good the teacher is on the validation pictures, where it has the same classes."""
    if lesson is None or run.teacher is None:
        return {}
    val, measured = found.part("val"), None
    said = lesson.teacher.says_of([found.paths[i] for i in val]).logits if lesson.teacher.answers and len(val) else None
    if said is not None:
        logits = said.double().numpy()
        if found.several:
            measured = deciding.measured(found.several, logits, found.truth[val], found.groups[val])
        else:
            measured = comparison.measured(logits, found.labels[val])
            losses = comparison.calibrated_losses(logits, found.labels[val], found.groups[val])
            measured["calibrated_log_loss"] = float(losses.mean())
    facts = {name: value for name, value in run.teacher.items() if name != "behind_unlabelled"}
    return {"teacher": facts | {"validation": measured}}


def _provenance(
    settings: FinetuneSettings,
    base: dict[str, Any],
    found: Survey,
    run: FinetunedRun,
    result: str,
    lesson: Lesson | None,
) -> dict[str, Any]:
    """Say where the result comes from, and which pictures it has seen."""
    behind = [*run.behind_generated]  # what the generator learned from, the network has learned through its pictures
    val, taught = found.part("val"), ""
    if lesson and result == "finetuned":
        behind += lesson.learned_from
        taught = f", taught by {Path(lesson.teacher.name).name}"
    return {
        "source": f"{result} of femtobooth finetune on {Path(settings.model).name}{taught}",
        "licence": base.get("licence", ""),
        "trained_on": sorted(
            {*base.get("trained_on", ()), *behind, *(found.digests[i] for i in found.part("train", "stop"))}
        ),
        "calibrated_on": sorted({*base.get("calibrated_on", ()), *(found.digests[i] for i in val)}),
        "model_hash": run.model_hash,
    }


def _multi_label(
    settings: FinetuneSettings,
    source: Recognizer,
    tuned: Recognizer | None,
    found: Survey,
    head: Head,
    embedded: Embedded,
    tuned_logits: np.ndarray,
    unchosen: np.ndarray,
    tuned_train: np.ndarray,
    tuned_val: np.ndarray,
) -> tuple[Recognizer, dict[str, Any]]:
    """Make the result where a picture may have several labels, and what the report says of it: calibration and
    thresholds of each label, and the limit of rejection, come from validation pictures, or from cross-validated
    predictions of the probe.
    """
    labels, val, train = found.as_labels, found.part("val"), found.part("train")
    members = rejection.members(found.truth)
    truth, groups = found.truth[val], found.groups[val]
    report: dict[str, Any] = {}
    if tuned is None:
        compared: dict[str, Any] = {"pictures": len(val), "verdict": LEFT_OUT, "result": "probe", "rule": "as asked"}
    elif len(val):
        probed = head.logits(embedded.prelogits[val])
        compared = deciding.compare(labels, probed, unchosen, truth, groups, settings.result)
        report["finetuned"] = deciding.measured(labels, unchosen, truth, groups)
    else:
        compared = _not_comparable(settings, "thresholds chosen")
    if tuned is None or compared["result"] == "probe":
        crossed = cross_validated(found, embedded, settings)
        judged = np.flatnonzero(np.isfinite(crossed).all(axis=1))
        result, by = finetuner.with_classes(source, labels, head).freeze(), "cross-validated predictions"
        logits = unchosen = crossed[judged]
        centres = rejection.centroids(embedded.embedding[train], members[train])
        limit = rejection.limit(_held_out(found, embedded, judged, settings))
    else:
        result, judged, logits, by = tuned, val, tuned_logits, "validation pictures"
        centres, limit = _of_tuned(tuned_train, tuned_val, members[train], groups)
    result.rejection = centres | {"threshold": limit.threshold, "how": limit.how, "false_rejection": 1 - limit.kept}
    truth, groups = found.truth[judged], found.groups[judged]
    result.labels = deciding.fitted(labels, logits, truth)
    measured, told = None, []
    if len(judged):
        measured = deciding.measured(labels, unchosen, truth, groups)
        for row, threshold in zip(measured["per_label"], result.labels.thresholds, strict=True):
            row["threshold"] = None if row["group"] else threshold
        decided = deciding.cross_fitted(labels, unchosen, truth, groups)[1]
        names = np.array(labels.names)
        told = [
            {
                "path": str(found.paths[i]),
                "label": found.said(int(i)),
                "named": "; ".join(names[said]) or "none",
                "missing": missing,
                "too_many": more,
            }
            for i, said, (missing, more) in zip(judged, decided, deciding.wrong(labels, decided, truth), strict=True)
        ]
    report["comparison"] = compared
    report["judged"] = {"by": by, "measured": measured, "pictures": told}
    report["calibration"] = {
        "temperature": 1.0,
        "from": f"{len(judged)} {by}",
        "log_loss": measured and measured["log_loss"],
        "scales": list(result.labels.scales),
        "offsets": list(result.labels.offsets),
        "rejected_below": limit.threshold,
        "rejection": limit.how,
    }
    return result, report


def _held_out(found: Survey, embedded: Embedded, known: np.ndarray, settings: FinetuneSettings) -> np.ndarray:
    """Compute similarities of known pictures, one of each group of near-duplicates, to centroids made without their
    fold.
    """
    groups, held, seed = found.groups[known], found.only_train[known], settings.training.seed
    if found.several:
        truth = found.truth[known]
        fold = stratification.folds(truth, groups, held, seed, probe.FOLDS)
        members = rejection.members(truth)
    else:
        fold = probe.folds(found.labels[known], groups, held, seed)
        members = found.labels[known][:, None] == np.arange(len(found.classes))
    vectors = embedded.embedding[known]
    similar, inside_of = [np.zeros(0)], [np.zeros(0, np.int64)]
    for number in np.unique(fold[fold >= 0]):
        inside = fold == number
        if found.several or members[~inside].any(axis=0).all():
            similar.append(
                rejection.similarity(vectors[inside], rejection.centroids(vectors[~inside], members[~inside]))
            )
            inside_of.append(groups[inside])
    return rejection.one_of_each(np.concatenate(similar), np.concatenate(inside_of))


def _of_tuned(
    train: np.ndarray, val: np.ndarray, members: np.ndarray, groups: np.ndarray
) -> tuple[dict[str, Any], rejection.Limit]:
    """Compute the centroids of a tuned network, from its embeddings of what trained (N, D) and what was in each class
    (N, C), and the limit, from its embeddings of validation pictures and their groups of near-duplicates.
    """
    centres = rejection.centroids(train, members)
    held_out = rejection.similarity(val, centres) if len(val) else np.zeros(0)
    limit = rejection.limit(rejection.one_of_each(held_out, groups))
    # Few held-out pictures may be alike by chance; what was trained on is nearer than they are, and is never rejected.
    return centres, limit._replace(threshold=min(limit.threshold, float(rejection.similarity(train, centres).min())))
