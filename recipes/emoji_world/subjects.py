"""Stage 6, DreamBooth: six subjects that the base has never seen are personalized, drawn on eight new backdrops, and
judged.

    python -m recipes.emoji_world.evaluate --dreambooth DATASET [--subjects femto,clock] [--config settings.yaml]

DATASET is the folder of DreamBooth's dataset (github.com/google/dreambooth); two subjects are OpenMoji icons (CC BY-SA,
from npm into the cache, never committed). The base's own recommended settings are used, tuned on three subjects
(`tuned`). Writes dreambooth.json (after every subject) and subjects.png; the runs stay in runs/.

"Subject recognised": a picture's nearest identity is the subject. Identities are the subjects (mean of their photos)
and every sprite of the world (mean over several scenes), in the judge's embedding after within-class covariance
normalization (Hatch, Kajarekar and Stolcke 2006): directions in which pictures of one sprite differ, as with the
backdrop, count little; cosine similarity. To read it by: how often the photos are recognised themselves, each left out
of the mean (the ceiling), and how many of the class's pictures are taken for the subject before training (the floor)
and after (bleeding).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from femtobooth.core import config
from femtobooth.core.errors import FemtoboothError
from femtobooth.core.events import note, progress_bar, table
from femtobooth.core.files import atomic_file, write_json
from femtobooth.core.machine import environment
from femtobooth.generator import locate
from femtobooth.generator.families.family import Family
from femtobooth.generator.load import load
from femtobooth.generator.photos import load_photos
from femtobooth.generator.sampling import sample
from femtobooth.generator.sampling_settings import SamplingSettings
from femtobooth.generator.settings import PersonalizeSettings
from femtobooth.pictures.sheets import sheet
from femtobooth.workflows import personalize

from . import backdrops, sprites
from .autoencoder import UNSEEN_SEED
from .diffusion import SAMPLING
from .judge import Judge
from .scenes import scene
from .stages import commit

OPENMOJI = ("@iconify-json/openmoji", "1.2.29")
NEW_BACKDROPS = ("beach", "snow", "space", "moon", "city", "under water", "desert", "sunset")
PHOTO_BACKDROPS = ("white background", "yellow background", "blue background", "room", "brick wall")
"""Where OpenMoji's subjects stand in their photos."""
IDENTITY_SEED = UNSEEN_SEED + 4


@dataclass(frozen=True)
class Subject:
    name: str
    class_noun: str
    source: str
    """`mascot`, a folder of the dataset, or `openmoji:` and an icon."""
    tuned: bool
    """Whether the card's settings were chosen by looking at it."""


SUBJECTS = (
    Subject("femto", "robot", "mascot", tuned=True),
    Subject("clock", "clock", "clock", tuned=True),
    Subject("bear", "teddy bear", "openmoji:teddy-bear", tuned=True),
    Subject("duck", "duck", "duck_toy", tuned=False),
    Subject("backpack", "backpack", "backpack", tuned=False),
    Subject("boot", "boot", "openmoji:hiking-boot", tuned=False),
)
SIZES = {"full": {"each": 8, "scenes": 12_000, "steps": 25}, "smoke": {"each": 1, "scenes": 300, "steps": 2}}
SMOKE: dict[str, Any] = {
    "training": {"steps": 2, "batch_size": 2},
    "prior": {"images": 2, "sampling": {"steps": 2}},
    "samples": {"every": 0, "images": 1, "prompts": ["a [V] {class}"], "sampling": {"steps": 2}},
}


