"""Recognize: pictures in, labels and what the recognizer looked at out; and a folder of classes to teach it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse
from PIL import Image
from starlette.datastructures import FormData, UploadFile

from ...core.errors import FemtoboothError
from ...recognizer.settings import DEFAULT
from ..asked import Here
from ..seeing import Answer, see
from ..state import Studio
from .arriving import take_picture
from .rendering import error_page, go, page

router = APIRouter()
MOST_PICTURES, MOST_LEARNED = 24, 900
LEAST_CLASSES = 2


@router.get("/recognize", response_class=HTMLResponse)
def show(studio: Here, model: str = "") -> HTMLResponse:
    """Ask for pictures."""
    return _page(studio, model, [], [])


def _page(studio: Studio, model: str, answers: list[Answer], problems: list[str]) -> HTMLResponse:
    models = [one for one in studio.catalog.models() if one.kind == "recognizer"]
    starts = [one for one in models if not one.run_id]
    usual = next(
        (one for one in starts if one.reference == DEFAULT), starts[-1]
    )  # which knows photographs, if any does
    return page(
        "recognize.html",
        title="Recognize",
        here="recognize",
        models=models,
        model=model if any(one.reference == model for one in models) else usual.reference,
        starts=starts,
        start=usual.reference,
        answers=answers,
        problems=problems,
    )


@router.post("/recognize")
async def look(request: Request, studio: Here) -> Response:
    """Say what the pictures of a form show."""
    form = await request.form()
    model = str(form.get("model", "bundled"))
    answers, problems = await run_in_threadpool(_looked, studio, form, model)
    return await run_in_threadpool(_page, studio, model, answers, problems)


def _looked(studio: Studio, form: FormData, model: str) -> tuple[list[Answer], list[str]]:
    problems: list[str] = []
    pictures = []
    for sent in form.getlist("pictures")[:MOST_PICTURES]:
        if not isinstance(sent, UploadFile) or not sent.filename:
            continue
        try:
            upload = take_picture(studio, sent)
        except FemtoboothError as error:
            problems.append(f"{Path(sent.filename).name}: {error.problem}")
            continue
        with Image.open(studio.uploads.path(upload)) as image:
            pictures.append((upload.name, image.convert("RGB")))
        studio.uploads.remove(upload, for_good=True)
    if not pictures:
        return [], problems or ["Choose a picture first."]
    try:
        return see(studio.drawer, pictures, model), problems
    except FemtoboothError as error:
        return [], [*problems, error.problem]


@router.post("/recognize/teach")
async def teach(request: Request, studio: Here) -> Response:
    """Teach a recognizer the classes of a folder: one folder a class."""
    form = await request.form()
    found: Any = await run_in_threadpool(_taught, studio, form)
    return found


def _taught(studio: Studio, form: FormData) -> Response:
    items = []
    for sent, label in list(zip(form.getlist("files"), form.getlist("labels"), strict=False))[:MOST_LEARNED]:
        if isinstance(sent, UploadFile) and str(label).strip():
            try:
                items.append((take_picture(studio, sent), str(label).strip()[:100]))
            except FemtoboothError:  # a folder holds other files too
                continue
    if len({label for _, label in items}) < LEAST_CLASSES:
        told = "There were pictures of fewer than two classes in this folder."
        return error_page(
            400, "That did not work", told, "Choose a folder that holds a folder of pictures for each class."
        )
    made = studio.uploads.add_set(items)
    for upload, _ in items:  # the set has copies
        studio.uploads.remove(upload, for_good=True)
    try:
        settings = {"data": f"set:{made.id}", "model": str(form.get("start", "bundled"))}
        quick = {"probe_only": True} if form.get("how") == "quick" else {}
        job = studio.desk.submit("finetune", settings | quick)
    except FemtoboothError as error:
        return error_page(400, "That did not work", error.problem, error.way_out)
    return go(f"/jobs/{job.id}")
