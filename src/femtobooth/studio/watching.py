"""Gather what a page shows of a run, from its events and the files in it; a page goes on from there with the stream."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..core.event_log import FILE as EVENTS
from ..core.event_log import read_events
from ..core.run import Run
from ..generator.prompts import filled
from .jobs import ACTIVE, Job
from .library import id_of

SERIES = {
    "loss/instance": ("loss", "photos"),
    "loss/prior": ("loss", "class"),
    "loss/train": ("loss", "photos"),
    "loss/validation": ("loss", "class"),
    "validation/fidelity": ("judged", "likeness"),
    "validation/prompt": ("judged", "obedience"),
    "validation/drift": ("judged", "drift"),
    "accuracy/validation": ("judged", "accuracy"),
}
"""Metrics that have a curve: its chart and its name there."""
LAST_TIMES = 40  # of finished steps, from which the time that is left is reckoned
LAST_TOLD = 200


def status_of(run: Run, job: Job | None) -> str:
    """Say how a run stands: as its job does while that waits or works, also before its process says so itself."""
    known = job.status if job else ""
    ahead = known in ("queued", *ACTIVE) or (known, run.status) == ("paused", "interrupted")
    return known if ahead else run.status


def watched(run: Run, status: str) -> dict[str, Any]:
    """Say all that a page needs to know of a run, as JSON values."""
    events = read_events(run.folder / EVENTS)
    measured = ({"step": row.get("step", 0), "values": row} for row in run.curve()) if not events else ()
    found: dict[str, Any] = {
        "status": status,
        "step": run.progress.step,
        "steps": run.progress.steps,
        "seconds": run.seconds,
        "seq": events[-1]["seq"] if events else 0,
        "charts": curves([*measured, *(one for one in events if one["kind"] == "metrics")]),
        "doing": doing(events) if status == "running" else None,
        "times": times(events),
        "told": told(events),
        "shots": shots(run),
        "prompts": prompts(run),
        "chosen": (run.model_extra or {}).get("steps"),
    }
    return found


def curves(metrics: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, list[list[float]]]]:
    """Give by chart and name the points (step, value); what was done again after a pause replaces what was done
    before.
    """
    found: dict[str, dict[str, list[list[float]]]] = {}
    for event in metrics:
        step = event["step"]
        for name, value in event["values"].items():
            if name not in SERIES or value is None:
                continue
            chart, line = SERIES[name]
            points = found.setdefault(chart, {}).setdefault(line, [])
            while points and points[-1][0] >= step:
                points.pop()
            points.append([step, value])
    return found


def doing(events: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Say what is being done: the last progress that is not over, else the innermost stage."""
    over = set[int]()
    for event in reversed(events):
        if event["kind"] == "progress" and event["state"] != "running":
            over.add(event["id"])
        elif event["kind"] == "progress" and event["id"] not in over:
            return {"what": event["description"], "done": event["done"], "total": event["total"]}
        if event["kind"] == "stage" and event["state"] == "running":
            return {"what": event["stage"][-1] if event["stage"] else "", "done": None, "total": None}
        if event["kind"] == "error":
            return None
    return None


def times(events: Iterable[Mapping[str, Any]]) -> list[list[float]]:
    """Give when the last steps of training were finished: (seconds since 1970, step)."""
    found: list[list[float]] = []
    for event in events:
        if event["kind"] == "progress" and event["description"] == "training":
            if found and event["done"] < found[-1][1]:
                found.clear()
            found.append([event["time"], event["done"]])
        elif event["kind"] == "error":
            found.clear()
    return found[-LAST_TIMES:]


def told(events: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Give what was said, the newest last."""
    said = [
        {"kind": one["kind"], "time": one["time"], "text": one["text"].strip()}
        for one in events
        if one["kind"] in ("note", "warning", "error", "result") and one.get("text")
    ]
    return said[-LAST_TOLD:]


def shots(run: Run, kind: str = "samples") -> list[dict[str, Any]]:
    """List the sampled pictures, step by step: for each prompt the addresses of its pictures."""
    run_id = id_of(run.folder.name)
    found = []
    for folder in sorted((run.folder / kind).glob("step-*/")):
        if not (number := re.fullmatch(r"step-(\d+)", folder.name)):
            continue
        rows: dict[int, list[str]] = {}
        for path in sorted(folder.glob("*.png")):
            if place := re.fullmatch(r"(\d+)-(\d+)", path.stem):
                name = path.relative_to(run.folder).as_posix()
                rows.setdefault(int(place[1]), []).append(f"/api/v1/runs/{run_id}/artifacts/{id_of(name)}")
        if rows:
            found.append({"step": int(number[1]), "rows": [rows[row] for row in sorted(rows)]})
    return found


def prompts(run: Run) -> list[str]:
    """Give the prompts of the samples as people read them, the subject as [V]."""
    samples, photos = run.settings.get("samples", {}), run.settings.get("photos", {})
    noun = str(photos.get("class_noun", ""))
    return [filled(str(text), "[V]", noun) for text in samples.get("prompts", [])]


def photos(run: Run) -> list[str]:
    """List the photos of a run by their names in its folder."""
    subjects = (run.model_extra or {}).get("subjects", {})
    return [name for one in subjects.values() for name in one.get("photos", []) if (run.folder / name).is_file()]


def class_noun(run: Run) -> str:
    """Say what the subject of a run is."""
    return str(run.settings.get("photos", {}).get("class_noun", ""))


def has_model(run: Run) -> bool:
    """Tell whether a run can be drawn with."""
    return run.kind == "personalize" and any(Path(run.folder / "model").glob("*.json"))
