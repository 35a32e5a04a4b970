"""The HTTP API, /api/v1: what programs call. Its description is at /api/v1/openapi.json."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter(prefix="/api/v1")
