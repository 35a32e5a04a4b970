"""One command's way through its files: which are left to do, how far it is, and how many could not be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ...core.bulk.parts import Outcome
from ...core.errors import PhotoError
from ...core.events import note, progress_bar, warn
from ...core.names import shown, stored
from ...pictures.images import is_other
from ..model import weights
from ..model.engine import Engine
from ..settings import ReadingSettings
from . import sources
from .outputs import Parts
from .predict import Batch, predict, workers_for
from .sources import STDIN, Shard, Source, stamped

MANY = 500  # files: an export takes as long as it then saves on so many
FEW = 32  # files: so few are done before a bar would be seen


def listed(settings: ReadingSettings, hidden: Callable[[], object] = lambda: None) -> Iterator[Source]:
    """List the files of a command's shard as they are found; `hidden` is called for each hidden one."""
    shard = Shard.parse(settings.shard) if settings.shard else None
    found = sources.find(settings.paths, settings.from_file, hidden, settings.column)
    return (source for source in found if shard is None or shard.holds(source))


class Reading:
    """Counts what it passes on. Raises PhotoError and SettingsError for files and a shard that cannot be."""

    def __init__(self, settings: ReadingSettings) -> None:
        sources.check(settings.paths, settings.from_file, settings.column)
        self.settings = settings
        self.shard = Shard.parse(settings.shard) if settings.shard else None
        self.read = self.failed = self.kept = self.others = self.hidden = 0
        self.first_failure = ""
        self._refuse_nothing()
        if settings.model == weights.DEFAULT:
            weights.resolve(settings.model)  # which says what is ready instead, before torch is imported
        note(f"opening {settings.model}" + ("; the list comes from stdin" if self.endless else ""))

    @property
    def endless(self) -> bool:
        """Whether files are named on stdin, which says so only once and may take its time."""
        return STDIN in (*self.settings.paths, self.settings.from_file)

    @property
    def many(self) -> bool:
        """Whether there are so many files that it pays to export the model first; a list on stdin is not waited for."""
        if self.endless:
            return False
        return next(islice(self._sources(), MANY, None), None) is not None

    def batches(self, engine: Engine, parts: Parts | None = None) -> Iterator[Batch]:
        """Read batches of what is to be done, with a progress bar; files whose rows are in `parts` are passed over."""
        settings = self.settings
        if parts is not None and parts.rows_before:
            note(f"going on with {parts.folder}: {parts.rows_before} files are done")
        left = self._sources() if parts is None else self._not_done(parts)
        total = None if self.endless else sum(1 for _ in self._sources())
        self.hidden = 0
        with progress_bar("pictures", total, brief=total is not None and total <= FEW) as bar:
            kept = 0
            for batch in predict(
                engine, left, settings.batch_size, workers_for(settings.workers), settings.decode == "fast"
            ):
                self._count(batch)
                yield batch
                bar.advance(len(batch.paths) + batch.others + self.kept - kept)
                kept = self.kept
        if parts is not None and parts.stale:
            note(f"{parts.stale} rows of files that have changed or are no longer there were dropped")
        self.refuse_none()

    def refuse_none(self) -> None:
        """Raise PhotoError where no picture was found, unless that is one shard's."""
        if self.read + self.failed + self.kept == 0:
            if not self.shard:
                raise self._nothing(self.others)
            note(f"no pictures in shard {self.settings.shard}")

    def add(self, told: Outcome) -> None:
        """Count what another process made."""
        self.read += told.rows
        self.failed += told.failed
        self.kept += told.before
        self.others += told.others
        self.first_failure = self.first_failure or shown(told.first_failure)

    def summary(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Sum up for people (as a note) and programs.

        Raises PhotoError if no file could be read; their rows are written all the same.
        """
        if self.others:
            note(f"{self.others} files in folders and archives are no pictures and were passed over")
        if self.failed and not self.read + self.kept:
            raise PhotoError(
                f"none of {self.failed} files could be read; the first: {self.first_failure}",
                "each file's row says why",
            )
        if self.failed:
            warn(f"{self.failed} of {self.failed + self.read} files could not be read; the first: {self.first_failure}")
        if facts.get("out"):
            note(f"written: {facts['out']}")
        return facts | {"read": self.read, "failed": self.failed, "done_before": self.kept, "not_pictures": self.others}

    def _refuse_nothing(self) -> None:
        """Raise PhotoError where few files are named, at once and not on stdin, and none of them is a picture."""
        if not self.endless and not self.shard:
            others = 0
            for source in islice(self._sources(), MANY + 1):
                if not source.found or source.problem or source.is_far or not is_other(Path(source.path)):
                    return
                others += 1
            if others <= MANY:
                raise self._nothing(others)

    def _nothing(self, others: int) -> PhotoError:
        return PhotoError(
            "no pictures among what was named", f"{others} other and {self.hidden} hidden files were passed over"
        )

    def _sources(self) -> Iterator[Source]:
        return listed(self.settings, self._hide)

    def _hide(self) -> None:
        self.hidden += 1

    def _not_done(self, parts: Parts) -> Iterator[Source]:
        """List sources with their stamps, but for those whose rows are written."""
        for source in self._sources():
            now = stamped(source)
            if source.problem is None and parts.has(stored(source.path), now.stamp):
                self.kept += 1
            else:
                yield now

    def _count(self, batch: Batch) -> None:
        failures = [(path, error) for path, error in zip(batch.paths, batch.errors, strict=True) if error]
        self.failed += len(failures)
        self.read += len(batch.paths) - len(failures)
        self.others += batch.others
        if failures and not self.first_failure:
            self.first_failure = shown(": ".join(failures[0]))
