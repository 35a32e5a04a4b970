"""Pixels of more than 8 bits, or such as PIL has no mode for: to 8-bit sRGB."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from . import colour
from .formats import Unusable

CHANNELS = {"L": 1, "RGB": 3, "CMYK": 4, "LAB": 3}


class Samples(NamedTuple):
    """Pixels of more than 8 bits, or such as PIL has no mode for."""

    values: np.ndarray
    """(H, W, S) as stored."""
    mode: str
    """PIL's name for the colours, which come before what else is stored: L, RGB, CMYK, LAB."""
    bits: int
    inverted: bool = False
    """Whether white is zero."""
    extra: tuple[int, ...] = ()
    """What the samples after the colours are, as TIFF has it: 1 premultiplied alpha, 2 alpha."""
    hole: tuple[int, ...] | None = None
    """The colour that is transparent."""
    whole: bool = False
    """Whether the format says that the highest number of these bits is white."""


def to_srgb(samples: Samples, profile: bytes | None, notes: list[str]) -> tuple[Image.Image, Image.Image | None]:
    """Convert samples of any type to sRGB, and their alpha, if there is any."""
    mode, count = samples.mode, CHANNELS[samples.mode]
    colours, others = samples.values[..., :count], samples.values[..., count:]
    bottom, top, finite = _range(colours, samples)
    if not finite:
        notes.append("infinite pixels made black")
    notes.append(f"grey {bottom:g}..{top:g} to 8 bits" if mode == "L" else f"{samples.bits} bits to 8")
    kind = next((number for number, kind in enumerate(samples.extra[: others.shape[2]]) if kind in (1, 2)), None)
    covered = None if kind is None else others[..., kind]
    premultiplied = kind is not None and samples.extra[kind] == 1

    def scaled(part: Any, rows: slice) -> np.ndarray:
        """Scale the colours of some rows to 0 to 1, float32 (h, W, C)."""
        part = (part.astype(np.float64 if part.dtype.itemsize > 2 else np.float32) - bottom) / max(top - bottom, 1e-30)
        if not finite:
            part = np.where(np.isfinite(part), part, 0)
        if premultiplied:
            part = part / np.maximum(_share(covered[rows], samples), 1e-6)[..., None]  # type: ignore[index]
        part = part.clip(0, 1).astype(np.float32)
        return 1 - part if samples.inverted else part

    if mode == "L" and colours.dtype.kind == "u" and colours.dtype.itemsize == 2 and not premultiplied:
        greys = np.arange(2**16)[:, None, None]  # each once
        table = colour.deep_to_srgb(lambda rows: scaled(greys[rows], rows), (2**16, 1), mode, profile, notes)
        opaque = Image.fromarray(np.asarray(table)[colours[..., 0], 0])
    else:
        opaque = colour.deep_to_srgb(lambda rows: scaled(colours[rows], rows), colours.shape[:2], mode, profile, notes)
    if samples.hole:
        covered = (colours != np.array(samples.hole, np.uint16)).any(axis=-1)
        return opaque, Image.fromarray(np.where(covered, 255, 0).astype(np.uint8))
    return opaque, None if covered is None else Image.fromarray(
        np.rint(255 * _share(covered, samples)).astype(np.uint8)
    )


def _share(values: np.ndarray, samples: Samples) -> np.ndarray:
    """Scale alpha to 0 to 1."""
    top = 1.0 if values.dtype.kind == "f" else 2.0 ** (samples.bits - (values.dtype.kind == "i")) - 1
    return np.nan_to_num(values.astype(np.float32) / np.float32(top)).clip(0, 1)


def _range(colours: np.ndarray, samples: Samples) -> tuple[float, float, bool]:
    """Find which numbers are black and white, and whether all are finite.

    Where the file does not say: the narrowest usual range that holds all values, or, of fractions, nine in ten of them:
    light that is brighter than white is cut.
    """
    if samples.whole:
        return 0.0, 255 * 2.0 ** (samples.bits - 8) if samples.mode == "LAB" else 2.0**samples.bits - 1, True
    finite: Any = np.isfinite(colours) if colours.dtype.kind == "f" else None
    good = colours if finite is None or finite.all() else colours[finite]
    if not good.size:
        raise Unusable("no finite pixel")
    low, high, fraction = float(good.min()), float(good.max()), colours.dtype.kind == "f"
    usual = (1.0, 255.0) if fraction else (255.0, 65535.0, *[2.0**32 - 1] * (high > 2**31))
    top = next((value for value in usual if low >= 0 and high <= value), None)
    if fraction and top != 1 and ((good >= 0) & (good <= 1)).mean() > 0.9 and (good != np.rint(good)).any():
        low, top = 0.0, 1.0
    bottom, top = (low, high) if top is None else (0.0, top)
    return bottom, top, finite is None or bool(finite.all())
