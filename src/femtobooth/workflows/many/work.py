"""What there is to do for one subject, and doing it: command after command, a process each, until it is done."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...core import job, locks
from ...core.locks import LOCK
from ...core.run import SILENCE, Run, is_run

PRIVATE = ".many"  # folder in that of the runs, for the places of their work
LOOK = 0.1  # seconds between two looks at a process


@dataclass(frozen=True)
class Work:
    """One subject, and where it stands on disk."""

    name: str
    place: Path
    """Folder of what its processes say and are told (core/job.py)."""
    folder: Path
    """Its run."""
    following: Callable[[], Sequence[str] | None]
    """Gives the command line that is next, as far as the disk says; None where all is done. Can be pickled."""


@dataclass(frozen=True)
class Ended:
    """How work on a subject ended."""

    status: Literal["done", "interrupted", "failed"]
    problem: str = ""
    way_out: str | None = None


def training(folder: Path, settings: Path) -> Sequence[str] | None:
    """Say which command teaches a subject, or goes on with that; None where its run is done."""
    if not is_run(folder):
        return ["personalize", "--config", str(settings)]
    run = Run.peek(folder)
    done = run is not None and run.status == "done" and (folder / "report.html").is_file()
    return None if done else ["personalize", "--resume", str(folder)]


STOPPED = Ended("interrupted", "stopped before it was done", "the same command goes on from there")
KILLED = Ended("interrupted", job.KILLED, "the same command goes on from its checkpoint")


def carry_out(work: Work, retries: int, environment: Mapping[str, str], stopping: threading.Event) -> Ended:
    """Do what there is to do for a subject; a process that is killed is begun again, `retries` times, and goes on.

    Once `stopping` is set, its process is asked to save and end. Raises nothing but what a fault of femtobooth's would.
    """
    killed = 0
    finished: Sequence[str] | None = None
    while True:
        _wait_for_others(work, stopping)
        words = work.following()
        if words is None:
            return Ended("done")
        if stopping.is_set():
            return STOPPED
        if words == finished:
            return Ended("failed", f"`femtobooth {words[0]}` ended without an error, and is not done", "see its log")
        try:
            work.place.mkdir(parents=True, exist_ok=True)
            child = job.start(work.place, words, **environment)
        except OSError as error:
            return Ended("failed", f"its process could not be started ({error.strerror})", "try it again")
        _wait(child, work, stopping)
        code = job.ended(work.place)
        finished = words if code == 0 else None
        if code is None and killed < retries and not stopping.is_set():
            killed += 1
        elif code != 0:
            return _unfinished(code, work, stopping)


def _unfinished(code: int | None, work: Work, stopping: threading.Event) -> Ended:
    if stopping.is_set() or (code or 0) >= 128:
        return STOPPED
    return KILLED if code is None else Ended("failed", *job.last_words(work.place / job.LOG))


def _wait(child: subprocess.Popen[bytes], work: Work, stopping: threading.Event) -> None:
    """Wait until a process has ended, which is asked to once `stopping` is set, or where Ray cancels this."""
    asked = False
    while True:
        try:
            if stopping.is_set() and not asked:
                asked = True
                job.stop(locks.described(child.pid, ""), work.folder)
            child.wait(LOOK)
            return
        except subprocess.TimeoutExpired:
            continue
        except KeyboardInterrupt:
            stopping.set()


def _wait_for_others(work: Work, stopping: threading.Event) -> None:
    """Wait for a process that an earlier command began and that lives on; it is the one to end its step."""
    while not stopping.is_set() and _in_work(work):
        time.sleep(LOOK)


def _in_work(work: Work) -> bool:
    """Tell whether a process works on a subject. What is held by one on a machine that fell silent is freed."""
    run, found = Run.peek(work.folder), locks.holder(work.place)
    if (run and run.worker) or (found and not found.elsewhere):
        return True
    if found and time.time() - _last_word(work.place) < SILENCE:
        return True
    for folder in (work.place, work.folder):
        if locks.holder(folder):
            (folder / LOCK).unlink(missing_ok=True)
    return False


def _last_word(place: Path) -> float:
    """Say when anything was last written in a job's folder, in seconds since 1970."""
    said = 0.0
    for path in place.glob("*"):
        with suppress(OSError):
            said = max(said, path.stat().st_mtime)
    return said
