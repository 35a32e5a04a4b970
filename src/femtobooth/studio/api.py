"""The HTTP API, /api/v1: what programs call. Its description is at /api/v1/openapi.json."""

from __future__ import annotations

from fastapi import APIRouter

from . import api_jobs, api_models, api_runs, api_uploads

router = APIRouter(prefix="/api/v1")
for part in (api_jobs, api_runs, api_uploads, api_models):
    router.include_router(part.router)
