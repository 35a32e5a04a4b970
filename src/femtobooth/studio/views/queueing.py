"""The queue: what is being done, what waits and in which order, and what is paused."""

from __future__ import annotations

import hashlib
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse

from ..asked import Here
from ..jobs import ACTIVE, WAITING
from ..state import Studio
from .rendering import newer

router = APIRouter()


def queue(studio: Studio) -> dict[str, Any]:
    """Give what the list of the queue shows: jobs that run, then those that have a place in it."""
    working = [studio.desk.told(job) for job in studio.jobs.listed(ACTIVE)]
    waiting = [studio.desk.told(job) for job in studio.jobs.listed(WAITING)]
    known = [(job.id, job.status, job.progress.step) for job in [*working, *waiting]]
    return {"working": working, "waiting": waiting, "seen": hashlib.sha256(repr(known).encode()).hexdigest()[:16]}


@router.get("/queue", response_class=HTMLResponse)
def newer_queue(studio: Here, seen: str = "") -> Response:
    """Give the queue again where it changed, for a page that asks every few seconds."""
    return newer("queue.html", seen, queue(studio))
