"""Scenes: a pure function from (seed, index) to a 64x64 picture, its caption and what is in it.

    python -m recipes.emoji_world.scenes [--smoke] [--out sheet.png]      a contact sheet of 64 scenes

Compositions that training never sees: a tenth of the concept x backdrop pairs and a twentieth of the style x concept
pairs, chosen by a hash of the names, so that they stay held out in every stage and in every later version of the data.
"""

from __future__ import annotations

import argparse
import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Literal
from zlib import crc32

import numpy as np
from PIL import Image, ImageDraw

from femtobooth.core.console import Terminal
from femtobooth.core.events import listening, note
from femtobooth.core.files import atomic_file

from . import backdrops, captions
from .sprites import STYLES, World, folder, load, main_colour

SIZE = 64
Unseen = Literal["", "backdrop", "style"]
HUES: dict[str, float] = {"red": 0, "orange": 30, "yellow": 52, "green": 120, "blue": 215, "purple": 275, "pink": 325}
"""Colour words that a sprite can be dyed with -> hue in degrees."""


@dataclass
class Item:
    """One sprite in a scene."""

    concept: int
    style: int
    size: float
    """Its longer side in pixels."""
    x: float
    y: float
    """Its centre in pixels from the top left."""
    colour: str
    """The word for its main colour as it is drawn, or ""."""
    dyed: bool = False
    turn: float = 0.0
    """Degrees, anticlockwise."""


Arrangement = tuple[list[Item], str, str]
"""What stands where, the name of the backdrop, and the form of the caption: "one", "two" or "several"."""


@dataclass
class Scene:
    pixels: np.ndarray
    """(64, 64, 3) uint8."""
    caption: str
    items: list[Item] = field(default_factory=list)
    backdrop: str = ""


def _share(*names: str) -> float:
    return crc32("|".join(names).encode()) / 2**32


def held_out(concept: str, backdrop: str) -> bool:
    """Whether training never shows this concept on this backdrop."""
    return _share("place", concept, backdrop) < 0.10


def held_out_style(concept: str, style: str) -> bool:
    """Whether training never shows this concept in this style (of all its styles at most one)."""
    first = min(STYLES, key=lambda one: _share("style", concept, one))
    return style == first and _share("style", concept, style) < 0.05


def scene(
    world: World, seed: int, index: int, plain: float = 0.15, unseen: Unseen = "", styled: float | None = None
) -> Scene:
    """Scene number `index` of stream `seed`.

    `plain` is the share of scenes with one large sprite on a plain colour: near 1 early in the curriculum.
    `unseen` draws only combinations that are held out of training: one sprite whose pair of concept and backdrop, or of
    concept and style, is never trained. `styled` is the chance that captions say a style, if not their usual one.
    """
    random = Random(f"{seed}/{index}")
    if not unseen and random.random() < plain:
        items, name, form = _plain(world, random)
    elif not unseen and random.random() < 0.03:
        backdrop = backdrops.draw(random, random.choice(list(backdrops.PLACES)))
        return Scene(
            np.asarray(backdrop.image.reduce(2)), captions.empty_place(random, backdrop), backdrop=backdrop.name
        )
    else:
        items, name, form = _composed(world, random, unseen)
    return _paint(world, random, items, name, form, unseen, styled)


def stream(world: World, seed: int, unseen: Unseen = "") -> Iterator[Scene]:
    """The scenes of one stream that no curriculum changes, or only combinations that are held out of training."""
    for index in range(1_000_000):
        yield scene(world, seed, index, plain=0.0 if unseen else 0.15, unseen=unseen)


def _plain(world: World, random: Random) -> Arrangement:
    name = "white background" if random.random() < 0.3 else f"{random.choice(backdrops.PLAIN)} background"
    item = Item(
        _concept(world, random, name),
        0,
        random.uniform(38, 58),
        32 + random.uniform(-4, 4),
        32 + random.uniform(-4, 4),
        "",
    )
    return [item], name, "one"


def places_for(world: World, unseen: Unseen) -> list[str]:
    """The places that a scene can have; for `unseen` those that show such a combination, none in a world too small for
    one.
    """
    return (
        list(backdrops.PLACES)
        if not unseen
        else _novel_places(tuple(one.name for one in world.concepts), tuple(world.styles), unseen)
    )


