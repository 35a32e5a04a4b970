"""Say what pictures show, and where a recognizer looked for it, as a page shows that."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..core.errors import ModelError
from .drawing import Drawer

if TYPE_CHECKING:
    from ..api import Recognizer

LABELS = 5
SHOWN = 320  # pixels of a picture's longer side


@dataclass(frozen=True)
class Answer:
    """Hold what one picture shows."""

    name: str
    picture: str
    """As a data URI."""
    evidence: str | None
    """The same under the places that speak for the first label; None where the model has no such map."""
    labels: list[tuple[str, float]]
    """The likeliest first, with how sure the recognizer is of each, 0 to 1."""
    rejected: bool
    """Whether it is of none of the known classes."""


def see(drawer: Drawer, pictures: Sequence[tuple[str, Image.Image]], model: str) -> list[Answer]:
    """Classify named pictures with a model of the catalog. Raises InputError kinds, Busy where many wait."""
    images = [image for _, image in pictures]
    with drawer.recognizer(model) as recognizer:
        found = recognizer.classify(images, LABELS)
        maps = _evidence(recognizer, images, [one.top[0].label for one in found])
    return [
        Answer(
            name=name,
            picture=_uri(image),
            evidence=_uri(Image.fromarray(shown)) if shown is not None else None,
            labels=[(guess.label, guess.confidence) for guess in one.top],
            rejected=bool(one.rejected),
        )
        for (name, image), one, shown in zip(pictures, found, maps, strict=True)
    ]


def _evidence(
    recognizer: Recognizer, images: Sequence[Image.Image], labels: Sequence[str]
) -> list[np.ndarray] | list[None]:
    """Lay each picture under the places that speak for its label; nothing for models that cannot tell."""
    import torch

    from ..recognizer.model.saliency import grad_cam, overlay

    try:
        network = recognizer.network()
        pixels = recognizer.pixels(list(images))
        batch = network.preprocess.normalize(torch.from_numpy(pixels))
        maps = grad_cam(network.model, batch, [recognizer.labels.index(label) for label in labels])
    except ModelError:
        return [None] * len(images)
    return [overlay(one, shown) for one, shown in zip(pixels, maps, strict=True)]


def _uri(image: Image.Image) -> str:
    image = image.convert("RGB")
    image.thumbnail((SHOWN, SHOWN), Image.Resampling.LANCZOS)
    stored = BytesIO()
    image.save(stored, format="WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(stored.getvalue()).decode()}"
