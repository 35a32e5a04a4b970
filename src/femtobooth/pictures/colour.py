"""What the numbers of a picture mean as colours, and from there to sRGB: ICC profiles, and what files say in place of
one.

A profile is judged by what it does, never by its name: it is applied unless it moves no colour.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}  # mode -> ICC's name
LARGEST_PROFILE = 8 * 2**20  # bytes; those of printing presses hold 3 MB at most
NAME = b"colours of the file"  # of profiles that are made here
UNMOVED = 2  # levels of 255: a profile that moves no colour further is sRGB's
ROWS = 2**20  # pixels that are converted at a time from more than 8 bits

SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), (0.3127, 0.3290))  # x, y of red, green, blue, white
ADOBE_RGB = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), (0.3127, 0.3290))
_P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
_PRIMARIES = {  # of ITU-T H.273, "colour primaries"
    1: SRGB,
    4: ((0.67, 0.33), (0.21, 0.71), (0.14, 0.08), (0.310, 0.316)),
    5: ((0.64, 0.33), (0.29, 0.60), (0.15, 0.06), (0.3127, 0.3290)),
    6: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), (0.3127, 0.3290)),
    7: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), (0.3127, 0.3290)),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), (0.3127, 0.3290)),
    11: (*_P3, (0.314, 0.351)),
    12: (*_P3, (0.3127, 0.3290)),
}
_STEPS = np.linspace(0, 1, 4096)
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_D50 = np.array([0.9642, 1.0, 0.8249])

Points = Sequence[tuple[float, float]]
Apply = Callable[[Image.Image], Image.Image]


def to_srgb(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    """Convert a picture of mode L, RGB, CMYK or LAB of 8 bits to RGB: by its profile if that is usable, else by PIL's
    plain formulas.
    """
    apply, words = _conversion(image.mode, profile)
    notes.extend(words)
    return apply(image)


def deep_to_srgb(
    values: Callable[[slice], np.ndarray], size: tuple[int, int], mode: str, profile: bytes | None, notes: list[str]
) -> Image.Image:
    """Convert a picture of more than 8 bits as `to_srgb` does: `values` gives some of `size` (height, width) rows,
    float (h, W, C), 0 to 1.

    The colour engine takes 8 bits, so each colour lies between its C + 1 nearest ones that have 8, and gets the mean of
    what they become, weighted by nearness (tetrahedral interpolation; Kasson et al. 1995).
    """
    apply, words = _conversion(mode, profile)
    notes.extend(words)
    height, width = size
    found = np.empty((height, width, 3), np.uint8)
    rows = max(1, ROWS // width)
    for top in range(0, height, rows):
        scaled = values(slice(top, top + rows)) * np.float32(255)  # (h, w, C)
        channels = scaled.shape[-1]
        if apply is _plain and mode in ("L", "RGB"):
            found[top : top + rows] = np.rint(scaled)
            continue
        low = np.floor(scaled).clip(0, 254)
        part = scaled - low
        order = np.argsort(-part, axis=-1)
        falling = np.take_along_axis(part, order, axis=-1)
        weights = -np.diff(falling, axis=-1, prepend=1, append=0)  # (h, w, C + 1), of sum 1
        corner, mixed = low.astype(np.uint8), np.zeros((*low.shape[:2], 3), np.float32)
        for step in range(channels + 1):
            if step:
                axis = order[..., step - 1 : step]
                np.put_along_axis(corner, axis, np.take_along_axis(corner, axis, axis=-1) + 1, axis=-1)
            mixed += weights[..., step : step + 1] * np.asarray(apply(_image(corner, mode)))
        found[top : top + rows] = np.rint(mixed)
    return Image.fromarray(found)


def _image(values: np.ndarray, mode: str) -> Image.Image:
    if mode == "LAB":  # PIL takes a and b signed, as TIFF stores them
        values = values ^ np.array([0, 128, 128], np.uint8)
    return Image.frombytes(mode, values.shape[1::-1], np.ascontiguousarray(values).tobytes())


@lru_cache(maxsize=16)
def _conversion(mode: str, profile: bytes | None) -> tuple[Apply, tuple[str, ...]]:
    """Find what turns a picture of this mode and profile into sRGB, and what is to be said of it."""
    said = ("CMYK converted",) if mode == "CMYK" else ()
    if not profile or mode == "LAB":  # LAB needs none
        return _plain, said
    try:
        transform, name = _transform(mode, profile)
    except _NotApplied as reason:
        return _plain, (*said, *reason.args)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return _plain, (*said, "broken colour profile ignored")
    apply = transform.apply if transform.input_mode == mode else lambda image: transform.apply(image.convert("RGB"))
    return apply, (*said, f"{name} to sRGB")


class _NotApplied(Exception):
    """What is to be said of a profile that is left out, if anything."""


def _transform(mode: str, profile: bytes) -> tuple[ImageCms.ImageCmsTransform, str]:
    """Find what a profile does to a picture of this mode (a grey one is RGB to an RGB profile), and its name."""
    if len(profile) > LARGEST_PROFILE:
        raise _NotApplied("oversized colour profile ignored")
    source = ImageCms.ImageCmsProfile(BytesIO(profile))
    name, space = _printable(ImageCms.getProfileDescription(source).strip()), source.profile.xcolor_space.strip()
    if mode == "L" and space == "RGB":
        mode = "RGB"
    if space != SPACES[mode]:
        raise _NotApplied(f"colour profile for {_printable(space)} ignored")
    intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", intent, flags)
    faint = Image.new(mode, (1, 1), (12, 0, 0, 0) if mode == "CMYK" else "#f3f3f3")  # lcms mends white itself
    if min(transform.apply(faint).tobytes()) < 128:
        raise _NotApplied(f"implausible colour profile {name!r} ignored")
    if mode != "CMYK" and _moves_nothing(transform, mode):
        raise _NotApplied
    return transform, name or space


def _plain(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


def _printable(name: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in name[:80])


def _moves_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Tell whether a transform gives back what it is given, all over the cube of colours."""
    levels = np.array([0, 4, 10, 20, 40, 80, 120, 160, 200, 230, 255], np.uint8)
    colours = np.stack(np.meshgrid(*[levels] * (1 if mode == "L" else 3), indexing="ij"), axis=-1).reshape(
        1, -1, 1 if mode == "L" else 3
    )
    moved = np.asarray(transform.apply(_image(colours, mode))).astype(int) - colours  # (1, N, 3)
    return bool(np.abs(moved).max() <= UNMOVED)


