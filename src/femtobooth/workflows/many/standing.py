"""How several subjects stand, as far as their folders say: while they are taught, and what came of each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...core import locks
from ...core.event_log import FILE as EVENTS
from ...core.events import RUNNING
from ...core.files import read_object
from ...generator.run import PersonalizedRun
from ...judging import verdict
from ...judging.verdict import Verdict
from .work import Ended, Work

TAIL = 8192  # bytes of a file of events that hold its last lines
SHOTS = 2  # prompts of which the newest picture is shown


class Doing(NamedTuple):
    """What a process does now, and how far it is."""

    name: str
    what: str
    far: str
    note: str


def doing(works: Sequence[Work]) -> list[Doing]:
    """Say what the processes that work on subjects do now."""
    return [_doing(one) for one in works if locks.holder(one.place)]


def _doing(work: Work) -> Doing:
    last = next((one for one in _last_events(work.place / EVENTS) if one.get("kind") == "progress"), {})
    if last.get("state") != RUNNING:
        return Doing(work.name, "starting" if not last else "between two parts", "", "")
    total = f" of {int(last['total'])}" if last.get("total") else ""
    return Doing(work.name, str(last["description"]), f"{int(last['done'])}{total}", str(last.get("note", "")))


def _last_events(path: Path) -> Iterator[Mapping[str, Any]]:
    """Read the last events of a file, the newest first."""
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - TAIL, 0))
            lines = file.read().splitlines()
    except OSError:
        return
    for line in reversed(lines):
        with suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict):
                yield event


class Scores(NamedTuple):
    """What validation measured of the step that became the model, or of the last one so far."""

    fidelity: float
    base: float
    """Fidelity of the untuned base's pictures."""
    prompt: float
    drift: float


@dataclass(frozen=True)
class Standing:
    """How one subject stands."""

    name: str
    class_noun: str
    status: str
    """waiting, or as a run's status."""
    run: PersonalizedRun | None
    verdict: Verdict | None
    scores: Scores | None
    pictures: list[Path]
    """The newest picture of each of the first prompts."""
    photo: Path | None
    problem: str = ""
    way_out: str | None = None

    def plain(self) -> dict[str, Any]:
        """Give it as JSON values."""
        run = self.run
        return {
            "name": self.name,
            "class_noun": self.class_noun,
            "status": self.status,
            "folder": str(run.folder) if run else None,
            "step": run.steps if run else None,
            "trained_steps": run.progress.step if run else 0,
            "seconds": run.seconds if run else 0.0,
            "verdict": self.verdict.plain() if self.verdict else None,
            "scores": self.scores._asdict() if self.scores else None,
            "problem": self.problem or None,
            "way_out": self.way_out,
        }


def standing(work: Work, class_noun: str, ended: Ended | None) -> Standing:
    """Say how a subject stands; `ended` is how the work on it ended, where it has."""
    run = PersonalizedRun.peek(work.folder)
    status: str = run.status if run else "waiting"
    if ended:
        status = ended.status
    elif locks.holder(work.place):
        status = RUNNING
    return Standing(
        work.name,
        class_noun,
        status,
        run,
        verdict.of_run(run) if run else None,
        _scores(run) if run else None,
        _newest(work.folder / "samples"),
        next(iter(sorted((work.folder / "photos").glob("*.png"))), None),
        ended.problem if ended else "",
        ended.way_out if ended else None,
    )


def _scores(run: PersonalizedRun) -> Scores | None:
    points = read_object(run.folder / "validation" / "validation.json").get("points")
    try:
        known = {int(point["step"]): point for point in points or ()}
        if not any(known):
            return None
        chosen = known[run.steps] if run.steps in known else known[max(known)]
        return Scores(
            float(np.mean(chosen["fidelity"])),
            float(np.mean(known[0]["fidelity"])),
            float(np.mean(chosen["prompt"])),
            float(chosen["drift"]),
        )
    except (KeyError, TypeError, ValueError):
        return None


def _newest(samples: Path) -> list[Path]:
    """List the newest picture of each of the first prompts."""
    steps = sorted(samples.glob("step-*/"))
    return sorted(steps[-1].glob("*-0.png"))[:SHOTS] if steps else []
