"""What `femtobooth finetune` says: of the data before training, and of the result after it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from ...core import metrics
from ...core.errors import command
from ...core.events import conclude, note, table
from ...recognizer.finetuning import comparison, guidance
from ...recognizer.finetuning.dataset_report import Finding
from ...recognizer.finetuning.run import FinetunedRun
from ...recognizer.finetuning.survey import Survey
from ...recognizer.settings import FinetuneSettings

MOST = 12
"""Labels that the table on the terminal lists."""


def data(found: Survey, findings: list[Finding], baseline: dict[str, Any], settings: FinetuneSettings) -> None:
    """Tell what was found in the data, and what the linear probe makes of it."""
    parts = Counter(found.parts)
    said = ", ".join(f"{parts[name]} {name}" for name in ("train", "stop", "val", "left out") if parts[name])
    title = f"Data report: {len(found.paths)} pictures of {len(found.classes)} classes ({said})"
    rows = [(one.what, one.count, one.about, one.example) for one in findings if one.count]
    if rows:
        table(title, ["finding", ">count", "what it means", "for example"], rows)
    else:
        note(title)
    note(f"none of these: {'; '.join(one.what for one in findings if not one.count)}\n")
    if found.several:
        _probe_of_several(baseline)
        return
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
            " `probe_only=true` leaves it out"
        )
    expected = expectation(found, baseline, settings)
    if expected and not settings.probe_only:
        note(expected)
    note("")


def expectation(found: Survey, baseline: dict[str, Any], settings: FinetuneSettings) -> str | None:
    """Say what fine-tuning may bring, by what was measured where most was alike; None where nothing was."""
    crossed, own = baseline["cross_validated"], settings.training
    if found.several or not crossed:
        return None
    seen = own.steps * own.batch_size * own.accumulate * own.devices * own.nodes
    passes = seen / len(found.part("train"))
    return guidance.before(guidance.measurements(), per_class(found), crossed["accuracy"][0], passes)


def per_class(found: Survey) -> float:
    """Count the training pictures of the class in the middle."""
    labels = found.labels[found.part("train")]
    return float(np.median(np.bincount(labels, minlength=len(found.classes))))


def _probe_of_several(baseline: dict[str, Any]) -> None:
    crossed = baseline["cross_validated"]
    if crossed:
        note(
            f"linear probe: mAP {comparison.shares(crossed['map'] or [0, 0, 0])}, F1 over all "
            f"{comparison.shares(crossed['micro_f1'])} in {baseline['folds']}-fold cross-validation over "
            f"{crossed['pictures']} pictures, after {baseline['seconds']} s\n"
        )


def _result_of_several(report: dict[str, Any]) -> None:
    """Tell the figures of probe and fine-tuning, and of each label of the result."""
    rows = []
    teacher = (report.get("teacher") or {}).get("validation")
    parts = (("linear probe", report["probe"]["validation"]), ("fine-tuned", report.get("finetuned")))
    for name, facts in (*parts, ("teacher", teacher)):
        if facts:
            shown = [comparison.shares(facts[key]) for key in ("map", "macro_f1", "micro_f1", "exact") if facts[key]]
            rows.append((name, *shown, f"{facts['log_loss']:.3f}"))
    columns = ["", ">mAP", ">mean F1", ">F1 over all", ">all labels right", ">calibrated log loss"]
    if rows and all(len(row) == len(columns) for row in rows):
        table("On the validation pictures (95% intervals)", columns, rows, result=True)
    measured = report["judged"]["measured"]
    if measured:
        own = [
            (
                row["label"],
                row["pictures"],
                comparison.shares(row["average_precision"]) if row["average_precision"] else "",
                comparison.shares(row["f1"]) if row["f1"] else "",
                "" if row["threshold"] is None else f"{row['threshold']:.2f}",
            )
            for row in sorted(measured["per_label"], key=lambda row: (row["f1"] or [1])[0])[:MOST]
        ]
        more = len(measured["per_label"]) - len(own)
        title = f"The labels, worst first, by {report['judged']['by']}{f' ({more} more in report.html)' * bool(more)}"
        table(title, ["label", ">pictures", ">average precision", ">F1", ">said from"], own, result=True)


def result(run: FinetunedRun, report: dict[str, Any]) -> None:
    """Tell how probe and fine-tuning compare, which is the result, and how to use it."""
    compared, calibration = report["comparison"], report["calibration"]
    rows: list[tuple[str, ...]] = []
    if run.multi_label:
        _result_of_several(report)
    for name, facts, key in (
        ("linear probe", report["probe"]["validation"], "probe"),
        ("fine-tuned", report.get("finetuned"), "finetuned"),
        ("teacher", (report.get("teacher") or {}).get("validation"), ""),
    ):
        if facts and not run.multi_label:
            value = facts.get("calibrated_log_loss") if not key else compared.get("log_loss", {}).get(key)
            loss = "–" if value is None else f"{value:.3f}"  # noqa: RUF001
            rows.append((name, f"{facts['right']} of {facts['pictures']}", comparison.shares(facts["accuracy"]), loss))
    if rows:
        columns = ["", ">right", ">accuracy", ">calibrated log loss"]
        table("On the validation pictures (95% intervals)", columns, rows, result=True)
    conclude(compared["verdict"])
    note(
        f"the result is the {'linear probe' if compared['result'] == 'probe' else 'fine-tuned network'} "
        f"(rule: {compared['rule']})"
    )
    if compared["result"] == "finetuned" and (averaged := report.get("averaged")):
        share = averaged["share"]
        where = f"{share:.0%} of the way from the probe to" if share < 1 else "all the way to"
        note(f"its weights are {where} where fine-tuning ended, which was best in validation")
    if report["guidance"]["after"]:
        note(report["guidance"]["after"])
    unsettled = metrics.unsettled(calibration["temperature"])
    unsettled = f" ({unsettled})" if unsettled else ""
    said = (
        f"a calibration and a threshold for each label, from {calibration['from']}"
        if run.multi_label
        else f"temperature {calibration['temperature']:.2f} from {calibration['from']}{unsettled}"
    )
    note(f"{said}; rejection {calibration['rejection']}")
    conclude(
        f"done: {run.folder / 'report.html'} shows it; use it with\n"
        f"  {command('classify', '--model', run.folder, 'PHOTOS')}",
        run=run.folder,
        status=run.status,
        steps=run.steps,
    )
