"""What the logits of a recognizer mean: names, synsets, and groups that each have a softmax of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...core.errors import ModelError


@dataclass(frozen=True)
class Labels:
    """Names of n logits, in order."""

    names: tuple[str, ...]
    """For people."""
    synsets: tuple[str, ...] | None = None
    """WordNet ids such as n01440764, where the classes are WordNet's."""
    groups: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Group name to [start, end) of its logits; groups follow each other without gaps.

    One group `class` unless given.
    """

    def __post_init__(self) -> None:
        if not self.groups:
            object.__setattr__(self, "groups", {"class": (0, len(self.names))})
        ends = [0, *(end for _, end in self.groups.values())]
        following = all(start == before < end for (start, end), before in zip(self.groups.values(), ends, strict=False))
        if not self.names or not following or ends[-1] != len(self.names):
            raise ModelError(f"label groups {self.groups} do not cover {len(self.names)} labels one after the other")
        if self.synsets is not None and len(self.synsets) != len(self.names):
            raise ModelError(f"{len(self.synsets)} synsets for {len(self.names)} labels")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def main(self) -> slice:
        """The logits of the first group, the one that `classify` shows."""
        return slice(*next(iter(self.groups.values())))

    def probabilities(self, logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
        """Compute the softmax of (B, n) logits over the temperature within each group: float64 (B, n); each group sums
        to 1.

        Temperature scaling is that of Guo et al. 2017 (arXiv 1706.04599, eq. 9).
        """
        scaled = np.asarray(logits, np.float64) / temperature
        result = np.empty_like(scaled)
        for start, end in self.groups.values():
            part = scaled[:, start:end]
            powers = np.exp(part - part.max(axis=1, keepdims=True))
            result[:, start:end] = powers / powers.sum(axis=1, keepdims=True)
        return result

    def top(self, probabilities: np.ndarray, k: int = 5, group: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Find the k likeliest of a group (the first one unless named): indices and probabilities, both (B, k),
        likeliest first.

        Indices count from the first of all logits; of equal ones the lower comes first; k is cut to the group's size.
        """
        where = self.main if group is None else slice(*self.groups[group])
        part = probabilities[:, where]
        order = np.argsort(-part, axis=1, kind="stable")[:, :k]
        return order + where.start, np.take_along_axis(part, order, axis=1)

    def to_dict(self) -> dict[str, Any]:
        """Give plain JSON values."""
        groups = {name: list(span) for name, span in self.groups.items()}
        return {"names": list(self.names), "synsets": list(self.synsets) if self.synsets else None, "groups": groups}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Labels:
        """Read what `to_dict` gave. Raises ModelError."""
        try:
            names, synsets = value["names"], value.get("synsets")
            groups = {str(name): (int(start), int(end)) for name, (start, end) in (value.get("groups") or {}).items()}
            if not all(isinstance(name, str) for name in (*names, *(synsets or ()))) or isinstance(names, str):
                raise TypeError("a label is no text")
            return cls(tuple(names), tuple(synsets) if synsets else None, groups)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"labels are not described as femtobooth does ({error!r})") from None


def imagenet(subset: str = "imagenet-1k") -> Labels:
    """List ImageNet's classes in the usual order, as timm knows them: lemmas for names, WordNet ids for synsets."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo(subset)
    return Labels(names=tuple(info.label_descriptions()), synsets=tuple(info.label_names()))
