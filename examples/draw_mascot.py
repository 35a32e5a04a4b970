"""Draw Femto, the photo-booth robot that `femtobooth demo` teaches to the bundled base model.

Five pictures of one mascot, with captions, and the project's logo. Nothing is random: the same Pillow draws the same
bytes.

    python examples/draw_mascot.py              # rewrites examples/mascot/ and examples/logo.png
    python examples/draw_mascot.py --to FOLDER  # draws somewhere else
"""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

SIDE = 512  # pixels
OVERSAMPLE = 4  # everything is drawn at SIDE * OVERSAMPLE and reduced once, which smooths the edges
BIG = SIDE * OVERSAMPLE

Colour = tuple[int, int, int]
Points = np.ndarray  # (n, 2), x to the right and y downwards

INK = (16, 36, 62)
TEAL, TEAL_SHADE, TEAL_LIGHT = (18, 190, 178), (8, 146, 146), (112, 232, 214)
ORANGE, ORANGE_SHADE = (255, 136, 26), (240, 104, 10)
YELLOW, YELLOW_LIGHT = (255, 212, 38), (255, 241, 150)
CREAM = (255, 248, 232)
IRIS, IRIS_LIGHT = (66, 74, 196), (120, 150, 255)
WHITE = (255, 255, 255)
LINE = 0.058  # width of the ink around every shape


# Shapes, in the mascot's own units: the body is about 1.3 wide, feet at y = 1, antenna ball at y = -1.


def ellipse(x: float, y: float, rx: float, ry: float | None = None, power: float = 2.0) -> Points:
    """(n, 2) outline of a superellipse; power 2 is an ellipse, higher is squarer."""
    angle = np.linspace(0, 2 * np.pi, 240, endpoint=False)
    unit = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.array([x, y]) + np.array([rx, rx if ry is None else ry]) * np.sign(unit) * np.abs(unit) ** (2 / power)


def curve(start: Sequence[float], bend: Sequence[float], end: Sequence[float]) -> Points:
    """(n, 2) quadratic Bezier curve."""
    t = np.linspace(0, 1, 40)[:, None]
    return (1 - t) ** 2 * np.array(start) + 2 * t * (1 - t) * np.array(bend) + t**2 * np.array(end)


def normals(path: Points) -> Points:
    """(n, 2) unit vectors to the left of a path's direction on the page: outwards where it runs clockwise."""
    along = np.gradient(path, axis=0)
    return np.stack([along[:, 1], -along[:, 0]], axis=1) / np.hypot(*along.T)[:, None]


def box(left: float, top: float, width: float, height: float) -> Points:
    return np.array([(left, top), (left + width, top), (left + width, top + height), (left, top + height)])


class Canvas:
    """A transparent BIG x BIG layer drawn in mascot units through one placement."""

    def __init__(self, centre: tuple[float, float], size: float, tilt: float = 0.0, mirrored: bool = False) -> None:
        """`centre` and `size` are fractions of the picture (size: half the mascot's height), `tilt` is in degrees
        clockwise.
        """
        self.image = Image.new("RGBA", (BIG, BIG))
        turn = math.radians(tilt)
        rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
        self.matrix = size * BIG * rotation @ np.diag([-1.0 if mirrored else 1.0, 1.0])
        self.offset = np.array(centre) * BIG

    def place(self, points: Points) -> list[tuple[float, float]]:
        return [(float(x), float(y)) for x, y in np.asarray(points) @ self.matrix.T + self.offset]

    def mask(self, points: Points) -> Image.Image:
        mask = Image.new("L", (BIG, BIG))
        ImageDraw.Draw(mask).polygon(self.place(points), fill=255)
        return mask

    def shape(self, points: Points, colour: Colour) -> None:
        ImageDraw.Draw(self.image).polygon(self.place(points), fill=colour)

    def tinted(self, points: Points, colour: Colour, inside: Sequence[Points] = (), opacity: float = 1.0) -> None:
        mask = self.mask(points)
        for limit in inside:
            mask = ImageChops.multiply(mask, self.mask(limit))
        paint = Image.new("RGBA", (BIG, BIG), (*colour, 0))
        paint.putalpha(mask.point([round(value * opacity) for value in range(256)]))
        self.image.alpha_composite(paint)

    def outlined(self, points: Points, colour: Colour) -> None:
        """A closed shape, clockwise on the page, with the ink around it."""
        self.shape(points + LINE * normals(np.vstack([points[-1:], points, points[:1]]))[1:-1], INK)
        self.shape(points, colour)

    def stroke(self, points: Points, colour: Colour, width: float) -> None:
        """A line with round ends."""
        aside = width / 2 * normals(points)
        self.shape(np.vstack([points + aside, (points - aside)[::-1]]), colour)
        for end in (points[0], points[-1]):
            self.shape(ellipse(end[0], end[1], width / 2), colour)

    def tube(self, points: Points, colour: Colour, width: float) -> None:
        self.stroke(points, INK, width + 2 * LINE)
        self.stroke(points, colour, width)


