"""models -> one table of what was measured here or read from their files, what differs, and when to choose which: one
page.

Every model runs in a process of its own, and they take turns while they are timed. What was measured is kept in the
cache by the contents of weights and data, the settings and the machine, so that comparing again is quick.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.claims import Output
from ..core.errors import SettingsError
from ..core.events import conclude, table, warn
from ..core.files import timestamp
from ..core.machine import environment
from ..generator.prompts import called_in
from ..generator.run import PersonalizedRun
from ..judging import verdict
from ..recognizer.inference.engines import refuse_program
from ..recognizer.model.formats import exported
from .comparing import bench, cards, figures, page, rows
from .comparing.candidates import GENERATOR, RECOGNIZER, Candidate, find
from .comparing.pictures import Measured, Pictures
from .comparing.rows import Row
from .comparing.settings import CompareSettings
from .comparing.worker import Worker


def run(settings: CompareSettings) -> dict[str, Any]:
    """Compare models; returns what `--json` prints. Raises InputError kinds before anything is written.

    Interrupted, it keeps what was measured, and the same command goes on from there.
    """
    candidates = find(settings.models)
    out = Path(settings.out) if settings.out else _place(candidates)
    output = Output(
        out,
        "compare",
        settings.overwrite,
        inputs=[*settings.models, settings.data],
        known=_is_page,
        numbered=not settings.out,
    )
    output.check()
    for one in candidates:
        if one.task == RECOGNIZER:
            refuse_program(exported(one.reference), one.given, settings.trust)
    if settings.data and not any(one.task == RECOGNIZER for one in candidates):
        raise SettingsError(f"`data={settings.data}`: none of the models is a classifier", "leave it out")
    remarks: list[str] = []
    labelled = bench.labelled(settings.data, remarks) if settings.data else {}
    measuring = bench.Bench(settings, candidates)
    with ExitStack() as stack:
        for one in candidates:
            measuring.workers[one.hash] = stack.enter_context(Worker(one, measuring.options))
        measured = bench.measure(measuring, remarks)
        pictures = bench.answers(measuring, measured, labelled, remarks) if settings.data else None
        drawings = bench.drawings(measuring, measured)
    tables: dict[str, list[Row]] = {}
    verdicts = []
    for task, group in bench.groups(candidates).items():
        these = [measured[one.hash] for one in group]
        tables[task] = rows.table(task, these, pictures, settings.evaluations)
        verdicts += [_verdict(these[0], other, pictures) for other in these[1:]]
    out = output.free()
    report = {
        "models": [
            {"given": one.given, "name": one.name, "task": one.task, "hash": one.hash, "path": str(one.path)}
            for one in candidates
        ],
        "command": measuring.command,
        "machine": measuring.machine,
        "environment": environment(),
        "settings": settings.model_dump(),
        "tables": rows.plain(tables),
        "verdicts": verdicts,
        "rules": list(figures.RULES),
        "settings_that_differ": cards.settings_that_differ(candidates),
        "remarks": remarks + rows.remarks([measured[one.hash] for one in candidates], pictures),
        "disagreements": pictures.disagreements(settings.disagreements) if pictures else [],
        "page": str(out),
    }
    with replace(output, path=out).file() as temporary:
        temporary.write_text(page.render(report, tables, pictures, drawings), encoding="utf-8")
    _tell(report, tables)
    return report


def _is_page(path: Path) -> bool:
    """Tell whether a file is a page that compare wrote."""
    with path.open("rb") as file:
        return b'<meta name="generator" content="femtobooth: comparison">' in file.read(2000)


def _place(candidates: Sequence[Candidate]) -> Path:
    names = "-vs-".join(re.sub(r"[^\w.-]+", "-", one.name).strip("-.")[:24] for one in candidates[:3])
    return Path("comparisons") / f"{names}-{timestamp()}.html"


def _verdict(first: Measured, second: Measured, pictures: Pictures | None) -> dict[str, Any]:
    """Compare the second model with the first, by the rules of `comparing.figures`."""
    found = [
        figures.speed(f"speed at batch {batch}", taken, second.seconds[batch])
        for batch, taken in first.seconds.items()
        if batch in second.seconds
    ]
    if pictures:
        found += pictures.differences(first, second)
    found += rows.score_differences(first, second)
    found.append(figures.exact("size on disk", "size", first.candidate.size, second.candidate.size))
    if first.whole_memory and second.whole_memory:
        found.append(figures.exact("memory", "memory", first.whole_memory, second.whole_memory))
    if first.candidate.task == GENERATOR:
        why = "there are no evaluations of both on the same prompts, seeds and photos (`femtobooth evaluate RUN`)"
    elif pictures:
        why = "there is no class of the data that both know"
    else:
        why = "there were no labelled pictures (data)"
    return figures.verdict(second.candidate.name, first.candidate.name, found, why) | _untaught(first, second)


def _untaught(first: Measured, second: Measured) -> dict[str, Any]:
    """Say what is said instead where only one of two generators was taught a subject: the other drifts least, and draws
    it never.
    """
    taught = [one for one in (first, second) if one.facts.get("subject")]
    if first.candidate.task != GENERATOR or len(taught) != 1:
        return {}
    (tuned,) = taught
    other, subject = second if tuned is first else first, tuned.facts["subject"]
    run = PersonalizedRun.peek(tuned.candidate.run)
    found = verdict.of_run(run) if run else None
    phrases = [known.phrase for known in called_in(subject).values()]
    them = "it" if len(phrases) == 1 else "them"
    said = f"{other.candidate.name} was never taught {', '.join(phrases)}, and is no choice for drawing {them}; "
    if found is None:
        return {
            "choose": f"{said}femtobooth evaluate says whether {tuned.candidate.name} has learned it.",
            "mood": "info",
        }
    return {"choose": f"{said}{tuned.candidate.name}: {found.sentence}", "mood": found.mood}


def _tell(report: Mapping[str, Any], tables: Mapping[str, Sequence[Row]]) -> None:
    for remark in report["remarks"]:
        warn(remark)
    for task, lines in tables.items():
        names = [one["name"] for one in report["models"] if one["task"] == task]
        told = [(row.name, *(figure.shown for figure in row.figures), ", ".join(row.kinds)) for row in lines]
        table(f"{task}s", ["", *names, "from"], told, result=True)
    for one in report["verdicts"]:
        conclude(f"{one['model']} against {one['against']}: {'; '.join(one['told'])}.\n  {one['choose']}")
    conclude(f"\npage, with the rules and how each figure was obtained: {report['page']}")
