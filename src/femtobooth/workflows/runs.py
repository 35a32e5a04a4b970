"""femtobooth runs: the runs of a folder, how they stand, and what to do next with each."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

from ..core.errors import InputError, command
from ..core.events import note, table
from ..core.run import Run, list_runs
from .settings import RunsSettings


def run(settings: RunsSettings) -> dict[str, Any]:
    """List the runs of a folder, the oldest first; returns them under `runs`, each with its folder and next command.

    Raises InputError where there is no such folder.
    """
    folder = Path(settings.runs)
    if not folder.is_dir():
        raise InputError(
            f"runs {folder}: no such folder", "give the folder that `runs` of personalize or finetune named"
        )
    found = list_runs(folder)
    rows = [(one.name, one.kind, one.status, _progress(one), _time(one)) for one in found]
    if rows:
        table(f"Runs in {folder}", ("=run", "kind", "status", ">step", ">time"), rows)
    else:
        note(f"{folder}: no run in it; {command('personalize', 'PHOTOS', '--class-noun', 'dog')} makes one")
    for one in found:
        _tell(one)
    return {"runs": [_plain(one) for one in found]}


def next_command(run: Run) -> str:
    """Say what to type next: to see a run that goes on, to go on with one that does not, to use one that is done."""
    if run.status != "done":
        look = command("report", run.folder) if run.kind == "personalize" else ""
        return look if run.status == "running" else run.resume_command
    if run.kind == "personalize":
        return command("generate", run.folder, "a [V] on the moon")
    return command("classify", "--model", run.folder, "PHOTOS")


def _progress(run: Run) -> str:
    if run.progress.steps is None:
        return str(run.progress.step or "")
    return f"{run.progress.step} of {run.progress.steps}"


def _time(run: Run) -> str:
    return str(timedelta(seconds=round(run.seconds))) if run.seconds else ""


def _tell(run: Run) -> None:
    """Say what to do next, a run a line, so that the command can be pasted; and why it failed."""
    why = f" ({run.error.splitlines()[0]})" if run.error else ""
    if following := next_command(run):
        note(f"{run.name}: {run.status}{why}; next: {following}")


def _plain(run: Run) -> dict[str, Any]:
    """Give as JSON values what every run has, without its settings."""
    known = run.plain()
    common = {name: known[name] for name in Run.model_fields if name in known and name not in ("settings", "versions")}
    return {"name": run.name, "folder": str(run.folder), **common, "next": next_command(run)}
