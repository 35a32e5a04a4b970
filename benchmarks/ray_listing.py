"""What the listing of very many files costs: memory of the driver and of the task that lists, and seconds.

    python benchmarks/ray_listing.py 1000000 5000000

A list of so many names, none of which is there, goes through a cluster of this machine as `classify --executor ray`
sends it; the actors only count what they are given.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pyarrow as pa

from femtobooth.core.bulk import cluster
from femtobooth.core.bulk.parts import OWNS, Dataset, digest
from femtobooth.core.claims import Output
from femtobooth.recognizer.inference.shared import parts
from femtobooth.recognizer.inference.sources import Source
from femtobooth.recognizer.settings import ClassifySettings


class Counted:
    """Writes a row a part: how many files it has."""

    schema = pa.schema([("path", pa.string()), ("files", pa.int64()), ("error", pa.string())])

    def stamp(self, items: tuple[Source, ...]) -> str:
        """Hash the names."""
        return digest(one.path for one in items)

    def still_fails(self, items: tuple[Source, ...], failed: list[str]) -> bool:
        """Say yes: nothing is read."""
        return True

    def tables(self, items: tuple[Source, ...]) -> Iterator[pa.Table]:
        """Count."""
        yield pa.Table.from_pylist([{"path": items[0].path, "files": len(items)}], schema=self.schema)


def main(count: int) -> None:
    """List `count` names and print what it took."""
    most = {"driver": 0, "lister": 0}
    over = threading.Event()

    def watch() -> None:
        own = psutil.Process()
        while not over.wait(0.5):
            most["driver"] = max(most["driver"], own.memory_info().rss)
            for child in own.children(recursive=True):
                try:
                    if "ReadListing" in child.name() or "ReadListing" in " ".join(child.cmdline()):
                        most["lister"] = max(most["lister"], child.memory_info().rss)
                except psutil.Error:
                    continue

    with tempfile.TemporaryDirectory() as folder:
        names = Path(folder) / "names.txt"
        with names.open("w", encoding="utf-8") as file:
            file.writelines(f"/photos/{index // 1000:06}/picture-{index:09}.jpg\n" for index in range(count))
        settings = ClassifySettings(from_file=str(names), executor="ray", actors=1, part_size=8192)
        out = Output(Path(folder) / "parts", "classify", owns=OWNS)
        with cluster.connected(settings), Dataset.open(out, {}) as dataset:
            begun, used = time.perf_counter(), psutil.Process().memory_info().rss
            watching = threading.Thread(target=watch)
            watching.start()
            files = sum(
                one.rows + one.others for one in cluster.run(settings, dataset, partial(parts, settings), Counted)
            )
            over.set()
            watching.join()
            seconds = time.perf_counter() - begun
    assert files == count, files  # noqa: S101
    print(
        f"{count:>10,} names: {seconds:6.1f} s, driver {used / 2**20:.0f} MiB before and at most "
        f"{most['driver'] / 2**20:.0f}, lister at most {most['lister'] / 2**20:.0f}"
    )


if __name__ == "__main__":
    for argument in sys.argv[1:] or ["1000000", "5000000"]:
        main(int(argument))
