"""/api/v1/jobs and /api/v1/commands: what can be done, and having it done."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import FileResponse, PlainTextResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from ..core.event_log import FILE as EVENTS
from ..core.files import read_json
from ..core.job import LOG, RESULT
from . import forms
from .api_runs import given_out
from .asked import EVENTS_TOLD, REFUSALS, Here, Id
from .jobs import ACTIVE, Job, Status
from .library import Artifact, artifact, artifacts
from .live import stream
from .refusals import Refusal

router = APIRouter(tags=["jobs"], responses=REFUSALS)
LOG_END = 64 * 1024  # bytes of a log that are given
Settings = Annotated[dict[str, Any], Field(description="By their names, groups as objects; files as references.")]


class Asked(BaseModel):
    """What is to be checked, or planned."""

    model_config = ConfigDict(extra="forbid")

    settings: Settings = {}


class NewJob(Asked):
    """A job to submit."""

    command: Annotated[str, Field(max_length=40)]


class Changes(Asked):
    """What is to be different this time."""


class Order(BaseModel):
    """Jobs that wait, or are paused, the first to begin first."""

    model_config = ConfigDict(extra="forbid")

    ids: Annotated[list[str], Field(max_length=1000)]


class Checked(BaseModel):
    """What settings come to."""

    settings: dict[str, Any]
    notes: list[str]
    """What is to be said of them, such as one that has no effect."""


class JobList(BaseModel):
    """The queue."""

    jobs: list[Job]


class CommandList(BaseModel):
    """What can be done."""

    commands: list[forms.Described]


Key = Annotated[str | None, Header(max_length=200, description="Submitting twice with one key makes one job.")]


@router.get("/commands")
def commands() -> CommandList:
    """List the commands with their settings, of which forms are made."""
    return CommandList(commands=[forms.described(name) for name in forms.OFFERED])


@router.get("/commands/{name}")
def command(name: str) -> forms.Described:
    """Describe one command."""
    return forms.described(name)


@router.post("/commands/{name}/check")
def check(name: str, asked: Asked, studio: Here) -> Checked:
    """Check settings as submitting a job would, and say what they come to."""
    settings, notes = studio.desk.check(name, asked.settings)
    return Checked(settings=settings, notes=notes)


@router.post("/plan")
def plan(asked: Asked, studio: Here) -> dict[str, Any]:
    """Say what a training with these settings of personalize would need of memory; with `memory`, what would fit."""
    found: dict[str, Any] = studio.desk.plan(asked.settings)
    return found


@router.get("/jobs")
def listed(studio: Here, status: Annotated[Status | None, Query()] = None) -> JobList:
    """List the jobs, in the order of the queue."""
    return JobList(jobs=[studio.desk.told(job) for job in studio.jobs.listed((status,) if status else ())])


@router.post("/jobs", status_code=201)
def submit(asked: NewJob, studio: Here, idempotency_key: Key = None) -> Job:
    """Put a job at the end of the queue."""
    return studio.desk.submit(asked.command, asked.settings, idempotency_key)


@router.post("/jobs/order")
def order(asked: Order, studio: Here) -> JobList:
    """Put jobs that wait into this order."""
    return JobList(jobs=studio.desk.order(asked.ids))


@router.get("/jobs/{job_id}")
def job(job_id: Id, studio: Here) -> Job:
    """Tell how a job stands."""
    return studio.desk.job(job_id)


@router.delete("/jobs/{job_id}", status_code=204)
def remove(job_id: Id, studio: Here, confirm: Annotated[bool, Query()] = False) -> Response:
    """Move a job and the run that it made to the trash; `confirm` says that it is meant."""
    ask(confirm)
    studio.desk.remove(job_id)
    return Response(status_code=204)


@router.post("/jobs/{job_id}/stop")
def stop(job_id: Id, studio: Here) -> Job:
    """Have a job save and end; asked again, it ends at once."""
    return studio.desk.stop(job_id)


@router.post("/jobs/{job_id}/pause")
def pause(job_id: Id, studio: Here) -> Job:
    """Have a job save and end; it keeps its place in the queue, and waits until it is resumed."""
    return studio.desk.pause(job_id)


@router.post("/jobs/{job_id}/resume")
def resume(job_id: Id, studio: Here) -> Job:
    """Put a job back into the queue; it goes on where it was."""
    return studio.desk.resume(job_id)


@router.post("/jobs/{job_id}/save")
def save(job_id: Id, studio: Here) -> Job:
    """Have a training write a checkpoint after this step, and go on."""
    return studio.desk.ask(job_id, "save")


@router.post("/jobs/{job_id}/sample")
def sample(job_id: Id, studio: Here) -> Job:
    """Have a training sample images after this step, and go on; they change nothing of what it learns."""
    return studio.desk.ask(job_id, "sample")


@router.post("/jobs/{job_id}/retry", status_code=201)
def retry(job_id: Id, studio: Here, idempotency_key: Key = None) -> Job:
    """Submit a job's settings again."""
    return studio.desk.retry(job_id, key=idempotency_key)


@router.post("/jobs/{job_id}/duplicate", status_code=201)
def duplicate(job_id: Id, asked: Changes, studio: Here, idempotency_key: Key = None) -> Job:
    """Submit a job's settings again, with changes."""
    return studio.desk.retry(job_id, asked.settings, idempotency_key)


@router.get("/jobs/{job_id}/events", response_class=Response, responses=EVENTS_TOLD)
def events(job_id: Id, studio: Here, request: Request) -> Response:
    """Tell what happens to a job as it happens (server-sent events; `Last-Event-ID` goes on from there)."""
    found = studio.desk.job(job_id)
    path = studio.runner.place(found) / EVENTS
    return stream(request, path, lambda: _status(studio, job_id), ("queued", *ACTIVE))


@router.get("/jobs/{job_id}/log", response_class=PlainTextResponse)
def log(job_id: Id, studio: Here) -> PlainTextResponse:
    """Give the end of what a job's command line said."""
    path = studio.runner.place(studio.desk.job(job_id)) / LOG
    if not path.exists():
        return PlainTextResponse("")
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - LOG_END, 0))
        return PlainTextResponse(file.read().decode("utf-8", "replace"))


@router.get("/jobs/{job_id}/result")
def result(job_id: Id, studio: Here) -> dict[str, Any]:
    """Give what a job that is done answered, as its command prints it with --json."""
    found = studio.desk.job(job_id)
    told = read_json(studio.runner.place(found) / RESULT)
    if found.status != "done" or told is None:
        raise Refusal(f"the job is {found.status}, and has no result", "wait until it is done", 409)
    return told if isinstance(told, dict) else {"rows": told}


@router.get("/jobs/{job_id}/artifacts")
def made(job_id: Id, studio: Here) -> list[Artifact]:
    """List the files that a job made which makes no run."""
    return artifacts(studio.desk.made(studio.desk.job(job_id)))


@router.get("/jobs/{job_id}/artifacts/{artifact_id}", response_class=FileResponse)
def file(job_id: Id, artifact_id: Id, studio: Here) -> FileResponse:
    """Give a file that a job made."""
    return given_out(artifact(studio.desk.made(studio.desk.job(job_id)), artifact_id))


def _status(studio: Here, job_id: str) -> str:
    job = studio.jobs.get(job_id)
    return job.status if job else "deleted"


def ask(confirm: bool) -> None:
    """Raise Refusal where nobody said that it is meant."""
    if not confirm:
        raise Refusal("this moves it to the trash", "ask again with confirm=true", 409)
