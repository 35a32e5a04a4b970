"""Events: told to whoever listens, in stages, from any thread, and to Python's logging where nobody does."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from femtobooth.core import events
from femtobooth.core.events import Event, listening


def test_every_listener_hears_everything_in_order() -> None:
    first: list[Event] = []
    second: list[Event] = []
    with listening(first.append):
        events.note("one")
        with listening(second.append):
            events.warn("two")
        events.emit("metrics", step=3, values={"loss": 0.5})
    events.note("nobody hears")
    assert [(one.kind, dict(one.data)) for one in first] == [
        ("note", {"text": "one"}),
        ("warning", {"text": "two"}),
        ("metrics", {"step": 3, "values": {"loss": 0.5}}),
    ]
    assert [one.kind for one in second] == ["warning"]


def test_a_kind_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="shout"):
        events.emit("shout", text="!")


def test_stages_nest_and_say_how_they_ended() -> None:
    heard: list[Event] = []
    with listening(heard.append), pytest.raises(ZeroDivisionError), events.stage("outer"):
        with events.stage("inner"):
            events.note("here")
        _ = 1 / 0
    told = [(one.kind, one.stage, one.data.get("state")) for one in heard]
    assert told == [
        ("stage", ("outer",), "running"),
        ("stage", ("outer", "inner"), "running"),
        ("note", ("outer", "inner"), None),
        ("stage", ("outer", "inner"), "done"),
        ("stage", ("outer",), "stopped"),
    ]
    assert heard[3].data["seconds"] >= 0


def test_two_runs_in_two_threads_do_not_hear_each_other() -> None:
    heard: dict[str, list[str]] = {"a": [], "b": []}
    meet = threading.Barrier(2)

    def run(name: str) -> None:
        with listening(lambda event: heard[name].append(event.data["text"])):
            meet.wait()
            events.note(name)
            meet.wait()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, "ab"))
    assert heard == {"a": ["a"], "b": ["b"]}


def test_threads_are_heard_carried_or_not() -> None:
    heard: list[Event] = []
    with listening(heard.append), events.stage("decoding"):
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(events.carried(events.note), ["ours", "ours"]))
        stranger = threading.Thread(target=events.note, args=("a library's",))
        stranger.start()
        stranger.join()
    notes = [(one.data["text"], one.stage) for one in heard if one.kind == "note"]
    assert notes == [("ours", ("decoding",)), ("ours", ("decoding",)), ("a library's", ())]


def test_what_is_carried_speaks_to_its_own_run_though_another_began_later() -> None:
    ours: list[Event] = []
    theirs: list[Event] = []
    with listening(ours.append):
        speak = events.carried(events.note)
        begun, over = threading.Event(), threading.Event()

        def other() -> None:
            with listening(theirs.append):
                begun.set()
                over.wait()

        thread = threading.Thread(target=other)
        thread.start()
        begun.wait()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(speak, "mine").result()
        over.set()
        thread.join()
    assert [one.data["text"] for one in ours] == ["mine"]
    assert theirs == []


def test_progress_counts_what_people_count() -> None:
    heard: list[Event] = []
    with listening(heard.append), events.progress_bar("pictures", 2, parts=4) as bar:
        for _ in range(4):
            bar.advance(note="a cat")
    told = [(one.data["done"], one.data["total"], one.data["note"], one.data["state"]) for one in heard]
    assert told == [
        (0, 2, "", "running"),
        (0.25, 2, "a cat", "running"),
        (0.5, 2, "a cat", "running"),
        (0.75, 2, "a cat", "running"),
        (1.0, 2, "a cat", "running"),
        (1.0, 2, "a cat", "done"),
    ]
    assert len({one.data["id"] for one in heard}) == 1


def test_progress_that_an_error_ends_is_not_done() -> None:
    heard: list[Event] = []
    with listening(heard.append), pytest.raises(ZeroDivisionError), events.progress_bar("pictures", 2):
        _ = 1 / 0
    assert heard[-1].data["state"] == "stopped"


def test_where_nobody_listens_warnings_go_to_logging(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "femtobooth"):
        events.warn("careful")
        events.note("by the way")
        events.detail("if you must know")
        events.emit("metrics", step=1, values={})
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "careful"),
        ("INFO", "by the way"),
        ("DEBUG", "if you must know"),
    ]