@lru_cache(maxsize=8)
def _novel_places(concepts: tuple[str, ...], styles: tuple[str, ...], unseen: Unseen) -> list[str]:
    fitting = [name for name in concepts if unseen != "style" or any(held_out_style(name, style) for style in styles)]
    return [
        place for place in backdrops.PLACES if any(held_out(name, place) == (unseen == "backdrop") for name in fitting)
    ]


def _composed(world: World, random: Random, unseen: Unseen) -> Arrangement:
    pick = random.random()
    if pick < 0.70 or unseen:
        name = random.choice(places_for(world, unseen))
    elif pick < 0.94:
        name = f"{random.choice(backdrops.PLAIN)} background"
    else:
        name = "gradient"
    concept, pick = _concept(world, random, name, unseen), random.random()
    if pick < 0.78 or unseen:
        size = random.choices(
            (random.uniform(15, 24), random.uniform(34, 46), random.uniform(46, 56), random.uniform(66, 84)),
            (4, 63, 30, 3),
        )[0]
        free = max(31 - size / 2, 2)
        wide = random.random() < 0.15  # else near the middle
        x, y = (32 + (random.uniform(-free, free) if wide else random.uniform(-4, 4)) for _ in "xy")
        return [Item(concept, 0, size, x, y, "")], name, "one"
    if pick < 0.92:
        other = _concept(world, random, name)
        while other == concept:
            other = _concept(world, random, name)
        big = random.uniform(24, 31)
        small = big * random.choice((1.0, 1.0, 0.55))
        sizes = random.sample((big, small), 2)
        spread = random.uniform(14, 17)
        upright = random.random() < 0.2 and name not in backdrops.PLACES
        sign = random.choice((-1, 1))
        places = [
            (32 + random.uniform(-6, 6), 32 + s * spread) if upright else (32 + s * spread, 32 + random.uniform(-8, 8))
            for s in (-sign, sign)
        ]
        items = [
            Item(c, 0, size, *place, colour="") for c, size, place in zip((concept, other), sizes, places, strict=True)
        ]
        return items, name, "two"
    count = random.choice((2, 2, 2, 3, 3, 4))
    size = random.uniform(*((22, 30), (17, 21), (20, 27))[count - 2])
    if count == 4:
        places = [(18.0, 18.0), (46.0, 18.0), (18.0, 46.0), (46.0, 46.0)]
    else:
        places = [(64 * (k + 0.5) / count, 34 + random.uniform(-8, 8)) for k in range(count)]
    items = [
        Item(
            concept,
            0,
            size * random.uniform(0.92, 1.05),
            x + random.uniform(-1.5, 1.5),
            y + random.uniform(-1.5, 1.5),
            "",
        )
        for x, y in places
    ]
    return items, name, "several"


def _concept(world: World, random: Random, backdrop: str, unseen: Unseen = "") -> int:
    """A concept that may stand on this backdrop (or that training never shows so)."""
    while True:
        number = random.randrange(len(world.concepts))
        name = world.concepts[number].name
        if held_out(name, backdrop) == (unseen == "backdrop") and (
            unseen != "style" or any(held_out_style(name, style) for style in world.styles)
        ):
            return number


def _style(world: World, random: Random, concept: int, unseen: Unseen = "") -> int:
    name = world.concepts[concept].name
    allowed = [
        number for number, style in enumerate(world.styles) if held_out_style(name, style) == (unseen == "style")
    ]
    return random.choice(allowed)


