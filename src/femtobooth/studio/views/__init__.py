"""The pages of the studio: HTML that Jinja2 renders from what the studio knows; one file a page."""

from __future__ import annotations

from fastapi import APIRouter

from . import comparing, drawing, home, keeping, recognizing, running, subject
from .rendering import TITLES, error_page

__all__ = ["TITLES", "error_page", "router"]

router = APIRouter(include_in_schema=False)
for part in (home, subject, running, drawing, comparing, recognizing, keeping):
    router.include_router(part.router)
