"""A run while it learns and afterwards, and a job that has no run yet."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Callable
from itertools import count
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse

from ...core import requests
from ...core.errors import FemtoboothError
from ...core.run import Run
from .. import bases
from ..asked import Here, ThisJob, ThisRun
from ..jobs import ACTIVE, Job
from ..library import artifacts, id_of
from ..presets import without_preset
from ..state import Studio
from ..watching import class_noun, has_model, photos, status_of, watched
from .queueing import queue
from .rendering import error_page, file_address, go, newer, not_here, page, plain

router = APIRouter()
PLAINLY = {
    "learned": "It has learned your {}.",
    "partly learned": "It has learned your {} in part. Teach it again, longer.",
    "not learned": "It has not learned your {} yet. Teach it again: longer, or with other photos.",
    "memorized": "It repeats your photos of the {}. Teach it again: shorter, or with more photos.",
}
"""What a verdict means, by its outcome, above the figures."""


@router.get("/runs/{run_id}", response_class=HTMLResponse)
def show(run: ThisRun, studio: Here) -> HTMLResponse:
    """Show a run."""
    extra, run_id = run.model_extra or {}, id_of(run.folder.name)
    return page(
        "run.html",
        title=run.name,
        here="run",
        run=run,
        **_head(studio, run),
        photos=photos(run),
        report=file_address(run_id, "report.html") if (run.folder / "report.html").is_file() else None,
        verdict=found if isinstance(found := extra.get("verdict"), dict) and "sentence" in found else None,
        plainly=PLAINLY,
        selected=extra.get("selected"),
        small=extra.get("size", 512) <= 128,
        facts=_facts(run),
    )


@router.get("/runs/{run_id}/state")
def state(run_id: str, run: ThisRun, studio: Here) -> JSONResponse:
    """Give all that the page shows of a run, from where it goes on with the stream of events."""
    return JSONResponse(watched(run, status_of(run, studio.jobs.of_run(run_id))))


@router.get("/runs/{run_id}/head", response_class=HTMLResponse)
def head(run: ThisRun, studio: Here, seen: str = "") -> Response:
    """Give how a run stands and what can be done with it, where that changed."""
    return newer("head.html", seen, {"run": run, **_head(studio, run)})


def _head(studio: Studio, run: Run) -> dict[str, Any]:
    run_id = id_of(run.folder.name)
    job = studio.jobs.of_run(run_id)
    status = status_of(run, job)
    error = run.error if status == "failed" else None
    asked = [what for what in ("save", "sample") if requests.asked(run.folder, what)] if status == "running" else []
    queued = job is not None and job.status in ACTIVE
    seen = hashlib.sha256(repr((status, error, has_model(run), asked, queued)).encode()).hexdigest()[:16]
    return {
        "run_id": run_id,
        "status": status,
        "noun": class_noun(run),
        "drawable": has_model(run),
        "again": status not in ("queued", *ACTIVE) and bool(_uploads(studio, run_id)),
        "asked": asked,
        "queued": queued,
        "error": error,
        "seen": seen,
    }


def _facts(run: Run) -> list[tuple[str, str]]:
    """Say what a run was made with, for those who want to know."""
    settings, extra = run.settings, run.model_extra or {}
    found = [
        ("Taught to", str(settings.get("base", settings.get("model", ""))).rpartition("/")[2]),
        ("Word that stands for it", plain(extra, "subjects.V.token", "")),
        ("Pictures", f"{extra['size']} by {extra['size']} pixels" if "size" in extra else ""),
        ("Steps", str(plain(settings, "training.steps", ""))),
        ("Seed", str(plain(settings, "training.seed", ""))),
        ("Memory at most", f"{extra['peak_memory_gib']} GiB" if extra.get("peak_memory_gib") else ""),
        ("Time", ""),
    ]
    return [(name, value) for name, value in found if value]


@router.post("/runs/{run_id}/{what}")
def act(request: Request, run_id: str, what: str, run: ThisRun, studio: Here) -> Response:
    """Stop, pause, resume or delete a run, or ask it to save or to sample."""
    actions: dict[str, Callable[[str], object]] = {
        "stop": studio.desk.stop_run,
        "pause": studio.desk.pause_run,
        "save": lambda one: studio.desk.ask_run(one, "save"),
        "sample": lambda one: studio.desk.ask_run(one, "sample"),
        "resume": studio.desk.resume_run,
        "delete": studio.desk.remove_run,
    }
    if what == "again":
        return _again(studio, run_id)
    if what not in actions:
        return not_here()
    try:
        actions[what](run_id)
    except FemtoboothError as error:
        return _refused(request, error)
    if what == "delete":
        return go("/")
    if request.headers.get("hx-request"):
        run = studio.library.run(run_id) or run
        return page("head.html", run=run, **_head(studio, run))
    return go(f"/runs/{run_id}")


def _again(studio: Studio, run_id: str) -> Response:
    """Begin a draft with the photos and settings of a run, to teach them again with changes."""
    photos, job = _uploads(studio, run_id), studio.jobs.of_run(run_id)
    if not photos or job is None:
        return not_here()
    draft = studio.drafts.new()
    settings = copy.deepcopy(job.settings)
    draft.photos, draft.base = photos, str(settings.pop("base", draft.base))
    settings["photos"].pop("paths")
    name = re.sub(r"-\d+$", "", str(settings.pop("name", "") or ""))
    draft.preset, draft.settings = without_preset(settings, bases.find(bases.bases(studio), draft.base).path)
    numbers = (number for number in count(2) if not (studio.folder / f"{name}-{number}").exists())
    draft.settings |= {"name": f"{name}-{next(numbers)}"} if name else {}
    studio.drafts.keep(draft)
    return go(f"/new/{draft.id}")


def _uploads(studio: Studio, run_id: str) -> list[str]:
    """List the uploads that a run was taught from, as far as they are here."""
    job = studio.jobs.of_run(run_id)
    named = [str(one).removeprefix("upload:") for one in plain(job.settings if job else {}, "photos.paths", [])]
    return [one for one in named if studio.uploads.get(one)]


@router.get("/jobs/{job_id}", response_class=HTMLResponse)
def waiting(job: ThisJob, studio: Here) -> Response:
    """Show a job until it has a run."""
    if job.run_id and studio.library.run(job.run_id):
        return go(f"/runs/{job.run_id}")
    return page("job.html", title=job.title or job.command, here="run", **_job(studio, job))


@router.get("/jobs/{job_id}/state", response_class=HTMLResponse)
def job_state(job: ThisJob, studio: Here, seen: str = "") -> Response:
    """Give how a job stands, where that changed, or send the page on to its run."""
    if job.run_id and studio.library.run(job.run_id):
        return Response(headers={"hx-redirect": f"/runs/{job.run_id}"})
    return newer("job_state.html", seen, _job(studio, job))


def _job(studio: Studio, job: Job) -> dict[str, Any]:
    before = [one for one in studio.jobs.listed(("queued", "running", "stopping")) if one.position < job.position]
    seen = hashlib.sha256(repr((job.status, len(before), job.error)).encode()).hexdigest()[:16]
    photos = [str(one).removeprefix("upload:") for one in plain(job.settings, "photos.paths", [])]
    made = artifacts(studio.desk.made(job)) if job.status == "done" else []
    return {"job": job, "before": len(before), "photos": photos, "made": made, "seen": seen}


@router.post("/jobs/{job_id}/{what}")
async def act_on_job(request: Request, what: str, job: ThisJob, studio: Here) -> Response:
    """Stop, pause, retry or delete a job, or move it in the queue."""
    desk = studio.desk
    actions: dict[str, Callable[[str], object]] = {
        "stop": desk.stop,
        "pause": desk.pause,
        "resume": desk.resume,
        "delete": desk.remove,
        "earlier": lambda one: desk.move(one, -1),
        "later": lambda one: desk.move(one, 1),
    }
    if what not in actions:
        return not_here()
    try:
        await run_in_threadpool(actions[what], job.id)
    except FemtoboothError as error:
        return _refused(request, error)
    if (await request.form()).get("from") == "queue":
        return page("queue.html", **queue(studio)) if request.headers.get("hx-request") else go("/settings")
    return go("/" if what == "delete" else f"/jobs/{job.id}")


def _refused(request: Request, error: FemtoboothError) -> Response:
    problem = str(getattr(error, "problem", error))
    if request.headers.get("hx-request"):
        answer = page("told.html", text=problem)
        answer.headers.update({"hx-retarget": "#told", "hx-reswap": "innerHTML"})
        return answer
    return error_page(409, "That did not work", problem, error.way_out)
