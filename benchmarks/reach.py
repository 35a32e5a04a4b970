"""What very many pictures cost, from what one costs here, and which part of a machine gives out first.

    python benchmarks/reach.py FOLDER --model tf_efficientnet_lite0

Processor seconds of decoding, preprocessing and the network are measured apart, on the pictures of FOLDER, and their
sum is checked against `classify` as a whole. From them, and from the bytes of a picture and of a row, follow
core-hours, bytes and parts of 10^7 and 10^9 pictures, and what each kind of machine is held up by.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from femtobooth.core.bulk.settings import BulkSettings
from femtobooth.pictures.images import find_pictures, read_picture
from femtobooth.recognizer.inference.sources import Source
from femtobooth.recognizer.inference.units import Classifier

BATCH = 8


@dataclass(frozen=True)
class Picture:
    """What one picture costs."""

    decode: float
    """Processor seconds, preprocessing included."""
    network: float
    """Processor seconds of the network on a CPU."""
    bytes: float
    """Of the file."""
    row: float
    """Bytes of its row."""


@dataclass(frozen=True)
class Machine:
    """What one machine has."""

    name: str
    cores: int
    network: float
    """Bytes a second that come in, from another machine's disk or an object store."""
    disk: float
    """Bytes a second of its own disk, in many files; 0 where pictures come by the network."""
    gpu: float = 0.0
    """Pictures a second of the recognizer on its GPUs; 0 where the CPU computes."""

    def limits(self, of: Picture) -> dict[str, float]:
        """Say how many pictures a second each part could do."""
        found = {"decode" if self.gpu else "cores": self.cores / (of.decode + (0 if self.gpu else of.network))}
        found["storage" if self.disk else "network"] = (self.disk or self.network) / of.bytes
        return found | ({"GPU": self.gpu} if self.gpu else {})


MACHINES = [
    Machine("16 cores, 10 Gbit/s", 16, 1.25e9, 0),
    Machine("64 cores, 10 Gbit/s", 64, 1.25e9, 0),
    Machine("16 cores, own SSD", 16, 0, 5e8),
    Machine("16 cores, 1 Gbit/s", 16, 1.25e8, 0),
    Machine("16 cores, 10 Gbit/s, a GPU of 5,000/s", 16, 1.25e9, 0, gpu=5000.0),
]


def seconds(work: Callable[[], object]) -> float:
    """Measure the processor seconds of a call."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def measured(paths: list[Path], model: str) -> tuple[Picture, float]:
    """Measure what a picture costs part by part; returns that, and the processor seconds of `classify` as a whole."""
    unit = Classifier(model, engine="ort", batch_size=BATCH)
    images: list[Image.Image] = []
    decode = seconds(lambda: images.extend(read_picture(path).image for path in paths))
    pixels: list[np.ndarray] = []
    decode += seconds(lambda: pixels.extend(unit.engine.preprocess.pixels(image) for image in images))
    batches = [np.stack(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH)]
    unit.engine.run(batches[0])
    network = seconds(lambda: [unit.engine.run(batch) for batch in batches])
    sources = [Source(str(path), str(path), found=False) for path in paths]
    tables: list[pa.Table] = []
    whole = seconds(lambda: tables.extend(unit.tables(sources)))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.parquet"
        rows = pa.concat_tables(tables)
        whole += seconds(lambda: pq.write_table(rows, file))
        row = file.stat().st_size / len(rows)
    count = len(paths)
    size = sum(path.stat().st_size for path in paths) / count
    return Picture(decode / count, network / count, size, row), whole / count


def main() -> None:
    """Measure, check, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--times", type=int, default=3)
    asked = parser.parse_args()
    paths = [*find_pictures([asked.folder])[0]]
    turns = [measured(paths, asked.model) for _ in range(asked.times)]
    one, whole = min(turns, key=lambda turn: turn[1])
    together = one.decode + one.network
    print(f"{len(paths)} pictures of {one.bytes / 1e3:.0f} kB; a row is {one.row:.0f} bytes")
    print(f"milliseconds of processor: decode {1e3 * one.decode:.1f}, network {1e3 * one.network:.1f}")
    print(
        f"together {1e3 * together:.1f}, classify as a whole {1e3 * whole:.1f}: the parts are {together / whole:.0%}\n"
    )
    part = BulkSettings.model_fields["part_size"].default
    print("pictures   core-hours   read        rows       parts")
    for power in (7, 9):
        count = 10**power
        print(
            f"10^{power}      {count * whole / 3600:>10,.0f}   {count * one.bytes / 1e12:>6.1f} TB "
            f"{count * one.row / 1e9:>6.1f} GB {count // part:>9,}"
        )
    print("\nmachine                               pictures/s   held up by   machine-hours of 10^9")
    for machine in MACHINES:
        limits = machine.limits(one)
        slowest = min(limits, key=limits.__getitem__)
        print(f"{machine.name:36}  {limits[slowest]:>10,.0f}   {slowest:10}   {1e9 / limits[slowest] / 3600:>10,.0f}")


if __name__ == "__main__":
    main()
