"""Draw validation during training as charts: for the report, and as one SVG file in the run folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core import older_runs
from ..core.files import write_text
from ..judging import scores
from ..judging.selection import Choice, Point, pareto_front
from . import html
from .charts import HEIGHT, WIDTH, line_chart, scatter_chart
from .html import Html

PAD, HEADING = 20, 30  # px


def charts(curve: Mapping[str, Any], choice: Choice | None = None) -> dict[str, Html]:
    """A chart for each measure of validation.json, by title; those without values are left out."""
    drawn: dict[str, Html] = {}
    points = [Point(**row) for row in curve["points"]]
    steps = [point.step for point in points]
    shape = (max(1, len(curve["prompts"]) - 1), -1)  # the class's prompt comes last

    def interval(values: Sequence[float]) -> Sequence[float]:
        grid = np.array(values)
        return scores.over_prompts_and_seeds(grid.reshape(shape) if len(grid) % shape[0] == 0 else grid[None])

    for title, label, spreads in (
        ("Subject fidelity", "cosine", [interval(point.fidelity) for point in points]),
        ("Prompt fidelity", "prompt fidelity", [interval(point.prompt) for point in points]),
        ("Drift of the class", "1 - cosine", [_reach(point) for point in points]),
    ):
        if points:
            means, low, high = np.array(spreads).T
            lines: dict[str, Any] = {"pictures": (steps, means)}
            if title == "Subject fidelity" and curve.get("ceiling") is not None and len(steps) > 1:
                lines["photos, each against the others"] = ([steps[0], steps[-1]], [curve["ceiling"]] * 2)
            if choice is not None:  # an upright line, as high as the band
                lines[f"chosen: step {choice.step}"] = ([choice.step] * 2, [low.min(), high.max()])
            chosen = f"chosen: step {choice.step}" if choice else None
            band = {"pictures": (steps, low, high)}
            drawn[title] = line_chart(lines, "step", label, f"{title} over optimizer steps", bands=band, chosen=chosen)
    if len(points) > 1:
        drawn["Pareto front"] = _front(points[1:], choice)
    if len(curve["deterministic"]) > 1:
        at, losses = zip(*curve["deterministic"], strict=True)
        drawn["Deterministic loss"] = line_chart(
            {"": (at, losses)}, "step", "loss", "Deterministic loss over optimizer steps"
        )
    return drawn


def _reach(point: Point) -> tuple[float, float, float]:
    """Drift, and that of the pictures that moved least and most."""
    each = point.moved or (point.drift,)
    return point.drift, min(each), max(each)


def _front(tuned: list[Point], choice: Choice | None) -> Html:
    """Fidelity over drift: the steps that were beaten, those on the front, and the one that was taken."""
    on_front = {point.step for point in pareto_front(tuned)}
    kinds: dict[str, list[Point]] = {"on the front": [], "beaten": []}
    if choice is not None:
        kinds["chosen"] = []
    for point in tuned:
        chosen = choice is not None and point.step == choice.step
        kinds["chosen" if chosen else "on the front" if point.step in on_front else "beaten"].append(point)
    groups = {
        name: ([p.drift for p in members], [np.mean(p.fidelity) for p in members])
        for name, members in kinds.items()
        if members
    }
    names = {
        name: [f"step {p.step}" if name == "chosen" else str(p.step) for p in members]
        for name, members in kinds.items()
    }
    ranges = [_roomy([p.drift for p in tuned]), _roomy([float(np.mean(p.fidelity)) for p in tuned])]
    alt = "Subject fidelity over drift, a dot for each step"
    labels = ("drift of the class", "subject fidelity")
    return scatter_chart(
        groups, *labels, alt, names=names, x_range=ranges[0], y_range=ranges[1], labelled=True, chosen="chosen"
    )


def _roomy(values: Sequence[float]) -> tuple[float, float]:
    """Their range and a tenth of it more at both ends."""
    low, high = min(values), max(values)
    margin = (high - low) / 10 or abs(high) / 10 or 0.1
    return low - margin, high + margin


def section(folder: Path, facts: Mapping[str, Any]) -> Html:
    """The part of the report about validation in the run `folder`, whose run.json holds `facts`; empty where it had
    none.
    """
    try:
        curve = json.loads(older_runs.place(folder, "validation/validation.json").read_text(encoding="utf-8"))
        selected = facts.get("selected")
        choice = Choice(selected["step"], selected["reason"], tuple(selected["front"])) if selected else None
        points, drawn = [Point(**row) for row in curve["points"]], charts(curve, choice)
    except (OSError, ValueError, KeyError, TypeError):
        return Html("")
    if not drawn:
        return Html("")
    against = "one photo" if curve["photos"] == 1 else f"{curve['photos']} photos"
    pictures = f"{len(points[0].fidelity)} pictures" if points else ""
    told = {
        "Subject fidelity": f"Mean cosine of pictures of the subject with {against}, "
        f"by {curve['encoder']}; the band is "
        f"its 95 % interval over prompts and seeds, of {pictures} at each "
        "step. Higher is better; step 0 is the untuned base.",
        "Prompt fidelity": (
            f"Measured as {curve['prompt_fidelity']} by {curve['encoder']}, with the same interval. Higher is better."
        ),
        "Drift of the class": "How far pictures of the class have moved from the base's pictures "
        "of the same noise; the band reaches from "
        "the one that moved least to the one that moved most. Lower is better.",
        "Pareto front": (
            "A dot for each scored step; prompt fidelity counts too, so a dot "
            "may be on the front though it looks beaten."
        ),
        "Deterministic loss": (
            "The training loss with photos, noise and timesteps held fixed, so that only the model can move it. "
        )
        + (
            f"DVAR's rule would have stopped at step {curve['dvar_step']}."
            if curve["dvar_step"]
            else "DVAR's rule would not have stopped."
        ),
    }
    figures = [html.figure(chart, html.join(html.strong(title + "."), told[title])) for title, chart in drawn.items()]
    answer = []
    if choice is not None:
        answer.append(
            html.callout(
                f"model/ holds step {choice.step} of {facts.get('trained_steps', choice.step)}: {choice.reason}."
            )
        )
        if selected and selected.get("rule"):
            answer.append(html.text(html.strong("The rule."), selected["rule"]))
    if cost := facts.get("validation"):
        share = f", {cost['share']:.0%} of the training itself" if cost.get("share") else ""
        answer.append(
            html.text(
                f"Scoring {cost['scored']} steps and taking the deterministic loss took {cost['seconds']:.0f} s{share}."
            )
        )
    rows = [
        (
            f"{point.step}{' (chosen)' if choice and point.step == choice.step else ''}",
            f"{np.mean(point.fidelity):.3f}",
            f"{np.mean(point.prompt):.3f}",
            f"{point.drift:.3f}",
            "yes" if choice and point.step in choice.front else "",
        )
        for point in points
    ]
    columns = ["step", ">subject fidelity", ">prompt fidelity", ">drift", "on the front"]
    table = (
        html.table(columns, rows, f"Scored by {curve['encoder']}; the same prompts and seeds at every step")
        if rows
        else ""
    )
    return html.section(
        "Choice of the step", *answer, html.row(*figures), table and html.folded("All scored steps", table)
    )


def write(path: Path, curve: Mapping[str, Any], choice: Choice | None = None) -> None:
    """All charts in one SVG file, two in a row."""
    drawn = charts(curve, choice)
    places = []
    for index, (title, chart) in enumerate(drawn.items()):
        x, y = PAD + index % 2 * (WIDTH + PAD), PAD + index // 2 * (HEIGHT + HEADING + PAD)
        inside = re.sub(
            r"<p class=.legend.*?</p>", "", chart, flags=re.DOTALL
        )  # that is HTML; titles of the dots say the same
        inside = inside.replace("<svg ", f'<svg x="{x}" y="{y + HEADING}" width="{WIDTH}" height="{HEIGHT}" ', 1)
        places.append(f'<text class="title" x="{x}" y="{y + 18}">{title}</text>{inside}')
    rows = -(-len(drawn) // 2)
    width, height = 2 * WIDTH + 3 * PAD, rows * (HEIGHT + HEADING + PAD) + PAD
    colours, _, rules = html.style().partition("*{")
    used = [line for line in rules.splitlines() if line.startswith(("svg .", "svg text", ".f0", ".fc", ".l0", ".l1"))]
    style = "".join([colours, *used, "svg{font-family:sans-serif}svg .title{fill:var(--ink);font-size:16px}"])
    write_text(
        path,
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f'<style>{style}</style><rect width="100%" height="100%" fill="var(--paper)"/>{"".join(places)}</svg>\n',
    )
