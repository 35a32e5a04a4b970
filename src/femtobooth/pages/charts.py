"""Draw charts as inline SVG for the pages: lines, points, histograms, reliability diagrams and heat maps.

Each takes an `alt` text that says what the chart shows, and takes its colours from the page (light, dark, print). Lines
differ in dash as well as colour. What was `chosen` has one colour of its own in every chart. Number formats are format
specs such as `.0%`. Values that are not finite are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import ArrayLike

from ..core.metrics import Reliability, wilson
from .html import escaped

WIDTH, HEIGHT = 420, 290  # small, so that letters stay legible where a phone shrinks the chart to its width
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 40
Range = tuple[float, float]
Points = tuple[ArrayLike, ArrayLike]


def line_chart(
    series: Mapping[str, Points],
    x_label: str,
    y_label: str,
    alt: str,
    *,
    bands: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]] | None = None,
    x_range: Range | None = None,
    y_range: Range | None = None,
    x_format: str = "g",
    y_format: str = "g",
    chosen: str | None = None,
) -> Markup:
    """Draw lines through (x, y) of each named series; `bands` shade (x, low, high) under the series of the same name.

    `chosen` names the series that shows what was chosen.
    """
    bands = bands or {}
    xs, ys = [points[0] for points in series.values()], [points[1] for points in series.values()]
    ys += [edge for band in bands.values() for edge in band[1:]]
    frame = _Frame(x_range or _extent(xs), y_range or _extent(ys), x_label, y_label, x_format, y_format)
    looks = _looks(series, chosen)
    for name, points in series.items():
        if name in bands:
            x, low, high = (np.asarray(values, np.float64) for values in bands[name])
            outline = frame.path(np.concatenate([x, x[::-1]]), np.concatenate([low, high[::-1]]))
            frame.add(f'<path class="f{looks[name]}" opacity=".14" d="{outline}Z"/>')
        frame.add(f'<path class="l{looks[name]}" d="{frame.path(*points)}"><title>{escaped(name)}</title></path>')
    return frame.drawn(alt) + _legend(looks, "l")


def scatter_chart(
    groups: Mapping[str, Points],
    x_label: str,
    y_label: str,
    alt: str,
    *,
    names: Mapping[str, Sequence[str]] | None = None,
    x_range: Range | None = None,
    y_range: Range | None = None,
    labelled: bool = False,
    chosen: str | None = None,
) -> Markup:
    """Draw a dot for each (x, y) of each named group; `names` of the dots show when pointed at, or beside them where
    `labelled`.

    `chosen` names the group of what was chosen.
    """
    xs, ys = [points[0] for points in groups.values()], [points[1] for points in groups.values()]
    frame = _Frame(x_range or _extent(xs), y_range or _extent(ys), x_label, y_label, "g", "g")
    looks = _looks(groups, chosen)
    for group, points in groups.items():
        titles = (names or {}).get(group)
        for i, (x, y) in enumerate(_finite(*points)):
            title = f"<title>{escaped(titles[i])}</title>" if titles else ""
            frame.add(
                f'<circle class="f{looks[group]}" opacity=".75" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" '
                f'r="{5 if group == chosen else 3.2}">{title}</circle>'
            )
            if labelled and titles:
                before = frame.x(x) > (LEFT + WIDTH - RIGHT) / 2  # towards the middle, where there is room
                place = f'x="{frame.x(x) + (-7 if before else 7):.1f}" y="{frame.y(y) + 4:.1f}"'
                frame.add(f'<text {place} text-anchor="{"end" if before else "start"}">{escaped(titles[i])}</text>')
    return frame.drawn(alt) + _legend(looks, "f")


def histogram(groups: Mapping[str, ArrayLike], x_label: str, alt: str) -> Markup:
    """Draw how the values of each named group spread: the share of its group in each of 24 equal bins."""
    low, high = _extent(list(groups.values()))
    edges = np.linspace(low, high if high > low else low + 1, 24 + 1)
    shares = {}
    for name, values in groups.items():
        array = np.asarray(values, np.float64)
        count, _ = np.histogram(array[np.isfinite(array)].clip(edges[0], edges[-1]), edges)
        shares[name] = count / max(count.sum(), 1)
    tallest = max((float(share.max()) for share in shares.values()), default=0.0) or 1.0
    frame = _Frame((edges[0], edges[-1]), (0, tallest * 1.08), x_label, "share", "g", ".0%")
    for index, (name, share) in enumerate(shares.items()):
        x, y = np.repeat(edges, 2), np.concatenate([[0], np.repeat(share, 2), [0]])
        frame.add(f'<path class="f{index % 6}" opacity=".2" d="{frame.path(x, y)}Z"/>')
        frame.add(f'<path class="l{index % 6}" d="{frame.path(x, y)}"><title>{escaped(name)}</title></path>')
    return frame.drawn(alt) + _legend(_looks(groups), "l")


def reliability_chart(table: Reliability, alt: str) -> Markup:
    """Draw accuracy with its Wilson interval in each bin of confidence, the diagonal of a calibrated model, and below
    how many pictures.
    """
    frame = _Frame((0, 1), (0, 1), "confidence", "accuracy", ".0%", ".0%", bottom=BOTTOM + 34)
    most = max(int(table.counts.max()), 1)
    floor = HEIGHT - 6
    for index, count in enumerate(table.counts):
        if not count:
            continue
        left, right = frame.x(table.edges[index]) + 0.8, frame.x(table.edges[index + 1]) - 0.8
        accuracy, confidence = table.accuracy[index], table.confidence[index]
        told = f"{count} pictures: {accuracy:.0%} right at {confidence:.0%} confidence"
        top = frame.y(accuracy)
        frame.add(
            f'<rect class="f0" opacity=".8" x="{left:.1f}" y="{top:.1f}" '
            f'width="{right - left:.1f}" height="{frame.y(0) - top:.1f}">'
            f"<title>{told}</title></rect>"
        )
        share = wilson(round(float(accuracy) * int(count)), int(count))
        middle = frame.x(confidence)
        frame.add(
            f'<line class="whisker" x1="{middle:.1f}" x2="{middle:.1f}" '
            f'y1="{frame.y(share.low):.1f}" y2="{frame.y(share.high):.1f}"/>'
        )
        tall = 26 * count / most
        frame.add(
            f'<rect class="f5" opacity=".55" x="{left:.1f}" y="{floor - tall:.1f}" '
            f'width="{right - left:.1f}" height="{tall:.1f}">'
            f"<title>{told}</title></rect>"
        )
    frame.add(f'<text x="{LEFT - 6}" y="{floor - 6}" text-anchor="end">pictures</text>')
    frame.line(0, 0, 1, 1, "guide")
    return frame.drawn(alt)


def heat_map(
    matrix: ArrayLike, rows: Sequence[str], columns: Sequence[str], row_label: str, column_label: str, alt: str
) -> Markup:
    """Draw counts as shades, from 0 to the largest, in another colour where row and column have the same name.

    It has its natural width: put it into `figure(..., wide=True)`, which scrolls.
    """
    counts = np.asarray(matrix)
    cell = 26 if len(columns) <= 24 else 18
    left = 26 + max((len(_short(name)) for name in rows), default=0) * 6.4
    above = 30 + max((len(_short(name)) for name in columns), default=0) * 5.1
    width, height = left + cell * len(columns) + above * 0.55, above + cell * len(rows) + 6
    most = max(float(counts.max()), 1.0) if counts.size else 1.0
    parts = [
        f'<text x="{left + cell * len(columns) / 2:.1f}" y="11" text-anchor="middle">{escaped(column_label)}</text>',
        (
            f'<text transform="translate(11 {above + cell * len(rows) / 2:.1f}) rotate(-90)" '
            f'text-anchor="middle">{escaped(row_label)}</text>'
        ),
    ]
    for j, column in enumerate(columns):
        x = left + cell * (j + 0.6)
        parts.append(
            f'<text class="name" transform="translate({x:.1f} {above - 6:.1f}) rotate(-55)">{_titled(column)}</text>'
        )
        parts.append(
            f'<line class="rule" x1="{left + cell * j:.1f}" x2="{left + cell * j:.1f}" '
            f'y1="{above:.1f}" y2="{height - 6:.1f}"/>'
        )
    for i, name in enumerate(rows):
        y = above + cell * i
        parts.append(
            f'<text class="name" x="{left - 7:.1f}" y="{y + cell / 2 + 4:.1f}" text-anchor="end">{_titled(name)}</text>'
        )
        parts.append(
            f'<line class="rule" x1="{left:.1f}" x2="{left + cell * len(columns):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        for j in np.flatnonzero(counts[i]).tolist():
            share = float(counts[i, j]) / most
            own = " own" if name == columns[j] else ""
            x = left + cell * j
            parts.append(
                f'<rect class="cell{own}" opacity="{0.14 + 0.8 * share:.2f}" x="{x:.1f}" '
                f'y="{y:.1f}" width="{cell}" height="{cell}" rx="2">'
                f"<title>{escaped(name)} taken for {escaped(columns[j])}: {counts[i, j]:g}</title></rect>"
            )
            tone = " dark" if share > 0.55 else ""
            parts.append(
                f'<text class="count{tone}" x="{x + cell / 2:.1f}" y="{y + cell / 2 + 3.6:.1f}">{counts[i, j]:g}</text>'
            )
    return _svg(parts, width, height, alt, style=f"width:{width:.0f}px", name="map")


class _Frame:
    """Hold axes with ticks, the mapping from values to places, and what is drawn inside."""

    def __init__(
        self, across: Range, up: Range, x_label: str, y_label: str, x_format: str, y_format: str, bottom: float = BOTTOM
    ) -> None:
        self.across, self.up, self.floor = across, up, HEIGHT - bottom
        self.parts: list[str] = []
        for value in _ticks(*across):
            self.add(
                f'<line class="rule" x1="{self.x(value):.1f}" x2="{self.x(value):.1f}" y1="{TOP}" y2="{self.floor}"/>'
            )
            self.add(
                f'<text x="{self.x(value):.1f}" y="{self.floor + 15}" '
                f'text-anchor="middle">{_number(value, x_format)}</text>'
            )
        for value in _ticks(*up):
            self.add(
                f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" '
                f'y1="{self.y(value):.1f}" y2="{self.y(value):.1f}"/>'
            )
            self.add(
                f'<text x="{LEFT - 6}" y="{self.y(value) + 4:.1f}" text-anchor="end">{_number(value, y_format)}</text>'
            )
        middle = (TOP + self.floor) / 2
        self.add(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{self.floor}" y2="{self.floor}"/>')
        self.add(
            f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.1f}" y="{self.floor + 32}" '
            f'text-anchor="middle">{escaped(x_label)}</text>'
        )
        self.add(
            f'<text transform="translate(11 {middle:.1f}) rotate(-90)" text-anchor="middle">{escaped(y_label)}</text>'
        )

    def x(self, value: float) -> float:
        low, high = self.across
        return LEFT + (min(max(float(value), low), high) - low) / ((high - low) or 1) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.up
        return self.floor - (min(max(float(value), low), high) - low) / ((high - low) or 1) * (self.floor - TOP)

    def add(self, part: str) -> None:
        self.parts.append(part)

    def line(self, x1: float, y1: float, x2: float, y2: float, name: str) -> None:
        self.add(
            f'<line class="{name}" x1="{self.x(x1):.1f}" y1="{self.y(y1):.1f}" '
            f'x2="{self.x(x2):.1f}" y2="{self.y(y2):.1f}"/>'
        )

    def path(self, x: ArrayLike, y: ArrayLike) -> str:
        places = [f"{self.x(a):.1f} {self.y(b):.1f}" for a, b in _thinned(_finite(x, y))]
        return "M" + "L".join(places) if places else "M0 0"

    def drawn(self, alt: str) -> Markup:
        return _svg(self.parts, WIDTH, HEIGHT, alt)


def _svg(parts: Sequence[str], width: float, height: float, alt: str, style: str = "", name: str = "chart") -> Markup:
    styled = f' style="{style}"' if style else ""
    return Markup(  # noqa: S704  (every text in it was escaped)
        f'<svg class="{name}"{styled} viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escaped(alt)}">'
        + "".join(parts)
        + "</svg>"
    )


def _looks(names: Iterable[str], chosen: str | None = None) -> dict[str, str]:
    """Choose which style each name has: one of the six in turn, or that of what was chosen."""
    everyone = list(names)
    others = [name for name in everyone if name != chosen]
    return {name: "c" if name == chosen else str(others.index(name) % 6) for name in everyone}


def _legend(looks: Mapping[str, str], mark: str) -> Markup:
    if len(looks) < 2:
        return Markup("")
    shape = {
        "l": '<line class="l{0}" x1="1" x2="25" y1="5" y2="5"/>',
        "f": '<circle class="f{0}" cx="13" cy="5" r="4"/>',
    }[mark]
    entries = (
        f'<span><svg viewBox="0 0 26 10" aria-hidden="true">{shape.format(look)}</svg>{escaped(name)}</span>'
        for name, look in looks.items()
    )
    return Markup(f'<p class="legend">{"".join(entries)}</p>')  # noqa: S704


def _extent(arrays: Sequence[ArrayLike]) -> Range:
    values = np.concatenate([np.ravel(np.asarray(array, np.float64)) for array in arrays]) if arrays else np.zeros(0)
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - abs(low or 1) / 2, high + abs(high or 1) / 2)


def _finite(x: ArrayLike, y: ArrayLike) -> list[tuple[float, float]]:
    pairs = zip(np.asarray(x, np.float64), np.asarray(y, np.float64), strict=True)
    return [(float(a), float(b)) for a, b in pairs if math.isfinite(a) and math.isfinite(b)]


def _thinned(points: list[tuple[float, float]], most: int = 800) -> list[tuple[float, float]]:
    """Keep no more points than a screen can show, the last one always among them."""
    if len(points) <= most:
        return points
    return [points[round(i)] for i in np.linspace(0, len(points) - 1, most)]


def _ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Choose round numbers within [low, high], in steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((factor * power for factor in (1, 2, 5, 10)), key=lambda size: abs(size - rough))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _number(value: float, format: str) -> str:
    return f"{value:{format}}"


def _short(name: str, longest: int = 24) -> str:
    return name if len(name) <= longest else name[: longest - 1] + "…"


def _titled(name: str) -> str:
    short = _short(name)
    return f"{escaped(short)}<title>{escaped(name)}</title>" if short != name else str(escaped(name))
