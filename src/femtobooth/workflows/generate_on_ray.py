"""prompts -> Parquet parts of pictures, drawn by the actors of a Ray cluster: `generate --executor ray`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from ..core.bulk import cluster
from ..core.bulk.parts import OWNS, Part
from ..core.bulk.settings import CLUSTER
from ..core.bulk.store import Remote, is_address
from ..core.claims import Output
from ..core.events import conclude, stage
from ..generator.settings import GenerateSettings


@dataclass(frozen=True)
class Steps:
    """What processes of the cluster do; all of it can be pickled."""

    read: Callable[[list[str], GenerateSettings], tuple[str, list[str]]]
    """Gives the hash of the model, and the prompts as it reads them."""
    listed: Callable[[list[str], GenerateSettings], Iterator[Part[Any]]]
    opened: Callable[[dict[str, Any], int], Any]
    """Opens the unit that draws a part, from settings and a number of threads."""


def run(settings: GenerateSettings, prompts: list[str], folder: Output, steps: Steps) -> dict[str, Any]:
    """Generate by the actors of a Ray cluster, into a folder of Parquet parts; returns counts.

    A row's `png` is the file that one process writes, bit for bit: a part is a whole number of batches, of the same
    prompts, on as many threads.
    """
    out = settings.out or ""
    output: Output | Remote = replace(folder, owns=OWNS, numbered=False)
    if is_address(out):
        output = Remote(out, settings.overwrite)
    settings.refuse_uneven(settings.batch_size)
    wanted = settings.model_dump(exclude={*CLUSTER, "prompts", "prompts_file", "out", "overwrite"})
    threads = 1 if settings.gpus_per_actor else torch.get_num_threads()
    counts = {"drawn": 0, "done_before": 0}
    with cluster.connected(settings):
        with stage("reading the prompts"):  # by the model, for which there may be no room here
            known, prompts = cluster.elsewhere(partial(steps.read, prompts, settings), threads)
        made = {"command": "generate", "model": known, "part_size": settings.part_size, **wanted}
        opened, listed = partial(steps.opened, wanted, threads), partial(steps.listed, prompts, settings)
        for told in cluster.fill(settings, output, made, listed, opened, threads):
            counts["drawn"] += told.rows
            counts["done_before"] += told.before
    place = str(output.path) if isinstance(output, Output) else output.address
    conclude(f"{sum(counts.values())} pictures in {place}")
    return {"model": settings.run, "out": place, **counts}
