"""What came of several subjects: the page, the file for programs, and the table at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from ...core.errors import FemtoboothError
from ...core.events import artifact, conclude, table
from ...core.files import write_json, write_text
from ...core.machine import environment
from ...core.metrics import Interval
from ...core.processes import typed
from ...judging.verdict import MOODS, RULE, percent
from ...pages.html import Shot, Tile
from ...pages.many import ManyPage, Row, many_page
from .standing import Standing

PAGE, FILE = "subjects.html", "subjects.json"
SIDE, EXACT = 96, 64  # pixels of a picture on the page, and up to which it is kept exactly
WRONG = {"failed": "bad", "interrupted": "warn"}


def write(found: Sequence[Standing], runs: Path) -> dict[str, Any]:
    """Write subjects.html and subjects.json; returns what the latter holds."""
    facts = {"runs": str(runs), "subjects": [one.plain() for one in found]}
    write_json(runs / FILE, facts)
    rows = [_row(one, runs) for one in found]
    page = ManyPage(
        title=f"{len(found)} subjects",
        kind="femtobooth train-many",
        lead=", ".join(f"{count} {status}" for status, count in _counted(found).items()),
        footer=", ".join(f"{name} {version}" for name, version in environment().items()),
        tiles=_tiles(found),
        wrong=[row for row in rows if row.status in WRONG],
        rows=rows,
        rule=RULE,
        command=typed(),
    )
    write_text(runs / PAGE, many_page(page))
    return facts


def tell(found: Sequence[Standing], runs: Path) -> None:
    """Tell what came of all. Raises FemtoboothError where a subject was not finished."""
    rows = []
    for one in found:
        row = _row(one, runs)
        share = f" ({row.likeness})" if row.likeness else ""
        rows.append((one.name, one.class_noun, one.status, row.step, row.fidelity, row.outcome + share, row.time))
    columns = ("=subject", "class", "status", ">step", ">fidelity", "verdict", ">time")
    table(f"Subjects in {runs}", columns, rows, result=True)
    artifact(runs / PAGE, "page")
    conclude(f"all of it: {runs / PAGE}")
    if wrong := [one.name for one in found if one.status != "done"]:
        raise FemtoboothError(
            f"{len(wrong)} of {len(found)} subjects are not finished: {', '.join(wrong)}",
            f"{runs / PAGE} says why; the same command goes on with them",
        )


def _counted(found: Sequence[Standing]) -> Mapping[str, int]:
    return Counter(one.status for one in found)


def _tiles(found: Sequence[Standing]) -> list[Tile]:
    counts, outcomes = _counted(found), Counter(one.verdict.outcome for one in found if one.verdict)
    wrong = counts["failed"] + counts["interrupted"]
    spent = sum(one.run.seconds for one in found if one.run)
    learned = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
    return [
        Tile("done", f"{counts['done']} of {len(found)}", f"{counts['running']} running, {counts['waiting']} waiting"),
        Tile("not finished", wrong, "failed or interrupted", "bad" if wrong else ""),
        Tile("learned", outcomes["learned"], learned or "none is judged yet"),
        Tile("time", _time(spent), "of all their processes together"),
    ]


def _row(one: Standing, runs: Path) -> Row:
    run, scores, found = one.run, one.scores, one.verdict
    link = run.folder / "report.html" if run else None
    step = ""
    if run and run.steps is not None:
        step = f"{run.steps} of {run.trained_steps}"
    elif run and run.progress.steps:
        step = f"{run.progress.step} of {run.progress.steps}, so far"
    return Row(
        name=one.name,
        class_noun=one.class_noun,
        link=quote(link.relative_to(runs).as_posix()) if link and link.is_file() else "",
        shots=_shots(one),
        status=one.status,
        mood=WRONG.get(one.status, MOODS[found.outcome] if found else "info"),
        share=Interval(*(min(max(part, 0.0), 1.0) for part in found.share)) if found and found.share else None,
        likeness=percent(found.share.value) if found and found.share else "",
        outcome=found.outcome if found else "",
        fidelity=f"{scores.base:.3f} → {scores.fidelity:.3f}" if scores else "",
        prompt=f"{scores.prompt:.3f}" if scores else "",
        drift=f"{scores.drift:.3f}" if scores else "",
        step=step,
        time=_time(run.seconds) if run and run.seconds else "",
        said=one.problem,
        way_out=one.way_out or "",
    )


def _shots(one: Standing) -> list[Shot]:
    """Read a photo and the newest pictures, as far as they can be read."""
    found = []
    for path in [*([one.photo] if one.photo else []), *one.pictures]:
        with suppress(OSError), Image.open(path) as opened:
            alt = f"a photo of {one.name}" if path == one.photo else f"{one.name}, drawn"
            found.append(Shot(opened.copy(), alt, longest=SIDE, exact=EXACT))
    return found


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
