"""The pages: HTML that Jinja2 renders from what the studio knows."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from ..core.names import shown

router = APIRouter(include_in_schema=False)
_pages = Environment(
    loader=PackageLoader("femtobooth.studio", "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    finalize=lambda value: shown(value, keep="\n\t") if isinstance(value, str) and type(value) is str else value,
)


def page(request: Request, template: str, **values: Any) -> HTMLResponse:
    """Render a template."""
    return HTMLResponse(_pages.get_template(template).render(request=request, **values))


@router.get("/", response_class=HTMLResponse)
def home(request: Request) -> HTMLResponse:
    """Show the runs and jobs."""
    studio = request.app.state.studio
    return page(
        request,
        "home.html",
        runs=[studio.library.facts(run) for run in studio.library.runs()],
        jobs=studio.jobs.listed(),
    )
