"""How well does `finetune --multi-label` name several things in one picture? Montages of real photos, mAP and F1.

    python benchmarks/multi_label.py ../shared/data/dreambooth ../shared/data/imagenet-sample

A montage has four cells; in each, at random, a photo of one of DreamBooth's subjects, or of four kinds of animals in
ImageNet's sample photos, or nothing: ten labels, none to four of them true. The photos are halved: 60 montages of one
half train, 60 of the other validate, and the other way round, so that no photo is on both sides. Probe and network come
from the real `finetune` on EfficientNet-Lite0. What it measures is by calibration and thresholds of other folds; the
intervals here are the wider of the two rounds, the figures their mean.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from photos_per_class import Labelled, kinds
from PIL import Image

from femtobooth.core.config import resolve
from femtobooth.core.console import Terminal
from femtobooth.core.events import listening
from femtobooth.pictures.images import read_picture
from femtobooth.recognizer.finetuning.dataset import read
from femtobooth.recognizer.settings import FinetuneSettings
from femtobooth.workflows import finetune

ANIMALS = ("bird", "reptile", "dog", "other mammal")
CELL, MONTAGES, EMPTY = 112, 60, 0.35


def montages(photos: Labelled, folder: Path, seed: int) -> list[tuple[Path, str]]:
    """Write montages of 2 x 2 photos; returns their files and labels."""
    random, made = np.random.default_rng(seed), []
    labels = sorted({label for _, label in photos})
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(MONTAGES):
        canvas, said = Image.new("RGB", (2 * CELL, 2 * CELL), tuple(random.integers(0, 256, 3).tolist())), set()
        for cell in range(4):
            label = labels[random.integers(len(labels))]
            own = [path for path, of in photos if of == label]
            path, empty = own[random.integers(len(own))], random.random() < EMPTY
            if not empty:
                said.add(label)
                photo = read_picture(path).image.convert("RGB").resize((CELL, CELL), Image.Resampling.BICUBIC)
                canvas.paste(photo, (CELL * (cell % 2), CELL * (cell // 2)))
        canvas.save(folder / f"{number}.png")
        made.append((folder / f"{number}.png", "|".join(sorted(said))))
    return made


def main(options: argparse.Namespace) -> None:
    subjects = [(example.path, example.label) for example in read(options.subjects).examples]
    photos = subjects + [photo for photo in kinds(options.animals) if photo[1] in ANIMALS]
    halves: list[Labelled] = [[], []]
    for label in sorted({label for _, label in photos}):
        own = [photo for photo in photos if photo[1] == label]
        for place, index in enumerate(np.random.default_rng(0).permutation(len(own))):
            halves[place % 2].append(own[index])
    sides = [montages(half, options.out / f"half-{side}", side) for side, half in enumerate(halves)]
    reports = []
    for turn in (0, 1):
        table = options.out / f"several-{turn}.csv"
        rows = [
            (path.resolve(), said, part)
            for side, part in ((turn, "train"), (1 - turn, "val"))
            for path, said in sides[side]
        ]
        with table.open("w", newline="") as file:
            csv.writer(file).writerows([("path", "labels", "split"), *rows])
        given = {
            "data": str(table), "model": "tf_efficientnet_lite0", "size": options.size, "name": f"several-{turn}",
            "runs": str(options.out / "runs"), "overwrite": True, "copies": "keep", "multi_label": True,
            "training": {"trackers": ["csv"], "checkpoint_every": 0, "accelerator": "cpu", "steps": options.steps},
        }  # fmt: skip
        made = finetune.run(resolve(FinetuneSettings, given))
        reports.append(json.loads((made.folder / "report.json").read_text()))
    names = {"map": "mAP", "macro_f1": "mean F1", "micro_f1": "F1 over all", "exact": "all labels right"}
    for who, facts in (
        ("probe", [one["probe"]["validation"] for one in reports]),
        ("fine-tuned", [one["finetuned"] for one in reports]),
    ):
        print(f"{who:12}" + ", ".join(f"{name} {pooled([one[key] for one in facts])}" for key, name in names.items()))
    change = pooled([one["comparison"]["map_difference"] for one in reports], "+")
    print(f"mAP of fine-tuning over the probe: {change} points")


def pooled(values: list[Any], sign: str = "") -> str:
    """Write the mean of two rounds, with an interval as wide as the wider one's."""
    mean = float(np.mean([value for value, _, _ in values]))
    below, above = max(v - low for v, low, _ in values), max(high - v for v, _, high in values)
    return f"{100 * mean:{sign}.1f} ({100 * (mean - below):{sign}.0f} to {100 * (mean + above):{sign}.0f})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", type=Path, help="folder of DreamBooth's subjects")
    parser.add_argument("animals", type=Path, help="folder of ImageNet's sample photos")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--out", type=Path, default=Path("multi-label"))
    with listening(Terminal()):
        main(parser.parse_intermixed_args())
