"""What the functions of `femtobooth.api` return."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Guess:
    """One label, and how sure the recognizer is of it."""

    label: str
    confidence: float
    """Calibrated probability, 0 to 1."""
    synset: str | None = None
    """Its WordNet number, of ImageNet's classes."""


@dataclass(frozen=True)
class Classification:
    """What one picture shows, or why it could not be read."""

    path: str | None
    """Its file; None for a picture in memory."""
    top: tuple[Guess, ...]
    """The likeliest labels, likeliest first, or, of a multi-label model, all that are said of it; empty where the
    picture could not be read, or has none of them.
    """
    rejected: bool
    """Whether the picture is out-of-distribution: of none of the known classes."""
    error: str | None = None
    """Why the picture could not be read."""

    @property
    def label(self) -> str | None:
        """The likeliest label; None where the picture could not be read."""
        return self.top[0].label if self.top else None

    @property
    def confidence(self) -> float | None:
        """Calibrated probability of the likeliest label, 0 to 1."""
        return self.top[0].confidence if self.top else None


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of the pictures that could be read, and why the others could not."""

    paths: tuple[str, ...]
    vectors: np.ndarray
    """float32 (n, D), a row for each of `paths`."""
    errors: dict[str, str]
    """Files that could not be read, and why."""


@dataclass(frozen=True)
class Export:
    """A recognizer for another runtime, and how it compares with the original."""

    folder: Path
    format: str
    precision: str
    status: str
    """executed, or "converted only" where nothing here can run it."""
    report: dict[str, Any] = field(repr=False)
    """What parity.json holds: agreement, accuracy, logit error, sizes, speed."""
