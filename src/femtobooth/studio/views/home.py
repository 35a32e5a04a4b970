"""The first page: what was taught, what is being taught, and where photos can be dropped to begin."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse

from ...core.run import Run
from ...pages.html import style
from ..asked import Here
from ..jobs import Job
from ..library import id_of
from ..state import Studio
from ..watching import picture_of, status_of
from .rendering import newer, page, plain

router = APIRouter()
MOST_DRAFTS = 4


@dataclass(frozen=True)
class Card:
    """Hold what a card shows of a run, or of a job that has no run yet."""

    id: str
    address: str
    name: str
    about: str
    status: str
    picture: str | None
    small: bool
    """Whether the picture has few pixels, which are then shown as they are."""
    step: int
    steps: int | None
    created: datetime
    error: str


@router.get("/style.css")
def style_sheet() -> Response:
    """Give the look of all pages."""
    return Response(style(), media_type="text/css", headers={"cache-control": "no-cache"})


@router.get("/", response_class=HTMLResponse)
def home(studio: Here) -> HTMLResponse:
    """Show the runs and jobs."""
    found = cards(studio)
    drafts = studio.drafts.listed()[:MOST_DRAFTS]
    return page("home.html", title="Home", here="home", cards=found, seen=_mark(found), drafts=drafts)


@router.get("/cards", response_class=HTMLResponse)
def newer_cards(studio: Here, seen: str = "") -> Response:
    """Give the cards again where they changed, for a page that asks every few seconds."""
    found = cards(studio)
    return newer("cards.html", seen, {"cards": found, "seen": _mark(found)})


def cards(studio: Studio) -> list[Card]:
    """Make the cards: jobs without a run first, then the runs, the newest first."""
    runs = studio.library.runs()
    known = {id_of(run.folder.name) for run in runs}
    waiting = [
        _of_job(job)
        for job in studio.jobs.listed()
        if job.run_id not in known and job.command in ("personalize", "finetune") and job.status != "done"
    ]
    return [*reversed(waiting), *(run_card(run, studio) for run in runs)]


def run_card(run: Run, studio: Studio, address: str | None = None) -> Card:
    """Make the card of a run, which leads to its page, or to another `address`."""
    run_id = id_of(run.folder.name)
    picture, status = picture_of(run), status_of(run, studio.jobs.of_run(run_id))
    noun = plain(run.settings, "photos.class_noun", "")
    return Card(
        id=run_id,
        address=address or f"/runs/{run_id}",
        name=run.name,
        about=f"a {noun}" if noun else "a recognizer" if run.kind == "finetune" else run.kind,
        status="running" if status == "stopping" else status,
        picture=picture,
        small=bool(run.model_extra and run.model_extra.get("size", 512) <= 128),
        step=run.progress.step,
        steps=run.progress.steps,
        created=run.created,
        error=(run.error or "").splitlines()[0] if status == "failed" and run.error else "",
    )


def _of_job(job: Job) -> Card:
    noun = plain(job.settings, "photos.class_noun", "")
    return Card(
        id=job.id,
        address=f"/jobs/{job.id}",
        name=job.title or job.command,
        about=f"a {noun}" if noun else job.command,
        status="running" if job.status == "stopping" else job.status,
        picture=None,
        small=False,
        step=0,
        steps=None,
        created=job.created,
        error=job.error.problem if job.error else "",
    )


def _mark(found: list[Card]) -> str:
    return hashlib.sha256(repr(found).encode()).hexdigest()[:16]
