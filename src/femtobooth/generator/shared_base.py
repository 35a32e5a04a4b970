"""One base in memory for many adapters, of which one is merged into it at a time.

The layers that an adapter changes are kept as the base has them, and every merge begins from these: whatever was merged
before, the weights are those that `load` makes of the run, bit for bit. An adapter that waits is its own small tensors.
Words that trained beside it are put into tables of their own, for its turn, and the base's stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..core import machine
from ..core.errors import ModelError
from ..core.machine import FloatPrecision
from . import adapters
from .adapted_folder import Files, Learned
from .adapter_base import Base
from .families.family import Family
from .load import load
from .locate import locate
from .tokens import TokenEmbedding


@dataclass(frozen=True, eq=False)
class Fitted:
    """What a run has learned, read for a base."""

    learned: Learned
    model: Family
    """The base, called as the run is; it draws as the run does while that is merged."""


class SharedBase:
    """A base, for the adapters of all runs that have it. Not for several threads at a time."""

    def __init__(self, base: Base, precision: FloatPrecision = "fp32") -> None:
        """Load it, to compute in this number format. Raises ModelError."""
        self.base = base.load(base.name, load)
        self._layers = dict(adapters.layers(self.base))
        self._own: dict[str, Tensor] = {}
        """The base's weights of layers that an adapter has changed so far, in main memory and 32 bits."""
        if precision != "fp32":  # an adapter is merged in 32 bits, and rounded once
            self._own = {name: _copied(layer.weight) for name, layer in self._layers.items()}
            for part in self.base.trainable.values():
                part.to(dtype=machine.dtype(precision))
        self._merged: Fitted | None = None
        self._model = self.base

    def read(self, reference: str) -> Fitted:
        """Read what a run has learned. Raises ModelError for one of another base, or damaged."""
        files = Files.of(Path(locate(reference)))
        if files.base_hash != self.base.hash:
            raise ModelError(f"{reference}: was made for another base than {self.base.source}", "serve it apart")
        return Fitted(files.read(self.base), files.named(self.base, reference))

    @torch.no_grad()
    def merge(self, fitted: Fitted) -> Family:
        """Make the base draw as one run does and no other; the model that is given is for its turn.

        Raises ModelError where an adapter or a word is damaged.
        """
        if self._merged is not fitted:
            self._restore()
            adapter = fitted.learned.adapter
            for name in adapter.modules:
                if name not in self._own:
                    self._own[name] = _copied(self._layers[name].weight)
            self._merged = fitted
            try:
                for name, weight in adapters.changed(adapter, self._own):
                    self._layers[name].weight.copy_(weight)
                self._model = TokenEmbedding.beside(fitted.model, fitted.learned.words)
            except ModelError:
                self._restore()
                raise
        return self._model

    def _restore(self) -> None:
        for name in self._merged.learned.adapter.modules if self._merged else ():
            self._layers[name].weight.copy_(self._own[name])
        self._merged, self._model = None, self.base


def _copied(weight: Tensor) -> Tensor:
    return weight.detach().to("cpu", copy=True)


class Unshared:
    """The same for whole models, which share nothing."""

    def read(self, reference: str) -> Family:
        """Load a model. Raises ModelError."""
        return load(reference)

    def merge(self, model: Family) -> Family:
        """Give it as it is."""
        return model
