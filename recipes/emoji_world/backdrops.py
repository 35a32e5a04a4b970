"""What stands behind the sprites: the places, plain colours, gradients and patterns, each different every time."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw

from .drawing import COLOURS, SIZE, Ground, disc, fade, near
from .places import PLACES


@dataclass
class Backdrop:
    name: str
    """"beach", or "red background"; what the recognizer learns to name."""
    phrase: str
    """How a caption says it: "on the beach"."""
    image: Image.Image
    """(128, 128) RGB."""
    ground: Ground


PLAIN: tuple[str, ...] = tuple(COLOURS)


def names() -> list[str]:
    """Every backdrop's name, places first."""
    return [*PLACES, *(f"{colour} background" for colour in COLOURS), "gradient", "stripes", "dots"]


def draw(random: Random, name: str) -> Backdrop:
    """Draw the backdrop of this name."""
    if name in PLACES:
        image, ground = PLACES[name][0](random)
        phrases = PLACES[name][1]
        return Backdrop(name, phrases[0] if random.random() < 0.6 else random.choice(phrases), image, ground)
    if name.endswith(" background"):
        colour = name.removesuffix(" background")
        exact = colour in ("white", "black") or random.random() < 0.3
        tint = COLOURS[colour] if exact else near(random, COLOURS[colour], 12)
        return Backdrop(name, f"on a {name}", Image.new("RGB", (SIZE, SIZE), tint), None)
    one, two = random.sample(PLAIN, 2)
    first, second = near(random, COLOURS[one], 10), near(random, COLOURS[two], 10)
    if name == "gradient":
        image = fade([(0, first), (1, second)], random.choice((0.0, random.uniform(0.1, 6.2))))
        return Backdrop(name, random.choice((f"on a {one} and {two} gradient", "on a gradient")), image, None)
    image, step = Image.new("RGB", (SIZE, SIZE), first), random.choice((16, 20, 26, 32))
    pen = ImageDraw.Draw(image)
    if name == "stripes":
        lean = random.choice((0, 0, SIZE, -SIZE))
        for x in range(-SIZE, 2 * SIZE, 2 * step):
            pen.polygon([(x, 0), (x + step, 0), (x + step + lean, SIZE), (x + lean, SIZE)], fill=second)
        return Backdrop(name, random.choice((f"on {one} and {two} stripes", "on a striped background")), image, None)
    for row, y in enumerate(range(0, SIZE + step, step)):
        for x in range(-(row % 2) * step // 2, SIZE + step, step):
            disc(pen, x, y, step / 4, second)
    return Backdrop(name, random.choice((f"on {two} dots on {one}", "on a dotted background")), image, None)
