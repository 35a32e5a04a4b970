"""What the routes share: the studio that a request belongs to, and how errors look in the API's description."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Path, Request
from pydantic import BaseModel

from .jobs import Problem
from .state import Studio


class Refused(BaseModel):
    """What every error of /api/v1 looks like."""

    error: Problem
    errors: list[Problem] = []
    """One for each setting that is wrong, so that a form shows each at its field."""


def _studio(request: Request) -> Studio:
    found: Studio = request.app.state.studio
    return found


Here = Annotated[Studio, Depends(_studio)]
Id = Annotated[str, Path(pattern="^[0-9a-f]{16}$")]

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
