"""What stands behind the sprites: the places, plain colours and gradients, each different every time."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from PIL import Image

from .drawing import COLOURS, SIZE, Ground, fade, near
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
    return [*PLACES, *(f"{colour} background" for colour in COLOURS), "gradient"]


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
    image = fade([(0, first), (1, second)], random.choice((0.0, random.uniform(0.1, 6.2))))
    return Backdrop(name, random.choice((f"on a {one} and {two} gradient", "on a gradient")), image, None)
