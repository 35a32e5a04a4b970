"""Class nouns that a page suggests."""

from __future__ import annotations

from collections.abc import Sequence

from .uploads import Upload

NOUNS = (
    *("backpack", "bag", "ball", "bear", "bird", "boot", "bottle", "bowl", "camera", "candle", "car", "cat", "chair"),
    *("clock", "cup", "dog", "doll", "duck", "figurine", "flower", "glasses", "guitar", "hat", "horse", "house"),
    *("jacket", "lamp", "mug", "plant", "rabbit", "robot", "shoe", "sneaker", "stuffed animal", "teapot", "teddy bear"),
    *("toy", "vase", "watch"),
)
EVERYDAY = ("dog", "cat", "teddy bear", "backpack", "mug", "toy", "clock", "shoe")
"""Nouns that are suggested where the names of the photos say none."""
MOST_SUGGESTED = 6


def suggested(photos: Sequence[Upload], known: Sequence[str]) -> list[str]:
    """Suggest nouns: those in the names of the photos, then everyday ones that the base knows."""
    names = " ".join(one.name.lower() for one in photos)
    return [*(noun for noun in known if noun in names), *(noun for noun in EVERYDAY if noun in known)][:MOST_SUGGESTED]
