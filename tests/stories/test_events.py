"""RUN/events.jsonl of a real run: stages, metrics, pictures and the result, through an interruption and a resume."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from femtobooth.core import event_log
from femtobooth.core.event_log import read_events
from femtobooth.training import checkpoints


@pytest.fixture(scope="module")
def told(
    personalize: Callable[..., Path],
    femtobooth: Callable[..., int],
    tiny_base: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, list[dict[str, Any]]]:
    """A run that a signal stops in its last save, and that is resumed."""
    real, sent = checkpoints.save, list[int]()

    def interrupted(*arguments: Any, **named: Any) -> Any:
        if not sent:
            sent.append(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
        return real(*arguments, **named)

    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "save", interrupted)
        with pytest.raises(AssertionError, match="assert 143 == 0"):
            personalize(tiny_base, runs, "run", "--set", "training.trackers=")
    run = runs / "run"
    assert read_events(run / event_log.FILE)[-1]["status"] == "interrupted"
    assert femtobooth("personalize", "--resume", run) == 0
    return run, read_events(run / event_log.FILE)


def test_numbers_are_those_of_the_lines_across_processes(told: tuple[Path, list[dict[str, Any]]]) -> None:
    run, events = told
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert len((run / event_log.FILE).read_bytes().splitlines()) == len(events)
    assert [event["time"] for event in events] == sorted(event["time"] for event in events)


def test_it_says_what_was_done_in_order(told: tuple[Path, list[dict[str, Any]]]) -> None:
    ended = [tuple(event["stage"]) for event in told[1] if event["kind"] == "stage" and event["state"] == "done"]
    assert ended == [("base",), ("photos",), ("identifier",), ("training", "class images"), ("training",), ("result",)]


def test_measures_and_pictures_are_those_of_the_run(
    told: tuple[Path, list[dict[str, Any]]],
) -> None:
    run, events = told
    measured = [event for event in events if event["kind"] == "metrics"]
    assert {event["step"] for event in measured if "loss/instance" in event["values"]} == {1, 2}
    pictures = [event for event in events if event["kind"] == "picture"]
    assert [(event["path"], event["tag"], event["step"]) for event in pictures] == [
        ("samples/step-000000.png", "samples", 0),
        ("overview.png", "overview", 2),
    ]
    assert all((run / event["path"]).is_file() for event in pictures)


def test_it_ends_with_the_result(told: tuple[Path, list[dict[str, Any]]]) -> None:
    _run, events = told
    products = {event["what"]: event["path"] for event in events if event["kind"] == "artifact"}
    assert products == {"model": "model", "page": "report.html"}
    result = [event for event in events if event["kind"] == "result"][-1]
    assert (result["run"], result["status"], result["steps"]) == (".", "done", 2)
    assert {event["kind"] for event in events} >= {"progress", "table", "note", "error"}


def test_a_run_with_it_may_be_replaced(
    told: tuple[Path, list[dict[str, Any]]], personalize: Callable[..., Path], tiny_base: Path
) -> None:
    run, events = told
    personalize(tiny_base, run.parent, "run", "--overwrite", "--steps", 1)
    assert next(event["seq"] for event in read_events(run / event_log.FILE)) == 1
    assert len(read_events(run / event_log.FILE)) < len(events)
