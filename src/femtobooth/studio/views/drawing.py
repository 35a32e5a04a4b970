"""Draw with a run: what to draw, how, and all that was drawn before."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse
from starlette.datastructures import FormData, UploadFile

from ...core.config import merge
from ...core.errors import FemtoboothError
from ...core.run import Run
from ...generator.settings import GenerateSettings
from .. import fieldsets
from ..asked import Here, ThisRun
from ..gallery import sets, throw_away
from ..library import id_of
from ..state import Studio
from ..watching import class_noun, has_model
from .arriving import take_picture
from .home import run_card
from .rendering import go, newer, not_here, page

router = APIRouter()
PLACES = ("on the moon", "on the beach", "in the snow", "on the grass", "in the city", "on a blue background")
OWN = ("prompts", "count", "seed", "size", "strength")
LEFT_OUT = (*OWN, "batch_size", "overwrite", "device", "precision")
MOST_SETS = 30
MOST_LORAS = 8


@router.get("/draw", response_class=HTMLResponse)
def choose(request: Request, studio: Here) -> Response:
    """Ask which subject is to be drawn, where there are several."""
    found = [run for run in studio.library.runs() if has_model(run)]
    if len(found) == 1 and not request.query_params:
        return go(f"/draw/{id_of(found[0].folder.name)}")
    cards = [run_card(run, studio, f"/draw/{id_of(run.folder.name)}") for run in found]
    return page("choose.html", title="Draw", here="draw", cards=cards)


@router.get("/draw/{run_id}", response_class=HTMLResponse)
def show(run: ThisRun, studio: Here) -> HTMLResponse:
    """Show the desk of a run."""
    return _page(studio, run, {}, {}) if has_model(run) else not_here()


def _page(studio: Studio, run: Run, given: Mapping[str, Any], errors: Mapping[str, str]) -> HTMLResponse:
    recommended = GenerateSettings.recommended({"run": str(run.folder)})
    listed = fieldsets.offered(GenerateSettings, LEFT_OUT)
    noun = class_noun(run)
    return page(
        "draw.html",
        status_code=422 if errors else 200,
        title=f"Draw {run.name}",
        here="draw",
        run=run,
        noun=noun,
        given=given,
        errors=errors,
        prompt="\n".join(given.get("prompts", [])),
        ideas=[f"a [V] {noun} {place}" for place in PLACES],
        adapters=[one for one in studio.catalog.models() if one.kind == "adapter" and one.run_id != _id(run)],
        groups=fieldsets.groups(GenerateSettings, listed, given, recommended, errors),
        others=[(_id(other), other.name) for other in studio.library.runs() if has_model(other)],
        **_gallery(run),
    )


def _gallery(run: Run) -> dict[str, Any]:
    shown = sets(run)[:MOST_SETS]
    mark = hashlib.sha256(repr([(one.id, one.when) for one in shown]).encode()).hexdigest()
    small = (run.model_extra or {}).get("size", 512) <= 128
    return {"run_id": _id(run), "sets": shown, "seen": mark[:16], "small": small}


def _id(run: Run) -> str:
    return id_of(run.folder.name)


@router.get("/draw/{run_id}/gallery", response_class=HTMLResponse)
def gallery(run: ThisRun, seen: str = "") -> Response:
    """Give the pictures, where there are new ones."""
    return newer("gallery.html", seen, _gallery(run))


@router.post("/draw/{run_id}")
async def draw(request: Request, run: ThisRun, studio: Here) -> Response:
    """Draw what a form asks for."""
    form = await request.form()
    given, errors = await run_in_threadpool(_asked, studio, run, form)
    if not errors:
        try:
            await run_in_threadpool(studio.drawer.draw, given)
            return go(f"/draw/{_id(run)}")
        except FemtoboothError as error:
            errors = fieldsets.blame(GenerateSettings, error)
    return await run_in_threadpool(_page, studio, run, given, errors)


def _asked(studio: Studio, run: Run, form: FormData) -> tuple[dict[str, Any], dict[str, str]]:
    """Read the form; returns settings, and what is to be mended."""
    texts = {key: [str(one) for one in form.getlist(key)] for key in form if not isinstance(form[key], UploadFile)}
    recommended = GenerateSettings.recommended({"run": str(run.folder)})
    given = fieldsets.read(GenerateSettings, texts, recommended)
    errors = {} if given.get("prompts") else {"prompts": "Write what is to be drawn."}
    loras = []
    for reference in texts.get("lora", [])[:MOST_LORAS]:
        strength = "".join(texts.get(f"strength-{reference}", ["0"]))
        if strength not in ("", "0"):
            loras.append(f"{reference}:{strength}")
    files = {}
    try:
        for field, setting in (("start", "init_image"), ("mask_file", "mask")):
            sent = form.get(field)
            if isinstance(sent, UploadFile) and sent.filename and sent.size:
                files[setting] = f"upload:{take_picture(studio, sent).id}"
    except FemtoboothError as error:
        errors["init_image"] = error.problem
    if "init_image" not in files:
        given.pop("strength", None)
        files.pop("mask", None)
    return merge(given, files, {"run": f"run:{_id(run)}"}, {"loras": loras} if loras else {}), errors


@router.post("/draw/{run_id}/{set_id}/delete")
def delete(set_id: str, run: ThisRun, studio: Here) -> Response:
    """Throw a set of pictures away."""
    return go(f"/draw/{_id(run)}") if throw_away(studio, run, set_id) else not_here()
