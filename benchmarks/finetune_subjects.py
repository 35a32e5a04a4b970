"""Does fine-tuning beat the linear probe on a handful of photos of six subjects? Every photo is left out once.

    python benchmarks/finetune_subjects.py ../shared/data/dreambooth --model tf_efficientnet_lite0

Round k leaves out photo k of every subject that has one, and runs the real `femtobooth finetune` on the others: probe
and network never see what they are asked about, and each photo is asked about once. The pooled answers are compared in
pairs. At 96 px, so that six trainings take minutes on a CPU. The defaults were not tuned here: a look at five learning
rates and augmentations on half of these photos changed none of them.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from femtobooth.core import metrics
from femtobooth.recognizer.finetuning.comparison import exact_mcnemar, shares, verdict
from femtobooth.recognizer.finetuning.dataset import read


def rounds(data: Path) -> list[list[tuple[Path, str, str]]]:
    """One list of (photo, subject, split) for each round."""
    photos: dict[str, list[Path]] = {}
    for example in read(data).examples:
        photos.setdefault(example.label, []).append(example.path)
    return [
        [(path, label, "val" if i == turn else "train") for label, own in photos.items() for i, path in enumerate(own)]
        for turn in range(max(map(len, photos.values())))
    ]


def finetune(rows: list[tuple[Path, str, str]], name: str, folder: Path, options: list[str]) -> list[dict[str, Any]]:
    """What probe and fine-tuned network said of the photos that were left out."""
    table = folder / f"{name}.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(
            [("path", "label", "split"), *((path.resolve(), label, part) for path, label, part in rows)]
        )
    command = [
        sys.executable,
        "-m",
        "femtobooth",
        "finetune",
        str(table),
        "--runs",
        str(folder),
        "--name",
        name,
        *options,
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    return list(json.loads((folder / name / "report.json").read_text())["validated"])


def main(data: Path, model: str, size: int, rest: list[str]) -> None:
    started = time.monotonic()
    answers: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for turn, rows in enumerate(rounds(data)):
            options = ["--model", model, "--size", str(size), "--trackers", "csv", "--checkpoint-every", "0", *rest]
            answers += finetune(rows, f"round{turn}", Path(temporary), options)
            print(f"round {turn}: {len(answers)} photos answered, {time.monotonic() - started:.0f} s", file=sys.stderr)
    right = {who: np.array([one[who]["label"] == one["label"] for one in answers]) for who in ("probe", "finetuned")}
    loss = {who: np.array([one[who]["loss"] for one in answers]) for who in right}
    print(f"{model} at {size} px: {len(answers)} photos, each left out once; {time.monotonic() - started:.0f} s\n")
    print(f"{'':12}  {'right':>8}  {'accuracy, 95% interval':>24}  {'calibrated log loss':>24}")
    for who, name in (("probe", "linear probe"), ("finetuned", "fine-tuned")):
        accuracy = metrics.wilson(int(right[who].sum()), len(answers))
        nll = metrics.bootstrap(lambda values: float(values.mean()), loss[who])
        interval = f"{nll.value:.3f} ({nll.low:.3f} to {nll.high:.3f})"
        print(f"{name:12}  {right[who].sum():>3} of {len(answers):>2}  {shares(accuracy):>24}  {interval:>24}")
    change = metrics.bootstrap(lambda values: float(values.mean()), loss["finetuned"] - loss["probe"])
    print(f"\n{verdict(metrics.paired_difference(right['probe'], right['finetuned']), len(answers))}")
    print(f"exact McNemar p = {exact_mcnemar(right['probe'], right['finetuned']):.3f}")
    print(
        f"calibrated log loss, fine-tuned - probe: {change.value:+.3f} "
        f"({change.low:+.3f} to {change.high:+.3f}, paired bootstrap)"
    )
    for one in answers:
        if not (one["probe"]["label"] == one["finetuned"]["label"] == one["label"]):
            said = f"probe says {one['probe']['label']}, fine-tuned says {one['finetuned']['label']}"
            print(f"  {Path(one['path']).parent.name}/{Path(one['path']).name}: {said}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of class folders")
    parser.add_argument("--model", default="tf_efficientnet_lite0")
    parser.add_argument("--size", type=int, default=96)
    arguments, rest = parser.parse_known_args()
    main(arguments.data, arguments.model, arguments.size, rest)
