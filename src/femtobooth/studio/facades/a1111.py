"""AUTOMATIC1111's web UI as a server: the part of /sdapi/v1 that draws, under its own names of fields.

https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/API. What shapes nothing here (tiling, restore_faces, ...)
is passed over where it is off, and refused where it is asked for.
"""

from __future__ import annotations

import base64
import json
import re
import time
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from ...pictures import records
from ..asked import REFUSALS, Here
from ..drawing import Drawing
from ..refusals import Refusal
from ..state import Studio
from .openai_images import models

router = APIRouter(prefix="/sdapi/v1", tags=["A1111"], responses=REFUSALS)
CHECKPOINT = "sd_model_checkpoint"
_LORA = re.compile(r"<lora:([^:<>]{1,200}):(-?\d*\.?\d+)>")
NOT_HERE = ("enable_hr", "tiling", "restore_faces", "refiner_checkpoint", "script_name", "styles")


class Txt2Img(BaseModel):
    """What is to be drawn."""

    model_config = ConfigDict(extra="allow")

    prompt: Annotated[str, Field(max_length=4000)] = ""
    negative_prompt: Annotated[str, Field(max_length=4000)] = ""
    seed: Annotated[int, Field(ge=-1, lt=2**63 - 1000)] = -1
    """-1 chooses one."""
    steps: Annotated[int | None, Field(ge=1, le=250)] = None
    cfg_scale: Annotated[float | None, Field(ge=0, le=100)] = None
    width: Annotated[int | None, Field(ge=8, le=2048)] = None
    """Pixels; the model's own if neither is given."""
    height: Annotated[int | None, Field(ge=8, le=2048)] = None
    sampler_name: Annotated[str | None, Field(max_length=100)] = None
    sampler_index: Annotated[str | None, Field(max_length=100)] = None
    batch_size: Annotated[int, Field(ge=1, le=16)] = 1
    n_iter: Annotated[int, Field(ge=1, le=16)] = 1
    override_settings: dict[str, Any] | None = None
    send_images: bool = True


class Img2Img(Txt2Img):
    """What is to be drawn from another picture."""

    init_images: Annotated[list[str], Field(min_length=1, max_length=1)]
    """One picture, in base64."""
    mask: str | None = None
    """White where it is redrawn, as large as the picture; in base64."""
    denoising_strength: Annotated[float, Field(gt=0, le=1)] = 0.75
    inpainting_mask_invert: Annotated[int, Field(ge=0, le=0)] = 0


class Options(BaseModel):
    """What is chosen; other options are passed over."""

    model_config = ConfigDict(extra="ignore")

    sd_model_checkpoint: Annotated[str | None, Field(max_length=300)] = None


@router.post("/txt2img")
def txt2img(asked: Txt2Img, studio: Here) -> dict[str, Any]:
    """Generate pictures."""
    return _answer(asked, studio, {})


@router.post("/img2img")
def img2img(asked: Img2Img, studio: Here) -> dict[str, Any]:
    """Generate pictures from another one, or what a mask leaves out of it."""
    start: dict[str, Any] = {
        "init_image": studio.drawer.upload(asked.init_images[0]).in_settings(),
        "strength": asked.denoising_strength,
    }
    if asked.mask:
        start["mask"] = studio.drawer.upload(asked.mask).in_settings()
    return _answer(asked, studio, start)


@router.get("/sd-models")
def sd_models(studio: Here) -> list[dict[str, Any]]:
    """List what generates."""
    return [
        {"title": name, "model_name": name, "hash": None, "sha256": None, "filename": name, "config": None}
        for name in models(studio)
    ]


@router.get("/samplers")
def samplers() -> list[dict[str, Any]]:
    """List the samplers."""
    return [{"name": name, "aliases": [own], "options": {}} for own, name in records.SAMPLERS.items()]


@router.get("/loras")
def loras(studio: Here) -> list[dict[str, Any]]:
    """List the LoRAs that a prompt can name as <lora:NAME:0.8>."""
    return [{"name": name, "alias": name, "path": name, "metadata": {}} for name in _adapters(studio)]


@router.get("/options")
def options(studio: Here) -> dict[str, Any]:
    """Tell what is chosen."""
    return {CHECKPOINT: studio.drawer.chosen, "samples_format": "png", "sd_checkpoint_hash": ""}


@router.post("/options")
def choose(asked: Options, studio: Here) -> None:
    """Choose the model to draw with."""
    if asked.sd_model_checkpoint is not None:
        _reference(studio, asked.sd_model_checkpoint)
        studio.drawer.chosen = asked.sd_model_checkpoint


