"""Draw charts of any numbers and names: well-formed, with a word for every chart, in the colours of the page."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from femtobooth.core.metrics import reliability
from femtobooth.pages import charts

HOSTILE = "<script>alert('1')</script> \"&amp;\" </svg></table> \x07\u202e"


def read(chart: str) -> ET.Element:
    """Parse a chart with its legend, strictly."""
    return ET.fromstring(f"<div>{chart}</div>")  # noqa: S314  (our own)


def every_chart(name: str) -> list[str]:
    line = charts.line_chart(
        {name: ([0, 1], [0, 1]), "b": ([0, 1], [1, 0])}, name, name, name, bands={name: ([0, 1], [0, 0.5], [0.5, 1])}
    )
    dots = charts.scatter_chart(
        {name: ([1], [2]), "b": ([2], [3])}, name, name, name, names={name: [name]}, labelled=True
    )
    return [
        line,
        dots,
        charts.histogram({name: [1.0, 2.0], "b": [3.0]}, name, name),
        charts.reliability_chart(reliability([0.9, 0.4], [1, 0]), name),
        charts.heat_map([[2, 1], [0, 3]], [name, "b"], [name, "b"], name, name, name),
    ]


def test_a_hostile_name_stays_text_in_every_chart() -> None:
    for hostile, plain in zip(
        every_chart(HOSTILE), every_chart("a name that is as long as the other one"), strict=True
    ):
        found = read(hostile)
        assert [part.tag for part in found.iter()] == [part.tag for part in read(plain).iter()]
        assert "script" not in {part.tag for part in found.iter()}
        svg = found.find("svg")
        assert svg is not None and "<script>alert('1')</script>" in svg.attrib["aria-label"]
        assert "\x07" not in hostile and "\u202e" not in hostile


def test_a_long_name_is_shortened_and_whole_when_pointed_at() -> None:
    name = "a class with a name that is longer than its place & more"
    texts = read(charts.heat_map([[1]], [name], [name], "true", "named", "alt")).iter("text")
    titled = [text for text in texts if text.find("title") is not None]
    assert len(titled) == 2
    assert {(text.text, text.findtext("title")) for text in titled} == {("a class with a name tha…", name)}


@pytest.mark.parametrize("values", [[], [np.nan], [1.0], [0.0, 0.0], [1e-30, 1e30], [-5, np.inf]])
def test_charts_take_any_numbers(values):
    places = np.arange(len(values))
    for chart in (
        charts.line_chart({"a": (places, values)}, "x", "y", "alt"),
        charts.scatter_chart({"a": (places, values)}, "x", "y", "alt"),
        charts.histogram({"a": values}, "x", "alt"),
    ):
        assert "nan" not in chart and "inf" not in re.sub(r"<title>.*?</title>", "", chart)
        read(chart)


def test_places_in_a_line_chart():
    chart = charts.line_chart({"a": ([0, 1], [0, 10])}, "x", "y", "alt", x_range=(0, 1), y_range=(0, 10))
    found = re.search(r'class="l0" d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"', chart)
    left, bottom, right, top = map(float, found.groups())
    assert (left, right) == (charts.LEFT, charts.WIDTH - charts.RIGHT)
    assert (bottom, top) == (charts.HEIGHT - charts.BOTTOM, charts.TOP)


def test_ticks_are_round_and_inside():
    assert charts._ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert charts._ticks(3, 47) == [10, 20, 30, 40]
    assert all(-0.31 <= tick <= 0.07 for tick in charts._ticks(-0.31, 0.07))


def test_heat_map_shows_each_count_once():
    chart = charts.heat_map(
        np.array([[7, 0], [2, 9]]), ["cat", "dog"], ["cat", "dog"], "true", "predicted", "confusions"
    )
    assert re.findall(r"<title>(.*?)</title>", chart) == [
        "cat taken for cat: 7",
        "dog taken for cat: 2",
        "dog taken for dog: 9",
    ]
    assert len(re.findall('class="cell own"', chart)) == 2


def test_what_was_chosen_has_one_colour_in_every_chart_whatever_stands_before_it() -> None:
    lines = {"a": ([0, 1], [0, 1]), "b": ([0, 1], [1, 0]), "step 20": ([1, 1], [0, 1])}
    for drawn in (
        charts.line_chart(lines, "x", "y", "lines", chosen="step 20"),
        charts.line_chart(dict(reversed(lines.items())), "x", "y", "lines", chosen="step 20"),
        charts.scatter_chart({name: ([1], [2]) for name in lines}, "x", "y", "dots", chosen="step 20"),
    ):
        mark = "f" if "circle" in drawn else "l"
        assert drawn.count(f'class="{mark}c"') == 2  # in the chart and in its legend
        assert {f'class="{mark}{look}"' in drawn for look in (0, 1)} == {True}
        assert f'class="{mark}2"' not in drawn
