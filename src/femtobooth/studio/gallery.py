"""Find the pictures that were drawn with a run: those of jobs, those of the command line, and those on their way."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..core.files import read_object
from ..core.run import Run
from .jobs import Job
from .library import id_of
from .state import Studio

MANIFEST, GRID = "manifest.json", "grid.png"
FILE = re.compile(r"(\d+)-.*seed(\d+)\.png")
SHAPING = ("sampler", "steps", "guidance", "guidance_rescale", "negative")


@dataclass(frozen=True)
class Shot:
    """Hold one picture."""

    address: str
    name: str
    prompt: str
    seed: int


@dataclass(frozen=True)
class Set:
    """Hold the pictures that were asked for at a time."""

    id: str
    when: datetime
    prompts: list[str]
    shots: list[Shot]
    facts: dict[str, str]
    """What they were drawn with, for people."""
    settings: dict[str, Any]
    """What a form needs to ask for the like again."""
    grid: str | None
    status: str
    total: int
    done: int
    error: str
    job: str | None


def sets(studio: Studio, run: Run) -> list[Set]:
    """List what was drawn with a run, the newest first."""
    return sorted([*_of_jobs(studio, run), *_of_command_line(run)], key=lambda one: one.when, reverse=True)


def _of_command_line(run: Run) -> Iterator[Set]:
    run_id = id_of(run.folder.name)
    for manifest in run.folder.glob(f"images/*/{MANIFEST}"):
        folder = manifest.parent

        def address(name: str, folder: Path = folder) -> str:
            inside = (folder / name).relative_to(run.folder).as_posix()
            return f"/api/v1/runs/{run_id}/artifacts/{id_of(inside)}"

        known = read_object(manifest)
        when = datetime.fromtimestamp(manifest.stat().st_mtime, UTC)
        yield _set(id_of(folder.name), when, folder, known.get("settings", {}), address, "done", None)


def _of_jobs(studio: Studio, run: Run) -> Iterator[Set]:
    reference = f"run:{id_of(run.folder.name)}"
    for job in studio.jobs.listed():
        if job.command != "generate" or job.settings.get("run") != reference:
            continue
        made = studio.desk.made(job)
        folder = made / "out"

        def address(name: str, job: Job = job) -> str:
            return f"/api/v1/jobs/{job.id}/artifacts/{id_of(f'out/{name}')}"

        yield _set(job.id, job.created, folder, job.settings, address, job.status, studio.desk.told(job))


def _set(
    name: str,
    when: datetime,
    folder: Path,
    asked: Mapping[str, Any],
    address: Any,
    status: str,
    job: Job | None,
) -> Set:
    settings = read_object(folder / MANIFEST).get("settings", asked)
    prompts = [str(one) for one in asked.get("prompts", [])]
    shots = []
    for path in sorted(folder.glob("*.png")):
        if found := FILE.fullmatch(path.name):
            row = int(found[1])
            prompt = prompts[row] if row < len(prompts) else ""
            shots.append(Shot(address(path.name), path.name, prompt, int(found[2])))
    sampling = settings.get("sampling", {})
    facts = {key.replace("_", " "): str(sampling[key]) for key in SHAPING if sampling.get(key) not in (None, "", 0.0)}
    if settings.get("size"):
        facts["size"] = str(settings["size"])
    if settings.get("init_image"):
        facts["begun from"] = "a picture"
    total = len(prompts) * int(asked.get("count", 4))
    return Set(
        id=name,
        when=when,
        prompts=prompts,
        shots=shots,
        facts=facts,
        settings={"size": settings.get("size") or "", **{key: sampling.get(key, "") for key in SHAPING}},
        grid=address(GRID) if (folder / GRID).is_file() else None,
        status=status,
        total=total,
        done=job.progress.step if job and job.progress.steps else len(shots),
        error=job.error.problem if job and job.error else "",
        job=job.id if job else None,
    )
