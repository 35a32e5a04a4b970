"""Models and adapters: what is here, bringing others in, and giving them to other programs; and the studio itself."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import psutil
from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse

from ... import __version__
from ...core import machine
from ...core.errors import FemtoboothError
from ..asked import Here
from ..catalog import Model
from .queueing import queue
from .rendering import error_page, go, page

router = APIRouter()
KINDS = {
    "generator": ("Your subjects", "Whole models, each with what it was taught."),
    "adapter": ("Adapters", "A few megabytes each, which draw together with the base that they were taught to."),
    "base": ("Bases", "What a new subject can be taught to."),
    "recognizer": ("Recognizers", "What says what pictures show."),
}
WAYS: Mapping[str, list[tuple[str, str]]] = {
    "generator": [("model", "One file, for other programs"), ("lora", "As an adapter of a few megabytes")],
    "adapter": [("lora", "The adapter, for other programs"), ("model", "Merged into its base, as one file")],
    "base": [("model", "One file, for other programs")],
    "recognizer": [("onnx", "ONNX"), ("openvino", "OpenVINO"), ("torchscript", "TorchScript")],
}
"""What can be made of a model to take away, by its kind."""
INTO = "into "


@router.get("/models", response_class=HTMLResponse)
def models(studio: Here) -> HTMLResponse:
    """List the models that are here."""
    found = studio.catalog.models()
    groups = [(*KINDS[kind], [(one, _ways(one, found)) for one in found if one.kind == kind]) for kind in KINDS]
    return page("models.html", title="Models", here="models", groups=groups)


def _ways(model: Model, found: list[Model]) -> list[tuple[str, str]]:
    """Say what can be made of a model; of an adapter that was brought in, which base it belongs to is for a person."""
    if model.kind != "adapter" or model.run_id:
        return WAYS[model.kind]
    return [(f"{INTO}{one.reference}", f"Merged into {one.title}") for one in found if one.kind == "base"]


@router.post("/models/take")
async def take(request: Request, studio: Here) -> Response:
    """Make a file of a model, as a job whose page then offers it."""
    form = await request.form()
    reference, way = str(form.get("model", "")), str(form.get("as", ""))
    kind = str(form.get("kind", ""))
    found = await run_in_threadpool(studio.catalog.models)
    known = next((one for one in found if (one.reference, one.kind) == (reference, kind)), None)
    if known is None or way not in dict(_ways(known, found)):
        return error_page(404, "Not here", "This model is not here any more.")
    command, settings = "convert", dict[str, Any](source=reference, form=way)
    if known.kind == "recognizer":
        command, settings = "export", {"model": reference, "format": way}
    elif way.startswith(INTO):
        settings = {"source": way.removeprefix(INTO), "loras": [f"{reference}:1"], "precision": "fp16"}
    elif way == "model":
        settings["precision"] = "fp16"
    try:
        job = await run_in_threadpool(studio.desk.submit, command, settings)
    except FemtoboothError as error:
        return error_page(400, "That did not work", error.problem, error.way_out)
    return go(f"/jobs/{job.id}")


@router.get("/settings", response_class=HTMLResponse)
def settings(request: Request, studio: Here) -> HTMLResponse:
    """Say how this studio was started, on what it runs, and how other programs reach it."""
    memory = psutil.virtual_memory()
    facts = [
        ("Folder", str(studio.folder)),
        ("Address", f"{studio.host}, port {studio.port}"),
        ("Who may come in", "who has the token" if studio.token else "programs on this machine"),
        ("At a time", f"{studio.settings.jobs} on each device"),
        ("Models kept loaded", f"up to {studio.settings.memory}"),
        ("Version", __version__),
    ]
    here = [
        ("Processor", machine.processor()),
        ("Memory", f"{memory.total / 2**30:.0f} GiB, {memory.available / 2**30:.1f} GiB free"),
        ("Graphics card", "one that can be used" if machine.may_accelerate() else "none that can be used"),
        ("System", platform.platform(terse=True)),
    ]
    address = f"http://{request.headers.get('host', '')}"
    told = {"facts": facts, "machine": here, "address": address, **queue(studio)}
    return page("settings.html", title="Settings", here="settings", **told)
