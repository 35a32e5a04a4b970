"""What the routes share: the studio that a request belongs to, what its address names there, and how errors look in the
API's description.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Path, Request
from pydantic import BaseModel

from ..core.run import Run
from .drafts import Draft
from .jobs import Job, Problem
from .refusals import Missing
from .state import Studio
from .uploads import Upload


class Refused(BaseModel):
    """What every error of /api/v1 looks like."""

    error: Problem
    errors: list[Problem] = []
    """One for each setting that is wrong, so that a form shows each at its field."""


async def _studio(request: Request) -> Studio:
    found: Studio = request.app.state.studio
    return found


Here = Annotated[Studio, Depends(_studio)]
Id = Annotated[str, Path(pattern="^[0-9a-f]{16}$")]


def _run(run_id: str, studio: Here) -> Run:
    return studio.desk.run(run_id)


def _job(job_id: str, studio: Here) -> Job:
    if found := studio.jobs.get(job_id):
        return found
    raise Missing("job")


def _draft(draft_id: str, studio: Here) -> Draft:
    if found := studio.drafts.get(draft_id):
        return found
    raise Missing("subject")


def _photo(upload_id: str, studio: Here, draft: ThisDraft) -> Upload:
    if upload_id in draft.photos and (found := studio.uploads.get(upload_id)):
        return found
    raise Missing("photo")


# What an address names by its `run_id`, `job_id`, `draft_id` and, in a draft, `upload_id`: it is there, or Missing.
ThisRun = Annotated[Run, Depends(_run)]
ThisJob = Annotated[Job, Depends(_job)]
ThisDraft = Annotated[Draft, Depends(_draft)]
ThisPhoto = Annotated[Upload, Depends(_photo)]

_WHAT = {
    400: "not understood",
    401: "a token is needed",
    403: "another Host or Origin",
    404: "not here",
    405: "no such method here",
    408: "the body came too slowly",
    409: "not in this state",
    413: "too large",
    422: "a setting is wrong",
    429: "too often",
    503: "too much at once",
}
Responses = dict[int | str, dict[str, Any]]
REFUSALS: Responses = {code: {"model": Refused, "description": what} for code, what in _WHAT.items()}
EVENTS_TOLD: Responses = {
    200: {"description": "server-sent events", "content": {"text/event-stream": {"schema": {"type": "string"}}}},
    204: {"description": "nothing more will come"},
}
