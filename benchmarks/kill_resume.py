"""Is a run that is killed at a random moment and resumed the same, bit for bit, as one that was not?

    python benchmarks/kill_resume.py --tries 20
    python benchmarks/kill_resume.py --tries 20 --lora
    python benchmarks/kill_resume.py --tries 20 --finetune
    python benchmarks/kill_resume.py --tries 20 --optimizer prodigy

Each try starts the real command, personalize or finetune, sends SIGKILL at a random moment (every third try while a
checkpoint is being written), looks whether the run then counts as interrupted, resumes it, and compares every weight
file's hash and every loss of the curve with the unbroken run.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from femtobooth.core.run import Run

SETTINGS = {
    "training.steps": 12, "training.batch_size": 2, "training.accumulate": 2, "training.checkpoint_every": 3,
    "training.ema": 0.9, "training.schedule": "cosine", "training.warmup": 2, "photos.flip": "true", "prior.images": 4,
    "prior.sampling.steps": 2, "prior.sampling_batch": 2, "samples.images": 1, "samples.every": 5,
    "samples.sampling.steps": 1, "training.trackers": "csv", "validation.every": 4, "validation.encoder": "bundled",
    "validation.steps": 1, "validation.loss_every": 2,
}  # fmt: skip

LORA = {"train.parts": "lora,token", "prior.target": "base", "lora.rank": 4}

FINETUNE = {
    "training.steps": 12, "training.batch_size": 4, "training.accumulate": 2, "training.checkpoint_every": 3,
    "training.ema": 0.9, "training.schedule": "cosine", "training.warmup": 2, "training.trackers": "csv",
    "patience": 3, "check_every": 4, "result": "finetuned", "size": 64,
}  # fmt: skip


def command(photos: Path, base: str, runs: Path, name: str, lora: bool = False) -> list[str]:
    """Personalize `base` on `photos`."""
    start = [sys.executable, "-m", "femtobooth", "personalize", str(photos), "--class-noun", "robot"]
    return [*start, "--base", base, "--runs", str(runs), "--name", name, *_sets(SETTINGS | (LORA if lora else {}))]


def finetune_command(data: Path, model: str, runs: Path, name: str) -> list[str]:
    """Fine-tune `model` on the classes of `data`."""
    start = [sys.executable, "-m", "femtobooth", "finetune", str(data), "--model", model]
    return [*start, "--runs", str(runs), "--name", name, *_sets(FINETUNE)]


def _sets(settings: dict[str, Any]) -> list[str]:
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


def classes(folder: Path) -> Path:
    """Write three classes of eight pictures, noisy blocks tinted by the class."""
    for number, tint in enumerate(((220, 40, 30), (40, 190, 60), (30, 60, 220))):
        place = folder / f"class{number}"
        place.mkdir(parents=True)
        for index in range(8):
            blocks = np.random.default_rng(100 * number + index).integers(-60, 60, (6, 6, 3)) + np.array(tint)
            Image.fromarray(blocks.clip(0, 255).astype(np.uint8)).resize((72, 72)).save(place / f"{index}.png")
    return folder


Outcome = tuple[dict[str, str], list[dict[str, str]]]


def outcome(run: Path) -> Outcome:
    """Hashes of the result's weights, and the loss columns of the curve."""
    weights = {
        path.relative_to(run).as_posix().replace(run.name, "NAME"): _sha256_of_tensors(path)
        for path in sorted((run / "model").rglob("*.safetensors"))
    }
    with (run / "logs" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    exact = ("step", "loss/", "instance/", "prior/", "learning_rate/", "gradient_norm", "validation/", "deterministic/")
    return weights, [{name: value for name, value in row.items() if name.startswith(exact)} for row in rows]


def _sha256_of_tensors(path: Path) -> str:
    """Hash a safetensors file without its header, which may tell a name and a date."""
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        return hashlib.file_digest(file, "sha256").hexdigest()


def differences(found: Outcome, expected: Outcome) -> list[str]:
    """Names of the weight files and of the curve's cells that differ."""
    files = [name for name, digest in expected[0].items() if found[0].get(name) != digest]
    cells = [
        f"{name} at step {row['step']}"
        for row, other in itertools.zip_longest(expected[1], found[1], fillvalue={"step": "?"})
        for name in {**row, **other}
        if row.get(name) != other.get(name)
    ]
    return files + cells


def kill_at(process: subprocess.Popen[bytes], run: Path, seconds: float, during_save: bool) -> str:
    """SIGKILL the process:

    `seconds` after its run folder appeared, or as soon after that as a checkpoint is being written.
    """
    while process.poll() is None and not (run / "run.json").exists():
        time.sleep(0.01)
    time.sleep(seconds)
    while during_save and process.poll() is None and not any((run / "checkpoints").glob(".tmp-*")):
        time.sleep(0.0005)
    done = process.poll() is not None
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
    torn = any((run / "checkpoints").glob(".tmp-*"))
    return (
        ("too late, " if done else "")
        + ("in a save, " if torn else "")
        + (f"newest {kept[-1]}" if kept else "no checkpoint yet")
    )


def main(options: argparse.Namespace) -> int:
    kind, tries = "finetune" if options.finetune else "personalize", options.tries
    chance = random.Random(time.time_ns())
    same = 0
    with tempfile.TemporaryDirectory() as scratch:
        runs = Path(scratch)

        def quiet(name: str) -> dict[str, Any]:
            """Each run has a cache of its own, so that it may be killed while it draws its class images."""
            own = {"OMP_NUM_THREADS": "1", "FEMTOBOOTH_CACHE": str(runs / f"cache-{name}")}
            return {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": {**os.environ, **own}}

        data = classes(runs / "data") if options.finetune else options.photos
        other = {"training.optimizer": options.optimizer}
        if options.optimizer == "schedulefree":
            other |= {"training.ema": 0.0, "training.schedule": "constant"}

        def start(name: str) -> list[str]:
            more = _sets(other) if options.optimizer else []
            if options.finetune:
                return [*finetune_command(data, options.base, runs, name), *more]
            return [*command(data, options.base, runs, name, options.lora), *more]

        subprocess.run(start("whole"), check=True, **quiet("whole"))
        expected = outcome(runs / "whole")
        began = (runs / "whole" / "config.yaml").stat().st_mtime
        length = (runs / "whole" / "run.json").stat().st_mtime - began
        for number in range(tries):
            name, seconds = f"try{number}", chance.uniform(0, length)
            process = subprocess.Popen(start(name), **quiet(name))
            during_save = number % 3 == 2
            where = kill_at(process, runs / name, seconds / 2 if during_save else seconds, during_save)
            status = Run.open(runs / name).status
            over = {"done"} if where.startswith("too late") else {"interrupted"}
            over |= {"done"} if (runs / name / "model").is_dir() else set()  # while the process was leaving
            wrong = [] if status in over else [f"status {status}"]
            resume = [sys.executable, "-m", "femtobooth", kind, "--resume", str(runs / name)]
            subprocess.run(resume, check=True, **quiet(name))
            different = wrong + differences(outcome(runs / name), expected)
            same += not different
            verdict = f"DIFFERENT in {', '.join(different[:6])}" if different else "identical"
            print(f"try {number + 1:2}: killed after {seconds:5.2f} s ({where}): {verdict}", flush=True)
    print(f"{same} of {tries} identical")
    return 0 if same == tries else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=20)
    parser.add_argument("--finetune", action="store_true", help="kill finetune, on classes made up here")
    parser.add_argument("--lora", action="store_true", help="kill personalize while it trains a LoRA and a word")
    parser.add_argument(
        "--base", default="bundled", help="what is trained: a generator, or with --finetune a recognizer"
    )
    parser.add_argument("--optimizer", help="another one than AdamW")
    parser.add_argument("--photos", type=Path, default=Path(__file__).parents[1] / "examples" / "mascot")
    sys.exit(main(parser.parse_args()))
