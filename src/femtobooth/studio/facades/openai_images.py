"""OpenAI's images API: /v1/models and /v1/images/generations, one model for each run.

https://platform.openai.com/docs/api-reference/images (as the client library `openai` 3.x calls it)
"""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from ..asked import REFUSALS, Here
from ..refusals import Missing, Refusal
from ..state import Studio

router = APIRouter(prefix="/v1", tags=["OpenAI images"], responses=REFUSALS)


class Images(BaseModel):
    """What a client asks for; what only shapes other models (quality, style, ...) is passed over."""

    model_config = ConfigDict(extra="ignore")

    prompt: Annotated[str, Field(min_length=1, max_length=4000)]
    model: Annotated[str | None, Field(max_length=200)] = None
    n: Annotated[int, Field(ge=1, le=10)] = 1
    size: Annotated[str | None, Field(max_length=20)] = None
    """WIDTHxHEIGHT; `auto` is the model's own."""
    response_format: Annotated[str | None, Field(max_length=20)] = None
    """b64_json, or url."""
    output_format: Annotated[str | None, Field(max_length=20)] = None
    stream: bool | None = None
    seed: Annotated[int | None, Field(ge=0, lt=2**63 - 100)] = None
    """Not OpenAI's: the seed of the first picture; by the clock if not given."""


def models(studio: Studio) -> dict[str, str]:
    """List what generates: names for clients, and the references that they stand for."""
    found: dict[str, str] = {}
    for one in studio.catalog.models():
        if one.kind != "recognizer":
            found.setdefault(one.title if one.title not in found else one.reference, one.reference)
    return found


@router.get("/models")
def listed(studio: Here) -> dict[str, Any]:
    """List the models."""
    return {"object": "list", "data": [described(name) for name in models(studio)]}


@router.get("/models/{name}")
def model(name: str, studio: Here) -> dict[str, Any]:
    """Tell of one model."""
    if name not in models(studio):
        raise Missing("model")
    return described(name)


@router.post("/images/generations")
def generations(asked: Images, studio: Here, request: Request) -> dict[str, Any]:
    """Generate pictures."""
    drawing, files = studio.drawer.draw(settings_of(asked, models(studio)))
    data: list[dict[str, Any]] = []
    for one, file in zip(drawing.images, files, strict=True):
        if asked.response_format == "url":
            data.append({"url": f"{str(request.base_url).rstrip('/')}{one.url}"})
        else:
            data.append({"b64_json": base64.b64encode(file.read_bytes()).decode()})
    size = f"{drawing.width}x{drawing.height}"
    return {"created": int(time.time()), "data": data, "output_format": "png", "size": size}


def settings_of(asked: Images, known: Mapping[str, str]) -> dict[str, Any]:
    """Give the settings of `generate` that a client asks for; `known` are references by the names of models.

    Raises Refusal for what is not there.
    """
    if asked.stream:
        raise Refusal("`stream`: pictures are not streamed", "leave it out", 422)
    if asked.output_format not in (None, "png"):
        raise Refusal("`output_format`: pictures are PNG, which carries their record", "leave it out", 422)
    if asked.response_format not in (None, "b64_json", "url"):
        raise Refusal("`response_format`: b64_json or url", "leave it out", 422)
    name = asked.model or "bundled"
    if name not in known:
        raise Refusal(f"`model`: there is no {name}", f"one of {', '.join(list(known)[:10])}", 404)
    seed = asked.seed if asked.seed is not None else time.time_ns() % 2**32
    settings: dict[str, Any] = {"run": known[name], "prompts": [asked.prompt], "count": asked.n, "seed": seed}
    if asked.size not in (None, "auto"):
        settings["size"] = asked.size
    return settings


def described(name: str) -> dict[str, Any]:
    """Tell of a model as clients read it."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "femtobooth"}
