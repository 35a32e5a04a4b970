"""Contact sheets: a labelled grid of pictures on white, drawn with PIL and its bundled font."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from itertools import groupby

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MIN_CELL_PIXELS = 128  # smaller pictures are scaled up to at least this many pixels, by a whole factor
MAX_PIXELS = 64_000_000  # of the pictures together; above it they shrink
INK, FAINT = (32, 33, 36), (196, 199, 204)

ASCII_FOR = str.maketrans(
    "\u2010\u2011\u2013\u2014\u2018\u2019\u201c\u201d\u00d7", "----''\"\"x"
)  # dashes, quotes, times

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def sheet(
    rows: Sequence[Sequence[np.ndarray | None]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    title: str | None = None,
    cell: int | None = None,
) -> Image.Image:
    """Draw a grid of uint8 pictures (H, W, 3), not necessarily of one size; None leaves a place empty.

    Labels are wrapped, and either list may be empty. Equal column labels side by side become one heading over all
    of them. `cell` is the longer side of a place in pixels: that of the largest picture (at least 128) if not given.
    """
    pictures = [picture for row in rows for picture in row if picture is not None]
    columns = max([len(column_labels), *(len(row) for row in rows)], default=0)
    width, height = _places(pictures, cell, len(rows) * columns)
    text_size = min(max(13, max(width, height) // 10), 28)
    font, large = ImageFont.load_default(text_size), ImageFont.load_default(round(1.5 * text_size))
    leading, gap, margin = round(1.3 * text_size), max(4, width // 32), text_size

    label_width = min(
        11 * text_size, math.ceil(max((font.getlength(_plain(label)) for label in row_labels), default=0))
    )
    left = margin + (label_width + margin if label_width else 0)
    across = max(0, columns * (width + gap) - gap)
    headings = []  # (lines, x, width)
    for label, group in groupby(enumerate(column_labels), key=lambda item: item[1]):
        places = [index for index, _ in group]
        span = len(places) * (width + gap) - gap
        headings.append((_wrapped(label, font, span, 3), left + places[0] * (width + gap), span, len(places)))
    titles = _wrapped(title or "", large, left - margin + across, 3)
    titles_height = len(titles) * round(1.5 * leading) + (margin // 2 if titles else 0)
    headings_height = max((len(lines) for lines, *_ in headings), default=0) * leading + (gap if headings else 0)
    top = margin + titles_height + headings_height

    drawn = Image.new("RGB", (left + across + margin, top + len(rows) * (height + gap) - gap + margin), "white")
    pen = ImageDraw.Draw(drawn)
    _write(pen, titles, large, margin, margin, round(1.5 * leading))
    for lines, x, span, merged in headings:
        y = top - gap - len(lines) * leading
        _write(pen, lines, font, x, y, leading, across=span)
        if merged > 1:
            pen.line([(x, top - gap // 2 - 1), (x + span - 1, top - gap // 2 - 1)], fill=FAINT)
    for index, row in enumerate(rows):
        y = top + index * (height + gap)
        if index < len(row_labels):
            lines = _wrapped(row_labels[index], font, label_width, max(1, height // leading))
            _write(pen, lines, font, margin, y + (height - len(lines) * leading) // 2, leading)
        for column, picture in enumerate(row):
            if picture is not None:
                fitted = _fitted(picture, width, height)
                x = left + column * (width + gap)
                drawn.paste(fitted, (x + (width - fitted.width) // 2, y + (height - fitted.height) // 2))
    return drawn


def stacked(sheets: Sequence[Image.Image]) -> Image.Image:
    """Put sheets below each other, on one white page."""
    page = Image.new("RGB", (max(one.width for one in sheets), sum(one.height for one in sheets)), "white")
    y = 0
    for one in sheets:
        page.paste(one, (0, y))
        y += one.height
    return page


def _places(pictures: Sequence[np.ndarray], cell: int | None, count: int) -> tuple[int, int]:
    """Compute the width and height of a place in pixels, in which the widest and the highest picture fit."""
    width = max((picture.shape[1] for picture in pictures), default=MIN_CELL_PIXELS)
    height = max((picture.shape[0] for picture in pictures), default=MIN_CELL_PIXELS)
    longest = max(width, height)
    if cell is None:
        cell = min(longest * math.ceil(MIN_CELL_PIXELS / longest), max(16, math.isqrt(MAX_PIXELS // max(1, count))))
    return max(1, round(width * cell / longest)), max(1, round(height * cell / longest))


def _fitted(picture: np.ndarray, width: int, height: int) -> Image.Image:
    """Scale the whole picture to be as large as it fits."""
    image = Image.fromarray(picture)
    scale = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


def _wrapped(text: str, font: Font, width: float, most: int) -> list[str]:
    """Break a text into lines no wider than `width`, between words where possible; what does not fit ends in dots."""
    lines: list[str] = []
    rest = " ".join(_plain(text).split())
    while rest and len(lines) < most:
        fits = next((end for end in range(len(rest), 1, -1) if font.getlength(rest[:end]) <= width), 1)
        space = rest.rfind(" ", 0, fits + 1)
        end = fits if fits == len(rest) or space <= 0 else space
        lines.append(rest[:end])
        rest = rest[end:].lstrip()
    if rest:
        last = lines[-1]
        while last and font.getlength(last + "...") > width:
            last = last[:-1]
        lines[-1] = last.rstrip() + "..."
    return lines


def _plain(text: str) -> str:
    """Turn a text into ASCII, which is all that the font has: accents go, other scripts become question marks."""
    letters = unicodedata.normalize("NFKD", text.translate(ASCII_FOR))
    return (
        "".join(letter for letter in letters if not unicodedata.combining(letter)).encode("ascii", "replace").decode()
    )


def _write(
    pen: ImageDraw.ImageDraw, lines: Sequence[str], font: Font, x: int, y: int, leading: int, across: int = 0
) -> None:
    """Write lines from (x, y) down, centred on `across` pixels if given."""
    for line in lines:
        shift = (across - font.getlength(line)) / 2 if across else 0
        pen.text((x + shift, y + leading / 2), line, font=font, fill=INK, anchor="lm")
        y += leading
