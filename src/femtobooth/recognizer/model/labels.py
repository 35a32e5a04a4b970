"""What the logits of a recognizer mean: names, synsets, and groups, each with a softmax over its labels or, where a
picture may have several of them, a sigmoid and a threshold for each label.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...core.errors import ModelError
from . import architectures


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
    free: tuple[str, ...] = ()
    """Groups of which a picture may have any number of labels: a sigmoid each, in place of the softmax."""
    thresholds: tuple[float, ...] = ()
    """Probability (n,) from which on a free label is said; 0.5 unless given, and without meaning in other groups."""
    scales: tuple[float, ...] = ()
    """Calibration (n,) of multi-label logits: probabilities are those of scale * logit + offset (Platt 1999); 1 unless
    given.
    """
    offsets: tuple[float, ...] = ()
    """The offsets (n,); 0 unless given."""

    def __post_init__(self) -> None:
        if not self.groups:
            object.__setattr__(self, "groups", {"class": (0, len(self.names))})
        ends = [0, *(end for _, end in self.groups.values())]
        following = all(start == before < end for (start, end), before in zip(self.groups.values(), ends, strict=False))
        if not self.names or not following or ends[-1] != len(self.names):
            raise ModelError(f"label groups {self.groups} do not cover {len(self.names)} labels one after the other")
        if self.synsets is not None and len(self.synsets) != len(self.names):
            raise ModelError(f"{len(self.synsets)} synsets for {len(self.names)} labels")
        if not {*self.free} <= {*self.groups}:
            raise ModelError(f"free groups {self.free} are none of {list(self.groups)}")
        for name in ("thresholds", "scales", "offsets"):
            given = getattr(self, name)
            if given and (len(given) != len(self.names) or not self.free or not np.isfinite(given).all()):
                raise ModelError(f"{len(given)} {name} for {len(self.names)} labels, or one that is no number")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def main(self) -> slice:
        """The logits of the first group, the one that `classify` shows."""
        return slice(*next(iter(self.groups.values())))

    def probabilities(self, logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
        """Compute the softmax of (B, n) logits over the temperature within each group: float64 (B, n); each group sums
        to 1, but for the sigmoids of free ones.

        Temperature scaling is that of Guo et al. 2017 (arXiv 1706.04599, eq. 9).
        """
        scaled = np.asarray(logits, np.float64) / temperature
        if self.scales or self.offsets:
            scaled = scaled * (self.scales or 1.0) + (self.offsets or 0.0)
        result = np.empty_like(scaled)
        for name, (start, end) in self.groups.items():
            part = scaled[:, start:end]
            if name in self.free:
                result[:, start:end] = 0.5 * (1 + np.tanh(part / 2))
                continue
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

    def decided(self, probabilities: np.ndarray) -> np.ndarray:
        """Tell which labels are said of each picture, bool (B, n): free ones from their threshold on, and the likeliest
        of every other group.
        """
        chosen = probabilities >= np.asarray(self.thresholds or 0.5)
        for name, (start, end) in self.groups.items():
            if name not in self.free:
                chosen[:, start:end] = np.arange(end - start) == probabilities[:, start:end].argmax(axis=1)[:, None]
        return chosen

    def answers(self, logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
        """Number the answers to (B, n) logits, int (B,), equal where they are: the likeliest label of the first group,
        or, of a multi-label model, the set of all that are `decided`.
        """
        if not self.free:
            return np.asarray(logits)[:, self.main].argmax(axis=1)
        chosen = np.packbits(self.decided(self.probabilities(logits, temperature)), axis=1)
        return np.array([hash(row.tobytes()) for row in chosen], np.int64)

    def said(self, probabilities: np.ndarray, k: int = 5) -> list[list[tuple[int, float]]]:
        """List what is said of each picture, as (index, probability), likeliest first: the `top` k, or, of a
        multi-label model, all labels that are `decided`, which may be none.
        """
        if not self.free:
            return [list(zip(*row, strict=True)) for row in zip(*self.top(probabilities, k), strict=True)]
        chosen = self.decided(probabilities)
        return [
            sorted(((i, float(row[i])) for i in np.flatnonzero(own).tolist()), key=lambda one: -one[1])
            for row, own in zip(probabilities, chosen, strict=True)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Give plain JSON values."""
        groups = {name: list(span) for name, span in self.groups.items()}
        value = {"names": list(self.names), "synsets": list(self.synsets) if self.synsets else None, "groups": groups}
        if not self.free:
            return value
        said = {name: "sigmoid" if name in self.free else "softmax" for name in self.groups}
        count = len(self.names)
        return value | {
            "activation": said,
            "thresholds": list(self.thresholds or (0.5,) * count),
            "scales": list(self.scales or (1.0,) * count),
            "offsets": list(self.offsets or (0.0,) * count),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Labels:
        """Read what `to_dict` gave. Raises ModelError."""
        try:
            names, synsets = value["names"], value.get("synsets")
            groups = {str(name): (int(start), int(end)) for name, (start, end) in (value.get("groups") or {}).items()}
            if not all(isinstance(name, str) for name in (*names, *(synsets or ()))) or isinstance(names, str):
                raise TypeError("a label is no text")
            activation = value.get("activation") or {}
            if not {*activation.values()} <= {"sigmoid", "softmax"}:
                raise ValueError(f"activation {activation}")
            free = tuple(str(name) for name, what in activation.items() if what == "sigmoid")
            numbers = {
                name: tuple(map(float, value.get(name) or ())) for name in ("thresholds", "scales", "offsets") if free
            }
            return cls(tuple(names), tuple(synsets) if synsets else None, groups, free, **numbers)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"labels are not described as femtobooth does ({error!r})") from None


def imagenet(subset: str = "imagenet-1k") -> Labels:
    """List ImageNet's classes in the usual order, as timm knows them: lemmas for names, WordNet ids for synsets."""
    info = architectures.of("timm.data.imagenet_info", "ImageNetInfo")(subset)
    return Labels(names=tuple(info.label_descriptions()), synsets=tuple(info.label_names()))