@router.get("/progress")
def progress(studio: Here) -> dict[str, Any]:
    """Tell how far what is being drawn is."""
    turns = studio.drawer.turns
    share = turns.done / turns.total if turns.active and turns.total else 0.0
    return {
        "progress": share,
        "eta_relative": 0.0,
        "state": {
            "skipped": False,
            "interrupted": False,
            "job": "femtobooth" if turns.active else "",
            "job_count": turns.total if turns.active else 0,
            "job_no": int(turns.done),
            "job_timestamp": "0",
            "sampling_step": 0,
            "sampling_steps": 0,
        },
        "current_image": None,
        "textinfo": None,
    }


@router.post("/interrupt")
def interrupt(studio: Here) -> dict[str, Any]:
    """End what is being drawn."""
    studio.drawer.turns.stop()
    return {}


def _answer(asked: Txt2Img, studio: Studio, start: dict[str, Any]) -> dict[str, Any]:
    for name in NOT_HERE:
        if (asked.model_extra or {}).get(name):
            raise Refusal(f"`{name}`: is not done here", "leave it out", 422)
    name = str((asked.override_settings or {}).get(CHECKPOINT) or studio.drawer.chosen)
    count = asked.batch_size * asked.n_iter
    seed = asked.seed if asked.seed >= 0 else time.time_ns() % 2**32
    adapters = _adapters(studio)
    wanted = []
    for lora, strength in _LORA.findall(asked.prompt):
        if lora not in adapters:
            raise Refusal(f"<lora:{lora}>: there is none of this name", "/sdapi/v1/loras lists them", 422)
        wanted.append(f"{adapters[lora]}:{strength}")
    prompt = " ".join(_LORA.sub("", asked.prompt).split()) if wanted else asked.prompt
    sampling: dict[str, Any] = {"negative": asked.negative_prompt} if asked.negative_prompt else {}
    for ours, given in (("steps", asked.steps), ("guidance", asked.cfg_scale)):
        if given is not None:
            sampling[ours] = given
    if sampler := asked.sampler_name or asked.sampler_index:
        sampling["sampler"] = _sampler(sampler)
    settings: dict[str, Any] = {
        "run": _reference(studio, name),
        "prompts": [prompt],
        "count": count,
        "seed": seed,
        "batch_size": asked.batch_size,
        "sampling": sampling,
        **start,
    }
    if wanted:
        settings["loras"] = wanted
    if asked.width or asked.height:
        settings["size"] = f"{asked.width or asked.height}x{asked.height or asked.width}"
    drawing, files = studio.drawer.draw(settings)
    pictures = [base64.b64encode(file.read_bytes()).decode() for file in files] if asked.send_images else []
    return {"images": pictures, "parameters": asked.model_dump(), "info": json.dumps(_info(drawing, files, name))}


def _info(drawing: Drawing, files: list[Path], name: str) -> dict[str, Any]:
    """Tell how pictures were made, in A1111's words."""
    found = [records.read(file) or {} for file in files]
    first = found[0]
    sampling = first["settings"]["sampling"]
    count = len(files)
    return {
        "prompt": first["prompt"],
        "all_prompts": [one["prompt"] for one in found],
        "negative_prompt": sampling["negative"] or "",
        "all_negative_prompts": [sampling["negative"] or ""] * count,
        "seed": first["seed"],
        "all_seeds": [one["seed"] for one in found],
        "subseed": first["seed"],
        "all_subseeds": [one["seed"] for one in found],
        "subseed_strength": 0,
        "width": drawing.width,
        "height": drawing.height,
        "sampler_name": records.SAMPLERS[sampling["sampler"]],
        "cfg_scale": sampling["guidance"],
        "steps": sampling["steps"],
        "batch_size": first["batch"][1],
        "sd_model_name": name,
        "sd_model_hash": drawing.model_hash[:10],
        "denoising_strength": first["settings"]["strength"] if "init_image" in first else 0,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": [records.parameters(one) for one in found],
        "styles": [],
        "clip_skip": 1,
        "is_using_inpainting_conditioning": False,
    }


def _reference(studio: Studio, name: str) -> str:
    known = models(studio)
    plain = re.sub(r" \[[0-9a-f]{6,}\]$", "", name)  # as A1111 lists a checkpoint with its hash
    if plain not in known:
        raise Refusal(f"`{CHECKPOINT}`: there is no {plain}", "/sdapi/v1/sd-models lists them", 404)
    return known[plain]


def _sampler(name: str) -> str:
    ours = {shown.lower(): own for own, shown in records.SAMPLERS.items()} | {own: own for own in records.SAMPLERS}
    if name.lower() not in ours:
        raise Refusal(f"`sampler_name`: there is no {name}", f"one of {', '.join(records.SAMPLERS.values())}", 404)
    return ours[name.lower()]


def _adapters(studio: Studio) -> dict[str, str]:
    return {one.title: one.reference for one in studio.catalog.models() if one.kind == "adapter"}
