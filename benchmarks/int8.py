"""INT8 against float32, both in ONNX Runtime: accuracy on photos that did not set the ranges, and latency, the two
taking turns.

    python benchmarks/int8.py tf_efficientnet_lite0 PHOTOS [--threads 1]

Every other photo sets the ranges, the rest is compared on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from femtobooth.core.console import Terminal
from femtobooth.core.events import listening, table
from femtobooth.recognizer.inference.engines import Engine, open_engine
from femtobooth.recognizer.settings import ExportSettings
from femtobooth.workflows import export


def milliseconds(engines: dict[str, Engine], batch: int, rounds: int) -> dict[str, list[float]]:
    """Times of each round; engines take turns, so that what else the machine does hits all alike."""
    size = engines["fp32"].preprocess.size
    pixels = np.random.default_rng(0).integers(0, 256, (batch, *size, 3), np.uint8)
    taken: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(rounds):
        for name, engine in engines.items():
            start = time.perf_counter()
            engine.run(pixels)
            taken[name].append(1e3 * (time.perf_counter() - start))
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("photos")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        places = {name: str(Path(folder) / name) for name in ("fp32", "int8")}
        common = {"model": options.model, "threads": options.threads}
        report = export.run(
            ExportSettings(
                **common, precision="int8", representative_data=options.photos, out=places["int8"], max_drop=100
            )
        )
        export.run(ExportSettings(**common, out=places["fp32"], parity=False))
        engines = {name: open_engine(place, "ort", options.threads) for name, place in places.items()}
        rows = []
        for batch in (1, 8):
            taken = milliseconds(engines, batch, options.rounds)
            ratios = np.array(taken["fp32"]) / np.array(taken["int8"])
            medians = {name: float(np.median(values)) for name, values in taken.items()}
            rows.append(
                (
                    batch,
                    *(f"{value:.1f} ms" for value in medians.values()),
                    f"{np.median(ratios):.2f}x",
                    f"{min(ratios):.2f}x",
                )
            )
        table(
            f"{options.model}: INT8 against float32 in ONNX Runtime",
            [">batch", ">fp32", ">int8", ">median ratio", ">worst"],
            rows,
        )
        print(json.dumps({"figures": report["figures"], "latency": rows}))


if __name__ == "__main__":
    with listening(Terminal()):
        main()
