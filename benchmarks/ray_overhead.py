"""What Ray costs a picture: processor seconds and seconds of the plain process and of one actor, in turns.

    python benchmarks/ray_overhead.py FOLDER --model tf_efficientnet_lite0 --times 3 --turns 2

The pictures of FOLDER are named `--times` times. Counted from the first part on, so that imports and the opening of
the model are left out; of Ray, all of its processes count.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil

from femtobooth.core import config
from femtobooth.core.bulk import cluster
from femtobooth.core.bulk.parts import OWNS, Dataset
from femtobooth.core.claims import Output
from femtobooth.recognizer.inference import shared
from femtobooth.recognizer.inference.units import Classifier
from femtobooth.recognizer.settings import ClassifySettings
from femtobooth.workflows import classify


def used() -> float:
    """Sum the processor seconds of this process and of all that it has started."""
    own = psutil.Process()
    seconds = 0.0
    for one in (own, *own.children(recursive=True)):
        try:
            seconds += sum(one.cpu_times()[:2])
        except psutil.Error:
            continue
    return seconds


def measured(counts: Iterator[int], first: int) -> tuple[float, float]:
    """Consume counts of rows; returns rows per processor second and per second, after the first rows."""
    rows, begun = 0, (0.0, 0.0, 0)
    for count in counts:
        rows += count
        if rows >= first and not begun[2]:
            begun = (used(), time.perf_counter(), rows)
    done = rows - begun[2]
    return done / (used() - begun[0]), done / (time.perf_counter() - begun[1])


def main() -> None:
    """Measure in turns, and print a line a turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--turns", type=int, default=2)
    asked = parser.parse_args()
    part = 64
    given = {"paths": [asked.folder] * asked.times, "model": asked.model, "engine": "ort", "workers": 1}
    for _ in range(asked.turns):
        plain = measured((1 for _ in classify.rows(config.settle(ClassifySettings, given))), part)
        settings = config.settle(ClassifySettings, given | {"executor": "ray", "actors": 1, "part_size": part})
        opened = partial(Classifier, **shared.options(settings))
        with tempfile.TemporaryDirectory() as folder, cluster.connected(settings):
            out = Output(Path(folder) / "parts", "classify", owns=OWNS)
            with Dataset.open(out, {}) as dataset:
                told = cluster.run(settings, dataset, partial(shared.parts, settings), opened)
                ray = measured((one.rows + one.failed for one in told), part)
        print(
            f"rows per processor second: plain {plain[0]:.2f}, ray {ray[0]:.2f}, {ray[0] / plain[0]:.2f}x; "
            f"per second: plain {plain[1]:.2f}, ray {ray[1]:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
