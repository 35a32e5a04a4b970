"""The application: routes, what errors become, and the guard before all of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from .. import __version__
from ..core.errors import FemtoboothError, shortened
from . import api, views
from .facades import a1111, open_inference, openai_images
from .refusals import Busy, Missing, as_read_by, described, status_of
from .security import Guard, refusal
from .state import Studio

ERROR = {"$ref": "#/components/schemas/Refused"}


def create_app(studio: Studio) -> FastAPI:
    """Make the application that serves a studio: pages at /, the API at /api/v1."""

    @asynccontextmanager
    async def living(app: FastAPI) -> AsyncIterator[None]:
        studio.begin()
        yield
        studio.end()

    app = FastAPI(
        title="femtobooth studio",
        version=__version__,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        openapi_url="/api/v1/openapi.json",
        lifespan=living,
    )
    app.state.studio = studio
    described_by_fastapi = app.openapi
    app.openapi = lambda: _with_errors_as_json(described_by_fastapi())  # type: ignore[method-assign]
    app.add_middleware(Guard, studio=studio)
    tell_errors(app)
    app.include_router(api.router)
    for facade in (openai_images, a1111, open_inference):
        app.include_router(facade.router)
    app.include_router(views.router)
    app.mount("/static", _Asked(directory=Path(__file__).parent / "static"), name="static")
    return app


def tell_errors(app: FastAPI) -> None:
    """Have an application tell all errors in the form that clients of the studio know."""
    app.add_exception_handler(FemtoboothError, _refused)
    app.add_exception_handler(RequestValidationError, _not_understood)
    app.add_exception_handler(HTTPException, _as_json)
    app.add_exception_handler(Exception, _broken)


class _Asked(StaticFiles):
    """Files that a browser asks for again each time, so that it never mixes those of two versions."""

    def file_response(self, *given: Any, **named: Any) -> Response:
        answer = super().file_response(*given, **named)
        answer.headers["cache-control"] = "no-cache"
        return answer


def _with_errors_as_json(description: dict[str, Any]) -> dict[str, Any]:
    """Say in the API's description that errors are JSON, also where what is asked for is not."""
    for path, methods in description["paths"].items():
        for operation in methods.values():
            for code, answer in operation["responses"].items():
                if code.startswith(("4", "5")):
                    told = {"type": "object"} if path.startswith("/v2") else ERROR
                    answer["content"] = {"application/json": {"schema": told}}
    return description


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, FemtoboothError)  # noqa: S101
    if isinstance(error, Missing) and request.method == "GET" and request.headers.get("hx-request"):
        return views.ask_no_more()
    headers = {"retry-after": str(error.seconds)} if isinstance(error, Busy) else {}
    return _told(request, status_of(error), described(error), headers)


async def _not_understood(request: Request, error: Exception) -> Response:
    """Tell what FastAPI found wrong with a request in the form that all errors have."""
    assert isinstance(error, RequestValidationError)  # noqa: S101
    faults = [
        {
            "setting": ".".join(map(str, fault["loc"][1:])) or None,
            "problem": shortened(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}", 300),
            "way_out": "/api/v1/openapi.json says what can be given",
        }
        for fault in error.errors()[:10]
    ]
    return _told(request, 422, {"error": faults[0], "errors": faults})


async def _as_json(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    return _told(request, error.status_code, refusal(str(error.detail)), dict(error.headers or {}))


async def _broken(request: Request, error: Exception) -> Response:
    return _told(request, 500, refusal("something went wrong in the studio", "what it said stands in its terminal"))


def _told(request: Request, status: int, told: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    if _by_a_person(request):
        if status == 404:
            return views.not_here()
        error = told["error"]
        page = views.error_page(
            status, views.TITLES.get(status, "That did not work"), error["problem"], error["way_out"]
        )
        page.headers.update(headers or {})
        return page
    return JSONResponse(as_read_by(request.url.path, status, told), status, headers)


def _by_a_person(request: Request) -> bool:
    """Tell whether a page was asked for, which then says what went wrong."""
    path, wanted = request.url.path, request.headers.get("accept", "")
    return "text/html" in wanted and not path.startswith(("/api/", "/v1/", "/v2/", "/sdapi/", "/static/"))
