"""Do synthesized pictures make a better recognizer of 3 photos? On photos that neither generator nor recognizer has
seen.

    python benchmarks/synthesize_gain.py ../shared/data/dreambooth --others ../shared/data/imagenet-sample
    python benchmarks/synthesize_gain.py ../shared/data/dreambooth --others ../shared/data/imagenet-sample --fast teapot
    dog6

One recognizer tells all subjects and `other` (photos of anything else) apart. Each subject has a run of `personalize`
on its first three photos, which is made unless --runs holds one of that name; its other photos, by their SHA-256, are
what is tested on, together with the others that do not train. Every arm trains on the same three photos a subject and
the same 30 others:

    photos          nothing else
    + augmented     and random crops, flips and RandAugment of all of them (8 of each)
    + synthesized   and what `femtobooth synthesize` let pass, judged by an encoder that is not the one trained
    + class         and the base's pictures of the same prompts without the subject, as further `other`
    + both          augmented and synthesized

First a linear probe on the frozen network in each arm, then a short fine-tuning (`femtobooth finetune`) in the first
three. A seed decides which others train, and the augmentation; there is one generator for each subject, so that how
much the gain would vary with another is not in the intervals. These are percentiles over 2000 draws of test photos and
of seeds. All that was made is kept under
--out.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from femtobooth.core.config import resolve
from femtobooth.core.console import Terminal
from femtobooth.core.events import listening, progress
from femtobooth.core.files import sha256_of, write_json
from femtobooth.core.metrics import softmax, wilson
from femtobooth.core.run import is_run
from femtobooth.judging.scores import over_prompts_and_seeds, share_over_prompts_and_seeds
from femtobooth.pictures.images import find_pictures, read_picture
from femtobooth.recognizer.finetuning import probe
from femtobooth.recognizer.finetuning.augmentation import augmenter, seeded
from femtobooth.recognizer.model.backbone import Recognizer
from femtobooth.recognizer.settings import AugmentSettings, FinetuneSettings
from femtobooth.workflows import finetune

OTHER, OTHERS, TRAIN, VIEWS = "other", 30, 3, 8
JUDGES = {"tf_efficientnet_lite0": "bundled", "bundled": "tf_efficientnet_lite0"}  # what is trained -> what judges
PROBED = ("photos", "+ augmented", "+ synthesized", "+ class", "+ both")
TUNED = PROBED[:3]
PLAIN = {"crop": 1.0, "flip": False, "magnitude": 0, "mixup": 0.0}  # no augmentation
Labelled = list[tuple[Path, str]]


@dataclass(frozen=True)
class Photos:
    """What is real."""

    train: Labelled
    test: Labelled
    others: list[Path]

    def split(self, seed: int) -> tuple[list[Path], list[Path]]:
        """Others that train with this seed, and others that test with every seed: the last half never trains."""
        first = self.others[: len(self.others) // 2]
        chosen = np.random.default_rng(seed).permutation(len(first))[:OTHERS]
        return [first[index] for index in sorted(chosen)], self.others[len(self.others) // 2 :]


def femtobooth(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "femtobooth", *map(str, arguments)], check=True)


def nouns(data: Path) -> dict[str, str]:
    """Class noun of each subject, as the data's own list has them."""
    file = data / "prompts_and_classes.txt"
    rows = [line.split(",") for line in file.read_text().splitlines() if line.count(",") == 1] if file.is_file() else []
    return {name.strip(): noun.strip() for name, noun in rows}


def make_runs(data: Path, names: Sequence[str], runs: Path, fast: bool) -> list[Path]:
    """A finished run for each subject: one that is there, or a new one on its first photos."""
    found, known = [], nouns(data)
    quick = ("--steps", 40, "--class-images", 8, "--set", "samples.every=0") if fast else ()
    for name in names:
        folder = runs / name
        if not (folder / "model" / "model_index.json").is_file():
            photos = find_pictures([data / name])[0][:TRAIN]
            new = (
                "personalize",
                *photos,
                "--class-noun",
                known.get(name, name),
                "--name",
                name,
                "--runs",
                runs,
                *quick,
            )
            femtobooth(*(("personalize", "--resume", folder) if is_run(folder) else new))
        found.append(folder)
    return found


