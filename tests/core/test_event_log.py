"""RUN/events.jsonl: what happened, numbered by line, through kills, resumes, full disks and several processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from femtobooth.core import event_log, events
from femtobooth.core.errors import Interrupted, ModelError
from femtobooth.core.event_log import FILE, logged, read_events, remembering


def told(folder: Path, *fields: str) -> list[tuple[Any, ...]]:
    return [tuple(event.get(field) for field in fields) for event in read_events(folder / FILE)]


def test_every_kind_is_a_line(tmp_path: Path) -> None:
    with logged(tmp_path), events.stage("training"):
        events.note("one")
        events.warn("two\nlines")
        events.emit("metrics", step=7, values={"loss": float("nan"), "lr": 1e-5})
        events.emit("picture", path=tmp_path / "samples" / "step-000007.png", step=7, tag="samples")
        events.table("title", ["a"], [[1]])
        with events.progress_bar("steps", 3):
            pass
        events.emit("artifact", path=Path("/elsewhere/model"), what="model")
        events.emit("result", run=tmp_path)
    lines = (tmp_path / FILE).read_text().splitlines()
    read = read_events(tmp_path / FILE)
    assert [json.loads(line) for line in lines] == read
    assert [event["seq"] for event in read] == list(range(1, len(read) + 1))
    assert all(event["stage"] == ["training"] for event in read)
    assert [event["kind"] for event in read] == [
        *("stage", "note", "warning", "metrics", "picture", "table", "progress", "progress", "artifact", "result"),
        "stage",
    ]
    assert read[3]["values"] == {"loss": None, "lr": 1e-5}
    assert (read[4]["path"], read[4]["step"]) == ("samples/step-000007.png", 7)
    assert (read[8]["path"], read[9]["run"]) == ("/elsewhere/model", ".")
    assert abs(read[0]["time"] - time.time()) < 60


def test_a_page_asks_for_what_is_new(tmp_path: Path) -> None:
    path = tmp_path / FILE
    assert read_events(path) == []
    with logged(tmp_path):
        for text in "abc":
            events.note(text)
        assert [event["text"] for event in read_events(path, after=1)] == ["b", "c"]
        events.note("d")
        assert [(event["seq"], event["text"]) for event in read_events(path, after=3)] == [(4, "d")]
        assert read_events(path, after=4) == []


def test_a_torn_line_is_skipped_and_the_next_process_goes_on(tmp_path: Path) -> None:
    with logged(tmp_path):
        events.note("whole")
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'{"seq": 2, "time": 1.0, "kind": "no')
    assert told(tmp_path, "seq", "text") == [(1, "whole")]
    with logged(tmp_path):
        events.note("after")
    assert told(tmp_path, "seq", "text") == [(1, "whole"), (2, "after")]


def test_a_damaged_line_costs_no_other(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"seq": 1, "text": "a"}\n\x00\x00\n{"seq": 3, "text": "c"}\n')
    assert [event["text"] for event in read_events(tmp_path / FILE)] == ["a", "c"]
    assert [event["text"] for event in read_events(tmp_path / FILE, after=2)] == ["c"]


def test_kill_9_leaves_whole_lines(tmp_path: Path) -> None:
    code = (
        "import sys, itertools, pathlib\n"
        "from femtobooth.core import events\n"
        "from femtobooth.core.event_log import logged\n"
        "with logged(pathlib.Path(sys.argv[1])):\n"
        "    for number in itertools.count(1): events.note(f'{number} ' + 'x' * 5000)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path])
    try:
        while len(read_events(tmp_path / FILE)) < 200:
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    read = read_events(tmp_path / FILE)
    assert [(event["seq"], int(event["text"].split()[0])) for event in read] == [
        (n, n) for n in range(1, len(read) + 1)
    ]
    assert (tmp_path / FILE).read_bytes().count(b"\n") == len(read)
    with logged(tmp_path):
        events.note("resumed")
    assert read_events(tmp_path / FILE, after=len(read))[0]["seq"] == len(read) + 1


def test_progress_is_told_at_most_five_times_a_second(tmp_path: Path) -> None:
    began = time.monotonic()
    with logged(tmp_path), events.progress_bar("steps", None) as bar:
        while time.monotonic() - began < 0.7:
            bar.advance()
    states = [state for (state,) in told(tmp_path, "state")]
    assert states[-1] == "done"
    assert 3 <= states.count("running") <= 4
    assert told(tmp_path, "id") == [(1,)] * len(states)  # the line that it began with
    with logged(tmp_path):
        for _ in range(1000):
            assert list(events.progress([1], "short")) == [1]
    assert len(read_events(tmp_path / FILE, after=len(states))) <= 4


def test_the_error_that_ends_a_run_is_its_last_line(tmp_path: Path) -> None:
    endings: list[tuple[type[BaseException], BaseException]] = [
        (ModelError, ModelError("no such base", "give another")),
        (Interrupted, Interrupted("stopped at step 3", "femtobooth ...", 15)),
        (ZeroDivisionError, ZeroDivisionError("division by zero")),
    ]
    for kind, error in endings:
        with pytest.raises(kind), logged(tmp_path):
            raise error
    assert told(tmp_path, "kind", "text", "way_out", "type", "status") == [
        ("error", "no such base", "give another", "ModelError", "failed"),
        ("error", "stopped at step 3", "femtobooth ...", "Interrupted", "interrupted"),
        ("error", "division by zero", None, "ZeroDivisionError", "failed"),
    ]


def test_what_came_before_the_folder_is_in_it_too(tmp_path: Path) -> None:
    @remembering
    def run() -> None:
        events.warn("photo 3 is blurred")
        with logged(tmp_path):
            events.note("training")
        events.note("afterwards")

    run()
    assert told(tmp_path, "seq", "text") == [(1, "photo 3 is blurred"), (2, "training")]


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    with logged(tmp_path):
        events.note("second")
    assert not (tmp_path / FILE).exists()


def test_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    def speak(number: int) -> None:
        for turn in range(200):
            events.note(f"{number}-{turn}-" + "x" * 3000)

    with logged(tmp_path):
        threads = [threading.Thread(target=speak, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    read = read_events(tmp_path / FILE)
    assert [event["seq"] for event in read] == list(range(1, 801))


def test_a_name_that_is_no_utf8_comes_back(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xff.jpg")
    with logged(tmp_path):
        events.note(name)
    (tmp_path / FILE).read_bytes().decode("utf-8")
    assert told(tmp_path, "text") == [(name,)]


def test_what_is_refused_is_left_out_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write

    def cut(handle: int, line: bytes) -> int:
        if b"lost" in line:
            real(handle, line[:9])
            raise OSError(28, "No space left on device")
        return real(handle, line)

    with logged(tmp_path):
        events.note("first")
        with monkeypatch.context() as patch:
            patch.setattr(event_log.os, "write", cut)
            events.note("lost")
        events.note("second")
    assert told(tmp_path, "seq", "text") == [(1, "first"), (2, "second")]


@pytest.mark.parametrize("raises", [False, True])
def test_a_signal_in_the_middle_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raises: bool) -> None:
    """Its handler speaks too, and may raise, which stops what it interrupted."""
    real, sent = os.write, list[int]()

    def handler(*_: object) -> None:
        events.note("SIGTERM: saving after this step, then stopping")
        if raises:
            raise Interrupted("stopped", signum=signal.SIGTERM)

    def write(handle: int, line: bytes) -> int:
        if not sent and b'"one"' in line:  # os.write is everybody's: what another thread writes is not meant
            sent.append(real(handle, line))
            signal.raise_signal(signal.SIGTERM)  # in this thread, before it goes on
            return sent[0]
        return real(handle, line)

    before = signal.signal(signal.SIGTERM, handler)
    try:
        with logged(tmp_path):
            monkeypatch.setattr(event_log.os, "write", write)
            if raises:
                with pytest.raises(Interrupted):
                    events.note("one")
            else:
                events.note("one")
            events.note("two")
    finally:
        signal.signal(signal.SIGTERM, before)
    said = "SIGTERM: saving after this step, then stopping"
    assert told(tmp_path, "seq", "text") == [(1, "one"), (2, said), (3, "two")]


def test_the_page_about_it_shows_every_kind() -> None:
    page = (Path(__file__).parents[2] / "docs" / "events.md").read_text(encoding="utf-8")
    shown = [json.loads(line) for line in page.partition("```json\n")[2].partition("```")[0].splitlines()]
    assert [event["seq"] for event in shown] == list(range(1, len(shown) + 1))
    assert {event["kind"] for event in shown} == set(events.KINDS)
    assert all(f"| `{kind}` |" in page for kind in events.KINDS)
