"""A recognizer that is ready to run, whatever runs it: pixels in, arrays out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .artifact import Description
from .labels import Labels
from .preprocess import Preprocess

Outputs = dict[str, np.ndarray]
"""float32 arrays by name: `logits` (B, n), `embedding` (B, D) where the model has it, and what else was asked for."""


@dataclass(frozen=True)
class Engine:
    """A recognizer that is ready to run; `run` may be called from several threads at once."""

    name: str
    """What runs it: torch, ort, openvino, torchscript, pt2, litert, coreml or executorch."""
    description: Description
    run: Callable[[np.ndarray], Outputs]
    """uint8 (B, H, W, 3) pixels to outputs."""

    @property
    def preprocess(self) -> Preprocess:
        return self.description.preprocess

    @property
    def labels(self) -> Labels:
        return self.description.labels

    @property
    def temperature(self) -> float:
        return self.description.temperature

    @property
    def rejection(self) -> dict[str, Any] | None:
        return self.description.rejection

    @property
    def hash(self) -> str:
        return self.description.hash
