"""The Open Inference Protocol, version 2 (REST): /v2, for recognizers.

https://github.com/kserve/open-inference-protocol. A model takes `image`, UINT8 [n, H, W, 3] of its own size, or
`picture`, BYTES [n], each a picture's file in base64; it gives `probabilities`, `logits` and `embedding`, FP32, and
`label`, BYTES, the likeliest.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from ... import __version__
from ..asked import REFUSALS, Here
from ..drawing import MOST_CLASSIFIED
from ..refusals import Missing, Refusal
from ..state import Studio

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"], responses=REFUSALS)


class Tensor(BaseModel):
    """An input."""

    model_config = ConfigDict(extra="ignore")

    name: Annotated[str, Field(max_length=100)]
    shape: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=8)]
    datatype: Annotated[str, Field(max_length=10)]
    data: list[Any]


class Wanted(BaseModel):
    """An output."""

    model_config = ConfigDict(extra="ignore")

    name: Annotated[str, Field(max_length=100)]


class Inference(BaseModel):
    """A request."""

    model_config = ConfigDict(extra="ignore")

    id: Annotated[str | None, Field(max_length=200)] = None
    inputs: Annotated[list[Tensor], Field(min_length=1, max_length=1)]
    outputs: list[Wanted] | None = None


@router.get("")
def server() -> dict[str, Any]:
    """Tell of the server."""
    return {"name": "femtobooth", "version": __version__, "extensions": []}


@router.get("/health/live")
def live() -> dict[str, bool]:
    """Tell that the server lives."""
    return {"live": True}


@router.get("/health/ready")
def ready() -> dict[str, bool]:
    """Tell that models can be asked."""
    return {"ready": True}


@router.get("/models/{name}")
def model(name: str, studio: Here) -> dict[str, Any]:
    """Tell what a model takes and gives."""
    with studio.drawer.recognizer(_reference(studio, name)) as recognizer:
        height, width = recognizer.size
        labels = recognizer.labels
    return {
        "name": name,
        "versions": [],
        "platform": "femtobooth",
        "inputs": [
            {"name": "image", "datatype": "UINT8", "shape": [-1, height, width, 3]},
            {"name": "picture", "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, len(labels)]},
            {"name": "logits", "datatype": "FP32", "shape": [-1, len(labels)]},
            {"name": "embedding", "datatype": "FP32", "shape": [-1, -1]},
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
        ],
    }


@router.get("/models/{name}/ready")
def model_ready(name: str, studio: Here) -> dict[str, Any]:
    """Tell that a model can be asked."""
    _reference(studio, name)
    return {"name": name, "ready": True}


@router.post("/models/{name}/infer")
def infer(name: str, asked: Inference, studio: Here) -> dict[str, Any]:
    """Have a model look at pictures."""
    given = asked.inputs[0]
    with studio.drawer.recognizer(_reference(studio, name)) as recognizer:
        if given.name == "image":
            pixels = _pixels(given, recognizer.size)
        elif given.name == "picture":
            if not all(isinstance(one, str) for one in given.data) or given.shape != [len(given.data)]:
                raise Refusal("`picture`: BYTES of shape [n], each a picture's file in base64", None, 422)
            pixels = recognizer.pixels(studio.drawer.opened(given.data))
        else:
            raise Refusal(f"there is no input {given.name}", "image or picture", 422)
        found = recognizer.outputs(pixels)
    found["label"] = np.array([recognizer.labels[one] for one in found["label"]], dtype=object)
    names = [one.name for one in asked.outputs or ()] or list(found)
    if unknown := [one for one in names if one not in found]:
        raise Refusal(f"there is no output {unknown[0]}", f"one of {', '.join(found)}", 422)
    return {
        "model_name": name,
        "id": asked.id,
        "outputs": [
            {
                "name": one,
                "datatype": "BYTES" if one == "label" else "FP32",
                "shape": list(found[one].shape),
                "data": found[one].ravel().tolist(),
            }
            for one in names
        ],
    }


def _pixels(given: Tensor, size: tuple[int, int]) -> np.ndarray:
    count = given.shape[0] if given.shape else 0
    if given.datatype != "UINT8" or given.shape[1:] != [*size, 3] or not 0 < count <= MOST_CLASSIFIED:
        wanted = f"[n, {size[0]}, {size[1]}, 3], n up to {MOST_CLASSIFIED}"
        raise Refusal(f"`image`: UINT8 of shape {wanted}", "or send `picture`, files in base64", 422)
    try:
        flat = np.asarray(given.data, dtype=np.int64).ravel()
        if flat.min() < 0 or flat.max() > 255:
            raise ValueError
        return flat.astype(np.uint8).reshape(given.shape)
    except (ValueError, TypeError, OverflowError):
        raise Refusal("`image`: its data are not as many numbers from 0 to 255", None, 422) from None


def _reference(studio: Studio, name: str) -> str:
    found = {one.title: one.reference for one in studio.catalog.models() if one.kind == "recognizer"}
    if name not in found:
        raise Missing("model")
    return found[name]
