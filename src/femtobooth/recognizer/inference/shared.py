"""Pictures to rows by the actors of a Ray cluster, as a dataset of parts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from ...core.bulk import cluster
from ...core.bulk.parts import OWNS, Part, parts_of
from ...core.bulk.store import Remote, is_address
from ...core.claims import Output
from ...core.errors import SettingsError
from ...core.events import stage
from ...core.names import stored
from ..settings import ReadingSettings
from .reading import Reading, listed
from .sources import Source
from .units import Classifier, Embedder

Kind = TypeVar("Kind", Classifier, Embedder)
Given = TypeVar("Given", bound=ReadingSettings)


def options(settings: ReadingSettings) -> dict[str, Any]:
    """Give the arguments with which settings open a unit."""
    names = ("model", "engine", "device", "trust", "decode", "batch_size")
    return {name: getattr(settings, name) for name in names}


def run(
    settings: Given,
    command: str,
    kind: type[Kind],
    chosen: dict[str, Any],
    made_with: Callable[[Given, Kind], dict[str, Any]],
) -> dict[str, Any]:
    """Map pictures to rows in `settings.out`, a folder of Parquet parts; returns counts.

    Their rows, in the order of the parts' names, are those of one process bit for bit: a part is a whole number of
    batches, of the same files. Raises InputError kinds before anything is written, PhotoError if nothing could be read.
    """
    out = _place(settings, command)
    reading = Reading(settings)
    if reading.endless:
        raise SettingsError("`executor=ray`: lists no files that stdin names", "give the list as `from_file`")
    threads, wanted = settings.workers or 1, options(settings) | chosen
    if settings.gpus_per_actor and wanted["engine"] == "auto":
        wanted["engine"] = "torch"
    with stage("opening the model"):
        unit = kind(**wanted | ({"device": "cpu"} if settings.gpus_per_actor else {}), many=reading.many)
    opened = functools.partial(kind, **wanted | {"engine": unit.engine.name, "workers": threads})
    made = made_with(settings, unit) | {"batch_size": settings.batch_size, "part_size": settings.part_size}
    for told in cluster.fill(settings, out, made, functools.partial(parts, settings), opened, threads):
        reading.add(told)
    reading.refuse_none()
    return reading.summary(unit.facts | {"out": stored(settings.out or "")})


def parts(settings: ReadingSettings) -> Iterator[Part[Source]]:
    """List the files of a command in parts."""
    return parts_of(listed(settings), settings.part_size, lambda source: source.path)


def _place(settings: ReadingSettings, command: str) -> Output | Remote:
    if not settings.out:
        raise SettingsError("`executor=ray`: where shall the parts go?", "give a folder as `out`")
    format = getattr(settings, "format", None)
    if format not in (None, "parquet") or (Path(settings.out).suffix not in ("", ".parquet") and not format):
        raise SettingsError(
            f"`{f'format={format}' if format else f'out={settings.out}'}`: executor=ray writes Parquet parts",
            "give a folder, and leave the format out",
        )
    settings.refuse_uneven(settings.batch_size)
    if is_address(settings.out):
        return Remote(settings.out, settings.overwrite)
    out = Output(Path(settings.out), command, settings.overwrite, (*settings.paths, settings.from_file), owns=OWNS)
    out.refuse_unwritable()
    return out
