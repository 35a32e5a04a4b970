"""Does a teacher make a better student? The student alone, with a teacher, with unlabelled pictures, and the teacher.

    python benchmarks/distillation.py ../shared/data/imagenet-sample --more ../shared/data/dreambooth

Six kinds of things in ImageNet's sample photos. The student is EfficientNet-Lite0 at 64 px, a quarter of its work at
128 px; the teacher a linear probe on the same network at 128 px, of the same photos. Two rounds: each half of them
trains once, the others are held out; --more are photos without labels. All arms see the same labelled pictures in the
same order for as many steps. Intervals are Wilson's, Newcombe's of paired differences, and percentiles over held-out
pictures for the loss. What was measured is kept in --out; given again, the script goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from photos_per_class import Labelled, kinds

from femtobooth.core import metrics
from femtobooth.core.config import merge, resolve
from femtobooth.core.console import Terminal
from femtobooth.core.events import listening
from femtobooth.core.files import read_object, write_json
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


def main(options: argparse.Namespace) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    store = options.out / "results.json"
    kept = dict(read_object(store))
    trainings, photos, more = 0, kinds(options.data), [str(folder) for folder in options.more]
    student = {"model": MODEL, "size": 64, "result": "finetuned", "training": {"steps": options.steps}}
    for turn in range(options.rounds):
        name, (train, test) = f"kinds-{turn}", halves(photos, turn)
        if name not in kept:
            trained(train, test, f"{name}-teacher", options.out, model=MODEL, size=128, probe_only=True)
            kept[name] = {}
        by = {"teacher": str(options.out / "runs" / f"{name}-teacher")}
        for number, arm in enumerate(ARMS):
            if arm in kept[name]:
                continue
            trainings += 1
            if trainings > options.most:
                return
            distill = [{}, by, {**by, "unlabelled": more}][number]
            report = trained(train, test, f"{name}-{number}", options.out, **student, distill=distill)
            told = [
                (row["finetuned"]["label"] == row["label"], row["finetuned"]["loss"]) for row in report["validated"]
            ]
            kept[name][arm] = {"told": told, "teacher": (report.get("teacher") or {}).get("validation")}
            kept[name]["probe"] = {
                "told": [(row["probe"]["label"] == row["label"], row["probe"]["loss"]) for row in report["validated"]]
            }
            write_json(store, kept)
    asked: dict[str, np.ndarray] = {}
    for arm in ("probe", *ARMS):
        asked[arm] = np.array([row for value in kept.values() for row in value[arm]["told"]], float)
    print(f"{len(asked['alone'])} held-out pictures\n")
    for arm, name in (("probe", "its linear probe"), *((arm, f"student {arm}") for arm in ARMS)):
        right, loss = asked[arm].T
        share = metrics.wilson(int(right.sum()), len(right))
        line = f"{name:28} {100 * share.value:5.1f} % ({100 * share.low:.1f} to {100 * share.high:.1f})"
        line += f", loss {loss.mean():.3f}"
        if arm in ARMS[1:]:
            change = metrics.paired_difference(asked["alone"][:, 0] > 0.5, right > 0.5)
            lost = metrics.bootstrap(lambda values: float(values.mean()), loss - asked["alone"][:, 1])
            line += (
                f"; over alone {100 * change.value:+.1f} points ({100 * change.low:+.1f} to {100 * change.high:+.1f})"
            )
            line += f", loss {lost.value:+.3f} ({lost.low:+.3f} to {lost.high:+.3f})"
        print(line)
    known = [value["taught"]["teacher"] for value in kept.values()]
    share = metrics.wilson(sum(one["right"] for one in known), sum(one["pictures"] for one in known))
    print(f"{'teacher':28} {100 * share.value:5.1f} % ({100 * share.low:.1f} to {100 * share.high:.1f})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of ImageNet's sample photos")
    parser.add_argument("--more", type=Path, nargs="*", default=[], help="folders of photos without labels")
    parser.add_argument("--steps", type=int, default=60, help="of each student")
    parser.add_argument("--rounds", type=int, choices=[1, 2], default=2)
    parser.add_argument("--most", type=int, default=6, help="students to train now; given again, it goes on")
    parser.add_argument("--out", type=Path, default=Path("distillation"))
    with listening(Terminal()):
        main(parser.parse_intermixed_args())
