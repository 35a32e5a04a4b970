"""What can be asked of the studio about jobs and runs: pages and the API call these, and nothing else changes them."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core import machine, requests
from ..core.config import merge
from ..core.event_log import FILE as EVENTS
from ..core.files import timestamp, write_text
from ..core.job import stop
from ..core.requests import Request
from ..core.run import Progress, Run, is_run
from ..core.strict_yaml import dump_yaml
from ..workflows.commands import COMMANDS, find
from . import forms
from .catalog import Catalog
from .jobs import ACTIVE, ENDED, MOST_QUEUED, WAITING, Job, Jobs
from .library import Library, artifact, id_of
from .references import resolve
from .refusals import Busy, Missing, Refusal
from .runner import Runner
from .uploads import Uploads

GO_ON = ("paused", "interrupted", "failed")
MADE = "made"


class Desk:
    """Takes what is asked for."""

    def __init__(
        self, jobs: Jobs, runner: Runner, library: Library, uploads: Uploads, catalog: Catalog, private: Path
    ) -> None:
        self.jobs, self.runner, self.library = jobs, runner, library
        self.uploads, self.catalog, self.private = uploads, catalog, private

    # --- jobs

    def submit(self, command: str, given: Mapping[str, Any], key: str | None = None) -> Job:
        """Put a job at the end of the queue; with the `key` of one that is there, that one.

        Raises SettingsError and other InputError kinds, Missing for a command that is not offered, Busy.
        """
        row, model = forms.offered(command), forms.model_of(command)
        if key and (before := self.jobs.of_key(key)):
            if (before.command, before.settings) != (command, dict(given)):
                raise Refusal("this key was used for another job", "give each job a key of its own", 409)
            return before
        if len(self.jobs.listed(("queued",))) >= MOST_QUEUED:
            raise Busy(f"{MOST_QUEUED} jobs are waiting already", "wait until some are done, or delete some")
        job_id = secrets.token_hex(8)
        place = self.runner.folder / job_id
        name = None
        resolved = self._placed(command, resolve(model, given, self.path_of), place)
        settings, _ = forms.check(command, resolved)
        if row.makes:
            output = find(row.makes).place(settings)
            name = self._free_name(output.path.name, made_up=output.numbered)
            resolved = merge(resolved, {"name": name})
            output = find(row.makes).place(settings.model_copy(update={"name": name}))
            output.check()
        place.mkdir(parents=True)
        write_text(place / "settings.yaml", dump_yaml(resolved))
        job = self.jobs.add(
            job_id,
            command,
            given,
            key,
            title=name or command,
            device=_device(settings),
            run_id=id_of(name) if name else None,
            run_name=name,
        )
        if job.id != job_id:  # the same key, a moment earlier
            shutil.rmtree(place)
        self.runner.wake()
        return job

    def check(self, command: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Say what settings come to, and what is to be said of them. Raises as `submit` does."""
        place = self.runner.folder / "new"
        resolved = self._placed(command, resolve(forms.model_of(command), given, self.path_of), place)
        settings, notes = forms.check(command, resolved)
        told = settings.model_dump(mode="json")
        for path in ("runs", "out", "target"):
            told.pop(path, None)
        return merge(told, dict(given)), notes

    def plan(self, given: Mapping[str, Any]) -> Any:
        """Say what a training would need of memory, part by part. Raises as `submit` does."""
        memory = given.get("memory")
        rest = {name: value for name, value in given.items() if name != "memory"}
        resolved = self._placed("personalize", resolve(forms.model_of("personalize"), rest, self.path_of), Path())
        settings, _ = forms.check("personalize", {**resolved, "plan": True, **({"memory": memory} if memory else {})})
        return find(str(COMMANDS["personalize"].plan))(settings)

    def _placed(self, command: str, given: dict[str, Any], place: Path) -> dict[str, Any]:
        """Add where a command's results go."""
        fields = forms.model_of(command).model_fields
        more: dict[str, Any] = {}
        if command != "synthesize" and "runs" in fields:
            more["runs"] = str(self.library.folder)
        if "out" in fields:
            more["out"] = str(place / MADE / OUTS.get(command, "out"))
        if "target" in fields:
            more["target"] = str(place / MADE / "model.safetensors")
        return merge(given, more)

    def _free_name(self, name: str, made_up: bool) -> str:
        taken = {job.run_name for job in self.jobs.listed((*WAITING, *ACTIVE))}
        wanted, number = name, 1
        while wanted in taken or (made_up and (self.library.folder / wanted).exists()):
            if not made_up:
                raise Refusal(f"`name={name}`: a job that waits has it already", "choose another `name`", 409)
            number += 1
            wanted = f"{name}-{number}"
        return wanted

    def job(self, job_id: str) -> Job:
        """Find a job, with how far it is. Raises Missing."""
        job = self.jobs.get(job_id)
        if job is None:
            raise Missing("job")
        return self.told(job)

    def told(self, job: Job) -> Job:
        """Add how far a job is."""
        run = Run.peek(self.run_folder(job))
        progress = run.progress if run else Progress()
        for event in reversed(self.last_events(job)):
            if event.get("kind") == "progress" and not progress.step and isinstance(event.get("total"), int):
                progress = Progress(step=int(event.get("done") or 0), steps=event["total"])
                break
            if event.get("kind") == "metrics" and isinstance(event.get("step"), int):
                progress = Progress(step=max(event["step"], progress.step), steps=progress.steps)
                break
        return job.model_copy(update={"progress": progress, "resumable": self._resumable(job)})

    def last_events(self, job: Job) -> list[dict[str, Any]]:
        """Read the last few events of a job."""
        path = self.runner.place(job) / EVENTS
        return last_events(path)

    def run_folder(self, job: Job) -> Path | None:
        """Say where the run of a job lies; None for one that makes none."""
        return self.library.folder / job.run_name if job.run_name else None

    def made(self, job: Job) -> Path:
        """Say where a job puts what is no run."""
        return self.runner.place(job) / MADE

    def stop(self, job_id: str, pause: bool = False) -> Job:
        """Have a job save and end, at once if it is asked again; one that waits is taken off the queue.

        To `pause` is the same, but that the job keeps its place in the queue until it is resumed.
        """
        job = self.job(job_id)
        if job.status in WAITING:
            status = "paused" if pause else "interrupted"
            return self.told(self.jobs.change(job.id, WAITING, status=status, paused=pause))
        job = self.jobs.change(job.id, ACTIVE, status="stopping", paused=pause)
        stop(job.process, self.run_folder(job))
        return self.told(job)

    def pause(self, job_id: str) -> Job:
        """Have a job save and end, and keep its place in the queue."""
        return self.stop(job_id, pause=True)

    def ask(self, job_id: str, what: Request) -> Job:
        """Have a job write a checkpoint, or sample images, between two steps, and go on."""
        job = self.jobs.change(self.job(job_id).id, ("running",))
        if not job.run_id or self.library.run(job.run_id) is None:
            way_out = "ask once it has begun to learn" if job.run_id else "wait until it is done"
            raise Refusal(f"the job ({job.command}) works on no run", way_out, 409)
        self.ask_run(job.run_id, what)
        return self.told(job)

    def resume(self, job_id: str) -> Job:
        """Put a job back into the queue: it goes on with its run, or begins anew where it has none yet."""
        job = self.job(job_id)
        if job.status not in GO_ON:
            raise Refusal(f"the job is {job.status}", "only paused, interrupted and failed ones go on", 409)
        resumes = self._resumable(job)
        if not resumes:
            self._put_away(self.made(job))
        job = self.jobs.change(job.id, GO_ON, status="queued", resumes=resumes, paused=False, ended=None, error=None)
        self.runner.wake()
        return self.told(job)

    def retry(self, job_id: str, changes: Mapping[str, Any] = {}, key: str | None = None) -> Job:
        """Submit a job's settings again, with changes, as a new job of another name."""
        job = self.job(job_id)
        if not job.settings:
            raise Refusal("this job went on with a run of the command line", "resume the run instead", 409)
        settings = merge(job.settings, changes)
        if "name" in settings and "name" not in changes:
            settings = {name: value for name, value in settings.items() if name != "name"}
        return self.submit(job.command, settings, key)

    def order(self, ids: Sequence[str]) -> list[Job]:
        """Put jobs that wait, paused ones among them, into this order."""
        waiting = {job.id for job in self.jobs.listed(WAITING)}
        if set(ids) - waiting or len(set(ids)) != len(ids):
            raise Refusal("one of these does not wait, or stands there twice", "load the list again", 409)
        self.jobs.order(ids)
        return self.jobs.listed()

    def move(self, job_id: str, places: int) -> None:
        """Let a job that waits begin so many places later; earlier ones where that is negative."""
        ids = [job.id for job in self.jobs.listed(WAITING)]
        if job_id in ids:
            place = ids.index(job_id)
            ids.insert(min(max(place + places, 0), len(ids)), ids.pop(place))
            self.order(ids)

    def remove(self, job_id: str) -> None:
        """Move a job, and the run that it made, to the trash. Raises Refusal while it runs."""
        job = self.job(job_id)
        if job.status in ACTIVE:
            raise Refusal("the job is running", "stop it first", 409)
        folder = self.run_folder(job)
        if folder and is_run(folder):
            self._refuse_working(Run.peek(folder))
            self._put_away(folder)
        self._put_away(self.runner.place(job))
        self.jobs.remove(job.id)

    # --- runs, whoever made them

    def run(self, run_id: str) -> Run:
        """Find a run. Raises Missing."""
        run = self.library.run(run_id)
        if run is None:
            raise Missing("run")
        return run

    def stop_run(self, run_id: str) -> None:
        """Have the process of a run save and end, also one of the command line."""
        run = self.run(run_id)
        job = self.jobs.of_run(run_id)
        if job and job.status in ACTIVE:
            self.stop(job.id)
            return
        worker = run.worker
        if worker is None:
            raise Refusal(f"the run is {run.status}", "only one that runs can be stopped", 409)
        stop(worker, run.folder)

    def pause_run(self, run_id: str) -> None:
        """Have the job that works on a run save and end, and keep its place in the queue."""
        job = self.jobs.of_run(run_id)
        if job is None or job.status not in ACTIVE:
            raise Refusal("no job of the queue works on the run", "stop it; it can go on all the same", 409)
        self.pause(job.id)

    def ask_run(self, run_id: str, what: Request) -> None:
        """Have the process of a run write a checkpoint, or sample images, between two steps, and go on; also one of the
        command line.
        """
        run = self.run(run_id)
        if run.worker is None or not self.resumes_runs(run.kind):
            raise Refusal(f"the run is {run.status}", "only one that runs can be asked", 409)
        if what == "sample" and run.kind != "personalize":
            raise Refusal(f"a run of {run.kind} has no sample images", "only runs of personalize have", 409)
        requests.ask(run.folder, what)

    def resume_run(self, run_id: str) -> Job:
        """Go on with an interrupted run, also one of the command line, as a job."""
        run = self.run(run_id)
        if run.status in ("running", "done") or not self.resumes_runs(run.kind):
            raise Refusal(f"the run is {run.status}", "only interrupted and failed ones go on", 409)
        job = self.jobs.of_run(run_id)
        if job is not None:
            return job if job.status == "queued" else self.resume(job.id)
        job_id = secrets.token_hex(8)
        (self.runner.folder / job_id).mkdir(parents=True)
        job = self.jobs.add(
            job_id, run.kind, {}, title=Library.title(run), run_id=run_id, run_name=run.folder.name, resumes=True
        )
        self.runner.wake()
        return self.told(job)

    def remove_run(self, run_id: str) -> None:
        """Move a run, and the job that made it, to the trash. Raises Refusal while a process works on it."""
        run = self.run(run_id)
        self._refuse_working(run)
        job = self.jobs.of_run(run_id)
        if job is not None:
            self.remove(job.id)
        if run.folder.exists():
            self._put_away(run.folder)

    @staticmethod
    def resumes_runs(command: str) -> bool:
        """Tell whether a command can go on with a run."""
        row = COMMANDS.get(command)
        return row is not None and bool(row.makes)

    # --- what stands for files

    def path_of(self, reference: str, setting: str) -> str | None:
        """Give the path that a reference stands for; None where it leads nowhere."""
        kind, _, what = reference.partition(":")
        if kind == "upload" and (upload := self.uploads.get(what)):
            return str(self.uploads.path(upload))
        if kind == "set" and (found := self.uploads.set_path(what, setting)):
            return str(found)
        if kind == "run" and (run := self.library.run(what)):
            return str(run.folder)
        if kind == "model" and (model := self.catalog.placed(what)):
            return str(model)
        if kind == "job":
            job_id, _, file = what.partition(":")
            job = self.jobs.get(job_id)
            made = artifact(self.made(job), file) if job else None
            return str(made[1]) if made else None
        return reference if not what and self.catalog.known(reference) else None

    # ---

    def _resumable(self, job: Job) -> bool:
        folder = self.run_folder(job)
        return bool(job.status in ENDED and folder and is_run(folder) and self.resumes_runs(job.command))

    @staticmethod
    def _refuse_working(run: Run | None) -> None:
        if run is not None and run.worker is not None:
            raise Refusal("a process works on the run", "stop it first", 409)

    def _put_away(self, path: Path) -> None:
        """Move a file or folder to the trash."""
        if path.exists():
            trash = self.private / "trash"
            trash.mkdir(exist_ok=True)
            path.rename(trash / f"{timestamp()}-{secrets.token_hex(3)}-{path.name[:100]}")


OUTS = {"classify": "classified.jsonl", "embed": "index.parquet", "compare": "comparison.html"}
"""What the result of a command is called where it is one file."""


def last_events(path: Path, size: int = 16_384) -> list[dict[str, Any]]:
    """Read the events in the last bytes of an events.jsonl."""
    found: list[dict[str, Any]] = []
    with contextlib.suppress(OSError), path.open("rb") as file:
        start = max(path.stat().st_size - size, 0)
        file.seek(start)
        lines = file.read().split(b"\n")
        for line in lines[bool(start) : -1]:
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict):
                    found.append(event)
    return found


def _device(settings: Any) -> str:
    """Say on which device a command computes: one job at a time does."""
    training = getattr(settings, "training", None)
    wanted = getattr(training, "accelerator", None) or getattr(settings, "device", None) or "auto"
    if wanted in ("auto", "gpu", "cuda"):
        wanted = "cuda:0" if machine.may_accelerate() else "cpu"
    return str(wanted)
