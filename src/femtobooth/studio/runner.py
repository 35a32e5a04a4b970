"""Begin the jobs of the queue, a process each, watch them, and note how they end.

A process is known by its number and when it began, so that one that outlived the server is found again. The thread
looks once a second while a job runs; else it sleeps until somebody calls `wake`.
"""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import threading
from pathlib import Path

from ..core import fields, locks
from ..core.job import KILLED, LOG, SETTINGS, ended, last_words, start
from ..core.run import Run
from ..workflows.commands import COMMANDS, find
from .jobs import ACTIVE, Job, Jobs, Problem, now

_log = logging.getLogger("femtobooth")
LOOK = 1.0  # seconds between two looks at jobs that run
GONE = Problem(problem=KILLED)


class Runner:
    """The thread that keeps the queue moving."""

    def __init__(self, jobs: Jobs, runs: Path, private: Path, at_once: int = 1) -> None:
        self.jobs, self.runs, self.folder, self.at_once = jobs, runs, private / "jobs", at_once
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._awake, self._ended = threading.Event(), False
        self._thread = threading.Thread(target=self._watch, name="jobs", daemon=True)

    def begin(self) -> None:
        """Find out what became of the jobs that ran, then go on with the queue."""
        known = {job.id for job in self.jobs.listed()}
        for place in [*self.folder.iterdir()] if self.folder.is_dir() else []:
            if place.name not in known and locks.holder(place) is None:  # it ended before the queue knew of it
                shutil.rmtree(place, ignore_errors=True)
        for job in self.jobs.listed(("queued",)):  # begun by a server that died before it could say so
            if found := locks.holder(self.place(job)):
                self.jobs.change(job.id, status="running", process=found, started=now())
        self.look()
        self._thread.start()

    def end(self) -> None:
        """Stop watching; jobs that run go on."""
        self._ended = True
        self.wake()
        if self._thread.is_alive():
            self._thread.join(5)

    def wake(self) -> None:
        """Look at the queue now."""
        self._awake.set()

    def place(self, job: Job) -> Path:
        """Say where a job's own files lie."""
        return self.folder / job.id

    def _watch(self) -> None:
        while not self._ended:
            self._awake.wait(LOOK if self._children or self.jobs.listed(ACTIVE) else None)
            self._awake.clear()
            if not self._ended:
                try:
                    self.look()
                except Exception:  # a full disk, say: whatever it is, the queue is looked at again
                    _log.exception("the studio could not look after its jobs")
                    self._awake.wait(LOOK)

    def look(self) -> None:
        """Note which jobs have ended, and begin those whose turn it is."""
        busy: dict[str, int] = {}
        for job in self.jobs.listed(ACTIVE):
            if self._lives(job):
                busy[job.device] = busy.get(job.device, 0) + 1
            else:
                self._conclude(job)
        for job in self.jobs.listed(("queued",)):
            if busy.get(job.device, 0) < self.at_once:
                busy[job.device] = busy.get(job.device, 0) + 1
                self._launch(job)

    def _lives(self, job: Job) -> bool:
        child = self._children.get(job.id)
        if child is not None:
            return child.poll() is None
        return job.process is not None and not job.process.gone

    def _launch(self, job: Job) -> None:
        place = self.place(job)
        what = ["--resume", str(self.runs / str(job.run_name))] if job.resumes else ["--config", str(place / SETTINGS)]
        try:
            child = self.process(place, [job.command, *what, "--json"])
        except OSError as error:
            why = Problem(problem=f"its process could not be started ({error.strerror})", way_out="try it again")
            self.jobs.change(job.id, status="failed", ended=now(), error=why)
            return
        self._children[job.id] = child
        process = locks.described(child.pid, f"femtobooth {job.command}")
        self.jobs.change(job.id, status="running", process=process, started=now(), ended=None, error=None, paused=False)

    def process(self, place: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
        """Start the process of a job: a command line with its arguments. Raises OSError."""
        return start(place, arguments)

    def _conclude(self, job: Job) -> None:
        self._children.pop(job.id, None)
        code = ended(self.place(job))
        run = Run.peek(self.runs / job.run_name) if job.run_name else None
        error = None
        if code == 0 or (code is None and run is not None and run.status == "done"):
            status = "done"
        elif code is None:
            status, error = "interrupted", GONE
        elif code >= 128:
            status = "paused" if job.paused else "interrupted"
        else:
            status, error = "failed", why_failed(self.place(job) / LOG, job.command)
        self.jobs.change(job.id, status=status, paused=status == "paused", ended=now(), error=error)


def why_failed(log: Path, command: str) -> Problem:
    """Read what a command line said last: its problem and the way out, settings by their names in place of flags."""
    said = last_words(log)
    problem, named = _unspoken(said.problem, command)
    return Problem(
        setting=named, problem=problem, way_out=_unspoken(said.way_out, command)[0] if said.way_out else None
    )


def _unspoken(text: str, command: str) -> tuple[str, str | None]:
    """Put the names of settings in place of flags; says also which stands at the beginning."""
    row = COMMANDS.get(command)
    flags = {one.flag: one.path for one in fields.settings(find(row.settings))} if row else {}
    named = flags.get(re.split(r"[ :]", text, maxsplit=1)[0])
    return re.sub(r"--[a-z][a-z-]*", lambda flag: f"`{flags[flag[0]]}`" if flag[0] in flags else flag[0], text), named
