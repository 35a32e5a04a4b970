"""/api/v1/models, generate, classify, embed and search: models that stay loaded, and what they answer."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field

from ..pictures import records
from .api_runs import given_out
from .asked import REFUSALS, Here, Id
from .catalog import Model
from .drawing import Drawing
from .library import Artifact, artifact, artifacts
from .refusals import Missing

router = APIRouter(tags=["models"], responses=REFUSALS)


class ModelList(BaseModel):
    """The models that are here."""

    models: list[Model]


@router.get("/models")
def listed(studio: Here) -> ModelList:
    """List the models that are here, and what stands for each in settings."""
    return ModelList(models=studio.catalog.models())


Pictures = Annotated[list[str], Field(max_length=64, description="upload:ID each, or the file in base64.")]


class Looked(BaseModel):
    """Pictures for a recognizer."""

    model_config = ConfigDict(extra="forbid")

    pictures: Pictures
    model: Annotated[str, Field(max_length=200)] = "bundled"
    """A reference of the list of models."""


class Classify(Looked):
    """Pictures to classify."""

    top_k: Annotated[int, Field(ge=1, le=1000)] = 5


class Search(BaseModel):
    """Pictures to find the like of."""

    model_config = ConfigDict(extra="forbid")

    pictures: Pictures
    index: Annotated[str, Field(max_length=200)]
    """What a job of embed made: job:ID:FILE."""
    top_k: Annotated[int, Field(ge=1, le=1000)] = 10


class Generate(BaseModel):
    """Pictures to generate."""

    model_config = ConfigDict(extra="forbid")

    settings: dict[str, Any]
    """Those of `femtobooth generate`: run, prompts, count, seed, size, loras, init_image, mask, sampling, ..."""


class Guess(BaseModel):
    """A label, and how sure the recognizer is of it."""

    label: str
    confidence: float
    synset: str | None = None


class Classified(BaseModel):
    """What one picture shows."""

    top: list[Guess]
    rejected: bool
    """Whether it is of none of the known classes."""


class Progress(BaseModel):
    """How far what is being generated is."""

    active: bool
    done: float
    """Pictures, in part too."""
    total: int
    waiting: int
    """Requests whose turn has not come."""


class Stopped(BaseModel):
    """Whether there was anything to stop."""

    stopped: bool


@router.post("/generate")
def generate(asked: Generate, studio: Here) -> Drawing:
    """Generate pictures now, with a model that stays loaded: those of `femtobooth generate`, byte for byte."""
    return studio.drawer.draw(asked.settings)[0]


@router.get("/generate/progress")
def progress(studio: Here) -> Progress:
    """Tell how far what is being generated is."""
    turns = studio.drawer.turns
    return Progress(active=turns.active, done=turns.done, total=turns.total, waiting=turns.waiting)


@router.post("/generate/stop")
def stop(studio: Here) -> Stopped:
    """End what is being generated after its current step."""
    return Stopped(stopped=studio.drawer.turns.stop())


@router.get("/drawn")
def drawn(studio: Here) -> list[Artifact]:
    """List the pictures that models drew which are no run's."""
    return artifacts(studio.drawer.folder) if studio.drawer.folder.is_dir() else []


@router.get("/drawn/{artifact_id}", response_class=FileResponse)
def picture(artifact_id: Id, studio: Here) -> FileResponse:
    """Give such a picture."""
    return given_out(artifact(studio.drawer.folder, artifact_id))


@router.get("/drawn/{artifact_id}/record")
def record(artifact_id: Id, studio: Here) -> dict[str, Any]:
    """Tell how a picture was made."""
    return record_of(artifact(studio.drawer.folder, artifact_id))


@router.get("/runs/{run_id}/artifacts/{artifact_id}/record")
def record_in_run(run_id: Id, artifact_id: Id, studio: Here) -> dict[str, Any]:
    """Tell how a picture of a run was made."""
    return record_of(artifact(studio.desk.run(run_id).folder, artifact_id))


@router.post("/classify")
def classify(asked: Classify, studio: Here) -> list[Classified]:
    """Say what pictures show."""
    found = studio.drawer.classify(asked.pictures, asked.model, asked.top_k)
    return [Classified.model_validate(one) for one in found]


@router.post("/embed")
def embed(asked: Looked, studio: Here) -> list[list[float]]:
    """Turn pictures into embeddings."""
    return studio.drawer.embed(asked.pictures, asked.model)


@router.post("/search")
def search(asked: Search, studio: Here) -> list[dict[str, Any]]:
    """Find the pictures of an index that are nearest to others."""
    return studio.drawer.search(asked.pictures, asked.index, asked.top_k)


def record_of(found: tuple[Artifact, Any] | None) -> dict[str, Any]:
    """Read the record of a picture file. Raises Missing where it has none."""
    told = records.read(found[1]) if found else None
    if told is None:
        raise Missing("record")
    return told
