"""The queue: what was asked for, in which order, and how each job stands; a table of SQLite that outlives a server."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from ..core.locks import Holder
from ..core.run import Progress
from .refusals import Missing, Refusal

Status = Literal["queued", "running", "stopping", "paused", "interrupted", "failed", "done"]
ACTIVE = ("running", "stopping")
WAITING = ("queued", "paused")
"""In the queue, at a place of their own; a paused one is passed over until it is resumed."""
ENDED = ("paused", "interrupted", "failed", "done")
MOST_QUEUED = 100


class Problem(BaseModel):
    """What is wrong, with which setting, and the way out."""

    setting: str | None = None
    """Dotted name of the setting; null where it is no setting's fault."""
    problem: str
    way_out: str | None = None


class Job(BaseModel):
    """One job of the queue."""

    id: str
    command: str
    """A command of femtobooth: personalize, finetune, generate, ..."""
    settings: dict[str, Any]
    """As they were given; `upload:ID` and `run:ID` stand for files."""
    title: str = ""
    """What people call it: the run's name, or the command."""
    status: Status = "queued"
    paused: bool = False
    """Whether it is paused, or will be once it has stopped."""
    position: float = 0.0
    """Its place in the queue: lower ones begin first."""
    device: str = "cpu"
    """Where it computes; one job at a time does."""
    run_id: str | None = None
    """The run that it makes, where it makes one."""
    created: datetime
    started: datetime | None = None
    ended: datetime | None = None
    error: Problem | None = None
    progress: Progress = Progress()
    resumable: bool = False
    """Whether it can go on with its run; one that cannot begins anew."""
    run_name: str | None = Field(None, exclude=True)
    process: Holder | None = Field(None, exclude=True)
    resumes: bool = Field(False, exclude=True)
    """Whether it goes on with its run when it begins."""


COLUMNS = (
    "id", "command", "settings", "title", "status", "paused", "position", "device", "run_id", "created", "started",
    "ended", "error", "run_name", "process", "resumes",
)  # fmt: skip
JSON = ("settings", "error", "process")


class Jobs:
    """The table of jobs. Every method is one transaction, from whatever thread."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        self._base = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._base.row_factory = sqlite3.Row
        self._base.execute("PRAGMA journal_mode=WAL")
        self._base.execute("PRAGMA synchronous=FULL")
        columns = ", ".join(f"{name} {'TEXT PRIMARY KEY' if name == 'id' else ''}" for name in COLUMNS)
        self._base.execute(f"CREATE TABLE IF NOT EXISTS jobs ({columns}, key TEXT UNIQUE)")
        self._base.execute("UPDATE jobs SET status = 'paused' WHERE status = 'interrupted' AND paused")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._base.close()

    def add(self, job_id: str, command: str, settings: Mapping[str, Any], key: str | None = None, **more: Any) -> Job:
        """Put a job at the end of the queue; the one that has this `key` already, where there is one."""
        with self._lock:
            if key and (found := self.of_key(key)):
                return found
            last = self._base.execute("SELECT MAX(position) FROM jobs").fetchone()[0] or 0.0
            job = Job(
                id=job_id,
                command=command,
                settings=dict(settings),
                position=last + 1,
                created=now(),
                **more,
            )
            values = _row(job)
            marks = ", ".join("?" * (len(COLUMNS) + 1))
            self._base.execute(
                f"INSERT INTO jobs ({', '.join(COLUMNS)}, key) VALUES ({marks})",  # noqa: S608
                [*(values[name] for name in COLUMNS), key],
            )
            return job

    def listed(self, statuses: Sequence[str] = ()) -> list[Job]:
        """List the jobs, in the order of the queue."""
        marks = ", ".join("?" * len(statuses))
        return self._all(f"WHERE status IN ({marks}) ORDER BY position" if statuses else "ORDER BY position", statuses)

    def get(self, job_id: str) -> Job | None:
        """Find a job by its id."""
        return next(iter(self._all("WHERE id = ?", [job_id])), None)

    def of_key(self, key: str) -> Job | None:
        """Find the job that was submitted with a key."""
        return next(iter(self._all("WHERE key = ?", [key])), None)

    def of_run(self, run_id: str) -> Job | None:
        """Find the last job that works, or worked, on a run."""
        return next(iter(self._all("WHERE run_id = ? ORDER BY position DESC", [run_id])), None)

    def change(self, job_id: str, only: Sequence[str] = (), **changes: Any) -> Job:
        """Change fields of a job that is in one of the states `only`. Raises InputError where it is not."""
        with self._lock:
            job = self.get(job_id)
            if job is None:
                raise Missing("job")
            if only and job.status not in only:
                raise Refusal(f"the job is {job.status}", f"this is for jobs that are {' or '.join(only)}", 409)
            changed = Job.model_validate({**dict(job), **changes})
            values = _row(changed)
            if not changes:
                return changed
            sets = ", ".join(f"{name} = ?" for name in changes)
            self._base.execute(
                f"UPDATE jobs SET {sets} WHERE id = ?",  # noqa: S608
                [*(values[name] for name in changes), job_id],
            )
            return changed

    def order(self, ids: Sequence[str]) -> None:
        """Put jobs into this order, at the places that they have among all."""
        with self._lock:
            places = sorted(job.position for job in self.listed() if job.id in set(ids))
            for job_id, position in zip(ids, places, strict=False):
                self._base.execute("UPDATE jobs SET position = ? WHERE id = ?", [position, job_id])

    def remove(self, job_id: str) -> None:
        """Take a job out of the table."""
        with self._lock:
            self._base.execute("DELETE FROM jobs WHERE id = ?", [job_id])

    def _all(self, where: str, values: Sequence[Any]) -> list[Job]:
        with self._lock:
            rows = self._base.execute(f"SELECT * FROM jobs {where}", list(values)).fetchall()  # noqa: S608
        return [_job(row) for row in rows]


def _row(job: Job) -> dict[str, Any]:
    values = {name: getattr(job, name) for name in COLUMNS}
    for name in ("created", "started", "ended"):
        values[name] = values[name].isoformat() if values[name] else None
    values["settings"] = json.dumps(job.settings)
    values["error"] = job.error.model_dump_json() if job.error else None
    values["process"] = json.dumps(vars(job.process)) if job.process else None
    return values


def _job(row: sqlite3.Row) -> Job:
    values: dict[str, Any] = {name: row[name] for name in COLUMNS}
    for name in JSON:
        values[name] = json.loads(values[name]) if values[name] else None
    return Job.model_validate(values)


def now() -> datetime:
    """Give the time, with its zone."""
    return datetime.now(UTC)
