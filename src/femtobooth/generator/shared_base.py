"""One base in memory for many adapters, of which one is merged into it at a time.

The layers that an adapter changes are kept as the base has them, and every merge begins from these: whatever was merged
before, the weights are those that `load` makes of the run, bit for bit. An adapter that waits is its own small tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..core.errors import ModelError
from . import adapters
from .adapted_folder import Files, base_of
from .adapters import Adapter
from .families.family import Family
from .load import load
from .locate import locate


@dataclass(frozen=True, eq=False)
class Fitted:
    """An adapter that was read for a base."""

    adapter: Adapter
    model: Family
    """The base, called as the run is; it draws as the run does while the adapter is merged."""


class SharedBase:
    """The base of a run, for the adapters of all runs that have the same. Not for several threads at a time."""

    def __init__(self, reference: str) -> None:
        """Load the base that the adapter of a run belongs to. Raises ModelError."""
        self.base = base_of(Files.of(locate(reference)), reference, load, None)
        self._layers = dict(adapters.layers(self.base))
        self._own: dict[str, Tensor] = {}
        """The base's weights of all layers that an adapter has changed so far, in main memory."""
        self._merged: Fitted | None = None

    def read(self, reference: str) -> Fitted:
        """Read the adapter of a run. Raises ModelError for one of another base, or with words of its own."""
        files = Files.of(Path(locate(reference)))
        if files.base_hash != self.base.hash:
            raise ModelError(f"{reference}: was made for another base than {self.base.source}", "serve it apart")
        if files.words:
            raise ModelError(
                f"{reference}: words trained beside its adapter, which are no part of a base that several share",
                "generate with it, or serve it by `femtobooth studio`",
            )
        return Fitted(files.read(self.base).adapter, files.named(self.base, reference))

    @torch.no_grad()
    def merge(self, fitted: Fitted) -> Family:
        """Make the base draw with one adapter and no other. Raises ModelError where that is damaged."""
        if self._merged is not fitted:
            self._restore()
            for name in fitted.adapter.modules:
                if name not in self._own:
                    self._own[name] = self._layers[name].weight.detach().to("cpu", copy=True)
            self._merged = fitted
            try:
                for name, weight in adapters.changed(fitted.adapter, self._own):
                    self._layers[name].weight.copy_(weight)
            except ModelError:
                self._restore()
                raise
        return fitted.model

    def _restore(self) -> None:
        for name in self._merged.adapter.modules if self._merged else ():
            self._layers[name].weight.copy_(self._own[name])
        self._merged = None