def draw_femto(canvas: Canvas, waving: bool = False) -> None:
    """The mascot itself: the same in every picture but for a raised arm."""
    body = ellipse(0, 0.1, 0.7, 0.65, power=3.6)

    # Antenna, off the middle, so that a mirrored pose differs.
    canvas.stroke(curve((0.18, -0.5), (0.2, -0.68), (0.34, -0.82)), INK, 0.1)
    canvas.outlined(ellipse(0.36, -0.87, 0.155), YELLOW)
    canvas.shape(ellipse(0.31, -0.925, 0.053), YELLOW_LIGHT)

    for side in (-1, 1):
        canvas.outlined(ellipse(side * 0.335, 0.905, 0.235, 0.12, power=2.6), YELLOW)

    arms = [((-0.62, 0.16), (-0.85, 0.18), (-0.87, 0.42)), ((0.62, 0.16), (0.85, 0.18), (0.87, 0.42))]
    if waving:
        arms[0] = ((-0.62, 0.14), (-0.92, 0.1), (-0.93, -0.26))
    for shoulder, elbow, hand in arms:
        canvas.tube(curve(shoulder, elbow, hand), TEAL_SHADE, 0.15)
        canvas.outlined(ellipse(*hand, 0.135), YELLOW)

    # The body, light from the upper left: the edge that a shifted copy leaves free lies in the shade.
    canvas.outlined(body, TEAL_SHADE)
    canvas.tinted(body - [0.09, 0.05], TEAL, inside=[body])
    canvas.stroke(curve((-0.575, -0.1), (-0.585, -0.41), (-0.37, -0.445)), TEAL_LIGHT, 0.075)
    canvas.shape(ellipse(-0.57, 0.06, 0.04), TEAL_LIGHT)

    # The booth's curtain: folds and a scalloped hem.
    folds, top, hem = 5, 0.41, 0.58
    width = 1.4 / folds
    for i in range(folds):
        canvas.tinted(ellipse(-0.7 + width * (i + 0.5), hem + 0.05, width / 2, 0.08), INK, inside=[body])
    canvas.tinted(box(-0.8, top - 0.055, 1.6, hem - top), INK, inside=[body])
    for i in range(folds):
        left, colour = -0.7 + width * i, (ORANGE, ORANGE_SHADE)[i % 2]
        canvas.tinted(ellipse(left + width / 2, hem, width / 2, 0.08), colour, inside=[body])
        canvas.tinted(box(left, top, width, hem - top), colour, inside=[body])

    # The lens, in front of the curtain's rail.
    canvas.outlined(ellipse(0, -0.03, 0.395), CREAM)
    canvas.shape(ellipse(0, -0.03, 0.315), INK)
    canvas.shape(ellipse(0, -0.03, 0.257), IRIS)
    canvas.tinted(ellipse(0, 0.07, 0.205, 0.145), IRIS_LIGHT, inside=[ellipse(0, -0.03, 0.23)])
    canvas.shape(ellipse(0, -0.03, 0.138), INK)
    canvas.shape(ellipse(-0.115, -0.145, 0.102), WHITE)
    canvas.shape(ellipse(0.1, 0.08, 0.05), WHITE)


# Backdrops: (BIG, BIG, 3) arrays of 0..255.


def blend(steps: Sequence[tuple[float, Colour]], at: np.ndarray) -> np.ndarray:
    """Colours interpolated between (position, colour) steps."""
    where = [position for position, _ in steps]
    return np.stack([np.interp(at, where, [colour[channel] for _, colour in steps]) for channel in range(3)], axis=-1)


def grid() -> tuple[np.ndarray, np.ndarray]:
    """x and y of every pixel, 0..1."""
    axis = (np.arange(BIG) + 0.5) / BIG
    return np.meshgrid(axis, axis)


def as_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def plain_yellow() -> Image.Image:
    _, y = grid()
    return as_image(blend([(0, (255, 240, 178)), (1, (255, 231, 150))], y))


def wooden_room() -> Image.Image:
    x, y = grid()
    horizon = 0.6
    wall = blend([(0, (246, 226, 204)), (horizon, (234, 207, 180))], y)
    depth = 0.35 / (y - horizon + 0.12)  # boards run away from the viewer towards one point
    board = np.floor((x - 0.5) * depth * 4.5 + 40)
    tint = np.choose(board.astype(int) % 3, [0, 14, -12])[..., None]
    floor = blend([(horizon, (176, 112, 62)), (1, (206, 138, 78))], y) + tint
    seam = np.abs(((x - 0.5) * depth * 4.5 + 40) % 1 - 0.5) > 0.5 - 0.012 * depth
    floor = np.where(seam[..., None], floor * 0.72, floor)
    picture = np.where((y > horizon)[..., None], floor, wall)
    skirting = (y > horizon - 0.05) & (y < horizon)
    return as_image(np.where(skirting[..., None], (255, 246, 234), picture))


