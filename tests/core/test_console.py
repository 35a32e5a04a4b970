"""Progress: counted in what people count, a bar on a terminal and few lines elsewhere."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

import pytest
from rich.console import Console

from femtobooth.core import console, events
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


def seen(level: int, *, terminal: bool = False, colour: bool = False) -> str:
    """What a terminal of this level shows of one event of each kind."""
    buffer = io.StringIO()
    system = "standard" if colour else None
    screen = Console(file=buffer, force_terminal=terminal, width=100, color_system=system, **console.STYLE)  # type: ignore[arg-type]
    with listening(console.Terminal(level, screen)), events.stage("drawing"):
        events.note("a note")
        events.detail("a detail")
        events.warn("a warning")
        events.table("a table", ["name"], [["a cell of some width"]])
        events.table("the answer", ["name"], [["a cell of some width"]], result=True)
        events.conclude("a result")
        events.emit("metrics", step=1, values={"loss": 1.0})
        events.emit("picture", path="a.png", step=1)
        events.emit("error", text="an error")
        list(progress([1], "a bar"))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (console.QUIET, {"a warning", "the answer", "a result"}),
        (console.NORMAL, {"a warning", "the answer", "a result", "a note", "a table", "a bar"}),
        (
            console.VERBOSE,
            {"a warning", "the answer", "a result", "a note", "a table", "a bar", "a detail", "drawing: done after"},
        ),
    ],
)
def test_a_level_shows_these_and_no_others(level: int, expected: set[str]) -> None:
    told = seen(level, terminal=True)
    everything = {"a note", "a detail", "a warning", "a table", "the answer", "a result", "an error", "a bar", "a.png"}
    assert {text for text in everything | {"drawing: done after"} if text in told} == expected


def test_without_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[33m" in seen(console.NORMAL, terminal=True, colour=True)
    monkeypatch.setenv("NO_COLOR", "1")
    told = seen(console.NORMAL, terminal=True, colour=True)
    assert "a warning" in told
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", told)


@pytest.mark.parametrize("said", [True], indirect=True)
def test_a_brief_bar_is_not_drawn_before_it_has_lasted(said: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    with progress_bar("pictures", 3, brief=True) as bar:
        bar.advance()
    assert said.getvalue() == ""
    with progress_bar("pictures", 3, brief=True) as bar:
        clock[0] += 2
        bar.advance(2)
    assert "2/3" in said.getvalue()


@pytest.mark.parametrize("said", [False], indirect=True)
def test_many_short_waits_are_told_as_one_long_one(said: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    for number in range(8):
        with progress_bar(f"batch {number}", 3) as bar:
            for _ in range(3):
                clock[0] += 1
                bar.advance()
    told = said.getvalue().splitlines()
    assert [line.partition(":")[0] for line in told] == ["batch 3", "batch 3", "batch 7", "batch 7"]
    assert told[0].startswith("batch 3: 1 of 3")  # after 10 seconds


@pytest.mark.parametrize("said", [True, False], indirect=True)
def test_a_table_beneath_a_bar(said: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    with progress_bar("subjects", 4) as bar:
        bar.beneath(("subject", "what", ">how far", ""), [("rex", "training", "3 of 9", "")])
        monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
        clock[0] = 1e9
        bar.advance(1, note="1 not finished")
    told = said.getvalue()
    if "━" in told:
        assert re.search(r"subject +what +how far *\n *rex +training +3 of 9", told)
    else:
        assert told.endswith(", 1 not finished; rex: training 3 of 9\n") and told.startswith("subjects: 1 of 4")
