"""How a picture was framed before a model sees it: its size before, and where in it the crop lies.

Stable Diffusion XL is told (arXiv 2307.01952, sections 2.2 and 2.3). A picture is scaled first and cropped then, so
that crops are measured in pixels of the scaled picture.
"""

from __future__ import annotations

from typing import NamedTuple, Self

from .crops import Placement

Numbers = tuple[int, int, int, int, int, int]


class Framing(NamedTuple):
    """What was a picture's size, and how many pixels of it, once scaled, were cut away above and on both sides."""

    height: int
    width: int
    top: int = 0
    left: int = 0
    right: int = 0

    @classmethod
    def of(cls, size: tuple[int, int], place: Placement) -> Self:
        """Say how a picture of `size` (width, height) was placed."""
        width, height = size
        if place.padded:  # all of it shows
            return cls(height, width)
        from_left, from_top = place.cut[:2] if place.cut else (0, 0)
        left, top, right, bottom = place.box
        across, down = place.shape[0] / (right - left), place.shape[1] / (bottom - top)
        return cls(
            height,
            width,
            round((from_top + top) * down),
            round((from_left + left) * across),
            round((width - from_left - right) * across),
        )

    def mirrored(self) -> Self:
        """Say how the mirrored picture was framed, whose crop lies as far from the other side."""
        return self._replace(left=self.right, right=self.left)

    def numbers(self, height: int, width: int) -> Numbers:
        """Give what the model is told of a picture of this size now: original height and width, top and left of the
        crop, height and width.
        """
        return self.height, self.width, self.top, self.left, height, width

    def text(self) -> str:
        """Write it as `of_text` reads it."""
        return " ".join(map(str, self))

    @classmethod
    def of_text(cls, text: str | None) -> Self | None:
        """Read what `text` wrote; None where there is nothing or something else."""
        try:
            found = cls(*map(int, (text or "").split()))
        except (TypeError, ValueError):
            return None
        return found if min(found) >= 0 else None
