"""/api/v1/runs: the runs of the folder, whoever made them, and the files in them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel

from ..core.event_log import FILE as EVENTS
from .asked import EVENTS_TOLD, REFUSALS, Here, Id
from .jobs import ACTIVE, Job
from .library import Artifact, RunFacts, artifact, artifacts
from .live import stream
from .refusals import Missing, Refusal

router = APIRouter(prefix="/runs", tags=["runs"], responses=REFUSALS)
GOING = ("running", "queued")
PAGE = "sandbox allow-scripts; default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
"""What a report may do, which is a page of its own: nothing but show itself."""


class RunList(BaseModel):
    """The runs."""

    runs: list[RunFacts]


class Curve(BaseModel):
    """What was measured during a training."""

    rows: list[dict[str, float]]
    """One for each logged step, by name."""


@router.get("")
def listed(studio: Here) -> RunList:
    """List the runs, the newest first."""
    return RunList(runs=[studio.library.facts(run) for run in studio.library.runs()])


@router.get("/{run_id}")
def run(run_id: Id, studio: Here) -> RunFacts:
    """Tell how a run stands."""
    return studio.library.facts(studio.desk.run(run_id))


@router.delete("/{run_id}", status_code=204)
def remove(run_id: Id, studio: Here, confirm: Annotated[bool, Query()] = False) -> Response:
    """Move a run to the trash; `confirm` says that it is meant."""
    if not confirm:
        raise Refusal("this moves it to the trash", "ask again with confirm=true", 409)
    studio.desk.remove_run(run_id)
    return Response(status_code=204)


@router.post("/{run_id}/stop", status_code=202)
def stop(run_id: Id, studio: Here) -> RunFacts:
    """Have a run save and end, also one that the command line began."""
    studio.desk.stop_run(run_id)
    return studio.library.facts(studio.desk.run(run_id))


@router.post("/{run_id}/save", status_code=202)
def save(run_id: Id, studio: Here) -> RunFacts:
    """Have a run write a checkpoint after this step and go on, also one that the command line began."""
    studio.desk.ask_run(run_id, "save")
    return studio.library.facts(studio.desk.run(run_id))


@router.post("/{run_id}/sample", status_code=202)
def sample(run_id: Id, studio: Here) -> RunFacts:
    """Have a run sample images after this step and go on, also one that the command line began."""
    studio.desk.ask_run(run_id, "sample")
    return studio.library.facts(studio.desk.run(run_id))


@router.post("/{run_id}/resume", status_code=201)
def resume(run_id: Id, studio: Here) -> Job:
    """Go on with an interrupted run as a job, also one that the command line began."""
    return studio.desk.resume_run(run_id)


@router.get("/{run_id}/events", response_class=Response, responses=EVENTS_TOLD)
def events(run_id: Id, studio: Here, request: Request) -> Response:
    """Tell what happens to a run as it happens (server-sent events; `Last-Event-ID` goes on from there)."""
    found = studio.desk.run(run_id)

    def status() -> str:
        job = studio.jobs.of_run(run_id)
        if job and job.status in ("queued", *ACTIVE):  # its process has not begun yet, or not gone yet
            return "running"
        now = studio.library.run(run_id)
        return now.status if now else "deleted"

    return stream(request, found.folder / EVENTS, status, GOING)


@router.get("/{run_id}/curve")
def curve(run_id: Id, studio: Here) -> Curve:
    """Give what was measured during a training."""
    return Curve(rows=studio.desk.run(run_id).curve())


@router.get("/{run_id}/artifacts")
def files(run_id: Id, studio: Here) -> list[Artifact]:
    """List the files of a run."""
    return artifacts(studio.desk.run(run_id).folder)


@router.get("/{run_id}/artifacts/{artifact_id}", response_class=FileResponse)
def file(run_id: Id, artifact_id: Id, studio: Here) -> FileResponse:
    """Give a file of a run."""
    return given_out(artifact(studio.desk.run(run_id).folder, artifact_id))


def given_out(found: tuple[Artifact, Path] | None) -> FileResponse:
    """Answer with a file from a listing, such that a browser runs nothing of it beside the studio's own pages.

    Raises Missing.
    """
    if found is None:
        raise Missing("file")
    known, path = found
    headers = {"cache-control": "private, no-cache"}
    if known.type.startswith(("text/html", "image/svg")):
        headers["content-security-policy"] = PAGE
    shows = known.type.startswith(("image/", "text/", "application/json"))
    name = known.name.rpartition("/")[2]
    return FileResponse(
        path,
        media_type=known.type,
        headers=headers,
        filename=name,
        content_disposition_type="inline" if shows else "attachment",
    )
