"""The recipes are programs beside the package: they are found from the repository's root."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parents[2]))

from recipes.emoji_world import sprites

SHAPES = {
    "ball": "ellipse",
    "brick": "rectangle",
    "wheel": "ellipse",
    "door": "rectangle",
    "teapot": "ellipse",
    "crate": "rectangle",
}


@pytest.fixture(scope="module")
def world() -> sprites.World:
    """Six plain shapes in four colours as the four styles."""
    tints = {"red": (214, 40, 40), "green": (40, 160, 60), "blue": (40, 90, 220), "yellow": (245, 215, 40)}
    pixels, concepts = [], []
    for name, shape in SHAPES.items():
        for tint in tints.values():
            image = Image.new("RGBA", (sprites.SIZE, sprites.SIZE))
            getattr(ImageDraw.Draw(image), shape)((8, 20, 88, 76), fill=tint)
            pixels.append(np.asarray(image))
        also = ["kettle"] if name == "teapot" else []
        concepts.append(
            sprites.Concept(name, also, "toy" if name in ("ball", "wheel") else "", "Objects", name, list(tints))
        )
    return sprites.World(concepts, list(sprites.STYLES), np.stack(pixels))
