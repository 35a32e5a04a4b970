"""The pages of the studio: HTML that Jinja2 renders from what the studio knows; one file a page."""

from __future__ import annotations

from fastapi import APIRouter

from . import comparing, drawing, home, keeping, queueing, recognizing, running, subject
from .rendering import TITLES, ask_no_more, error_page, not_here

__all__ = ["TITLES", "ask_no_more", "error_page", "not_here", "router"]

router = APIRouter(include_in_schema=False)
for part in (home, subject, running, drawing, comparing, recognizing, keeping, queueing):
    router.include_router(part.router)