def photos_of(data: Path, runs: Sequence[Path], others: Path) -> Photos:
    """Photos that the runs were trained on, and the rest, which no run has seen in any way."""
    train: Labelled = []
    test: Labelled = []
    for run in runs:
        rows = json.loads((run / "preflight.json").read_text())
        seen = {sha256_of(Path(row["file"])) for row in rows if row["status"] != "skipped"}
        trained = {sha256_of(Path(row["file"])) for row in rows if row["status"] == "used"}
        for path in find_pictures([data / run.name])[0]:
            digest = sha256_of(path)
            if digest in trained:
                train.append((path, run.name))
            elif digest not in seen:
                test.append((path, run.name))
    without = {run.name for run in runs} - {label for _, label in test}
    if without or {run.name for run in runs} != {label for _, label in train}:
        sys.exit(
            f"no photo to test on, or none that trained: {', '.join(sorted(without))}; "
            "runs must have learned from some of their photos"
        )
    order = np.random.default_rng(0).permutation(len(found := find_pictures([others], recursive=True)[0]))
    return Photos(train, test, [found[index] for index in order])


def synthesize(runs: Sequence[Path], model: str, out: Path, steps: int, fast: bool) -> dict[str, Any]:
    """The folder of pictures to train `model` on; what was drawn for another model is used again."""
    folder = out / f"synthesized-{model}"
    done = folder / "synthesized.json"
    if not done.is_file() or json.loads(done.read_text())["status"] != "done":
        earlier = next(
            (path for path in sorted(out.glob("synthesized-*")) if path != folder and (path / "sheet.png").is_file()),
            None,
        )
        if earlier and not folder.exists():
            shutil.copytree(earlier, folder)
        grid = ("--backgrounds", "on the beach,in the snow,on the grass,on a white background") if fast else ()
        femtobooth(
            "synthesize",
            *runs,
            "--out",
            folder,
            "--negatives",
            "--encoder",
            JUDGES[model],
            "--recognizer",
            model,
            "--overwrite",
            *grid,
        )
    return dict(json.loads(done.read_text()))


def drawn(folder: Path, labels: Iterable[str]) -> Labelled:
    return [
        (path, label) for label in labels if (folder / label).is_dir() for path in find_pictures([folder / label])[0]
    ]


class Probe:
    """A frozen network; every picture is embedded once."""

    def __init__(self, model: str) -> None:
        self.recognizer = Recognizer.load(model)
        self.known: dict[Any, np.ndarray] = {}

    def __call__(self, paths: Sequence[Path], seed: int | None = None) -> np.ndarray:
        """Pre-logits (N, D) of pictures, or with a seed (N x VIEWS, D) of random views of them."""
        missing = [path for path in paths if (path, seed) not in self.known]
        for path in progress(missing, "embedding" if seed is None else "embedding augmented") if missing else ():
            image = read_picture(path).image
            views = (
                [image]
                if seed is None
                else [Image.fromarray(self._view(image, path, seed, turn)) for turn in range(VIEWS)]
            )
            with torch.inference_mode():
                if seed is None:
                    batch = self.recognizer.batch(views)
                else:  # already of the size that the network reads
                    batch = self.recognizer.preprocess.normalize(
                        torch.from_numpy(np.stack([np.array(view) for view in views]))
                    )
                self.known[path, seed] = self.recognizer.outputs(batch)["prelogits"].numpy()
        return np.concatenate([self.known[path, seed] for path in paths])

    def _view(self, image: Image.Image, path: Path, seed: int, turn: int) -> np.ndarray:
        with seeded(seed, "view", path.name, turn):
            return augmenter(AugmentSettings(), self.recognizer.preprocess)(image)

    def measure(
        self, photos: Photos, arm: str, seed: int, subjects: Labelled, classes: Sequence[Path]
    ) -> list[dict[str, Any]]:
        """What a probe of this arm says of the test photos."""
        names = [*sorted({label for _, label in photos.train}), OTHER]
        others, test = photos.split(seed)
        real = [*photos.train, *((path, OTHER) for path in others)]
        if arm in ("+ synthesized", "+ class", "+ both"):
            real += subjects
        if arm == "+ class":
            real += [(path, OTHER) for path in classes]
        rows, labels = [self([path for path, _ in real])], [names.index(label) for _, label in real]
        if arm in ("+ augmented", "+ both"):
            again = [*photos.train, *((path, OTHER) for path in others)]
            rows.append(self([path for path, _ in again], seed))
            labels += [names.index(label) for _, label in again for _ in range(VIEWS)]
        head = probe.fit(np.concatenate(rows), np.array(labels), len(names), balanced=True)
        asked = [*photos.test, *((path, OTHER) for path in test)]
        said = softmax(head.logits(self([path for path, _ in asked])))
        return _told(asked, [names.index(label) for _, label in asked], said)


