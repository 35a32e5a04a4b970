"""What is said of a scene: full sentences, short ones, a class only, or nothing; always true of the picture."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from .backdrops import Backdrop
from .concepts import PLURALS, UNCOUNTED
from .sprites import Concept, World

if TYPE_CHECKING:
    from .scenes import Item

EMPTY = 0.10
"""Share of scenes without a caption: what guidance steers away from."""
STYLE_WORDS: dict[str, tuple[str, ...]] = {
    "noto": ("noto", "shaded"),
    "glossy": ("glossy", "shiny", "3d"),
    "flat": ("flat", "minimal"),
    "cartoon": ("cartoon", "comic"),
}
OPENINGS = ("a photo of", "a picture of", "an image of", "a drawing of", "an icon of")
SIZES = (("tiny", "small", "little"), ("large", "big", "huge"))
COUNTS = {2: "two", 3: "three", 4: "four"}


def uncounted(name: str) -> bool:
    """Whether a name takes neither article nor number ("glasses", "bread")."""
    return name in UNCOUNTED or name.rpartition(" ")[2] in UNCOUNTED


def article(phrase: str) -> str:
    """`phrase` with its indefinite article."""
    return f"an {phrase}" if phrase[0] in "aeio" or phrase.startswith(("um", "hour")) else f"a {phrase}"


def plural(name: str) -> str:
    """The plural of a name by its last word."""
    if name in PLURALS:
        return PLURALS[name]
    head, _, last = name.rpartition(" ")
    if last in PLURALS:
        ending = PLURALS[last]
    elif last.endswith(("s", "x", "z", "ch", "sh")) or last in ("tomato", "potato", "mango", "volcano"):
        ending = last + "es"
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        ending = last[:-1] + "ies"
    elif last.endswith("man"):
        ending = last[:-3] + "men"
    else:
        ending = last + "s"
    return f"{head} {ending}" if head else ending


def _named(random: Random, concept: Concept, short: bool) -> str:
    """The usual name, another name of its own, or now and then only its class."""
    pick = random.random()
    if pick < 0.05 and concept.kind and not short:
        return concept.kind
    return random.choice(concept.also) if concept.also and pick > 0.8 else concept.name


def _phrase(
    world: World, random: Random, item: Item, count: int = 1, say: float = 0.5, styled: float | None = None
) -> str:
    """ "a large red glossy teapot": size, colour and style each said with about the chance `say`, or the style with
    `styled`.
    """
    concept = world.concepts[item.concept]
    name = _named(random, concept, short=say == 0)
    parts = []
    size = SIZES[0] if item.size < 23 else SIZES[1] if item.size > 45 else ()
    if size and count == 1 and random.random() < say:
        parts.append(random.choice(size))
    if item.colour and item.colour not in name and random.random() < (0.85 if item.dyed else 0.4 * say):
        parts.append(item.colour)
    if random.random() < (say if styled is None else styled):
        parts.append(random.choice(STYLE_WORDS[world.styles[item.style]]))
    if count > 1:
        parts.append(name if uncounted(name) else plural(name))
        return " ".join([COUNTS[count], *parts] if not uncounted(name) else parts)
    parts.append(name)
    phrase = " ".join(parts)
    return phrase if uncounted(name) else article(phrase)


def _beside(random: Random, first: Item, second: Item) -> str:
    """How the first stands to the second; only what the picture shows clearly."""
    dx, dy = first.x - second.x, first.y - second.y
    if random.random() < 0.5:
        return random.choice(("and", "and", "next to", "with"))
    if abs(dx) > abs(dy) and abs(dx) > 12:
        return random.choice(("to the left of", "left of") if dx < 0 else ("to the right of", "right of"))
    if abs(dy) > 12:
        return random.choice(("above", "over") if dy < 0 else ("below", "under"))
    return "and"


def _where(random: Random, item: Item) -> str:
    """ "on the left" where it clearly is, else ""."""
    if random.random() < 0.4:
        return ""
    if item.x < 23:
        return "on the left"
    if item.x > 41:
        return "on the right"
    if item.y < 22:
        return "at the top"
    return "at the bottom" if item.y > 43 and item.size < 34 else ""


def caption(
    world: World, random: Random, items: list[Item], backdrop: Backdrop, form: str, styled: float | None = None
) -> str:
    """The caption of a scene: `form` is "one", "two" or "several" (of the same).

    `styled` is the chance that a thing's style is said, in short captions too; without it three captions in ten say
    one.
    """
    pick = random.random()
    if pick < EMPTY:
        return ""
    short = pick < EMPTY + 0.3
    say = 0.0 if short else 0.5
    if form == "several":
        text = _phrase(world, random, items[0], len(items), say * 0.7, styled)
    elif form == "two":
        order = items if random.random() < 0.5 else items[::-1]
        first, second = (_phrase(world, random, item, say=say * 0.7, styled=styled) for item in order)
        text = f"{first} {_beside(random, *order)} {second}"
    else:
        item = items[0]
        if item.size > 62:
            phrase = _phrase(world, random, item, say=0.0, styled=styled)
            text = f"a close-up of {phrase}" if random.random() < 0.7 else phrase
        else:
            text = _phrase(world, random, item, say=say, styled=styled)
            where = _where(random, item) if not short else ""
            text = f"{text} {where}".rstrip()
    plain = backdrop.name.endswith("background")
    said = (0.85 if form != "two" or not plain else 0.7) if not short else 0.65
    if random.random() < said:
        text = f"{text} {backdrop.phrase}"
    if random.random() < (0.15 if not short else 0.08) and not text.startswith("a close-up"):
        text = f"{random.choice(OPENINGS)} {text}"
    return text


def empty_place(random: Random, backdrop: Backdrop) -> str:
    """The caption of a place where nothing stands."""
    if random.random() < EMPTY:
        return ""
    return random.choice(
        (
            f"nothing {backdrop.phrase}",
            f"a picture of {article(backdrop.name)}",
            f"an empty {backdrop.name}",
            backdrop.name,
        )
    )