def _paint(
    world: World, random: Random, items: list[Item], name: str, form: str, unseen: Unseen, styled: float | None
) -> Scene:
    """Draw backdrop, shadows and sprites, and say what is there."""
    backdrop = backdrops.draw(random, name)
    style = _style(world, random, items[0].concept, unseen)
    dye = random.choice(list(HUES)) if random.random() < 0.06 else ""
    sprites: list[Image.Image] = []
    for number, item in enumerate(items):
        item.style = (
            style if form == "several" or item.concept == items[0].concept else _style(world, random, item.concept)
        )
        item.turn = random.uniform(-20, 20) if random.random() < 0.1 else 0.0
        item.colour = world.concepts[item.concept].colours[item.style]
        image = Image.fromarray(world.sprite(item.concept, item.style))
        if dye and (form == "several" or number == 0):
            image, item.dyed = _dyed(image, item, dye)
            item.colour = dye if item.dyed else item.colour
        sprites.append(_placed(image, item, backdrop.ground, random))
    pen = ImageDraw.Draw(backdrop.image, "RGBA")
    if backdrop.ground is not None or random.random() < 0.2:
        for item, sprite in zip(items, sprites, strict=True):
            half, foot = 0.42 * sprite.width * 2, item.y * 2 + sprite.height
            for k in range(3):
                wide = half * (1.05 - 0.2 * k)
                pen.ellipse(
                    (item.x * 2 - wide, foot - 4 - wide * 0.12, item.x * 2 + wide, foot + wide * 0.12),
                    fill=(0, 0, 0, 26),
                )
    canvas = backdrop.image.reduce(2)
    for item, sprite in sorted(zip(items, sprites, strict=True), key=lambda pair: pair[0].y + pair[1].height / 2):
        canvas.paste(sprite, (round(item.x - sprite.width / 2), round(item.y - sprite.height / 2)), sprite)
    return Scene(
        np.asarray(canvas), captions.caption(world, random, items, backdrop, form, styled), items, backdrop.name
    )


def _placed(image: Image.Image, item: Item, ground: backdrops.Ground, random: Random) -> Image.Image:
    """The sprite scaled and turned; on a ground `item.y` is set so that its feet stand there."""
    image = image.convert("RGBa")  # premultiplied: no seams from what lies under transparent pixels
    if item.turn:
        image = image.rotate(item.turn, Image.Resampling.BICUBIC)
    box = image.getbbox() or (0, 0, *image.size)
    scale = item.size / max(box[2] - box[0], box[3] - box[1])
    size = (max(round((box[2] - box[0]) * scale), 1), max(round((box[3] - box[1]) * scale), 1))
    image = image.resize(size, Image.Resampling.LANCZOS, box=box).convert("RGBA")
    if ground is not None:
        foot = SIZE * random.uniform(max(ground[0], min(ground[1], (size[1] + 6) / SIZE)), ground[1])
        item.y = foot - size[1] / 2
    return image


def _dyed(image: Image.Image, item: Item, word: str) -> tuple[Image.Image, bool]:
    """The sprite with its hues turned so that its main colour is `word`, and whether that came true."""
    if item.colour not in HUES or item.colour == word:
        return image, False
    turn = math.radians(HUES[word] - HUES[item.colour])
    cos, sin, third = math.cos(turn), math.sin(turn), 1 / 3
    a, b, c = cos + (1 - cos) * third, (1 - cos) * third - sin * third**0.5, (1 - cos) * third + sin * third**0.5
    turned = image.convert("RGB").convert("RGB", (a, b, c, 0, c, a, b, 0, b, c, a, 0))
    turned.putalpha(image.getchannel("A"))
    return (turned, True) if main_colour(np.asarray(turned)[::3, ::3]) == word else (image, False)


def contact_sheet(made: list[Scene], columns: int = 8, scale: int = 2) -> Image.Image:
    """Scenes in a grid, each with its caption below."""
    cell, text = SIZE * scale, 34
    picture = Image.new("RGB", (columns * (cell + 6), math.ceil(len(made) / columns) * (cell + text)), "white")
    pen = ImageDraw.Draw(picture)
    for number, one in enumerate(made):
        x, y = number % columns * (cell + 6), number // columns * (cell + text)
        picture.paste(Image.fromarray(one.pixels).resize((cell, cell), Image.Resampling.NEAREST), (x, y))
        lines = textwrap.wrap(one.caption or "(no caption)", cell // 5)[:3]
        pen.multiline_text((x, y + cell), "\n".join(lines), fill="black", font_size=10, spacing=1)
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="with the sprites of the smoke run")
    parser.add_argument("--out", type=Path, default=Path("scenes.png"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", type=float, default=0.15, help="share of plain scenes, 0 to 1")
    parser.add_argument(
        "--unseen", choices=("", "backdrop", "style"), default="", help="only combinations that training never sees"
    )
    given = parser.parse_args()
    world = load(folder() / "smoke" if given.smoke else folder())
    made = [scene(world, given.seed, index, given.plain, given.unseen) for index in range(64)]
    with atomic_file(given.out) as temporary:
        contact_sheet(made).save(temporary, format="PNG")
    note(f"wrote {given.out}")


if __name__ == "__main__":
    with listening(Terminal()):
        main()
