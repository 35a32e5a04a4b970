"""A run folder, and run.json in it: what the run is, how it stands, and which process works on it.

    with output.claimed(begin) as folder, PersonalizedRun.open(folder).working() as run:
        run.at(step=37)                      # kept in memory; a thread writes it with the next heartbeat
        run.update(status="done", steps=40)  # written at once

`Run` holds what is the same for every kind of run; each kind adds fields of its own. Nobody else reads or writes
run.json. Those of older versions are read by `core.older_runs`.
"""

from __future__ import annotations

import csv
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from . import config, locks, older_runs, requests
from .claims import Output
from .config import Model
from .errors import Interrupted, ModelError, SettingsError, command
from .event_log import FILE as EVENTS
from .event_log import logged
from .files import read_object, timestamp, write_json
from .locks import Holder
from .machine import environment
from .processes import rank, typed

FILE, SETTINGS_FILE = older_runs.FILE, older_runs.SETTINGS_FILE
RUN_FOLDER = "FEMTOBOOTH_RUN"  # tells the processes that Lightning starts which run they belong to
BEAT = 5.0
"""Seconds between two heartbeats."""
SILENCE = 120.0
"""Seconds without a heartbeat after which a process on another machine counts as gone."""
AGAIN = "restore it from a backup, or start a new run"
# Settings that shape nothing of a result, or whose place may have moved: what they led to is known by its hash.
FREE = {
    "name", "runs", "overwrite", "base", "model", "data", "synthesized", "tokenizer", "workers", "photos.paths",
    "prior.folder", "training.trackers", "training.log_every", "training.checkpoint_every", "training.keep_checkpoints",
    "training.accelerator",
}  # fmt: skip

Status = Literal["queued", "running", "interrupted", "failed", "done"]


class Progress(BaseModel):
    """How far training is, in optimizer steps."""

    step: int = 0
    steps: int | None = None
    """Optimizer steps that training is planned to take; None where it is not known yet."""


