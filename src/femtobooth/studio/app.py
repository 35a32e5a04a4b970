"""The application: routes, what errors become, and the guard before all of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from .. import __version__
from . import api, views
from .security import Guard
from .state import Studio


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
    app.add_middleware(Guard, studio=studio)
    app.include_router(api.router)
    app.include_router(views.router)
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"), name="static")
    return app
