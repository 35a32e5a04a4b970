"""Draw validation during training as charts: for the report, and as one SVG file in the run folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from ..core import older_runs
from ..core.files import write_text
from ..generator.run import PersonalizedRun
from ..judging import scores
from ..judging.selection import Choice, Point, pareto_front, point_of
from .charts import HEIGHT, WIDTH, line_chart, scatter_chart
from .html import Chart, style

PAD, HEADING = 20, 30  # px
DRIFT, OUTSIDE = "Drift of the class", "outside the class"
COLUMNS = ("step", ">subject fidelity", ">prompt fidelity", ">drift")


def charts(curve: Mapping[str, Any], choice: Choice | None = None) -> dict[str, Markup]:
    """Draw a chart for each measure of validation.json, by title; those without values are left out."""
    drawn: dict[str, Markup] = {}
    points = [point_of(row) for row in curve["points"]]
    steps = [point.step for point in points]
    shape = (max(1, len(curve["prompts"]) - 1), -1)  # the class's prompt comes last

    def interval(values: Sequence[float]) -> Sequence[float]:
        grid = np.array(values)
        return scores.over_prompts_and_seeds(grid.reshape(shape) if len(grid) % shape[0] == 0 else grid[None])

    if several := curve.get("subjects"):
        drawn |= _of_each(several, points, choice)
    for title, label, spreads in (
        ("Subject fidelity", "cosine", [interval(point.fidelity) for point in points]),
        ("Prompt fidelity", "prompt fidelity", [interval(point.prompt) for point in points]),
        (DRIFT, "1 - cosine", [_reach(point) for point in points]),
    ):
        if points and title not in drawn:
            means, low, high = np.array(spreads).T
            lines: dict[str, Any] = {"pictures": (steps, means)}
            if title == "Subject fidelity" and curve.get("ceiling") is not None and len(steps) > 1:
                lines["photos, each against the others"] = ([steps[0], steps[-1]], [curve["ceiling"]] * 2)
            if choice is not None:  # an upright line, as high as the band
                lines[f"chosen: step {choice.step}"] = ([choice.step] * 2, [low.min(), high.max()])
            chosen = f"chosen: step {choice.step}" if choice else None
            band = {"pictures": (steps, low, high)}
            if title == DRIFT and _outside(points):
                far = np.array([(np.mean(point.outside), min(point.outside), max(point.outside)) for point in points])
                lines = {"of the class": lines.pop("pictures"), OUTSIDE: (steps, far[:, 0]), **lines}
                band = {"of the class": (steps, low, high), OUTSIDE: (steps, far[:, 1], far[:, 2])}
            drawn[title] = line_chart(lines, "step", label, f"{title} over optimizer steps", bands=band, chosen=chosen)
    if len(points) > 1:
        drawn["Pareto front"] = _front(points[1:], choice)
    if len(curve["deterministic"]) > 1:
        at, losses = zip(*curve["deterministic"], strict=True)
        drawn["Deterministic loss"] = line_chart(
            {"": (at, losses)}, "step", "loss", "Deterministic loss over optimizer steps"
        )
    return drawn


def _of_each(
    subjects: Sequence[Mapping[str, Any]], points: Sequence[Point], choice: Choice | None
) -> dict[str, Markup]:
    """Draw likeness and obedience with a line for each of several subjects."""
    steps, drawn = [point.step for point in points], {}
    for title, label, values in (
        ("Subject fidelity", "cosine", [point.split(point.fidelity) for point in points]),
        ("Prompt fidelity", "prompt fidelity", [point.split(point.prompt) for point in points]),
    ):
        lines: dict[str, Any] = {}
        bands: dict[str, Any] = {}
        for index, one in enumerate(subjects):
            spreads = np.array(
                [scores.over_prompts_and_seeds(parts[index].reshape(one["prompts"], -1)) for parts in values]
            )
            lines[one["name"]] = (steps, spreads[:, 0])
            bands[one["name"]] = (steps, spreads[:, 1], spreads[:, 2])
        chosen = f"chosen: step {choice.step}" if choice else None
        if choice and chosen:
            edges = np.concatenate([edge for band in bands.values() for edge in band[1:]])
            lines[chosen] = ([choice.step] * 2, [edges.min(), edges.max()])
        drawn[title] = line_chart(lines, "step", label, f"{title} over optimizer steps", bands=bands, chosen=chosen)
    return drawn


def _reach(point: Point) -> tuple[float, float, float]:
    """Take drift, and that of the pictures that moved least and most."""
    each = point.moved or (point.drift,)
    return point.drift, min(each), max(each)


def _outside(points: Sequence[Point]) -> bool:
    """Tell whether every step was scored outside the class too, which older versions did not do."""
    return bool(points) and all(point.outside for point in points)


def _front(tuned: list[Point], choice: Choice | None) -> Markup:
    """Draw fidelity over drift: the steps that were beaten, those on the front, and the one that was taken."""
    on_front = {point.step for point in pareto_front(tuned)}
    kinds: dict[str, list[Point]] = {"on the front": [], "beaten": []}
    if choice is not None:
        kinds["chosen"] = []
    for point in tuned:
        chosen = choice is not None and point.step == choice.step
        kinds["chosen" if chosen else "on the front" if point.step in on_front else "beaten"].append(point)
    groups = {
        name: ([p.drift for p in members], [p.goods[0] for p in members]) for name, members in kinds.items() if members
    }
    names = {
        name: [f"step {p.step}" if name == "chosen" else str(p.step) for p in members]
        for name, members in kinds.items()
    }
    ranges = [_roomy([p.drift for p in tuned]), _roomy([p.goods[0] for p in tuned])]
    alt = "Subject fidelity over drift, a dot for each step"
    worst = any(p.of for p in tuned)
    labels = ("drift of the class", "share of the way to the photos, worst subject" if worst else "subject fidelity")
    return scatter_chart(
        groups, *labels, alt, names=names, x_range=ranges[0], y_range=ranges[1], labelled=True, chosen="chosen"
    )


def _roomy(values: Sequence[float]) -> tuple[float, float]:
    """Take their range and a tenth of it more at both ends."""
    low, high = min(values), max(values)
    margin = (high - low) / 10 or abs(high) / 10 or 0.1
    return low - margin, high + margin


@dataclass(frozen=True, kw_only=True)
class Section:
    """Hold what the report shows of validation during training."""

    encoder: str
    choice: str
    """Which step the model is of, and why; empty where none was chosen."""
    rule: str
    cost: str
    charts: list[Chart]
    columns: list[str]
    rows: list[tuple[str, ...]]
    """Step, subject fidelity, prompt fidelity, drift, drift outside the class where all have it, whether it is on the
    front.
    """


def section(run: PersonalizedRun) -> Section | None:
    """Read validation of a run; None where it had none, or its file is damaged."""
    try:
        curve = json.loads(older_runs.place(run.folder, "validation/validation.json").read_text(encoding="utf-8"))
        selected = run.selected
        choice = Choice(selected["step"], selected["reason"], tuple(selected["front"])) if selected else None
        points, drawn = [point_of(row) for row in curve["points"]], charts(curve, choice)
        told = _told(curve, points)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not drawn:
        return None
    chosen, rule, outside = "", "", _outside(points)
    if selected and choice:
        chosen = f"model/ holds step {choice.step} of {run.trained_steps or choice.step}: {choice.reason}."
        rule = selected.get("rule") or ""
    return Section(
        encoder=curve["encoder"],
        choice=chosen,
        rule=rule,
        cost=_cost(run.validation),
        charts=[Chart(chart, told[title], f"{title}.") for title, chart in drawn.items()],
        columns=[*_columns(curve), *([f">{OUTSIDE}"] if outside else []), "on the front"],
        rows=[
            (
                f"{point.step}{' (chosen)' if choice and point.step == choice.step else ''}",
                *(f"{part.mean():.3f}" for part in point.split(point.fidelity)),
                *(f"{part.mean():.3f}" for part in point.split(point.prompt)),
                f"{point.drift:.3f}",
                *([f"{np.mean(point.outside):.3f}"] if outside else []),
                "yes" if choice and point.step in choice.front else "",
            )
            for point in points
        ],
    )


def _columns(curve: Mapping[str, Any]) -> list[str]:
    step, fidelity, prompt, drift = COLUMNS
    names = [f" of {one['name']}" for one in curve.get("subjects", ())] or [""]
    return [step, *(fidelity + name for name in names), *(prompt + name for name in names), drift]


def _told(curve: Mapping[str, Any], points: Sequence[Point]) -> dict[str, str]:
    """Say what each chart shows, by its title."""
    against = "one photo" if curve["photos"] == 1 else f"{curve['photos']} photos"
    each = curve.get("subjects") or []
    ceilings = [f"{one['name']} {one['ceiling']:.3f}" for one in each if one["ceiling"] is not None]
    whose = "each subject with its own of" if each else "the subject with"
    photos = f" The photos among each other: {', '.join(ceilings)}." if ceilings else ""
    pictures = f"{len(points[0].fidelity)} pictures" if points else ""
    outside = _outside(points)
    stop = f"would have stopped at step {curve['dvar_step']}" if curve["dvar_step"] else "would not have stopped"
    return {
        "Subject fidelity": f"Mean cosine of pictures of {whose} {against}, by {curve['encoder']}; the band is its "
        f"95 % interval over prompts and seeds, of {pictures} at each step. Higher is better; step 0 is the "
        f"untuned base.{photos}",
        "Prompt fidelity": f"Measured as {curve['prompt_fidelity']} by {curve['encoder']}, with the same interval. "
        "Higher is better.",
        DRIFT: "How far pictures of the class have moved from the base's pictures of the same noise; "
        "the band reaches from the one that moved least to the one that moved most. Lower is better."
        + (f" Outside the class: {', '.join(curve['outside'])}; this chooses nothing." if outside else ""),
        "Pareto front": "A dot for each scored step; prompt fidelity counts too, so a dot may be on the front though "
        "it looks beaten.",
        "Deterministic loss": "The training loss with photos, noise and timesteps held fixed, so that only the model "
        f"can move it. DVAR's rule {stop}.",
    }


def _cost(cost: Mapping[str, Any] | None) -> str:
    if not cost:
        return ""
    share = f", {cost['share']:.0%} of the training itself" if cost.get("share") else ""
    return f"Scoring {cost['scored']} steps and taking the deterministic loss took {cost['seconds']:.0f} s{share}."


def write(path: Path, curve: Mapping[str, Any], choice: Choice | None = None) -> None:
    """Draw all charts into one SVG file, two in a row."""
    drawn = charts(curve, choice)
    places = []
    for index, (title, chart) in enumerate(drawn.items()):
        x, y = PAD + index % 2 * (WIDTH + PAD), PAD + index // 2 * (HEIGHT + HEADING + PAD)
        # The legend is HTML; titles of the dots say the same.
        inside = re.sub(r"<p class=.legend.*?</p>", "", str(chart), flags=re.DOTALL)
        inside = inside.replace("<svg ", f'<svg x="{x}" y="{y + HEADING}" width="{WIDTH}" height="{HEIGHT}" ', 1)
        heading = f"{title}, and {OUTSIDE} (dashed)" if title == DRIFT and f">{OUTSIDE}</title>" in inside else title
        places.append(f'<text class="title" x="{x}" y="{y + 18}">{heading}</text>{inside}')
    rows = -(-len(drawn) // 2)
    width, height = 2 * WIDTH + 3 * PAD, rows * (HEIGHT + HEADING + PAD) + PAD
    colours, _, rules = style().partition("*{")
    used = [line for line in rules.splitlines() if line.startswith(("svg .", "svg text", ".f0", ".fc", ".l0", ".l1"))]
    look = "".join([colours, *used, "svg{font-family:sans-serif}svg .title{fill:var(--ink);font-size:16px}"])
    write_text(
        path,
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f'<style>{look}</style><rect width="100%" height="100%" fill="var(--paper)"/>{"".join(places)}</svg>\n',
    )
