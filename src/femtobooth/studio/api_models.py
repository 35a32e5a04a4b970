"""/api/v1/models, generate, classify, embed and search: models that stay loaded, and what they answer."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel

from .asked import REFUSALS, Here
from .catalog import Model

router = APIRouter(tags=["models"], responses=REFUSALS)


class ModelList(BaseModel):
    """The models that are here."""

    models: list[Model]


@router.get("/models")
def listed(studio: Here) -> ModelList:
    """List the models that are here, and what stands for each in settings."""
    return ModelList(models=studio.catalog.models())
