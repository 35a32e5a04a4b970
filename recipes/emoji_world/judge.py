"""The judge of the evaluation: a recognizer of its own training run, the questions put to it, and what its answers add
up to.

    python -m recipes.emoji_world.judge [FOLDER ...]      how even judges (the recipe's own if none is given) want a
    colour to be

Generated colours are never quite even, by a few levels of 255 that nobody minds: a judge should call them by their
names.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
import torch

from femtobooth.core.console import Terminal
from femtobooth.core.events import listening, table
from femtobooth.core.metrics import wilson
from femtobooth.recognizer.model.backbone import Recognizer

from . import backdrops, captions, sprites
from .autoencoder import UNSEEN_SEED
from .recognizer import enlarged, unevenness
from .scenes import SIZE, Scene, stream

Shares = dict[str, dict[str, float]]
WINDOW, STRIDE = 40, 12
"""Side and spacing in pixels of the windows through which two objects are looked for: each about fills one, as single
ones do a picture.
"""

LEVELS = (0, 1, 2, 3, 4, 6)
"""Standard deviations of light, in levels of 255, under which colours should keep their names."""


@dataclass(frozen=True)
class Asked:
    """What a caption asks for, as far as it says it."""

    concepts: tuple[int, ...]
    """One or two concepts; () where one of them is named by its class alone."""
    style: str
    backdrop: str


def _says(text: str, phrase: str) -> bool:
    return f" {phrase} " in f" {text} "


def asked(world: sprites.World, made: Scene) -> Asked:
    """What the caption of a scene names of it."""
    text, concepts = made.caption, sorted({item.concept for item in made.items})
    named = [
        any(
            _says(text, form)
            for name in (world.concepts[one].name, *world.concepts[one].also)
            for form in (name, captions.plural(name))
        )
        for one in concepts
    ]
    said = {
        world.styles[item.style]
        for item in made.items
        if any(_says(text, word) for word in captions.STYLE_WORDS[world.styles[item.style]])
    }
    place = backdrops.PLACES.get(made.backdrop)
    phrases = place[1] if place else (made.backdrop,)
    return Asked(
        concepts=tuple(concepts) if all(named) else (),
        style=said.pop() if len(concepts) == 1 and said else "",
        backdrop=made.backdrop if any(_says(text, phrase) for phrase in phrases) else "",
    )


class Judge:
    """The recognizer of the independent training run."""

    def __init__(self, world: sprites.World, folder: Path) -> None:
        self.world, self.recognizer = world, Recognizer.load(folder)
        self.groups = self.recognizer.labels.groups

    def look(self, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits (n, N) and embeddings (n, D) of uint8 pictures (n, h, w, 3), which are enlarged to the judge's
        size.
        """
        found = []
        with torch.inference_mode():
            for first in range(0, len(pictures), 64):
                x = self.recognizer.preprocess.normalize(torch.from_numpy(pictures[first : first + 64]))
                found.append(self.recognizer.outputs(enlarged(x, self.recognizer.preprocess.size[0])))
        logits, embeddings = (torch.cat([one[key] for one in found]).numpy() for key in ("logits", "embedding"))
        return logits, embeddings

    def somewhere(self, pictures: np.ndarray) -> np.ndarray:
        """Which concepts are the likeliest in one of a picture's windows or in the whole: bool (n, concepts) of (n, 64,
        64, 3) uint8.
        """
        first, last = self.groups["concept"]
        found = np.zeros((len(pictures), last - first), bool)
        corners = range(0, SIZE - WINDOW + 1, STRIDE)
        windows = [pictures[:, y : y + WINDOW, x : x + WINDOW] for y in corners for x in corners]
        for part in (pictures, *windows):
            found[np.arange(len(pictures)), self.best(self.look(part)[0], "concept")[:, 0]] = True
        return found

    def best(self, logits: np.ndarray, group: str, k: int = 1) -> np.ndarray:
        """The k likeliest of a group (n, k), as numbers within it."""
        first, last = self.groups[group]
        return np.argsort(-logits[:, first:last], axis=1, kind="stable")[:, :k]

    def verdicts(
        self, logits: np.ndarray, wanted: list[Asked], somewhere: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """For each question 1 (right), 0 (wrong) or NaN (not asked) for every picture: (n,) each.

        Two objects in one picture are judged by what is seen `somewhere` in it, if given.
        """
        five, styles, places = (self.best(logits, *how) for how in (("concept", 5), ("style",), ("backdrop",)))
        places_named = backdrops.names()
        rows = []
        for n, one in enumerate(wanted):
            row = dict.fromkeys(("concept", "concept in 5", "both objects", "style", "backdrop"), np.nan)
            if len(one.concepts) == 1:
                row |= {"concept": one.concepts[0] == five[n, 0], "concept in 5": one.concepts[0] in five[n]}
            elif one.concepts and somewhere is not None:
                row["both objects"] = float(somewhere[n, list(one.concepts)].all())
            if one.style:
                row["style"] = one.style == self.world.styles[styles[n, 0]]
            if one.backdrop:
                row["backdrop"] = one.backdrop == places_named[places[n, 0]]
            rows.append(row)
        return {name: np.array([row[name] for row in rows], np.float64) for name in rows[0]}


def shares(verdicts: dict[str, np.ndarray], seeds: int = 1) -> Shares:
    """Per question the share that is right, its 95 % interval, and the number of prompts asked.

    Verdicts (prompts x seeds,) are in the order of prompts, all seeds of one beside each other; a prompt counts once in
    the interval, however many seeds.
    """
    found: Shares = {}
    for name, values in verdicts.items():
        each = values.reshape(-1, seeds).mean(axis=1)
        each = each[~np.isnan(each)]
        if len(each):
            score = wilson(each.sum(), len(each))
            found[name] = {
                "share": round(score.value, 4),
                "low": round(score.low, 4),
                "high": round(score.high, 4),
                "prompts": len(each),
            }
    return found


def kid(one: np.ndarray, other: np.ndarray) -> float:
    """Kernel inception distance of embeddings (n, D), (m, D): unbiased squared MMD, kernel (x.y / D + 1)^3.

    Binkowski et al. 2018 (arXiv 1801.01401, section 4), on the judge's embedding instead of Inception's: compare it
    with values of this judge alone.
    """

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    one, other = one.astype(np.float64), other.astype(np.float64)
    n, m = len(one), len(other)
    within = [(kernel(x, x).sum() - np.trace(kernel(x, x))) / (k * (k - 1)) for x, k in ((one, n), (other, m))]
    return float(sum(within) - 2 * kernel(one, other).mean())


def uneven(judge: Judge, world: sprites.World, number: int = 400) -> dict[str, list[float]]:
    """Share of plain scenes whose colour is named right under light that differs by each of `LEVELS`, in two forms; and
    of gradients.
    """
    plain, faded = (
        list(islice((one for one in stream(world, UNSEEN_SEED) if one.items and one.backdrop.endswith(end)), number))
        for end in (" background", "gradient")
    )
    random, axis = Random(0), np.linspace(-1, 1, SIZE)
    tilts = [
        np.add.outer(np.sin(turn) * axis, np.cos(turn) * axis)[..., None]
        for turn in (random.uniform(0, 2 * np.pi) for _ in plain)
    ]
    lights = {
        "patches": np.stack([unevenness(random) for _ in plain]),
        "a tilt": np.stack([tilt / tilt.std() for tilt in tilts]),
    }

    def right(scenes: list[Scene], light: np.ndarray | float = 0.0) -> float:
        lit = (np.stack([one.pixels for one in scenes]) + light).clip(0, 255).round().astype(np.uint8)
        questions = [Asked((), "", one.backdrop) for one in scenes]
        return float(judge.verdicts(judge.look(lit)[0], questions)["backdrop"].mean())

    found = {name: [right(plain, level * light) for level in LEVELS] for name, light in lights.items()}
    return found | {"gradients": [right(faded)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folders", nargs="*", type=Path, metavar="FOLDER", help="recognizer artifacts with the recipe's labels"
    )
    given, world = parser.parse_args(), sprites.load(sprites.folder())
    rows = []
    for folder in given.folders or [sprites.folder() / "judge" / "model"]:
        found = uneven(Judge(world, folder), world)
        (gradients,) = found.pop("gradients")
        rows += [(str(folder), name, *(f"{one:.1%}" for one in (*seen, gradients))) for name, seen in found.items()]
    table(
        "Backdrops named right under uneven light",
        ["judge", "light", *(f">{level}" for level in LEVELS), ">gradients"],
        rows,
    )


if __name__ == "__main__":
    with listening(Terminal()):
        main()
