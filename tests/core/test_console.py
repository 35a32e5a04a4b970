"""Progress: counted in what people count, a bar on a terminal and few lines elsewhere."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

import pytest
from rich.console import Console

from femtobooth.core import console
from femtobooth.core.events import listening, progress, progress_bar


@pytest.fixture
def said(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    buffer = io.StringIO()
    screen = Console(file=buffer, force_terminal=request.param, width=100, color_system=None, **console.STYLE)  # type: ignore[arg-type]
    with listening(console.Terminal(console=screen)):
        yield buffer


@pytest.mark.parametrize("said", [True], indirect=True)
def test_a_bar_counts_pictures_though_it_moves_by_steps(said: io.StringIO) -> None:
    with progress_bar("pictures", 8, done=2, parts=30) as bar:
        for _ in range(6 * 30):
            bar.advance()
    counts = re.findall(r"(\d+)/(\d+)", said.getvalue())
    assert counts[0] == ("2", "8")
    assert counts[-1] == ("8", "8")


@pytest.mark.parametrize("said", [True], indirect=True)
def test_a_bar_of_unknown_length_counts(said: io.StringIO) -> None:
    with progress_bar("pictures", None) as bar:
        bar.advance(7)
    assert re.search(r"\b7\b", said.getvalue())


@pytest.mark.parametrize("said", [False], indirect=True)
@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (100, ["pictures: 30 of 100, 0:00:12, eta 0:00:32, warm", "pictures: 60 of 100, 0:00:24, eta 0:00:17, warm"]),
        (None, ["pictures: 30, 0:00:12, warm", "pictures: 60, 0:00:24, warm"]),
    ],
)
def test_without_a_terminal_a_line_every_ten_seconds_at_most(
    said: io.StringIO, monkeypatch: pytest.MonkeyPatch, total: int | None, expected: list[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    with progress_bar("pictures", total, done=4, parts=2) as bar:
        for index in range(56 * 2):
            clock[0] += 4 / 18.4
            bar.advance(1, note="warm" if index == 1 else None)
        before = said.getvalue().splitlines()
    assert len(before) == 2
    assert [re.sub(r"\d", "0", line) for line in before] == [re.sub(r"\d", "0", line) for line in expected]
    assert said.getvalue().splitlines()[2].startswith("pictures: 60" if total is None else "pictures: 60 of 100")


@pytest.mark.parametrize("said", [False], indirect=True)
def test_without_a_terminal_what_is_quick_says_nothing(said: io.StringIO) -> None:
    assert list(progress([1, 2, 3], "encoding")) == [1, 2, 3]
    assert said.getvalue() == ""
