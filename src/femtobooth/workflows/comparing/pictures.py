"""What compare's measurements look like: a model's own, the recognizers' on the same pictures, the generators'
drawings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...core import metrics
from ...core.metrics import Interval
from ...core.names import stored
from ...recognizer.evaluation import short_names
from . import figures
from .candidates import Candidate
from .figures import Difference, How

BINS = 15  # of confidence, as in evaluate-classifier


@dataclass(frozen=True)
class Measured:
    """One model and what was measured of it."""

    candidate: Candidate
    facts: Mapping[str, Any]
    """What its process said of it."""
    memory: Mapping[str, Any]
    """Most bytes held: `main`, and `device` on an accelerator."""
    seconds: Mapping[int, Sequence[float]]
    """By batch size, one value a round; the rounds of all models of its task belong together."""
    counted: How
    remembered: How
    timed: How

    @property
    def whole_memory(self) -> int | None:
        """None where another process than its own holds the model."""
        return None if self.facts["engine"] in ("litert", "coreml", "executorch", "ncnn") else int(self.memory["main"])


@dataclass(frozen=True)
class Pictures:
    """Answers of several recognizers to the same N pictures."""

    paths: Sequence[Path]
    labels: Sequence[str]
    """As the data name them."""
    truth: Mapping[str, np.ndarray]
    """By model hash: true class index (N,) among that model's classes, -1 for classes that it does not know."""
    logits: Mapping[str, np.ndarray]
    """By model hash: (N, C); of models that know none of the classes there is nothing."""
    how: Mapping[str, How]
    models: Sequence[Measured]
    names: dict[str, list[str]] = field(init=False, default_factory=dict)
    """By model hash: short names of its classes."""

    def __post_init__(self) -> None:
        self.names.update(
            {one.candidate.hash: short_names(one.facts["names"], one.facts["synsets"]) for one in self.models}
        )

    @cached_property
    def predicted(self) -> dict[str, np.ndarray]:
        """By model hash: class index (N,)."""
        return {own: values.argmax(axis=1) for own, values in self.logits.items()}

    @cached_property
    def confidence(self) -> dict[str, np.ndarray]:
        """By model hash: probability of the predicted class (N,), with the model's own temperature."""
        temperatures = {one.candidate.hash: one.facts["temperature"] for one in self.models}
        return {own: metrics.softmax(values, temperatures[own]).max(axis=1) for own, values in self.logits.items()}

    def right(self, own: str) -> np.ndarray:
        """Tell whether a model is right (N,); False where it does not know the class."""
        return np.asarray(self.predicted[own] == self.truth[own])

    def accuracy(self, own: str) -> tuple[Interval, int]:
        """Compute the top-1 over the pictures whose class the model knows, and how many these are."""
        known = self.truth[own] >= 0
        return metrics.wilson(int(self.right(own)[known].sum()), int(known.sum())), int(known.sum())

    def calibration(self, own: str) -> Interval:
        """Compute the expected calibration error over the same pictures."""
        known = self.truth[own] >= 0
        confidence, right = self.confidence[own][known], self.right(own)[known]
        return metrics.bootstrap(lambda c, r: metrics.calibration_error(c, r, BINS), confidence, right, biased=True)

    def differences(self, first: Measured, second: Measured) -> list[Difference]:
        """Compare two recognizers on the pictures whose class both know; nothing where there are none."""
        one, two = first.candidate.hash, second.candidate.hash
        if one not in self.logits or two not in self.logits:
            return []
        both = (self.truth[one] >= 0) & (self.truth[two] >= 0)
        if not both.any():
            return []
        return [
            figures.accuracy("accuracy", self.right(one)[both], self.right(two)[both]),
            figures.apart(
                "calibration error",
                self.calibration(one),
                self.calibration(two),
                higher=False,
                scale=100,
                unit=" points",
            ),
        ]

    def disagreements(self, most: int) -> list[dict[str, Any]]:
        """Find pictures that the models name differently: first those where some are right and some wrong, the
        surest first.
        """
        asked = list(self.logits)
        if len(asked) < 2:
            return []
        called = {one.candidate.hash: one.candidate.name for one in self.models}
        rows = []
        for index, path in enumerate(self.paths):
            said = {own: self.names[own][int(self.predicted[own][index])] for own in asked}
            if len({name.casefold() for name in said.values()}) < 2:
                continue
            right = {own: bool(self.right(own)[index]) if self.truth[own][index] >= 0 else None for own in asked}
            settled = True in right.values() and False in right.values()
            surest = max(float(self.confidence[own][index]) for own in asked)
            row = {
                "picture": stored(path),
                "label": self._true_name(index),
                "answers": [
                    {
                        "model": called[own],
                        "name": said[own],
                        "confidence": float(self.confidence[own][index]),
                        "right": right[own],
                    }
                    for own in asked
                ],
                "index": index,
            }
            rows.append((not settled, -surest, index, row))
        return [row for *_, row in sorted(rows, key=lambda entry: entry[:3])][:most]

    def disagreeing(self) -> int:
        """Say how many pictures the models name differently."""
        return len(self.disagreements(len(self.paths)))

    def _true_name(self, index: int) -> str:
        """Return the first model's word for the true class, else that of the data."""
        for own, truth in self.truth.items():
            if truth[index] >= 0:
                return self.names[own][int(truth[index])]
        return self.labels[index]


@dataclass(frozen=True)
class Drawings:
    """The same prompts and seeds by several generators."""

    models: Sequence[Measured]
    prompts: Sequence[str]
    """[V] stands for the subject of models that have one."""
    seeds: Sequence[int]
    drawn: Mapping[str, Sequence[bytes]]
    """By model hash: a picture (PNG) for each prompt and seed, prompts outside."""
    asked: Mapping[str, Sequence[str]]
    """By model hash: the prompts as that model read them."""
    sampling: Mapping[str, Any]
