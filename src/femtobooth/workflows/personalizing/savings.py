"""What a training can do without, from what leaves the result as it is to what changes what is learned; and the
cheapest sets of it that fit into a memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from ...core.config import Settings
from ...core.events import progress_bar
from ...core.fields import settings as fields_of
from ...generator.families.family import TILE
from ...generator.settings import PersonalizeSettings
from .planning import Planner, Where, draws_class_images

SHOWN = 3  # sets
ROUNDED = "slower; extra 8bit"


@dataclass(frozen=True, eq=False)
class Saving:
    """Something to do without."""

    changes: Mapping[str, Any]
    """Settings by dotted path."""
    price: int
    """1 leaves the result as it is, 2 rounds otherwise, 3 and more learn in another way; sets add up."""
    told: str
    """What it costs."""
    of: str
    """What it is about: one of each kind is enough."""


def possible(settings: PersonalizeSettings, where: Where, size: int = 0) -> list[Saving]:
    """List the savings that there are beside these settings, for pictures of `size` pixels."""
    training, train, prior = settings.training, settings.train.parts, settings.prior
    found = []

    def add(of: str, price: int, told: str, wanted: bool, **changes: Any) -> None:
        if wanted:
            found.append(Saving({path.replace("__", "."): value for path, value in changes.items()}, price, told, of))

    add("samples", 1, "slower samples, the same", settings.samples.batch_size > 1, samples__batch_size=1)
    drawn = prior.weight > 0 and prior.target != "photos" and prior.sampling_batch > 1
    add("class images", 1, "slower class images, the same", drawn, prior__sampling_batch=1)
    add(
        "activations",
        1,
        "the same result, about 30 % slower",
        not training.gradient_checkpointing,
        training__gradient_checkpointing=True,
    )
    whole = {
        f"{path}__sampling__tiles": True
        for path in ("samples", *(["prior"] if draws_class_images(settings) else []))
        if size > TILE and not getattr(settings, path).sampling.tiles
    }
    add("decoding", 2, f"samples are decoded in tiles of {TILE} px, slightly other colours", bool(whole), **whole)
    several = training.batch_size * training.accumulate
    batch: dict[str, Any] = {"training__batch_size": 1, "training__accumulate": several}
    if prior.weight and prior.batch_size:
        batch["prior__batch_size"] = -(-prior.batch_size // training.batch_size)
    add("batch", 1, "as many photos a step, slower", training.batch_size > 1, **batch)
    add(
        "precision",
        2,
        "rounds to 8 bits in the passes",
        where == "accelerator" and training.precision == "fp32",
        training__precision="bf16",
    )
    optimizer8 = where == "accelerator" and training.optimizer == "adamw"
    add("optimizer", 2, "rounds the optimizer's state; NVIDIA only", optimizer8, training__optimizer="adamw8bit")
    add("optimizer", 3, "another optimizer", training.optimizer != "adafactor", training__optimizer="adafactor")
    add("average", 3, "no moving average", training.ema > 0, training__ema=0.0)
    teacher = prior.target == "base" and prior.weight > 0 and settings.loss.background != "class"
    add("teacher", 3, "class images teach the true noise", teacher, prior__target="noise")
    tunes = bool({"unet", "attention", "text_encoder"} & set(train))
    adapter = {"train__parts": ["lora"], "train__frozen_precision": "bf16"}
    add("train", 3, "trains an adapter beside a base of 16 bits", tunes, **adapter)
    eight = {"train__parts": ["lora"], "train__frozen_precision": "int8"}
    add("train", 4, f"trains an adapter beside a base of 8 bits ({ROUNDED})", tunes, **eight)
    held = settings.train.held
    add("base", 2, "rounds the base to 16 bits", "lora" in train and held == "fp32", train__frozen_precision="bf16")
    more = "lora" in train and held not in ("int8", "nf4")
    add("base", 3, f"rounds the base to 8 bits ({ROUNDED})", more, train__frozen_precision="int8")
    add(
        "base",
        4,
        f"rounds the base to 4 bits ({ROUNDED})",
        "lora" in train and held != "nf4",
        train__frozen_precision="nf4",
    )
    add("train", 4, "trains no text encoder", {"unet", "text_encoder"} <= set(train), train__parts=["unet"])
    add("train", 5, "trains attention layers alone", "unet" in train, train__parts=["attention"])
    return sorted(found, key=lambda saving: saving.price)


@dataclass(frozen=True)
class Choice:
    """A set of savings that fits."""

    savings: tuple[Saving, ...]
    peak: int
    """Bytes of the phase that then holds most."""

    @property
    def flags(self) -> list[str]:
        """What to add to the command line."""
        return [
            word for saving in self.savings for path, value in saving.changes.items() for word in _flag(path, value)
        ]

    @property
    def price(self) -> int:
        """What it costs in all."""
        return sum(saving.price for saving in self.savings)


def cheapest(
    planner: Planner, settings: PersonalizeSettings, memory: int, where: Where, shown: int = SHOWN
) -> list[Choice]:
    """Find the cheapest sets of savings with which a run fits into `memory` bytes, none of which holds another one."""
    found: list[Choice] = []
    with progress_bar("savings", None) as bar:
        for chosen in _sets(possible(settings, where, planner.size)):
            if any(set(one.savings) <= set(chosen) for one in found):
                continue
            changed = with_changes(settings, *(saving.changes for saving in chosen))
            if planner.least(changed, where) > memory:
                continue
            bar.advance()
            peak = int(getattr(planner.plan(changed).peak(where), where))
            if peak <= memory:
                found.append(Choice(chosen, peak))
            if len(found) == shown:
                break
    return found


def smallest(planner: Planner, settings: PersonalizeSettings, where: Where) -> Choice:
    """Take every saving there is, the one of each kind that saves most."""
    chosen: dict[str, Saving] = {}
    for saving in possible(settings, where, planner.size):

        def least(one: Saving) -> int:
            return planner.least(with_changes(settings, one.changes), where)

        if saving.of not in chosen or least(saving) < least(chosen[saving.of]):
            chosen[saving.of] = saving
    savings = tuple(chosen.values())
    changed = with_changes(settings, *(saving.changes for saving in savings))
    return Choice(savings, int(getattr(planner.plan(changed).peak(where), where)))


def _sets(savings: list[Saving]) -> Iterator[tuple[Saving, ...]]:
    """List the sets with at most one saving of each kind, the cheapest first."""
    every = (
        chosen
        for count in range(len({saving.of for saving in savings}) + 1)
        for chosen in combinations(savings, count)
        if len({saving.of for saving in chosen}) == count
    )
    yield from sorted(every, key=lambda chosen: (sum(saving.price for saving in chosen), len(chosen)))


def with_changes(settings: PersonalizeSettings, *changes: Mapping[str, Any]) -> PersonalizeSettings:
    """Copy settings with others in place of some, by dotted path."""
    changed = settings.model_copy(deep=True)
    for path, value in ((path, value) for each in changes for path, value in each.items()):
        *groups, name = path.split(".")
        inside: Settings = changed
        for group in groups:
            inside = getattr(inside, group)
        inside.__dict__[name] = value
    return changed


def _flag(path: str, value: Any) -> list[str]:
    """Say what the command line calls a setting, and its value."""
    text = ",".join(value) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else str(value)
    known = next(one for one in fields_of(PersonalizeSettings) if one.path == path)
    if not known.flag:
        return ["--set", f"{path}={text}"]
    return [known.flag] if value is True else [known.flag, text]
