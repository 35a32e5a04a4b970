"""The runs of the studio's folder and the files in them, by ids: an id is looked up in a listing, and never a path."""

from __future__ import annotations

import hashlib
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel

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


def id_of(text: str) -> str:
    """Give the id by which a name goes in addresses."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class Library:
    """The runs of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def runs(self) -> list[Run]:
        """Read all runs, the newest first."""
        found = (Run.peek(path.parent) for path in self.folder.glob(f"*/{FILE}"))
        return sorted((run for run in found if run), key=lambda run: run.created, reverse=True)

    def run(self, run_id: str) -> Run | None:
        """Find a run by its id; None where there is none, or it is damaged."""
        for path in self.folder.iterdir():
            if id_of(path.name) == run_id and not path.is_symlink():
                return Run.peek(path)
        return None

    def facts(self, run: Run) -> RunFacts:
        """Tell how a run stands."""
        pictures = [one for one in self.artifacts(run) if one.type.startswith("image/png")]
        newest = max(pictures, key=lambda one: one.changed, default=None)
        known: dict[str, Any] = {name: getattr(run, name) for name in RunFacts.model_fields if hasattr(run, name)}
        return RunFacts(
            **known,
            id=id_of(run.folder.name),
            next=next_command(run),
            picture=newest.id if newest else None,
        )

    def artifacts(self, run: Run) -> list[Artifact]:
        """List the files of a run that are given out, by name."""
        found = []
        for path in sorted(run.folder.rglob("*")):
            name = path.relative_to(run.folder)
            hidden = any(part.startswith(".") for part in name.parts)
            if hidden or path.is_symlink() or path.suffix not in KINDS or not path.is_file():
                continue
            facts = path.stat()
            found.append(
                Artifact(
                    id=id_of(name.as_posix()),
                    name=name.as_posix(),
                    type=KINDS[path.suffix],
                    size=facts.st_size,
                    changed=datetime.fromtimestamp(facts.st_mtime).astimezone(),
                )
            )
        return found

    def file(self, run: Run, artifact_id: str) -> tuple[Path, Artifact] | None:
        """Find a file of a run by its id; None where it is not listed."""
        for one in self.artifacts(run):
            if one.id == artifact_id:
                path = (run.folder / one.name).resolve()
                return (path, one) if path.is_relative_to(run.folder.resolve()) else None
        return None
