"""/api/v1/uploads and /api/v1/sets: pictures and weights that are sent here."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated

from fastapi import APIRouter, File, Query, Request, UploadFile
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from .asked import REFUSALS, Here, Id
from .refusals import Missing, Refusal
from .state import Studio
from .uploads import PictureSet, Upload, described

router = APIRouter(tags=["uploads"], responses=REFUSALS)
MOST_FILES = 100
BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
MOST_MODEL = 16 * 2**30


class Sent(Upload):
    """What was sent, and what stands for it."""

    reference: str
    """For settings: upload:ID."""
    url: str
    """Where a page shows it."""


class NotTaken(BaseModel):
    """A file that was not taken."""

    name: str
    problem: str
    way_out: str | None = None


class Received(BaseModel):
    """What became of each file."""

    uploads: list[Sent]
    refused: list[NotTaken]


class Caption(BaseModel):
    """The caption of a picture."""

    model_config = ConfigDict(extra="forbid")

    text: Annotated[str | None, Field(max_length=2000)] = None


class Crop(BaseModel):
    """The part of a picture that is used, in pixels of the whole."""

    model_config = ConfigDict(extra="forbid")

    box: tuple[int, int, int, int] | None = None
    """Left, top, width and height; null for all."""


class Item(BaseModel):
    """A picture of a set."""

    model_config = ConfigDict(extra="forbid")

    upload: str
    """Its id."""
    label: Annotated[str | None, Field(min_length=1, max_length=100)] = None


class NewSet(BaseModel):
    """Pictures to put together."""

    model_config = ConfigDict(extra="forbid")

    items: Annotated[list[Item], Field(min_length=1, max_length=20_000)]


class MadeSet(PictureSet):
    """A set, and what stands for it."""

    reference: str
    """For settings: set:ID."""


@router.post("/uploads", status_code=201)
def receive(studio: Here, files: Annotated[list[UploadFile], File()]) -> Received:
    """Take pictures: each is decoded by its content, and written anew as PNG."""
    if len(files) > MOST_FILES:
        raise Refusal(f"more than {MOST_FILES} files at once", "send some at a time", 413)
    taken: list[Sent] = []
    refused: list[NotTaken] = []
    worst = 422
    for file in files:
        name = file.filename or "picture"
        try:
            with _on_disk(studio, file) as path:
                taken.append(sent(studio.uploads.add_picture(path, name)))
        except Refusal as error:
            worst = error.status
            refused.append(NotTaken(name=name[-120:], problem=error.problem, way_out=error.way_out))
    if not taken:
        raise Refusal("; ".join(one.problem for one in refused[:3]), refused[0].way_out, worst)
    return Received(uploads=taken, refused=refused)


@router.get("/uploads")
def listed(studio: Here) -> list[Sent]:
    """List what was sent, the oldest first."""
    return [sent(one) for one in studio.uploads.listed()]


@router.get("/uploads/{upload_id}")
def one(upload_id: Id, studio: Here) -> Sent:
    """Tell what is known of a file that was sent."""
    return sent(studio.uploads.found(upload_id))


@router.get("/uploads/{upload_id}/file", response_class=FileResponse)
def file(
    upload_id: Id,
    studio: Here,
    part: Annotated[str, Query(pattern="^(picture|mask|whole)$")] = "picture",
) -> FileResponse:
    """Give a picture as it is used, its mask, or the whole of one that was cropped."""
    upload = studio.uploads.found(upload_id)
    path = studio.uploads.path(upload)
    if upload.kind != "picture":
        raise Missing("picture")
    ending = {"picture": ".png", "mask": ".mask.png", "whole": ".whole.png"}[part]
    path = path.with_name(f"{upload.id}{ending}")
    if part == "whole" and not path.exists():
        path = studio.uploads.path(upload)
    if not path.exists():
        raise Missing(part)
    return FileResponse(path, media_type="image/png", headers={"cache-control": "private, no-cache"})


@router.delete("/uploads/{upload_id}", status_code=204)
def remove(upload_id: Id, studio: Here, confirm: Annotated[bool, Query()] = False) -> Response:
    """Move what was sent to the trash; `confirm` says that it is meant."""
    upload = studio.uploads.found(upload_id)
    if not confirm:
        raise Refusal("this moves it to the trash", "ask again with confirm=true", 409)
    for job in studio.jobs.listed(("queued", "running", "stopping")):
        if upload.in_settings() in str(job.settings):
            raise Refusal(f"the job {job.title} needs it", "wait until that is done, or delete the job", 409)
    studio.uploads.remove(upload)
    return Response(status_code=204)


@router.put("/uploads/{upload_id}/caption")
def caption(upload_id: Id, asked: Caption, studio: Here) -> Sent:
    """Set the caption of a picture, in which [V] stands for the subject."""
    return sent(studio.uploads.caption(_picture(studio, upload_id), asked.text))


@router.put("/uploads/{upload_id}/crop")
def crop(upload_id: Id, asked: Crop, studio: Here) -> Sent:
    """Use a part of a picture, or all of it."""
    return sent(studio.uploads.crop(_picture(studio, upload_id), asked.box))


@router.put("/uploads/{upload_id}/mask")
def mask(upload_id: Id, studio: Here, file: Annotated[UploadFile, File()]) -> Sent:
    """Set the mask of a picture: as large, white where the subject is."""
    with _on_disk(studio, file) as path:
        return sent(studio.uploads.mask(_picture(studio, upload_id), path))


@router.delete("/uploads/{upload_id}/mask")
def no_mask(upload_id: Id, studio: Here) -> Sent:
    """Take the mask of a picture away."""
    return sent(studio.uploads.mask(_picture(studio, upload_id), None))


@router.post("/models", status_code=201, openapi_extra={"requestBody": {"content": BYTES}})
async def receive_model(
    studio: Here, request: Request, name: Annotated[str, Query(max_length=200)] = "model.safetensors"
) -> Sent:
    """Take a model or an adapter as a .safetensors file, which is the whole body."""
    from starlette.concurrency import run_in_threadpool

    with NamedTemporaryFile(dir=studio.uploads.folder, prefix=".tmp-", delete=False) as file:
        path = Path(file.name)
        try:
            size = 0
            async for piece in request.stream():
                size += len(piece)
                if size > MOST_MODEL:
                    raise Refusal(f"larger than {MOST_MODEL >> 30} GiB", "copy it to this machine instead", 413)
                await run_in_threadpool(file.write, piece)
            file.flush()
            return sent(await run_in_threadpool(studio.uploads.add_model, path, name))
        finally:
            path.unlink(missing_ok=True)


@router.post("/sets", status_code=201)
def new_set(asked: NewSet, studio: Here) -> MadeSet:
    """Put pictures together, each with its label or none: what finetune learns from, or a folder for other settings."""
    items = [(_picture(studio, one.upload), one.label) for one in asked.items]
    made = studio.uploads.add_set(items)
    return MadeSet(**made.model_dump(), reference=f"set:{made.id}")


def sent(upload: Upload) -> Sent:
    """Tell what was sent, with what stands for it."""
    return Sent.model_validate(described(upload))


def _picture(studio: Studio, upload_id: str) -> Upload:
    upload = studio.uploads.found(upload_id)
    if upload.kind != "picture":
        raise Missing("picture")
    return upload


@contextmanager
def _on_disk(studio: Studio, file: UploadFile) -> Iterator[Path]:
    """Yield a path at which what was sent lies for as long as this lasts."""
    with NamedTemporaryFile(dir=studio.uploads.folder, prefix=".tmp-", delete=False) as copy:
        path = Path(copy.name)
        try:
            shutil.copyfileobj(file.file, copy)
            copy.flush()
            yield path
        finally:
            path.unlink(missing_ok=True)