def _told(asked: Labelled, truth: Sequence[int], said: np.ndarray) -> list[dict[str, Any]]:
    return [
        {
            "path": str(path),
            "label": label,
            "right": bool(row.argmax() == true),
            "loss": float(-np.log(max(row[true], 1e-12))),
        }
        for (path, label), true, row in zip(asked, truth, said, strict=True)
    ]


def finetuned(
    photos: Photos, arm: str, seed: int, subjects: Labelled, model: str, out: Path, steps: int
) -> list[dict[str, Any]]:
    """What `femtobooth finetune` of this arm says of the test photos."""
    others, test = photos.split(seed)
    rows = [(path, label, "train") for path, label in photos.train] + [(path, OTHER, "train") for path in others]
    rows += [(path, label, "train") for path, label in subjects] if arm == "+ synthesized" else []
    rows += [(path, label, "val") for path, label in photos.test] + [
        (path, OTHER, "val") for path in test[: 2 * OTHERS]
    ]
    name = f"{model}-{TUNED.index(arm)}-{seed}"
    table = out / "finetune" / f"{name}.csv"
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(
            [("path", "label", "split"), *((path.resolve(), label, part) for path, label, part in rows)]
        )
    training = {
        "steps": steps,
        "batch_size": 8,
        "seed": seed,
        "trackers": ["csv"],
        "checkpoint_every": 0,
        "accelerator": "cpu",
    }
    facts = {
        "data": str(table),
        "model": model,
        "size": 96,
        "name": name,
        "runs": str(table.parent),
        "overwrite": True,
        "result": "finetuned",
    }
    augment = {"augment": PLAIN} if arm == "photos" else {}
    finetune.run(resolve(FinetuneSettings, {**facts, **augment, "class_weights": "balanced", "training": training}))
    validated = json.loads((table.parent / name / "report.json").read_text())["validated"]
    wanted = {str(path.resolve()): label for path, label in [*photos.test, *((path, OTHER) for path in test)]}
    return [
        {
            "path": one["path"],
            "label": wanted[one["path"]],
            "right": one["finetuned"]["label"] == one["label"],
            "loss": one["finetuned"]["loss"],
        }
        for one in validated
    ]


def show(title: str, arms: Sequence[str], results: dict[str, list[list[dict[str, Any]]]]) -> None:
    """A table of one kind of training: each arm on the subjects' photos and on others, and its gain over the photos
    alone.
    """

    def grid(arm: str, what: str, of_subjects: bool) -> np.ndarray:
        """(photos, seeds)."""
        picked = [
            [float(one[what]) for one in answers if (one["label"] != OTHER) == of_subjects] for answers in results[arm]
        ]
        return np.array(picked).T

    print(f"\n{title}\n")
    heads = f"{'subjects right, 95 %':>24} {'others right, 95 %':>24} {'log loss':>9}"
    print(f"{'trained on':14} {heads} {'gain, subjects (points)':>26} {'change of log loss':>26}")
    for arm in arms:
        right, other = (share_over_prompts_and_seeds(grid(arm, "right", kind)) for kind in (True, False))
        loss = grid(arm, "loss", True)
        cells = [f"{one.value:.1%} ({one.low:.1%} to {one.high:.1%})" for one in (right, other)]
        line = f"{arm:14} {cells[0]:>24} {cells[1]:>24} {loss.mean():>9.3f}"
        if arm != "photos":
            gain = over_prompts_and_seeds(grid(arm, "right", True) - grid("photos", "right", True))
            change = over_prompts_and_seeds(loss - grid("photos", "loss", True))
            line += f" {100 * gain.value:+8.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})".ljust(28)
            line += f" {change.value:+8.3f} ({change.low:+.3f} to {change.high:+.3f})"
        print(line)
    print()
    for over, name in (("photos", "photos alone"), ("+ augmented", "classic augmentation")):
        gain, others = (grid("+ synthesized", "right", kind) - grid(over, "right", kind) for kind in (True, False))
        print(verdict(gain, others, name))


