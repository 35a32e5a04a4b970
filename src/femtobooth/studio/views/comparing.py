"""Compare two runs, or two steps of one, picture by picture under a slider."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse

from ...core.run import Run
from ..asked import Here
from ..library import id_of
from ..state import Studio
from ..watching import prompts, shots
from .rendering import page

router = APIRouter()


@dataclass(frozen=True)
class Side:
    """Hold the samples of a run at a step."""

    key: str
    name: str
    prompts: list[str]
    rows: list[list[str]]
    """Addresses of pictures, a row for each prompt."""


@dataclass(frozen=True)
class Pair:
    """Hold two pictures of the same place in their sheets."""

    left: str
    right: str
    left_prompt: str
    right_prompt: str


@router.get("/compare", response_class=HTMLResponse)
def compare(studio: Here, left: str = "", right: str = "") -> Response:
    """Show two sides, and what else could be compared."""
    groups = _sides(studio)
    sides = {side.key: side for _, members in groups for side in members}
    newest = groups[0][1] if groups else []
    first = sides.get(left) or (newest[0] if newest else None)
    second = sides.get(right) or (newest[-1] if newest else None)
    pairs = []
    if first and second:
        for row, (lefts, rights) in enumerate(zip(first.rows, second.rows, strict=False)):
            words = [side.prompts[row] if row < len(side.prompts) else "" for side in (first, second)]
            pairs += [Pair(*two, *words) for two in zip(lefts, rights, strict=False)]
    return page("compare.html", title="Compare", here="compare", groups=groups, left=first, right=second, pairs=pairs)


def _sides(studio: Studio) -> list[tuple[str, list[Side]]]:
    """List what can be compared: by run, step after step."""
    found = []
    for run in studio.library.runs():
        if members := _of(run):
            found.append((studio.library.title(run), members))
    return found


def _of(run: Run) -> list[Side]:
    texts, run_id = prompts(run), id_of(run.folder.name)
    return [
        Side(
            f"{run_id}-{shot['step']}",
            f"{run.name}, " + (f"step {shot['step']}" if shot["step"] else "before"),
            texts,
            shot["rows"],
        )
        for shot in shots(run)
    ]