def profile_of_gamma(gamma: float | None, points: Points | None) -> bytes | None:
    """Make a profile for PNG's gAMA (power of the encoding, such as 0.45455) and cHRM; None where they say sRGB or
    nonsense.
    """
    usual = points is None or bool(np.abs(np.subtract(points, SRGB)).max() < 0.002)
    if gamma is None or (usual and abs(gamma - 0.45455) < 0.01):  # 0.45455 is what the standard has written beside sRGB
        return None if usual else matrix_profile(points or SRGB, _srgb_light())
    return matrix_profile(points or SRGB, _STEPS ** (1 / gamma)) if 0.1 <= gamma <= 5 else None


def profile_of_code(primaries: int, transfer: int) -> bytes | None:
    """Make a profile for the code points of ITU-T H.273 (cICP in PNG, nclx in AVIF); None where they say sRGB or are
    not known.

    The curves of BT.709 and its like are taken for sRGB's, as browsers do. Of high dynamic range what is brighter than
    the white of a page (203 cd/m2, BT.2408) becomes white.
    """
    points, light = _PRIMARIES.get(primaries, SRGB), _light_of(transfer)
    if points is SRGB and light is None:
        return None
    name = {16: b"high dynamic range (PQ)", 18: b"high dynamic range (HLG)"}.get(transfer, NAME)
    return matrix_profile(points, _srgb_light() if light is None else light, name)


def _light_of(transfer: int) -> np.ndarray | None:
    if transfer in (4, 5, 8):
        return _STEPS ** {4: 2.2, 5: 2.8, 8: 1.0}[transfer]
    if transfer == 16:  # PQ, SMPTE ST 2084
        power = _STEPS ** (1 / 78.84375)
        light = (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125)
        return np.minimum(light * 10000 / 203, 1)
    if transfer == 18:  # HLG, ARIB STD-B67
        light = np.where(_STEPS <= 0.5, _STEPS**2 / 3, (np.exp((_STEPS - 0.55991073) / 0.17883277) + 0.28466892) / 12)
        return np.minimum(light / float(np.interp(0.75, _STEPS, light)), 1)
    return None


def _srgb_light() -> np.ndarray:
    return np.where(_STEPS <= 0.04045, _STEPS / 12.92, ((_STEPS + 0.055) / 1.055) ** 2.4)


def matrix_profile(points: Points, light: np.ndarray, name: bytes = NAME) -> bytes | None:
    """Make an ICC profile (version 2) of three primaries and a white, and of the light, 0 to 1, of equal steps of the
    signal.
    """
    xyz = np.array([(x, y, 1 - x - y) for x, y in points], dtype=float).T  # a column each for red, green, blue, white
    try:
        white = xyz[:, 3] / xyz[1, 3]
        own = xyz[:, :3] * np.linalg.solve(xyz[:, :3], white)
        adapt = np.linalg.inv(_BRADFORD) @ np.diag((_BRADFORD @ _D50) / (_BRADFORD @ white)) @ _BRADFORD
    except (np.linalg.LinAlgError, ZeroDivisionError):
        return None
    columns = (adapt @ own).T
    if not np.isfinite(columns).all() or np.abs(columns).max() > 4:
        return None

    def xyz_tag(values: np.ndarray) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(65536 * float(value)) for value in values))

    curve = b"curv\0\0\0\0" + struct.pack(">I", len(light)) + np.rint(65535 * light).astype(">u2").tobytes()
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(name) + 1) + name + bytes(79), b"wtpt": xyz_tag(_D50)}
    tags |= {letter + b"XYZ": xyz_tag(column) for letter, column in zip((b"r", b"g", b"b"), columns, strict=True)}
    tags |= {letter + b"TRC": curve for letter in (b"r", b"g", b"b")}
    start, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for key, data in tags.items():
        table += key + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = (
        struct.pack(">I4sI4s4s4s", start + len(body), b"\0\0\0\0", 0x02400000, b"mntr", b"RGB ", b"XYZ ")
        + bytes(12)
        + b"acsp"
    )
    head = (head + bytes(28) + xyz_tag(_D50)[8:]).ljust(128, b"\0")
    return head + struct.pack(">I", len(tags)) + table + body
