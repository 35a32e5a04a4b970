"""Does a teacher make a better student? The student alone, with a teacher, with unlabelled pictures, and the teacher.

    python benchmarks/distillation.py digits
    python benchmarks/distillation.py kinds ../shared/data/imagenet-sample --more ../shared/data/dreambooth

`digits`: scikit-learn's ten handwritten digits, --count of each to train on, drawn anew in each round, 400 others held
out, and the rest without labels. The student is EfficientNet-Lite0 at 32 px, the teacher the same network at 64 px,
four times the work, fine-tuned on the same labelled pictures. `kinds`: six kinds of things in ImageNet's sample photos,
in two rounds: each half of them trains once, the others are held out; --more are photos without labels. The student is
the same network at 64 px, the teacher a linear probe on it at 128 px. All arms see the same labelled pictures in the
same order for as many steps. Intervals are percentiles over held-out pictures and rounds. What was measured is kept in
--out; given again, the script goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from photos_per_class import Labelled, digits, drawn, kinds

from femtobooth.core.config import merge, resolve
from femtobooth.core.console import Terminal
from femtobooth.core.events import listening
from femtobooth.core.files import read_object, write_json
from femtobooth.judging.scores import over_prompts_and_seeds
from femtobooth.recognizer.settings import FinetuneSettings
from femtobooth.workflows import finetune

MODEL = "tf_efficientnet_lite0"
ARMS = ("alone", "taught", "taught, unlabelled")


def halves(photos: Labelled, turn: int) -> tuple[Labelled, Labelled]:
    """Split each kind in two by a fixed shuffle; the half number `turn` trains."""
    train: Labelled = []
    test: Labelled = []
    for label in sorted({label for _, label in photos}):
        own = [photo for photo in photos if photo[1] == label]
        for place, index in enumerate(np.random.default_rng(0).permutation(len(own))):
            (train if place % 2 == turn else test).append(own[index])
    return train, test


def rest(photos: Labelled, taken: Sequence[Labelled], folder: Path) -> list[str]:
    """Put the pictures that neither train nor are held out into a folder without labels."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    known = {path for part in taken for path, _ in part}
    for path, _ in photos:
        if path not in known:
            shutil.copy(path, folder / path.name)
    return [str(folder)]


def trained(train: Labelled, test: Labelled, name: str, out: Path, **given: Any) -> dict[str, Any]:
    """Run finetune with settings; returns what its report says of the held-out pictures."""
    table = out / f"{name}.csv"
    with table.open("w", newline="") as file:
        rows = [(path.resolve(), label, part) for part, of in (("train", train), ("val", test)) for path, label in of]
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    common = {
        "data": str(table), "name": name, "runs": str(out / "runs"), "overwrite": True, "copies": "keep",
        "training": {"trackers": ["csv"], "checkpoint_every": 0, "accelerator": "cpu"},
    }  # fmt: skip
    made = finetune.run(resolve(FinetuneSettings, merge(common, given)))
    return dict(json.loads((made.folder / "report.json").read_text()))


def told(report: dict[str, Any], who: str) -> list[tuple[bool, float]]:
    """Say of each held-out picture whether it was named right, and its calibrated log loss."""
    return [(row[who]["label"] == row["label"], row[who]["loss"]) for row in report["validated"]]


def main(options: argparse.Namespace) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    store = options.out / f"{options.set}.json"
    kept = dict(read_object(store))
    trainings, far = 0, options.set == "digits"
    photos = digits(options.out / "digits", "0123456789") if far else kinds(options.data)
    seen = {"augment": {"flip": not far}, "result": "finetuned"}
    student = {"model": MODEL, "size": 32 if far else 64, "training": {"steps": options.steps}, **seen}
    tutor = {"model": MODEL, "size": 64, **seen} if far else {"model": MODEL, "size": 128, "probe_only": True}
    for turn in range(min(options.rounds, 9 if far else 2)):
        name = f"{options.set}-{turn}"
        train, test = drawn(photos, options.count, turn) if far else halves(photos, turn)
        if name not in kept:
            trained(train, test, f"{name}-teacher", options.out, **tutor)
            kept[name] = {}
        by = {"teacher": str(options.out / "runs" / f"{name}-teacher"), **json.loads(options.distill)}
        for number, arm in enumerate(ARMS):
            if arm in kept[name]:
                continue
            trainings += 1
            if trainings > options.most:
                return
            more = rest(photos, (train, test), options.out / "rest") if far and number == 2 else options.more
            distill = [{}, by, {**by, "unlabelled": [str(folder) for folder in more]}][number]
            report = trained(train, test, f"{name}-{number}", options.out, **student, distill=distill)
            kept[name][arm] = {
                "told": told(report, "finetuned"), "teacher": (report.get("teacher") or {}).get("validation"),
            }  # fmt: skip
            kept[name]["probe"] = {"told": told(report, "probe")}
            write_json(store, kept)
    show(kept)


def show(kept: dict[str, Any]) -> None:
    """Print a line for each arm: right and log loss, and their changes over the student alone."""
    rounds = [value for value in kept.values() if all(arm in value for arm in ARMS)]
    size = max(len(one["alone"]["told"]) for one in rounds)
    asked = {}
    for arm in ("probe", *ARMS):
        own = [np.array(one[arm]["told"], float) for one in rounds]
        if len({len(one) for one in own}) > 1:  # halves, of other pictures each: as if asked in one round
            own = [np.concatenate(own)]
        asked[arm] = np.stack(own, axis=1)  # (pictures, rounds, 2)
    print(f"{size} held-out pictures a round, {len(rounds)} rounds\n")
    for arm, name in (("probe", "its linear probe"), *((arm, f"student {arm}") for arm in ARMS)):
        line = f"{name:28} {points(asked[arm][..., 0])} %, loss {asked[arm][..., 1].mean():.3f}"
        if arm in ARMS[1:]:
            change = asked[arm] - asked["alone"]
            lost = over_prompts_and_seeds(change[..., 1])
            line += f"; over alone {points(change[..., 0], '+')} points"
            line += f", loss {lost.value:+.3f} ({lost.low:+.3f} to {lost.high:+.3f})"
        print(line)
    known = [one["taught"]["teacher"] for one in rounds]
    right = sum(one["right"] for one in known) / sum(one["pictures"] for one in known)
    print(f"{'teacher':28} {100 * right:5.1f} %")


def points(values: np.ndarray, sign: str = "") -> str:
    """Write a mean over (pictures, rounds) with its interval, in points."""
    value, low, high = (100 * part for part in over_prompts_and_seeds(values))
    return f"{value:{sign}.1f} ({low:{sign}.1f} to {high:{sign}.1f})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=["digits", "kinds"])
    parser.add_argument("data", type=Path, nargs="?", help="folder of ImageNet's sample photos, for `kinds`")
    parser.add_argument(
        "--more", type=Path, nargs="*", default=[], help="folders of photos without labels, for `kinds`"
    )
    parser.add_argument("--count", type=int, default=5, help="labelled digits of each class")
    parser.add_argument("--steps", type=int, default=150, help="of each student")
    parser.add_argument("--distill", default="{}", help="further settings of `distill`, as JSON")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--most", type=int, default=99, help="students to train now; given again, it goes on")
    parser.add_argument("--out", type=Path, default=Path("distillation"))
    with listening(Terminal()):
        main(parser.parse_intermixed_args())