def photos_of(subject: Subject, dataset: Path, root: Path) -> Path:
    """The folder of a subject's photos; OpenMoji's are drawn into the recipe's cache. Raises FemtoboothError."""
    if subject.source == "mascot":
        return locate.bundled_folder().with_name("mascot")
    if not subject.source.startswith("openmoji:"):
        folder = dataset / subject.source
        if not folder.is_dir():
            raise FemtoboothError(
                f"{folder}: no photos there", "give --dreambooth the folder `dataset` of github.com/google/dreambooth"
            )
        return folder
    icon = subject.source.removeprefix("openmoji:")
    folder = root / "openmoji" / icon
    sprite = None
    for number, place in enumerate(PHOTO_BACKDROPS):
        if (folder / f"{number}.png").is_file():
            continue
        if sprite is None:
            sprite = Image.fromarray(
                sprites.render(sprites.read_package(root / "packages", *OPENMOJI, "icons.json"), icon)
            )
        random = Random(f"openmoji/{icon}/{number}")
        image = backdrops.draw(random, place).image  # (128, 128)
        size = random.randint(72, 96)
        small = sprite.convert("RGBa").resize((size, size), Image.Resampling.LANCZOS).convert("RGBA")
        image.paste(small, (64 - size // 2 + random.randint(-12, 12), 118 - size), small)
        with atomic_file(folder / f"{number}.png") as temporary:
            image.save(temporary, format="PNG")
    return folder


class Identities:
    """The judge's embedding, turned so that pictures of one thing lie together wherever it stands."""

    def __init__(self, judge: Judge, count: int) -> None:
        self.judge, world = judge, judge.world
        made = []
        for index in range(count):
            one = scene(world, IDENTITY_SEED, index)
            if len({(item.concept, item.style) for item in one.items}) == 1 and not one.items[0].dyed:
                made.append(one)
        who = np.array([one.items[0].concept * len(world.styles) + one.items[0].style for one in made])
        seen = judge.look(np.stack([one.pixels for one in made]))[1].astype(np.float64)  # (n, D)
        numbers, rows = np.unique(who, return_inverse=True)
        counts = np.bincount(rows)
        means = np.stack([np.bincount(rows, column) / counts for column in seen.T], axis=1)  # (identities, D)
        apart = seen - means[rows]
        within = apart.T @ apart / max(len(seen) - len(numbers), 1)
        within += 0.05 * np.trace(within) / len(within) * np.eye(len(within))
        values, vectors = np.linalg.eigh(within)
        self.turn = vectors / np.sqrt(values)
        self.centre = means.mean(axis=0)
        self.sprites = self._unit(means[counts >= 2])

    def _unit(self, embeddings: np.ndarray) -> np.ndarray:
        turned = (embeddings - self.centre) @ self.turn
        return turned / np.linalg.norm(turned, axis=1, keepdims=True)

    def of(self, pictures: np.ndarray) -> np.ndarray:
        """Unit vectors (n, D) of uint8 pictures (n, 64, 64, 3)."""
        return self._unit(self.judge.look(pictures)[1].astype(np.float64))

    def recognised(self, vectors: np.ndarray, photos: dict[str, np.ndarray], name: str) -> float:
        """Share of `vectors` that are nearer to the mean of this subject's photos than to any other subject's or any
        sprite.
        """
        means = np.stack([one.mean(axis=0) / np.linalg.norm(one.mean(axis=0)) for one in photos.values()])
        nearest = (vectors @ np.concatenate([means, self.sprites]).T).argmax(axis=1)
        return float((nearest == list(photos).index(name)).mean())

    def ceiling(self, photos: dict[str, np.ndarray], name: str) -> float:
        """Share of a subject's photos that are recognised by the others."""
        own = photos[name]
        without = (photos | {name: np.delete(own, k, axis=0)} for k in range(len(own)))
        return float(np.mean([self.recognised(own[k : k + 1], rest, name) for k, rest in enumerate(without)]))


@contextmanager
def _nothing_cached() -> Iterator[None]:
    """Class images are drawn anew, so that a run's time is that of a first one."""
    before = os.environ.get("FEMTOBOOTH_CACHE")
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["FEMTOBOOTH_CACHE"] = temporary
        try:
            yield
        finally:
            os.environ.pop("FEMTOBOOTH_CACHE")
            if before is not None:
                os.environ["FEMTOBOOTH_CACHE"] = before


def _draw(model: Family, texts: list[str], sampling: SamplingSettings, what: str) -> np.ndarray:
    with progress_bar(what, len(texts) * sampling.steps) as bar:
        return sample(model, texts, list(range(5000, 5000 + len(texts))), sampling, batch_size=16, bar=bar)


def _class_accuracy(judge: Judge, pictures: np.ndarray, noun: str) -> float:
    """Share of pictures whose likeliest concept is one that the class noun means."""
    meant = [number for number, one in enumerate(judge.world.concepts) if noun in (one.name, one.kind, *one.also)]
    return float(np.isin(judge.best(judge.look(pictures)[0], "concept")[:, 0], meant).mean())


def evaluate(
    folder: Path, judge: Judge, out: Path, root: Path, dataset: Path, only: list[str], tried: Path | None, smoke: bool
) -> dict[str, Any]:
    """Personalize and judge the subjects; returns what dreambooth.json holds."""
    size = SIZES["smoke" if smoke else "full"]
    chosen = [one for one in SUBJECTS if one.name in only] if only else list(SUBJECTS[:1] if smoke else SUBJECTS)
    unknown = set(only) - {one.name for one in SUBJECTS}
    if unknown or not chosen:
        raise FemtoboothError(
            f"--subjects {','.join(only)}: no such subject", f"choose among {', '.join(one.name for one in SUBJECTS)}"
        )
    trying = config.read_yaml(tried) if tried else {}
    layers = [SMOKE if smoke else {}, trying]
    settings = {
        one.name: config.settle(
            PersonalizeSettings,
            *layers,
            {
                **{"base": str(folder), "runs": str(out / "runs"), "name": one.name, "overwrite": True},
                "photos": {"paths": [str(photos_of(one, dataset, root))], "class_noun": one.class_noun},
            },
        )
        for one in chosen
    }
    model = load(str(folder))
    sampling = SAMPLING.model_copy(update={"steps": size["steps"]})
    pictures = {
        name: np.stack([photo.pixels for photo in load_photos(one.photos, model.size)[0]])
        for name, one in settings.items()
    }
    identities = Identities(judge, size["scenes"])
    photos = {name: identities.of(some) for name, some in pictures.items()}
    facts: dict[str, Any] = {
        "model": {"source": str(folder), "hash": model.hash},
        "commit": commit(),
        "judge": judge.recognizer.hash,
    }
    facts |= {"recommended": model.card.get("personalize", {}), "tried": trying}
    facts |= {"sampling": sampling.model_dump(), "environment": environment(), "subjects": {}}
    rows = []
    for one in chosen:
        found, drawn = _one(one, model, settings[one.name], judge, identities, photos, sampling, size["each"])
        facts["subjects"][one.name] = found
        write_json(out / "dreambooth.json", facts)
        rows.append([*pictures[one.name][:2], *drawn])
        with atomic_file(out / "subjects.png") as temporary:
            heads = ["photos"] * 2 + list(NEW_BACKDROPS) + ["class before", "class after"]
            sheet(rows, [name.name for name in chosen[: len(rows)]], heads).save(temporary, format="PNG")
    return facts


def _one(
    subject: Subject,
    base: Family,
    settings: PersonalizeSettings,
    judge: Judge,
    identities: Identities,
    photos: dict[str, np.ndarray],
    sampling: SamplingSettings,
    each: int,
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Personalize and judge one subject: its figures, and a picture for each backdrop, of the class before and
    after.
    """
    noun, count = subject.class_noun, each * len(NEW_BACKDROPS)
    classes = [f"a {noun}"] * count
    before = _draw(base, classes, sampling, f"{subject.name}: class before")
    with _nothing_cached():
        run = personalize.run(settings)
    model = load(str(Path(settings.runs) / str(settings.name)))
    texts = [
        f"a {run.subject.token} {noun} {backdrops.PLACES[place][1][0]}" for place in NEW_BACKDROPS for _ in range(each)
    ]
    drawn = _draw(model, texts, sampling, f"{subject.name}: on new backdrops")
    after = _draw(model, classes, sampling, f"{subject.name}: class after")

    def recognised(some: np.ndarray) -> float:
        return round(identities.recognised(identities.of(some), photos, subject.name), 4)

    places = judge.best(judge.look(drawn)[0], "backdrop")[:, 0]
    wanted = [backdrops.names().index(place) for place in NEW_BACKDROPS for _ in range(each)]
    found = {
        "class_noun": noun,
        "tuned": subject.tuned,
        "pictures": count,
        "recognised": recognised(drawn),
        "backdrop": round(float((places == wanted).mean()), 4),
        "class_before": round(_class_accuracy(judge, before, noun), 4),
        "class_after": round(_class_accuracy(judge, after, noun), 4),
        "photos_recognised": round(identities.ceiling(photos, subject.name), 4),
        "class_taken_for_it_before": recognised(before),
        "class_taken_for_it_after": recognised(after),
        "seconds": run.seconds,
        "steps": run.steps,
    }
    return found, [*drawn[::each], before[0], after[0]]


def show(facts: dict[str, Any]) -> None:
    """The table for people."""
    shares = ["recognised", "backdrop", "class_before", "class_after", "photos_recognised"]
    shares += ["class_taken_for_it_before", "class_taken_for_it_after"]
    rows = [
        (
            f"{name}{'' if found['tuned'] else ' *'}",
            found["class_noun"],
            *(f"{found[key]:.0%}" for key in shares),
            f"{found['seconds']:.0f}",
        )
        for name, found in facts["subjects"].items()
    ]
    heads = [key.replace("_", " ") for key in shares]
    table(
        "DreamBooth (* the settings were not tuned on it)",
        ["subject", "class", *(f">{head}" for head in heads), ">seconds"],
        rows,
    )
    note("the class's pictures taken for the subject: lower is better")
