"""Offer three ways to teach a subject: how long it takes against how well it comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.config import merge, nested
from ..core.fields import in_force
from ..generator.settings import PersonalizeSettings

LEAST_STEPS = 30


@dataclass(frozen=True)
class Preset:
    """Hold one way: what people read of it, and its settings, which lie under those that they choose themselves."""

    name: str
    title: str
    about: str
    steps: int
    settings: Mapping[str, Any]


def presets(recommended: Mapping[str, Any]) -> dict[str, Preset]:
    """Make the three ways of a base, from what its card recommends."""
    usual = int(in_force(PersonalizeSettings, "training.steps", recommended))
    pictures = int(in_force(PersonalizeSettings, "prior.images", recommended))
    quick, best = max(LEAST_STEPS, usual // 4), usual * 2

    def samples(steps: int) -> dict[str, int]:
        return {"every": max(10, steps // 6)}

    return {
        one.name: one
        for one in (
            Preset(
                "quick",
                "Quick",
                "a first look, often good enough to see if the photos will do",
                quick,
                {
                    "training": {"steps": quick},
                    "prior": {"images": max(8, pictures // 4)},
                    "samples": samples(quick),
                },
            ),
            Preset("balanced", "Balanced", "what this base learns well with", usual, {"samples": samples(usual)}),
            Preset(
                "best",
                "Best",
                "learns twice as long, looks at each stage and keeps the best one",
                best,
                {"training": {"steps": best}, "validation": {"select": "best"}, "samples": samples(best)},
            ),
        )
    }


def without_preset(settings: Mapping[str, Any], base: str) -> tuple[str, dict[str, Any]]:
    """Find the preset that settings were made from: its name, and what was chosen besides."""
    given = _flat(settings)
    ways = {name: _flat(one.settings) for name, one in presets(PersonalizeSettings.recommended({"base": base})).items()}

    def agrees(name: str) -> int:
        return sum(1 if given.get(path) == value else -1 for path, value in ways[name].items())

    found = max(ways, key=agrees)
    rest = [nested(path, value) for path, value in given.items() if ways[found].get(path) != value]
    return found, merge({}, *rest)


def _flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Give the settings by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {before + name: value}
    return found