def meadow() -> Image.Image:
    x, y = grid()
    picture = blend([(0, (98, 186, 250)), (0.6, (202, 234, 255))], y)
    for middle, width, height in [(0.14, 0.13, 0.13), (0.24, 0.1, 0.15), (0.8, 0.12, 0.24), (0.9, 0.11, 0.26)]:
        cloud = ((x - middle) / width) ** 2 + ((y - height) / 0.055) ** 2 < 1
        picture = np.where(cloud[..., None], WHITE, picture)
    far = y > 0.57 - 0.07 * np.cos(2.6 * (x - 0.75) * np.pi)
    picture = np.where(far[..., None], (112, 196, 84), picture)
    near = y > 0.68 + 0.045 * np.cos(1.9 * (x - 0.2) * np.pi)
    return as_image(np.where(near[..., None], blend([(0.6, (92, 182, 70)), (1, (56, 146, 52))], y), picture))


def pink_studio() -> Image.Image:
    x, y = grid()
    spot = np.hypot(x - 0.62, y - 0.4)
    picture = blend([(0, (255, 206, 220)), (0.8, (238, 120, 164))], spot)
    floor = 1 / (1 + np.exp(-(y - 0.84) * 40))  # the paper sweep, where the wall bends into the floor
    return as_image(picture * (1 + 0.07 * floor[..., None]))


def plain_purple() -> Image.Image:
    x, y = grid()
    return as_image(blend([(0, (122, 84, 190)), (0.9, (72, 42, 128))], np.hypot(x - 0.35, y - 0.3)))


@dataclass(frozen=True)
class Shot:
    name: str
    caption: str  # [V] stands for the subject's identifier
    backdrop: Callable[[], Image.Image]
    centre: tuple[float, float]
    size: float
    tilt: float = 0.0
    mirrored: bool = False
    waving: bool = False
    light: tuple[float, float, float] = (1.0, 1.0, 0.0)  # brightness at the picture's left and right edge, warmth


SHOTS = [
    Shot("femto_1", "a [V] robot on a yellow background", plain_yellow, (0.49, 0.52), 0.40),
    Shot("femto_2", "a [V] robot on a wooden floor", wooden_room, (0.42, 0.54), 0.33, tilt=-5, light=(1.04, 0.9, 0.05)),
    Shot(
        "femto_3", "a [V] robot on the grass", meadow, (0.6, 0.6), 0.29, mirrored=True, tilt=3, light=(1.0, 1.05, 0.0)
    ),
    Shot(
        "femto_4",
        "a [V] robot on a pink background",
        pink_studio,
        (0.52, 0.5),
        0.36,
        tilt=8,
        waving=True,
        light=(0.94, 1.06, 0.02),
    ),
    Shot(
        "femto_5",
        "a [V] robot on a purple background",
        plain_purple,
        (0.47, 0.51),
        0.42,
        tilt=-9,
        mirrored=True,
        light=(1.02, 0.88, 0),
    ),
]


def lit(layer: Image.Image, light: tuple[float, float, float]) -> Image.Image:
    left, right, warmth = light
    x, _ = grid()
    gain = (left + (right - left) * x)[..., None] * np.array([1 + warmth, 1, 1 - warmth])
    pixels = np.asarray(layer)
    colour = np.clip(pixels[..., :3] * gain, 0, 255).astype(np.uint8)
    return Image.fromarray(np.dstack([colour, pixels[..., 3]]))


def draw_shot(shot: Shot) -> Image.Image:
    """(SIDE, SIDE) RGB picture of one shot."""
    picture = shot.backdrop().convert("RGBA")
    canvas = Canvas(shot.centre, shot.size, shot.tilt, shot.mirrored)
    draw_femto(canvas, shot.waving)

    ground = Canvas(shot.centre, shot.size)
    ground.tinted(ellipse(0.06 - 0.9 * math.sin(math.radians(shot.tilt)), 1.0, 0.82, 0.12), INK, opacity=0.4)
    picture.alpha_composite(ground.image.filter(ImageFilter.GaussianBlur(BIG * 0.012)))
    picture.alpha_composite(lit(canvas.image, shot.light))
    return picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def draw_logo() -> Image.Image:
    """(256, 256) RGBA, transparent around the mascot and its white rim, which keeps the ink visible on dark pages."""
    canvas = Canvas((0.51, 0.5), 0.415)
    draw_femto(canvas, waving=True)
    rim = (
        canvas.image.getchannel("A")
        .filter(ImageFilter.GaussianBlur(BIG * 0.01))
        .point([255 * (value > 12) for value in range(256)])
    )
    logo = Image.new("RGBA", (BIG, BIG), (*WHITE, 0))
    logo.putalpha(rim)
    logo.alpha_composite(canvas.image)
    return logo.resize((256, 256), Image.Resampling.LANCZOS)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the demo's mascot pictures.")
    parser.add_argument(
        "--to", type=Path, default=Path(__file__).parent, help="folder that receives mascot/ and logo.png"
    )
    folder = parser.parse_args().to
    (folder / "mascot").mkdir(parents=True, exist_ok=True)
    for shot in SHOTS:
        draw_shot(shot).save(folder / "mascot" / f"{shot.name}.jpg", quality=92, optimize=True)
        (folder / "mascot" / f"{shot.name}.txt").write_text(shot.caption + "\n", encoding="utf-8")
    draw_logo().save(folder / "logo.png", optimize=True)


if __name__ == "__main__":
    main()
