"""Pictures drawn into a folder by the actors of a Ray cluster, where `image_cache` then finds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..core import machine
from ..core.bulk import cluster
from ..core.bulk.settings import ActorSettings
from ..core.events import progress_bar
from .image_cache import Job, generate_missing
from .run import PersonalizedRun
from .sampling_settings import SamplingSettings


@dataclass(frozen=True)
class Batch:
    """Pictures that are drawn together."""

    run: str
    """Run folder whose model draws, or whose base."""
    by_base: bool
    jobs: tuple[Job, ...]


@dataclass(frozen=True)
class How:
    """What all pictures have in common."""

    folder: Path
    sampling: SamplingSettings
    batch_size: int
    device: str
    threads: int


def batches(run: str, by_base: bool, jobs: Sequence[Job], size: int) -> list[Batch]:
    """Cut pictures into the batches that `generate_missing` draws them in."""
    return [Batch(run, by_base, tuple(jobs[first : first + size])) for first in range(0, len(jobs), size)]


def draw(settings: ActorSettings, listed: Sequence[Batch], how: How) -> None:
    """Draw what the folder lacks of these batches. Raises InputError kinds, and what the processes raise."""
    total = sum(len(one.jobs) for one in listed)
    with progress_bar("pictures on the cluster", total) as bar:
        for count in cluster.each(settings, how.folder, partial(iter, listed), partial(Painter, how), how.threads):
            bar.advance(count)


class Painter:
    """Draws batches in an actor; holds the model of the last one."""

    def __init__(self, how: How) -> None:
        import torch

        torch.set_num_threads(how.threads)
        self.how, self.device = how, machine.device(how.device)
        self._held: tuple[str, bool] | None = None

    def __call__(self, batch: Batch) -> int:
        """Draw what is missing of a batch; returns how many pictures it is of."""
        how = self.how
        if self._held != (batch.run, batch.by_base):
            self._open(batch)
        with progress_bar("pictures", len(batch.jobs), parts=how.sampling.steps) as bar:
            given = (batch.jobs, how.sampling, how.batch_size, self.run.size, bar)
            generate_missing(self.model, how.folder, *given)
        return len(batch.jobs)

    def _open(self, batch: Batch) -> None:
        from .load import load

        self.model: Any = None  # before another one is loaded beside it
        self.run = PersonalizedRun.open(Path(batch.run))
        found = self.run.load_base() if batch.by_base else load(batch.run)
        self.model, self._held = found.to(self.device), (batch.run, batch.by_base)
