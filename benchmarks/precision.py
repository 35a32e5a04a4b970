"""Mixed precision: what it saves, and how far its result is from that of 32-bit floats; and whether a resumed run is
the same.

    python benchmarks/precision.py                                         on a GPU
    python benchmarks/precision.py --precisions fp32 bf16 --steps 20   on a CPU, which has no 16-bit floats

Each precision is the real command on the mascot with the same seeds, once unbroken and once stopped by SIGTERM half way
and resumed. `apart` is the distance of its weights from those of the first precision, over how far those have moved
from the base.
"""

from __future__ import annotations

import argparse
import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from femtobooth.core.console import Terminal
from femtobooth.core.events import listening, table
from femtobooth.core.files import sha256_of
from femtobooth.generator.locate import bundled_folder

PHOTOS = bundled_folder().parent / "mascot"
PARTS = ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors")


def command(runs: Path, name: str, precision: str, steps: int) -> list[str]:
    sets = {
        "training.steps": steps,
        "training.checkpoint_every": 0,
        "training.trackers": "csv",
        "samples.every": 0,
        "validation.every": 0,
    }
    start = [
        sys.executable,
        "-m",
        "femtobooth",
        "personalize",
        str(PHOTOS),
        "--class-noun",
        "robot",
        "--precision",
        precision,
    ]
    return [
        *start,
        "--runs",
        str(runs),
        "--name",
        name,
        *(part for key, value in sets.items() for part in ("--set", f"{key}={value}")),
    ]


def curve(run: Path, column: str) -> list[float]:
    with (run / "logs" / "metrics.csv").open(newline="") as file:
        return [float(row[column]) for row in csv.DictReader(file) if row.get(column)]


def weights(folder: Path) -> torch.Tensor:
    """All weights of UNet and text encoder in one row."""
    return torch.cat(
        [value.double().flatten() for part in PARTS for _, value in sorted(load_file(folder / part).items())]
    )


def pictures(run: Path) -> np.ndarray:
    """What the result makes of the sample prompts, (H, W, 3)."""
    return np.asarray(Image.open(run / "overview.png").convert("RGB")).astype(float)


def stopped_and_resumed(runs: Path, name: str, precision: str, steps: int) -> Path:
    """The same run, stopped once half its steps are in the curve."""
    log = runs / name / "logs" / "metrics.csv"
    with (runs / f"{name}.log").open("w") as output:
        process = subprocess.Popen(command(runs, name, precision, steps), stdout=output, stderr=output)
        while process.poll() is None and (not log.exists() or len(log.read_text().splitlines()) < steps // 2):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        process.wait()
        at = sorted(path.name for path in (runs / name / "checkpoints").glob("step-*"))
        print(f"{precision}: stopped, {at[-1] if at else 'no checkpoint'}", flush=True)
        subprocess.run(
            [sys.executable, "-m", "femtobooth", "personalize", "--resume", str(runs / name)], check=True, stdout=output
        )
    return runs / name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16", "fp16"])
    parser.add_argument("--steps", type=int, default=100)
    given = parser.parse_args()
    rows, first = [], None
    with tempfile.TemporaryDirectory() as scratch:
        runs = Path(scratch)
        os.environ["FEMTOBOOTH_CACHE"] = str(runs / "cache")
        base = weights(bundled_folder())
        for precision in given.precisions:
            subprocess.run(command(runs, precision, precision, given.steps), check=True, stdout=subprocess.DEVNULL)
            run = runs / precision
            again = stopped_and_resumed(runs, f"{precision}-resumed", precision, given.steps)
            same = all(sha256_of(run / "model" / part) == sha256_of(again / "model" / part) for part in PARTS)
            found = weights(run / "model"), pictures(run)
            first = first or found
            rows.append(
                (
                    precision,
                    f"{np.median(curve(run, 'photos_per_second')):.1f}",
                    f"{max(curve(run, 'peak_memory_gib')):.2f} GiB",
                    f"{np.mean(curve(run, 'loss/instance')[-given.steps // 2 :]):.4f}",
                    f"{np.mean(curve(run, 'loss/prior')[-given.steps // 2 :]):.4f}",
                    f"{float((found[0] - first[0]).norm() / (first[0] - base).norm()):.3f}",
                    f"{np.abs(found[1] - first[1]).mean():.2f}",
                    "yes" if same else "NO",
                )
            )
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    columns = [
        "precision",
        ">photos/s",
        ">peak",
        ">photo loss",
        ">class loss",
        ">apart",
        ">levels",
        "resumed is identical",
    ]
    table(f"{given.steps} steps on {device}, torch {torch.__version__}; losses over the last half", columns, rows)


if __name__ == "__main__":
    with listening(Terminal()):
        main()
