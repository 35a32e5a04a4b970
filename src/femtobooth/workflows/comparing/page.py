"""The page of compare: verdicts on top, tables, the same prompts and photos side by side, and how each figure was
obtained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

from PIL import Image

from ...core.figures import How
from ...pages import html
from ...pages.html import Html, callout, code, figure, footnotes, grid, noted, section, strong, table, text
from ...pictures.images import Picture, decode
from .pictures import Drawings, Pictures
from .rows import Row

TASKS = {"generator": "Generators", "recognizer": "Classifiers"}
SMALL = 128  # pixels up to which drawings are stored exactly


def draw(
    report: Mapping[str, Any], tables: Mapping[str, Sequence[Row]], pictures: Pictures | None, drawings: Drawings | None
) -> Html:
    """The whole page, from what `--json` prints, the tables and the pictures."""
    names = [one["name"] for one in report["models"]]
    hows: dict[How, int] = {}
    parts: list[object] = [*(_verdict(one) for one in report["verdicts"])]
    parts += [callout(remark, "warn") for remark in report["remarks"]]
    for task, rows in tables.items():
        columns = ["", *(one["name"] for one in report["models"] if one["task"] == task)]
        parts.append(
            section(
                TASKS[task],
                table(
                    columns, [_line(row, hows) for row in rows], "Each figure leads to how it was obtained", whole=True
                ),
            )
        )
    if drawings:
        parts.append(_drawings(drawings))
    if pictures:
        parts.append(_disagreements(report, pictures))
    parts += [_settings(report), _rules(report), _hows(report, hows)]
    return html.page(
        f"{', '.join(names[:-1])} and {names[-1]}, side by side",
        *parts,
        lead=_lead(report),
        kind="comparison",
        footer=f"femtobooth {report['environment'].get('femtobooth', '')} · {report['machine']}",
    )


def _lead(report: Mapping[str, Any]) -> Html:
    if not report["verdicts"]:
        return Html("These models have different tasks: there is a table for each, and nothing to choose between.")
    return Html("<br>".join(html.markup(one["choose"]) for one in report["verdicts"]))


def _verdict(one: Mapping[str, Any]) -> Html:
    mood = one.get("mood") or ("good" if one["quality"] and one["better"] and not one["worse"] else "info")
    told = "".join(f"<li>{html.markup(line)}</li>" for line in one["told"])
    return callout(html.join(strong(f"{one['model']} against {one['against']}"), Html(f"<ul>{told}</ul>")), mood)


def _line(row: Row, hows: dict[How, int]) -> list[object]:
    cells: list[object] = [row.name]
    for one in row.figures:
        number = hows.setdefault(one.how, len(hows) + 1)
        cells.append(noted(one.shown, number, f"{one.how.kind}: {one.how.what}"))
    return cells


def _drawings(drawings: Drawings) -> Html:
    names = [one.candidate.name for one in drawings.models]
    owns = [one.candidate.hash for one in drawings.models]
    columns = ["prompt", *names]
    rows = []
    for index, prompt in enumerate(drawings.prompts):
        cells: list[object] = [prompt]
        for own, name in zip(owns, names, strict=True):
            drawn = drawings.drawn[own][index * len(drawings.seeds) : (index + 1) * len(drawings.seeds)]
            asked = drawings.asked[own][index]
            shown = [
                _drawn(png, f"{name} draws {asked!r} with seed {seed}")
                for png, seed in zip(drawn, drawings.seeds, strict=True)
            ]
            cells.append(Html(f'<div class="strip">{html.join(*shown)}</div>'))
        rows.append(cells)
    sampling = ", ".join(f"{key} {value}" for key, value in drawings.sampling.items() if value not in ("", 0.0))
    caption = (
        f"Seeds {', '.join(map(str, drawings.seeds))} in each row; {sampling}; "
        "[V] is the subject of models that have one"
    )
    return section("The same prompts and seeds", table(columns, rows, caption, whole=True))


def _drawn(png: bytes, alt: str) -> Html:
    image = Image.open(BytesIO(png)).convert("RGB")
    return html.picture(image, alt, 256, "PNG" if max(image.size) <= SMALL else "JPEG", sharp=False)


def _disagreements(report: Mapping[str, Any], pictures: Pictures) -> Html:
    if len(pictures.logits) < 2:
        return section(
            "Where they disagree",
            text("Only one of the models knows classes of the data: there is nothing to disagree about."),
        )
    total, shown = pictures.disagreeing(), report["disagreements"]
    said = text(
        f"The models name {total} of {len(pictures.paths)} pictures differently.",
        f"Here are {len(shown)}, first those that some get right." if shown else "",
    )
    figures = []
    for row in shown:
        path = pictures.paths[row["index"]]
        decoded = decode(path)
        image = decoded.image if isinstance(decoded, Picture) else Image.new("RGB", (8, 8))
        lines = [strong(row["label"])]
        for answer in row["answers"]:
            verdict = {True: "right", False: "wrong", None: "not one of its classes"}[answer["right"]]
            lines.append(
                Html(
                    f"<br>{html.markup(answer['model'])}: {html.markup(answer['name'])}, "
                    f"{answer['confidence']:.0%}, {verdict}"
                )
            )
        figures.append(figure(html.picture(image, f"{row['label']}: {path.name}", 320), html.join(*lines)))
    return section("Where they disagree", said, grid(*figures, cell=230))


def _settings(report: Mapping[str, Any]) -> Html:
    rows = report["settings_that_differ"]
    if not rows:
        return Html("")
    names = [*rows[0]["values"]]
    lines = [(code(row["setting"]), *(row["values"][name] for name in names)) for row in rows]
    return section(
        "Settings that differ",
        table(["setting", *names], lines, "From the config.yaml of each run; all others are the same", whole=True),
    )


def _rules(report: Mapping[str, Any]) -> Html:
    items = "".join(f"<li>{html.markup(rule)}</li>" for rule in report["rules"])
    return section(
        "The rules", text("The verdicts follow from these rules and nothing else:"), Html(f"<ol>{items}</ol>")
    )


def _hows(report: Mapping[str, Any], hows: Mapping[How, int]) -> Html:
    notes = []
    for how in hows:
        parts: list[object] = [strong(f"{how.kind}:"), how.what]
        parts += [
            f"{name} {value}"
            for name, value in (
                ("file:" if how.kind == "read from a file" else "data:", how.data),
                ("machine:", how.machine),
                ("when:", how.when),
            )
            if value
        ]
        notes.append(
            html.join(
                Html("; ".join(html.markup(part) for part in parts[1:])), code(how.command) if how.command else ""
            )
        )
        notes[-1] = html.join(parts[0], notes[-1])
    versions = ", ".join(f"{name} {value}" for name, value in report["environment"].items())
    return section(
        "How each figure was obtained", footnotes(notes), text("Made by", code(report["command"]), "with", versions)
    )
