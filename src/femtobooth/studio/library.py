"""The runs of the studio's folder and the files in them, by ids: an id is looked up in a listing, and never a path."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel

from ..core.names import shown
from ..core.run import FILE, Progress, Run
from ..workflows.runs import next_command

KINDS = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".svg": "image/svg+xml",
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".jsonl": "application/x-ndjson",
    ".csv": "text/csv; charset=utf-8",
    ".md": "text/markdown; charset=utf-8",
    ".yaml": "text/yaml; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".safetensors": "application/octet-stream",
    ".parquet": "application/octet-stream",
    ".onnx": "application/octet-stream",
}
"""Endings of the files that are given out, and what they are."""


PICTURES = ("samples/step-*.png", "images/*/*-seed*.png", "overview.png")
"""Where the pictures lie of which the newest stands for a run."""


class Artifact(BaseModel):
    """A file of a run."""

    id: str
    name: str
    """Where it lies in the run, such as samples/step-000100.png; for people, no part of an address."""
    type: str
    size: int
    """Bytes."""
    changed: datetime


class RunFacts(BaseModel):
    """How a run stands."""

    id: str
    name: str
    kind: str
    """The command that made it: personalize or finetune."""
    status: str
    """queued, running, interrupted, failed or done."""
    progress: Progress
    created: datetime
    seconds: float
    error: str | None = None
    command: str = ""
    """What was typed to start it."""
    next: str = ""
    """What to type next."""
    picture: str | None = None
    """Id of the newest picture in it, for a card."""


Stamp = tuple[int, int, int]


def stamp_of(path: Path) -> Stamp | None:
    """Tell a file or folder from what it was before: when it was changed, its size, its number; None without it."""
    with suppress(OSError):
        found = path.stat()
        return found.st_mtime_ns, found.st_size, found.st_ino
    return None


@lru_cache(maxsize=65_536)
def id_of(text: str) -> str:
    """Give the id by which a name goes in addresses."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class Library:
    """The runs of a folder. A run.json that has not changed is read once; what it gives is to be read, not changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, tuple[Stamp, Run | None]] = {}

    def runs(self) -> list[Run]:
        """Read all runs, the newest first."""
        names = os.listdir(self.folder)
        found = [run for name in names if (run := self._read(name))]
        for name in self._known.keys() - set(names):
            self._known.pop(name, None)
        return sorted(found, key=lambda run: run.created, reverse=True)

    def run(self, run_id: str) -> Run | None:
        """Find a run by its id; None where there is none, or it is damaged."""
        for name in os.listdir(self.folder):
            if id_of(name) == run_id and not (self.folder / name).is_symlink():
                return self._read(name)
        return None

    def _read(self, name: str) -> Run | None:
        """Read the run of a folder, unless that is known from before."""
        stamp = stamp_of(self.folder / name / FILE)
        if stamp is None:
            return None
        before = self._known.get(name)
        if before is None or before[0] != stamp:
            before = stamp, Run.peek(self.folder / name)
            self._known[name] = before
        run = before[1]
        killed = run is not None and run.status == "running" and run.worker is None  # which no file tells
        return Run.peek(self.folder / name) if killed else run

    @staticmethod
    def title(run: Run) -> str:
        """Give what people call a run, fit to be shown."""
        return shown(run.folder.name)

    def facts(self, run: Run) -> RunFacts:
        """Tell how a run stands."""
        pictures = [path for pattern in PICTURES for path in run.folder.glob(pattern)]
        newest = max(pictures, key=lambda path: path.stat().st_mtime, default=None)
        return RunFacts(
            id=id_of(run.folder.name),
            name=self.title(run),
            kind=run.kind,
            status=run.status,
            progress=run.progress,
            created=run.created,
            seconds=run.seconds,
            error=shown(run.error, keep="\n") if run.error else None,
            command=shown(run.command),
            next=shown(next_command(run)),
            picture=id_of(newest.relative_to(run.folder).as_posix()) if newest else None,
        )


def artifacts(folder: Path) -> list[Artifact]:
    """List the files of a folder that are given out, by name; links and what is hidden are not."""
    return [one for one, _ in _files(folder)]


def artifact(folder: Path, artifact_id: str) -> tuple[Artifact, Path] | None:
    """Find a file of a folder by its id; None where it is not listed."""
    return next((found for found in _files(folder) if found[0].id == artifact_id), None)


def _files(folder: Path) -> Iterator[tuple[Artifact, Path]]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        linked = any((folder / above).is_symlink() for above in [name, *name.parents][:-1])
        if hidden or linked or path.suffix not in KINDS or not path.is_file():
            continue
        facts = path.stat()
        known = Artifact(
            id=id_of(name.as_posix()),
            name=shown(name.as_posix()),
            type=KINDS[path.suffix],
            size=facts.st_size,
            changed=datetime.fromtimestamp(facts.st_mtime).astimezone(),
        )
        yield known, path
