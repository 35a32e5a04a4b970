"""The strokes that places are drawn with, on a 128x128 canvas, twice the size of a scene."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

import numpy as np
from PIL import Image, ImageDraw

SIZE = 128
RGB = tuple[int, int, int]
Ground = tuple[float, float] | None
"""Highest and lowest row (0 top, 1 bottom) of the feet of what stands in a place; None where things float."""

COLOURS: dict[str, RGB] = {
    "red": (214, 48, 49),
    "orange": (240, 140, 40),
    "yellow": (248, 214, 60),
    "green": (70, 165, 80),
    "light green": (160, 222, 150),
    "dark green": (24, 92, 54),
    "teal": (30, 150, 150),
    "blue": (52, 110, 214),
    "light blue": (150, 205, 245),
    "dark blue": (24, 40, 110),
    "purple": (130, 70, 180),
    "pink": (246, 150, 190),
    "brown": (130, 84, 50),
    "beige": (232, 214, 182),
    "white": (255, 255, 255),
    "grey": (140, 142, 146),
    "light grey": (212, 214, 217),
    "black": (8, 8, 10),
}
_GRAIN = np.random.default_rng(0).normal(0, 1, (2 * SIZE, 2 * SIZE)).astype(np.float32)


def near(random: Random, colour: RGB, amount: int = 14) -> RGB:
    """A colour like this one: all channels moved together, and each a little."""
    shift = random.uniform(-amount, amount)
    return tuple(min(max(round(c + shift + random.uniform(-amount, amount) / 2), 0), 255) for c in colour)  # type: ignore[return-value]


def fade(stops: Sequence[tuple[float, RGB]], angle: float = 0.0) -> Image.Image:
    """A canvas that fades along rows (position 0 top, 1 bottom), turned by `angle` radians."""
    places, colours = [place for place, _ in stops], np.array([colour for _, colour in stops], np.float32)
    line = np.linspace(0, 1, SIZE, dtype=np.float32)
    if not angle:
        column = np.stack([np.interp(line, places, channel) for channel in colours.T], axis=1).astype(np.uint8)
        return Image.fromarray(column[:, None]).resize((SIZE, SIZE), Image.Resampling.NEAREST)
    along = math.cos(angle) * (line[:, None] - 0.5) + math.sin(angle) * (line[None] - 0.5)
    along = along / (abs(math.cos(angle)) + abs(math.sin(angle))) + 0.5
    return Image.fromarray(
        np.stack([np.interp(along, places, channel) for channel in colours.T], axis=-1).astype(np.uint8)
    )


def grain(random: Random, image: Image.Image, strength: float, top: int = 0, stretch: int = 1) -> None:
    """Roughen rows from `top` on, in place; `stretch` draws the grain out sideways."""
    row, column = random.randrange(SIZE), random.randrange(SIZE)
    noise = _GRAIN[row : row + SIZE - top, column : column + SIZE]
    if stretch > 1:
        noise = noise[:, ::stretch].repeat(stretch, axis=1)[:, :SIZE]
    part = np.asarray(image.crop((0, top, SIZE, SIZE))).astype(np.float32) + strength * noise[..., None]
    image.paste(Image.fromarray(part.clip(0, 255).astype(np.uint8)), (0, top))


def hills(random: Random, pen: ImageDraw.ImageDraw, height: float, swing: float, colour: RGB) -> None:
    """Smooth ground below a wave of two sines."""
    one, two, a, b = random.uniform(0, 6), random.uniform(0, 6), random.uniform(0.02, 0.05), random.uniform(0.06, 0.1)
    line = [(x, height + swing * (math.sin(a * x + one) + 0.4 * math.sin(b * x + two))) for x in range(0, SIZE + 8, 8)]
    pen.polygon([*line, (SIZE, SIZE), (0, SIZE)], fill=colour)


def disc(pen: ImageDraw.ImageDraw, x: float, y: float, r: float, colour: tuple[int, ...], flat: float = 1.0) -> None:
    pen.ellipse((x - r, y - r * flat, x + r, y + r * flat), fill=colour)


def clouds(random: Random, pen: ImageDraw.ImageDraw, count: int, low: float, colour: RGB = (255, 255, 255)) -> None:
    for _ in range(count):
        x, y, r = random.uniform(0, SIZE), random.uniform(6, low), random.uniform(5, 10)
        for k in range(4):
            disc(pen, x + (k - 1.5) * r, y + random.uniform(-0.3, 0.3) * r, r * random.uniform(0.7, 1.1), colour, 0.75)


def stars(random: Random, pen: ImageDraw.ImageDraw, count: int, low: float) -> None:
    for _ in range(count):
        light = random.randrange(150, 256)
        disc(
            pen,
            random.uniform(0, SIZE),
            random.uniform(0, low),
            random.choice((0.8, 1.0, 1.6)),
            (light, light, min(light + 20, 255)),
        )


def pine(pen: ImageDraw.ImageDraw, x: float, foot: float, height: float, colour: RGB) -> None:
    pen.rectangle((x - height / 16, foot - height / 5, x + height / 16, foot), fill=(90, 62, 44))
    for k in range(3):
        y, half = foot - height * (0.15 + 0.25 * k), height * (0.3 - 0.07 * k)
        pen.polygon([(x - half, y), (x + half, y), (x, y - height * 0.36)], fill=colour)


def sky(random: Random, low: RGB = (205, 232, 250)) -> Image.Image:
    return fade([(0, near(random, (96, 170, 235), 24)), (0.7, near(random, low, 10))])