class Run(BaseModel):
    """What run.json holds, whatever the kind of run; fields that only a kind, or a newer version, knows are kept."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)
    KIND: ClassVar[str] = ""
    """The command that makes such runs; "" for any."""
    OWNS: ClassVar[Sequence[str]] = ()
    """Patterns of what lies in such a run folder."""

    folder: Path = Field(exclude=True)
    kind: str
    """The command that made it: personalize or finetune."""
    status: Status
    """How it stands; `running` only while a process works on it."""
    progress: Progress = Progress()
    process: Holder | None = None
    """The process that works on it, or worked on it last: number, start, machine."""
    heartbeat: datetime | None = None
    """When that process last said that it lives."""
    created: datetime
    seconds: float = 0.0
    """Time that processes have worked on it, all together."""
    command: str = ""
    """What was typed to start it."""
    settings: dict[str, Any]
    """Every setting, resolved, as config.yaml holds them."""
    versions: dict[str, str] = {}
    """Of what shaped the result: femtobooth, torch, ..."""
    error: str | None = None
    """Why it failed."""

    _writing: threading.RLock = PrivateAttr(default_factory=threading.RLock)
    _since: tuple[float, float] | None = PrivateAttr(default=None)  # clock and `seconds` when this process began

    # --- where it lies

    @property
    def name(self) -> str:
        """What people call it: its folder's name."""
        return self.folder.resolve().name

    @property
    def resume_command(self) -> str:
        """What to type to go on with it."""
        return command(self.kind, "--resume", self.folder)

    @classmethod
    def output(
        cls, runs: str, name: str | None, otherwise: str, overwrite: bool, inputs: Sequence[str | Path | None]
    ) -> Output:
        """Say where a new run goes: RUNS/NAME, or RUNS/`otherwise`-TIME without a name.

        Raises SettingsError where processes that a launcher started could not agree on a name.
        """
        if rank() and RUN_FOLDER in os.environ:
            return Output(Path(os.environ[RUN_FOLDER]), cls.KIND)
        if rank() and not name:
            raise SettingsError(
                "`name`: a run started by torchrun or SLURM needs a name that its processes share", "add `name=NAME`"
            )
        return Output(
            Path(runs) / (name or f"{otherwise}-{timestamp()}"),
            cls.KIND,
            overwrite,
            inputs=inputs,
            owns=[*cls.OWNS, EVENTS, f"{requests.FOLDER}/*"],
            known=lambda folder: older_runs.facts(folder, read_object(folder / FILE)).get("kind") == cls.KIND,
            numbered=not name,
            option="`name`",
        )

    # --- create, open, update

    @classmethod
    def create(cls, folder: Path, settings: config.Settings, **fields: Any) -> Self:
        """Write run.json of a run that begins now, in this process, into its folder."""
        common = {"kind": cls.KIND, "status": "running", "created": _now(), "command": typed(), "process": locks.own()}
        common |= {"settings": settings.model_dump(mode="json"), "versions": environment(), "heartbeat": _now()}
        run = cls.model_validate({"folder": folder, **common, **fields})
        run._write()
        return run

    @classmethod
    def open(cls, folder: Path, instead: str = AGAIN) -> Self:
        """Read run.json, of older versions too; a run whose process is gone is `interrupted`.

        Raises ModelError where `folder` is no such run; where it may be a run of another
        command, `instead` is the way out.
        """
        facts = read_object(folder / FILE)
        if not facts:
            if is_run(folder):
                raise ModelError(f"{folder}: its {FILE} is empty or damaged", AGAIN)
            printed = f"give the folder that {cls.KIND or 'femtobooth'} printed, such as runs/NAME"
            raise ModelError(f"{folder}: not a run folder (no {FILE})", printed)
        facts = older_runs.facts(folder, facts)
        if cls.KIND and facts.get("kind", cls.KIND) != cls.KIND:
            raise ModelError(
                f"{folder}: not a run of femtobooth {cls.KIND}, but of femtobooth {facts['kind']}", instead
            )
        try:
            run = cls.model_validate({**facts, "folder": folder})
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            where = ".".join(map(str, fault["loc"]))
            what = f"lacks {where}" if fault["type"] == "missing" else f"is damaged at {where}"
            problem = f"{folder}: not a run of femtobooth {cls.KIND}, or damaged: its {FILE} {what}"
            raise ModelError(problem, instead) from None
        if run.status == "running" and run.worker is None:
            run.status = "interrupted"
        return run

    @classmethod
    def peek(cls, folder: Path | None) -> Self | None:
        """Read run.json of a folder that need not be such a run; None where it is none, or damaged."""
        try:
            return cls.open(folder) if folder else None
        except ModelError:
            return None

    @property
    def worker(self) -> Holder | None:
        """The process that works on it now; None where there is none, or one elsewhere that fell silent."""
        found = locks.holder(self.folder)
        if found is None or not found.elsewhere:
            return found
        silent = self.heartbeat is not None and (_now() - self.heartbeat).total_seconds() > SILENCE
        return None if silent else found

    def update(self, **changes: Any) -> None:
        """Change fields: first in run.json, atomically, then here."""
        if unknown := changes.keys() - type(self).model_fields.keys():
            raise TypeError(f"{', '.join(sorted(unknown))}: no such fields of a {type(self).__name__}")
        with self._writing:
            if self._since is not None:
                began, before = self._since
                changes["seconds"] = round(before + time.monotonic() - began, 1)
            changed = type(self).model_validate({**dict(self), **(self.model_extra or {}), **changes})
            changed._write()
            for name in changes:
                setattr(self, name, getattr(changed, name))

    def _write(self) -> None:
        write_json(self.folder / FILE, self.plain())

    def plain(self) -> dict[str, Any]:
        """Give it as JSON values, as run.json holds it."""
        return self.model_dump(mode="json")

    # --- while a process works on it

    @contextmanager
    def working(self) -> Iterator[Self]:
        """Keep run.json true while this process, which holds the folder's lock, works on the run.

        Where that ends before the run is done it is interrupted, or failed and why.
        """
        self._since = time.monotonic(), self.seconds
        requests.forget(self.folder)
        self.update(status="running", error=None, process=locks.own(), heartbeat=_now())
        try:
            with self._beating(), logged(self.folder):
                yield self
        except BaseException as error:
            stopped = isinstance(error, Interrupted | KeyboardInterrupt)
            how = (
                {"status": "interrupted"}
                if stopped
                else {"status": "failed", "error": f"{error}" or type(error).__name__}
            )
            if read_object(self.folder / FILE).get("status") != "done":
                with suppress(Exception):  # a full disk, which is the error that is on its way
                    self.update(**how)
            raise
        finally:
            requests.forget(self.folder)

    def at(self, step: int, steps: int | None = None) -> None:
        """Note how far training is; the next heartbeat writes it."""
        self.progress = Progress(step=step, steps=steps or self.progress.steps)

    @contextmanager
    def _beating(self) -> Iterator[None]:
        """Write a heartbeat every `BEAT` seconds, from a thread, so that nothing waits for it."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(BEAT):
                with suppress(Exception):  # a full disk is told by what must be written
                    self.update(heartbeat=_now())

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    # --- what lies in it

    def read_settings(self, model: type[Model]) -> Model:
        """Read config.yaml, of older versions too. Raises SettingsError."""
        return config.resolve(model, older_runs.read_settings(self.folder / SETTINGS_FILE))

    def settings_to_resume(self, model: type[Model]) -> Model:
        """Read config.yaml for a run that is to go on.

        Raises SettingsError where it is not what the run was started with.
        """
        path = self.folder / SETTINGS_FILE
        if not path.is_file():
            raise SettingsError(f"{path}: missing", AGAIN)
        try:
            settings = self.read_settings(model)
        except SettingsError as error:
            raise SettingsError(
                error.problem if str(path) in error.problem else f"{path}: {error.problem}", error.way_out or AGAIN
            ) from None
        before, now = _flat(self.settings), _flat(settings.model_dump(mode="json"))
        changed = [name for name in before.keys() & now.keys() if before[name] != now[name] and name not in FREE]
        if changed:
            some = ", ".join(f"{name} ({before[name]!r} then, {now[name]!r} now)" for name in sorted(changed)[:3])
            raise SettingsError(f"{path}: changed since the run was started: {some}", "put it back, or start a new run")
        return settings

    def curve(self) -> list[dict[str, float]]:
        """Read logs/metrics.csv: what was measured, by name, a row a step; none where it is missing or damaged."""
        try:
            with (self.folder / "logs" / "metrics.csv").open(newline="", encoding="utf-8") as file:
                rows = [*csv.DictReader(file)]
            return [{name: float(value) for name, value in row.items() if value} for row in rows]
        except (OSError, ValueError, TypeError):
            return []


def is_run(folder: Path) -> bool:
    """Tell whether a folder is a run's, of any kind, damaged or not."""
    return (folder / FILE).is_file()


def run_of(place: Path) -> Path:
    """Say which folder a model's place belongs to: the run's, where it is the model/ of one, else the place itself."""
    return place.parent if place.name == "model" and is_run(place.parent) else place


def list_runs(runs: Path) -> list[Run]:
    """Read the runs of a folder, the oldest first; what cannot be read is left out."""
    found = (Run.peek(path.parent) for path in sorted(runs.glob(f"*/{FILE}")))
    return sorted((run for run in found if run), key=lambda run: run.created)


def _now() -> datetime:
    return datetime.now(UTC)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Give the settings by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found
