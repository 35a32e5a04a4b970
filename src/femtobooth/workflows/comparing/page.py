"""Gather what the page of compare shows, from the report, the tables and the pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

from PIL import Image

from ...pages.compare import (
    TASKS,
    Against,
    Cell,
    ComparisonPage,
    Disagreement,
    Disagreements,
    Note,
    SamplesTable,
    TaskTable,
    comparison_page,
)
from ...pages.html import Shot
from ...pictures.images import Picture, decode
from .figures import How
from .pictures import Drawings, Pictures
from .rows import Row

SMALL = 128  # pixels up to which samples are stored exactly
VERDICTS = {True: "right", False: "wrong", None: "not one of its classes"}


def render(
    report: Mapping[str, Any], tables: Mapping[str, Sequence[Row]], pictures: Pictures | None, drawings: Drawings | None
) -> str:
    """Write the whole page, from what `--json` prints, the tables and the pictures."""
    names = [one["name"] for one in report["models"]]
    hows: dict[How, int] = {}
    shown = [_table(report, task, rows, hows) for task, rows in tables.items()]
    differing = report["settings_that_differ"]
    tasks = "These models have different tasks: there is a table for each, and nothing to choose between."
    page = ComparisonPage(
        title=f"{', '.join(names[:-1])} and {names[-1]}, side by side",
        kind="comparison",
        footer=f"femtobooth {report['environment'].get('femtobooth', '')} · {report['machine']}",
        choices=[one["choose"] for one in report["verdicts"]] or [tasks],
        verdicts=[_verdict(one) for one in report["verdicts"]],
        remarks=report["remarks"],
        tables=shown,
        samples=_samples(drawings) if drawings else None,
        disagreements=_disagreements(report, pictures) if pictures else None,
        runs=[*differing[0]["values"]] if differing else [],
        settings=[(row["setting"], [*row["values"].values()]) for row in differing],
        rules=report["rules"],
        notes=[_note(how) for how in hows],
        command=report["command"],
        versions=", ".join(f"{name} {value}" for name, value in report["environment"].items()),
    )
    return comparison_page(page)


def _verdict(one: Mapping[str, Any]) -> Against:
    mood = one.get("mood") or ("good" if one["quality"] and one["better"] and not one["worse"] else "info")
    return Against(f"{one['model']} against {one['against']}", one["told"], mood)


def _table(report: Mapping[str, Any], task: str, rows: Sequence[Row], hows: dict[How, int]) -> TaskTable:
    """Number how the figures were obtained as they come, and remember the numbers in `hows`."""
    lines = []
    for row in rows:
        cells = []
        for one in row.figures:
            number = hows.setdefault(one.how, len(hows) + 1)
            cells.append(Cell(one.shown, number, f"{one.how.kind}: {one.how.what}"))
        lines.append((row.name, cells))
    return TaskTable(TASKS[task], [one["name"] for one in report["models"] if one["task"] == task], lines)


def _samples(drawings: Drawings) -> SamplesTable:
    names = {one.candidate.hash: one.candidate.name for one in drawings.models}
    seeds, rows = drawings.seeds, []
    for index, prompt in enumerate(drawings.prompts):
        cells = []
        for own, name in names.items():
            drawn = drawings.drawn[own][index * len(seeds) : (index + 1) * len(seeds)]
            asked = drawings.asked[own][index]
            cells.append(
                [
                    Shot(Image.open(BytesIO(png)), f"{name} draws {asked!r} with seed {seed}", exact=SMALL)
                    for png, seed in zip(drawn, seeds, strict=True)
                ]
            )
        rows.append((prompt, cells))
    sampling = ", ".join(f"{key} {value}" for key, value in drawings.sampling.items() if value not in ("", 0.0))
    caption = f"Seeds {', '.join(map(str, seeds))} in each row; {sampling}; [V] is the subject of models that have one"
    return SamplesTable([*names.values()], rows, caption)


def _disagreements(report: Mapping[str, Any], pictures: Pictures) -> Disagreements:
    if len(pictures.logits) < 2:
        said = "Only one of the models knows classes of the data: there is nothing to disagree about."
        return Disagreements(said, [])
    found = []
    for row in report["disagreements"]:
        path = pictures.paths[row["index"]]
        decoded = decode(path)
        image = decoded.image if isinstance(decoded, Picture) else Image.new("RGB", (8, 8))
        answers = [
            f"{one['model']}: {one['name']}, {one['confidence']:.0%}, {VERDICTS[one['right']]}"
            for one in row["answers"]
        ]
        found.append(Disagreement(Shot(image, f"{row['label']}: {path.name}", longest=320), row["label"], answers))
    said = f"The models name {pictures.disagreeing()} of {len(pictures.paths)} pictures differently."
    return Disagreements(said + (f" Here are {len(found)}, first those that some get right." if found else ""), found)


def _note(how: How) -> Note:
    data = "file:" if how.kind == "read from a file" else "data:"
    more = ((data, how.data), ("machine:", how.machine), ("when:", how.when))
    return Note(how.kind, "; ".join([how.what, *(f"{name} {value}" for name, value in more if value)]), how.command)
