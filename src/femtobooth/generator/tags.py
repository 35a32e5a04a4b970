"""Tag shuffle: a caption's comma-separated tags in many orders, so that no tag is learned by its place.

The orders are made before training, and each step picks one as it picks one of several captions: no step tokenizes,
and resuming sees the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..training.randomness import generator
from .captions import refitted
from .prompts import Reader

ORDERS = 100  # of each caption; a photo is seldom seen more often in one training


def tags(caption: str) -> list[str]:
    """Split a caption at its commas."""
    return [tag for part in caption.split(",") if (tag := part.strip())]


def shuffled(
    captions: Sequence[str], keep: int, seed: int, photo: int, reader: Reader, token: str, noun: str
) -> list[str]:
    """Give each of a photo's captions (templates) in `ORDERS` orders, the first as it is written; the first `keep` tags
    keep their place.

    `photo` is its number, so that every photo has orders of its own. Captions of which nothing moves come back as they
    are. Where an order would push the identifier out of what the text encoder reads, what is before it is shortened.
    """
    if all(len(tags(caption)) < keep + 2 for caption in captions):
        return list(captions)
    orders = list(captions)
    for turn in range(1, ORDERS):
        for number, caption in enumerate(captions):
            head, tail = tags(caption)[:keep], tags(caption)[keep:]
            random = generator(seed, "tags", photo, number, turn)
            moved = [tail[index] for index in torch.randperm(len(tail), generator=random).tolist()]
            orders.append(refitted(", ".join([*head, *moved]), reader, token, noun))
    return orders
