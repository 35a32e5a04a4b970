"""Text states that are computed once: where no text encoder trains, each caption is encoded a single time, and the text
encoders leave the device, as the VAE does.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ..core.events import progress
from .families.family import Condition, Family

MOST = 512  # captions whose states are kept; at Stable Diffusion 1.5's size 120 MB


class TextStates:
    """The conditions of captions, by their tokens and by whether they were encoded under autocast.

    A caption that is not among them, which no training has, is encoded then; for that the text encoders come back.
    """

    def __init__(self, model: Family) -> None:
        self.model = model
        self._known: dict[tuple[bool, bytes], Condition] = {}

    @torch.no_grad()
    def keep(self, tokens: Tensor, passes: Callable[[], AbstractContextManager[object]] = nullcontext) -> None:
        """Encode each different row of `tokens` (N, ...) alone, as 32-bit and as `passes` has it where that differs."""
        for row in progress(list(torch.unique(tokens, dim=0)), "captions"):
            for context in (nullcontext, passes):
                with context():
                    self._take(row)

    def leave(self) -> None:
        """Move the text encoders to the CPU."""
        for text_encoder in self.model.text_encoders.values():
            text_encoder.to("cpu")

    def __call__(self, tokens: Tensor) -> Condition:
        """Give the conditions of tokens (B, ...), which are on the CPU."""
        return Condition.cat([self._take(row) for row in tokens])

    def _take(self, row: Tensor) -> Condition:
        key = (torch.is_autocast_enabled(self.model.device.type), row.numpy().tobytes())
        if key not in self._known:
            for text_encoder in self.model.text_encoders.values():
                text_encoder.to(self.model.device)
            with torch.no_grad():
                self._known[key] = self.model.condition(row[None])
        return self._known[key]


def can_be_kept(model: Family, tokens: Tensor) -> bool:
    """Tell whether no text encoder trains, and the different rows of `tokens` (N, ...) are few enough to be kept."""
    parameters = (one for text_encoder in model.text_encoders.values() for one in text_encoder.parameters())
    return not any(one.requires_grad for one in parameters) and len(torch.unique(tokens, dim=0)) <= MOST