def verdict(gain: np.ndarray, others: np.ndarray, over: str) -> str:
    """In words, also where there is nothing to boast of.

    Changes (photos, seeds) of the subjects' photos, and of the others.
    """
    value, low, high = (100 * number for number in over_prompts_and_seeds(gain))
    change = over_prompts_and_seeds(others)
    told = f"{value:+.1f} points (95 % interval {low:+.1f} to {high:+.1f}) of {len(gain)} held-out photos"
    told += f", {100 * change.value:+.1f} ({100 * change.low:+.1f} to {100 * change.high:+.1f}) of {len(others)} others"
    if not gain.any():
        rest = f"so few photos exclude neither gain nor loss of {100 * wilson(0, len(gain)).high:.0f} points"
        return f"Synthesized pictures instead of {over} change no answer on the subjects: {told}; {rest}."
    which = "help" if low > 0 else "hurt" if high < 0 else "show neither gain nor harm"
    return f"Synthesized pictures {which}, compared with {over}: {told}."


def main(options: argparse.Namespace) -> None:
    started, out = time.monotonic(), options.out
    names = options.subjects or [path.name for path in sorted(options.data.iterdir()) if path.is_dir()]
    runs = make_runs(options.data, names, options.runs or out / "runs", options.fast)
    photos = photos_of(options.data, runs, options.others)
    seeds, tuned_seeds, steps = (
        (2, 1, 8) if options.fast else (options.seeds, options.finetune_seeds, options.finetune_steps)
    )
    store = out / "results.json"
    kept: dict[str, Any] = json.loads(store.read_text()) if store.is_file() else {}
    tested = f"{len(photos.test)} photos of them, {len(photos.split(0)[1])} others"
    print(f"{len(runs)} subjects, {len(photos.train)} photos to train on; held out: {tested}")
    for model in options.models:
        report = synthesize(runs, model, out, options.sampling_steps, options.fast)
        folder = out / f"synthesized-{model}"
        subjects, classes = (
            drawn(folder, [run.name for run in runs]),
            [path for path, _ in drawn(folder, report["negatives"])],
        )
        passed = ", ".join(f"{one['label']} {one['kept']} of {one['drawn']}" for one in report["subjects"])
        version = f"{model} {sha256_of(folder / 'synthesized.json')[:12]} {len(photos.test)} {len(photos.others)}"
        network: Probe | None = None
        answers: dict[str, dict[str, list[list[dict[str, Any]]]]] = {"probe": {}, "finetune": {}}
        for kind, arms, count in (
            ("probe", PROBED, seeds),
            ("finetune", TUNED, tuned_seeds if model == options.models[0] else 0),
        ):
            for arm in arms if count else ():
                for seed in range(count):
                    key = f"{version} {kind} {arm} {seed} {steps if kind == 'finetune' else ''}".strip()
                    if key not in kept:
                        if kind == "probe":
                            network = network or Probe(model)
                            kept[key] = network.measure(photos, arm, seed, subjects, classes)
                        else:
                            kept[key] = finetuned(photos, arm, seed, subjects, model, out, steps)
                        write_json(store, kept)
                    answers[kind].setdefault(arm, []).append(kept[key])
        print(f"\n== {model}; pictures that {JUDGES[model]} let pass: {passed}")
        show(f"Linear probe on frozen {model}, seeds: {seeds}", PROBED, answers["probe"])
        if answers["finetune"]:
            show(
                f"Fine-tuned {model} at 96 px, {steps} steps of 8 pictures, seeds: {tuned_seeds}",
                TUNED,
                answers["finetune"],
            )
    print(f"\n{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with a folder of photos for each subject")
    parser.add_argument("subjects", nargs="*", help="folders to take; all if not given")
    parser.add_argument("--others", type=Path, required=True, help="folder of photos of anything else")
    parser.add_argument(
        "--runs", type=Path, help="folder of finished runs, named as the subjects; what is missing is made there"
    )
    parser.add_argument("--out", type=Path, default=Path("synthesize-gain"))
    parser.add_argument(
        "--models",
        nargs="+",
        choices=list(JUDGES),
        default=list(JUDGES),
        help="recognizers to train; the first is also fine-tuned",
    )
    parser.add_argument("--seeds", type=int, default=5, help="of the probes")
    parser.add_argument("--sampling-steps", type=int, default=12, help="denoising steps of each synthesized picture")
    parser.add_argument("--finetune-seeds", type=int, default=2)
    parser.add_argument("--finetune-steps", type=int, default=60)
    parser.add_argument(
        "--fast", action="store_true", help="few steps, prompts and seeds: to see that it runs, not to measure"
    )
    with listening(Terminal()):
        main(parser.parse_intermixed_args())
