"""Gather what a page shows of a run, from its events and the files in it; a page goes on from there with the stream."""

from __future__ import annotations

import json
import re
import threading
from collections import deque
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..core.event_log import FILE as EVENTS
from ..core.run import Run
from ..generator.prompts import filled
from .jobs import ACTIVE, Job
from .library import Stamp, id_of, stamp_of
from .live import Tail

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
    history = _history(run.folder / EVENTS)
    with history.lock:
        history.read()
        return {
            "status": status,
            "step": run.progress.step,
            "steps": run.progress.steps,
            "seconds": run.seconds,
            "seq": history.seq,
            "charts": (history if history.seq else _of_file(run)).curves(),
            "doing": history.doing if status == "running" else None,
            "times": [*history.times],
            "told": [*history.told],
            "shots": shots(run),
            "prompts": prompts(run),
            "chosen": (run.model_extra or {}).get("steps"),
        }


class History:
    """What the events of a run come to, event by event; of its file only what is new is read."""

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._tail, self.seq = Tail(self.path), 0
        self.charts: dict[str, dict[str, list[list[float]]]] = {}
        """By chart and name the points (step, value)."""
        self.times: list[list[float]] = []
        """When the last steps of training were finished: (seconds since 1970, step)."""
        self.told: deque[dict[str, Any]] = deque(maxlen=LAST_TOLD)
        """What was said, the newest last."""
        self._open: list[tuple[object, dict[str, Any]]] = []

    def read(self) -> None:
        """Take the events that came since; all of them where the file is another one."""
        if self._tail.replaced():
            self._begin()
        while True:
            for number, text in self._tail.read():
                self.seq = number
                self.take(json.loads(text))
            if not self._tail.moved:
                return

    def take(self, event: Mapping[str, Any]) -> None:
        """Add an event."""
        kind = event["kind"]
        if kind == "metrics":
            self._take_metrics(event["step"], event["values"])
        elif kind == "progress":
            self._take_progress(event)
        elif kind == "stage" and event["state"] == "running":
            self._open = [(None, {"what": event["stage"][-1] if event["stage"] else "", "done": None, "total": None})]
        elif kind == "error":
            self._open = []
            self.times.clear()
        if kind in ("note", "warning", "error", "result") and event.get("text"):
            self.told.append({"kind": kind, "time": event["time"], "text": event["text"].strip()})

    def _take_metrics(self, step: float, values: Mapping[str, float | None]) -> None:
        """Add points; what is done again after a pause takes the place of what was done before."""
        for name, value in values.items():
            if name not in SERIES or value is None:
                continue
            chart, line = SERIES[name]
            points = self.charts.setdefault(chart, {}).setdefault(line, [])
            while points and points[-1][0] >= step:
                points.pop()
            points.append([step, value])

    def _take_progress(self, event: Mapping[str, Any]) -> None:
        self._open = [one for one in self._open if one[0] != event["id"]]
        if event["state"] == "running":
            told = {"what": event["description"], "done": event["done"], "total": event["total"]}
            self._open.append((event["id"], told))
        if event["description"] == "training":
            if self.times and event["done"] < self.times[-1][1]:
                self.times.clear()
            self.times = [*self.times[-LAST_TIMES + 1 :], [event["time"], event["done"]]]

    def curves(self) -> dict[str, dict[str, list[list[float]]]]:
        """Give by chart and name the points (step, value) so far."""
        return {chart: {name: [*points] for name, points in lines.items()} for chart, lines in self.charts.items()}

    @property
    def doing(self) -> dict[str, Any] | None:
        """What is being done: the last progress that is not over, else the innermost stage."""
        return self._open[-1][1] if self._open else None


@lru_cache(maxsize=16)
def _history(path: Path) -> History:
    return History(path)


def _of_file(run: Run) -> History:
    """Take the curve of a run that has no events: of an older version."""
    history = History(run.folder / EVENTS)
    for row in run.curve():
        history.take({"kind": "metrics", "step": row.get("step", 0), "values": row})
    return history


def shots(run: Run, kind: str = "samples") -> list[dict[str, Any]]:
    """List the sampled pictures, step by step: for each prompt the addresses of its pictures."""
    return _shots(run.folder, kind, stamp_of(run.folder / kind))


@lru_cache(maxsize=512)
def _shots(folder: Path, kind: str, stamp: Stamp | None) -> list[dict[str, Any]]:
    """List them; a step's folder appears whole, which changes the `stamp` of the one around it."""
    run_id = id_of(folder.name)
    found = []
    for step in sorted((folder / kind).glob("step-*/")) if stamp else []:
        if not (number := re.fullmatch(r"step-(\d+)", step.name)):
            continue
        rows: dict[int, list[str]] = {}
        for path in sorted(step.glob("*.png")):
            if place := re.fullmatch(r"(\d+)-(\d+)", path.stem):
                name = path.relative_to(folder).as_posix()
                rows.setdefault(int(place[1]), []).append(f"/api/v1/runs/{run_id}/artifacts/{id_of(name)}")
        if rows:
            found.append({"step": int(number[1]), "rows": [rows[row] for row in sorted(rows)]})
    return found


def picture_of(run: Run) -> str | None:
    """Give the address of the picture that stands for a run: the newest of its subject, else a photo."""
    if drawn := shots(run):
        return str(drawn[-1]["rows"][0][0])
    photo = "photos/00.png"
    return f"/api/v1/runs/{id_of(run.folder.name)}/artifacts/{id_of(photo)}" if (run.folder / photo).is_file() else None


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
