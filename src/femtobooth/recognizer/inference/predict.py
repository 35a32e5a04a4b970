"""Files to model outputs: decoded, preprocessed and run in batches by worker threads, in order, in constant memory.

Each worker takes a batch of files from reading to logits. Decoding, resizing and all three engines leave Python's
lock, so that threads of one process fill every core, and no pixels are sent between processes.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from ...core.events import carried
from ...core.machine import cores
from ...core.names import stored
from ...pictures.formats import NOT_A_PICTURE
from ...pictures.images import Picture, Skipped, decode
from ..model.engine import Engine, Outputs
from ..model.preprocess import Preprocess
from .sources import Source, contents


@dataclass(frozen=True)
class Batch:
    """Some files, in order, and what the model says about those that could be read."""

    paths: tuple[str, ...]
    """As files hold them (`core.names.stored`)."""
    errors: tuple[str | None, ...]
    """For each path, why it could not be read."""
    outputs: Outputs
    """Rows for the paths without an error, in order; empty if there are none."""
    others: int
    """Files that were found in folders and are no pictures; they have no path here."""
    stamps: tuple[tuple[int, int], ...] = ()
    """For each path, `Source.stamp`."""


def workers_for(threads: int | None = None) -> int:
    """Choose the workers for this machine: as many as cores this process may use, unless told."""
    return threads or cores()


def least_side(preprocess: Preprocess) -> int:
    """Compute the shortest side (pixels) that `fast` decoding may leave: twice what the picture is then resized to."""
    return 2 * math.ceil(max(preprocess.size) / preprocess.crop_pct)


def predict(
    engine: Engine, sources: Iterable[Source], batch_size: int, workers: int, fast: bool = False
) -> Iterator[Batch]:
    """Predict batches of at most `batch_size` files, in the order of `sources`, of which at most workers + 2 batches
    are held.

    Where it is left before its end, batches under way are not waited for: what ends it may be the garbage collector, in
    the midst of anything, in a thread that holds a lock without which the others cannot end.
    """
    waiting: deque[Future[Batch]] = deque()
    stream = iter(sources)
    least = least_side(engine.preprocess) if fast else None
    pool, work, wait = ThreadPoolExecutor(workers), carried(_batch), True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # decode() changes the filters for a moment, which threads share
            while True:
                while len(waiting) < workers + 2 and (chunk := list(islice(stream, batch_size))):
                    waiting.append(pool.submit(work, engine, chunk, least))
                if not waiting:
                    return
                yield waiting.popleft().result()
    except GeneratorExit:
        wait = False
        raise
    finally:
        pool.shutdown(wait, cancel_futures=True)


def _batch(engine: Engine, sources: list[Source], least: int | None) -> Batch:
    read = [_read(source, engine.preprocess, least) for source in sources]
    kept = [(source, result) for source, result in zip(sources, read, strict=True) if result is not None]
    pixels = [result for _, result in kept if not isinstance(result, str)]
    outputs = engine.run(np.stack(pixels)) if pixels else {}
    errors = [result if isinstance(result, str) else None for _, result in kept]
    if pixels:
        finite = np.isfinite(outputs["logits"]).all(axis=1)
        good = [index for index, error in enumerate(errors) if error is None]
        for index in np.flatnonzero(~finite):
            errors[good[index]] = "the model gave no finite numbers"
        outputs = {name: values[finite] for name, values in outputs.items()}
    names, stamps = tuple(stored(source.path) for source, _ in kept), tuple(source.stamp for source, _ in kept)
    return Batch(names, tuple(errors), outputs, len(sources) - len(kept), stamps)


def readable(source: Source, preprocess: Preprocess) -> bool:
    """Tell whether there are pixels now."""
    return isinstance(_read(source, preprocess, None), np.ndarray)


def _read(source: Source, preprocess: Preprocess, least: int | None) -> np.ndarray | str | None:
    """Read pixels, or say why there are none; None for what a folder holds beside pictures."""
    if source.problem:
        return source.problem
    try:
        decoded: Picture | Skipped = decode(Path(source.path), least, contents(source))
        if isinstance(decoded, Picture):
            return preprocess.pixels(decoded.image)
    except (MemoryError, OSError, ValueError) as error:
        return f"cannot be read ({str(error) or type(error).__name__})"
    return None if source.found and decoded.reason == NOT_A_PICTURE else decoded.reason
