"""One command's way through its files: which are left to do, how far it is, and how many could not be read."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from typing import Any

from ..core.console import note, progress_bar, warn
from ..core.errors import PhotoError
from ..core.names import stored
from . import sources
from .engines import Engine
from .outputs import Parts
from .predict import Batch, predict, workers_for
from .settings import ReadingSettings
from .sources import STDIN, Shard, Source

MANY = 500  # files: an export takes as long as it then saves on so many
FEW = 32  # files: so few are done before a bar would be seen


class Reading:
    """Counts what it passes on. Raises PhotoError and SettingsError for files and a shard that cannot be."""

    def __init__(self, settings: ReadingSettings) -> None:
        sources.check(settings.paths, settings.from_file)
        self.settings = settings
        self.shard = Shard.parse(settings.shard) if settings.shard else None
        self.read = self.failed = self.kept = self.others = self.hidden = 0
        self.first_failure = ""

    @property
    def many(self) -> bool:
        """Whether there are so many files that it pays to export the model first; a list on stdin is not waited for."""
        if STDIN in (*self.settings.paths, self.settings.from_file):
            return False
        return next(islice(self._sources(), MANY, None), None) is not None

    def batches(self, engine: Engine, parts: Parts | None = None) -> Iterator[Batch]:
        """Batches of what is to be done, with a progress bar; files whose rows are in `parts` are passed over."""
        settings = self.settings
        if parts is not None and len(parts.done):
            note(f"going on with {parts.folder}: {len(parts.done)} files are done")
        left = (source for source in self._sources() if not self._is_done(source, parts))
        lasting = sys.stderr.isatty() and STDIN not in (*settings.paths, settings.from_file)
        total = sum(1 for _ in self._sources()) if lasting else 0
        self.hidden = 0
        with progress_bar("pictures", total, len(parts.done) if parts else 0) if total > FEW else nullcontext() as bar:
            for batch in predict(engine, left, settings.batch_size, workers_for(settings.workers), settings.decode == "fast"):
                self._count(batch)
                yield batch
                if bar:
                    bar.advance(len(batch.paths) + batch.others)
        if self.read + self.failed + self.kept == 0:
            where = f"in shard {settings.shard}" if self.shard else "among what was named"
            if not self.shard:
                raise PhotoError(f"no pictures {where}", f"{self.others} other and {self.hidden} hidden files were passed over")
            note(f"no pictures {where}")

    def summary(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Counts for people (as a note) and programs. Raises PhotoError if files were found and none could be read."""
        if self.others:
            note(f"{self.others} files in the folders are no pictures and were passed over")
        if self.failed:
            warn(f"{self.failed} of {self.failed + self.read} files could not be read; the first: {self.first_failure}")
        if self.failed and not self.read + self.kept:
            raise AllFailed(f"none of {self.failed} files could be read; the first: {self.first_failure}", "each file's row says why")
        if facts.get("out"):
            note(f"written: {facts['out']}")
        return facts | {"read": self.read, "failed": self.failed, "done_before": self.kept, "not_pictures": self.others}

    def _sources(self) -> Iterator[Source]:
        found = sources.find(self.settings.paths, self.settings.from_file, self._hide)
        return (source for source in found if self.shard is None or self.shard.holds(source))

    def _hide(self) -> None:
        self.hidden += 1

    def _is_done(self, source: Source, parts: Parts | None) -> bool:
        done = parts is not None and parts.has(stored(source.path))
        self.kept += done
        return done

    def _count(self, batch: Batch) -> None:
        failures = [(path, error) for path, error in zip(batch.paths, batch.errors, strict=True) if error]
        self.failed += len(failures)
        self.read += len(batch.paths) - len(failures)
        self.others += batch.others
        if failures and not self.first_failure:
            self.first_failure = ": ".join(failures[0])


class AllFailed(PhotoError):
    """Files were found, but none could be read; their rows are written all the same."""

    exit_code = 1
