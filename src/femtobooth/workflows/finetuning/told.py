"""What `femtobooth finetune` says: of the data before training, and of the result after it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ...core import metrics
from ...core.errors import command
from ...core.events import conclude, note, table
from ...recognizer.finetuning import comparison
from ...recognizer.finetuning.run import FinetunedRun
from ...recognizer.finetuning.survey import Finding, Survey
from ...recognizer.settings import FinetuneSettings


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
            " `probe_only=true` leaves it out"
        )
    note("")


def result(run: FinetunedRun, report: dict[str, Any]) -> None:
    """Tell how probe and fine-tuning compare, which is the result, and how to use it."""
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
        columns = ["", ">right", ">accuracy", ">calibrated log loss"]
        table("On the validation pictures (95% intervals)", columns, rows, result=True)
    conclude(compared["verdict"])
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
    conclude(
        f"done: {run.folder / 'report.html'} shows it; use it with\n"
        f"  {command('classify', '--model', run.folder, 'PHOTOS')}",
        run=run.folder,
        status=run.status,
        steps=run.steps,
    )
