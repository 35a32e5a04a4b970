"""From how many pictures of a class on does fine-tuning beat the linear probe? Near and far from what a network knows.

    python benchmarks/photos_per_class.py small --counts 2 5 12 25 50 100 --adapters 12
    python benchmarks/photos_per_class.py digits --counts 2 5 12 25
    python benchmarks/photos_per_class.py kinds --data ../shared/data/imagenet-sample --counts 3 12
    python benchmarks/photos_per_class.py --table    the table so far, and the file that finetune reads

`digits`: five handwritten ones that look alike, scikit-learn's, by the bundled recognizer, which knows icons. `small`:
all ten digits by EfficientNet-Lite0 at 32 px, far from the photos and the size that it learned. `kinds`: six kinds of
things in ImageNet's sample photos by EfficientNet-Lite0 at 64 px, which knows their likes, but larger. Each round draws
so many pictures of each class by its seed, runs the real `finetune` with its defaults (but no mirrored digits, and
--most steps at most) on them, and asks probe and network about the same held-out pictures. --adapters says at which
counts a third arm trains adapters of rank 8 (LoRA, by peft) on all pointwise layers in place of the weights, and the
last layer, for as many steps. Intervals are percentiles over pictures and seeds. What was measured is kept in --out, so
that the rounds can be run one by one.
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
import torch
from PIL import Image
from torch import nn

from femtobooth.core.config import resolve
from femtobooth.core.console import Terminal
from femtobooth.core.events import listening
from femtobooth.core.files import read_object, write_json
from femtobooth.judging.scores import over_prompts_and_seeds
from femtobooth.recognizer.finetuning import comparison, finetuner, guidance
from femtobooth.recognizer.finetuning.run import FinetunedRun
from femtobooth.recognizer.model.backbone import Recognizer
from femtobooth.recognizer.settings import FinetuneSettings
from femtobooth.training import averages
from femtobooth.training.randomness import generator
from femtobooth.training.session import fit
from femtobooth.workflows import finetune

KINDS = {
    "bird": [(7, 24), (80, 100), (127, 146)], "reptile": [(25, 68)], "dog": [(151, 268)],
    "other mammal": [(101, 106), (147, 150), (269, 299), (330, 388)],
    "small animal": [(69, 79), (107, 126), (300, 329), (0, 6), (389, 397)],
    "thing": [(398, 923)],
}  # fmt: skip
"""Kind -> first and last number of its classes in ImageNet's order."""
THINGS = 30
MODELS = {"digits": ("bundled", 64), "small": ("tf_efficientnet_lite0", 32), "kinds": ("tf_efficientnet_lite0", 64)}
"""Set -> the network, and the size that it reads."""
ABOUT = {
    "digits": "five look-alike handwritten digits, bundled recognizer at 64 px",
    "small": "ten handwritten digits, EfficientNet-Lite0 at 32 px",
    "kinds": "six kinds of things in photos, EfficientNet-Lite0 at 64 px",
}
ALIKE = ("3", "5", "6", "8", "9")
TESTED = 40
"""Pictures of each class that are held out; of kinds all but 12, if those are fewer."""
ELSEWHERE = [
    {
        "data": "subjects", "about": "photos of six subjects, EfficientNet-Lite0 at 96 px, by earlier defaults",
        "model": "tf_efficientnet_lite0", "size": 96, "pictures": 4, "seeds": 6, "tested": 30,
        "probe": [29 / 30, 0.83, 0.994], "finetuned": [1.0, 0.89, 1.0], "gain": [1 / 30, -0.08, 0.17],
        "by": "benchmarks/finetune_subjects.py",
    }
]  # fmt: skip
"""What another script measured."""
Labelled = list[tuple[Path, str]]


def digits(folder: Path, chosen: Sequence[str]) -> Labelled:
    """Write scikit-learn's digits as PNGs of 40x40 pixels with a margin."""
    from sklearn.datasets import load_digits

    found, data = [], load_digits()
    for index, (pixels, label) in enumerate(zip(data.images, data.target, strict=True)):
        if str(label) not in chosen:
            continue
        path = folder / str(label) / f"{index}.png"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            canvas = Image.new("RGB", (40, 40))
            digit = Image.fromarray((pixels * 255 / 16).astype(np.uint8)).resize((32, 32), Image.Resampling.BICUBIC)
            canvas.paste(digit.convert("RGB"), (4, 4))
            canvas.save(path)
        found.append((path, f"digit {label}"))
    return found


def kinds(folder: Path) -> Labelled:
    """Sort ImageNet's sample photos into six kinds of things."""
    found: Labelled = []
    with (folder / "labels.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            number = int(row["class_index"])
            kind = next((k for k, spans in KINDS.items() if any(a <= number <= b for a, b in spans)), None)
            if kind and not (kind == "thing" and sum(label == kind for _, label in found) >= THINGS):
                found.append((folder / row["file"], kind))
    return found


def drawn(photos: Labelled, count: int, seed: int) -> tuple[Labelled, Labelled]:
    """Draw `count` pictures of each class to train on; the held-out ones are the same for every count and seed."""
    train, test = [], []
    labels = sorted({label for _, label in photos})
    for label in labels:
        own = [photo for photo in photos if photo[1] == label]
        order = np.random.default_rng(0).permutation(len(own))
        held = min(TESTED, len(own) - 12)
        test += [own[i] for i in order[:held]]
        rest = [own[i] for i in order[held:]]
        train += [rest[i] for i in np.random.default_rng([seed, count]).permutation(len(rest))[:count]]
    return train, test


class Adapted(finetuner.Finetuner):
    """Trains adapters of rank 8 on every pointwise layer, and the last layer; all else stays as it is."""

    RANK, RATE = 8, 2e-3

    def __init__(self, recognizer: Recognizer, settings: FinetuneSettings, paths: list[Path], labels: Any) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        super().__init__(recognizer, settings, paths, labels)
        last = recognizer.model.get_classifier()
        pointwise = [
            name
            for name, part in recognizer.model.named_modules()
            if part is not last
            and (
                isinstance(part, nn.Linear)
                or (isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1) and part.groups == 1)
            )
        ]
        with torch.random.fork_rng():
            torch.manual_seed(generator(settings.training.seed, "adapters").initial_seed() % 2**63)
            config = LoraConfig(r=self.RANK, lora_alpha=self.RANK, target_modules=pointwise)
            recognizer.model = inject_adapter_in_model(config, recognizer.model)
        last.requires_grad_(True)
        self.last = {id(part) for part in last.parameters()}

    def optimizer_groups(self) -> list[dict[str, Any]]:
        named = averages.trained(self)
        last = [part for part in named.values() if id(part) in self.last]
        adapters = [part for part in named.values() if id(part) not in self.last]
        rates = (("head", last, self.settings.learning_rate), ("adapters", adapters, self.RATE))
        return [{"name": n, "params": of, "lr": lr, "weight_decay": 0.0, "starts": 0} for n, of, lr in rates]


def adapted(made: FinetunedRun, folder: Path) -> np.ndarray:
    """Train adapters as a run of finetune trained weights, from the same start; returns validation logits (N, C)."""
    settings, found = made.made_with(), made.survey()
    source = Recognizer.load(settings.model, any_head=True)
    source.preprocess = finetuner.preprocess_at(source.preprocess, settings.size)
    network = finetuner.with_classes(source, found.as_labels, made.head().softened())
    train = found.part("train")
    module = Adapted(network, settings, [found.paths[i] for i in train], found.targets[train])
    average = averages.average_of(settings.training)
    with fit(module, settings.training, folder, [average] if average else [], way_out="start again") as fitted:
        finetuner.load_result(module, fitted.state(), settings)
    return finetuner.outputs(network, [found.paths[i] for i in found.part("val")])["logits"]


def measured(
    photos: Labelled, name: str, count: int, seed: int, out: Path, most: int, adapters: bool
) -> dict[str, Any]:
    """Run finetune on a draw; returns how probe and network did on each held-out picture."""
    (model, size), (train, test) = MODELS[name], drawn(photos, count, seed)
    run = f"{name}-{count}-{seed}"
    table = out / f"{run}.csv"
    with table.open("w", newline="") as file:
        rows = [(path.resolve(), label, part) for part, of in (("train", train), ("val", test)) for path, label in of]
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    short = finetune.PASSES * len(train) <= most * FinetuneSettings(data="x").training.batch_size
    training = {"seed": seed, "trackers": ["csv"], "checkpoint_every": 0, "accelerator": "cpu"}
    given = {
        "data": str(table), "model": model, "size": size, "name": run, "runs": str(out / "runs"),
        "overwrite": True, "copies": "keep", "augment": {"flip": name == "kinds"},
        "training": training | ({} if short else {"steps": most}),
    }  # fmt: skip
    made = finetune.run(resolve(FinetuneSettings, given))
    report = json.loads((made.folder / "report.json").read_text())
    told = {who: [row[who]["label"] == row["label"] for row in report["validated"]] for who in ("probe", "finetuned")}
    losses = {who: [row[who]["loss"] for row in report["validated"]] for who in told}
    if adapters:
        shutil.rmtree(out / "adapters", ignore_errors=True)
        found, logits = made.survey(), adapted(made, out / "adapters")
        labels, groups = (values[found.part("val")] for values in (found.labels, found.groups))
        told["adapters"] = (logits.argmax(axis=1) == labels).tolist()
        losses["adapters"] = comparison.calibrated_losses(logits, labels, groups).tolist()
    crossed, seconds = report["probe"]["cross_validated"], {who: cost["seconds"] for who, cost in made.costs.items()}
    shutil.rmtree(made.folder)
    return {
        "right": told, "loss": losses, "crossed": crossed and crossed["accuracy"][0],
        "share": report["averaged"]["share"], "seconds": seconds,
    }  # fmt: skip


def summary(kept: dict[str, Any]) -> list[dict[str, Any]]:
    """Make a row for each set and count: accuracies, and gain with its interval."""
    cells = sorted({(key.split()[0], int(key.split()[1])) for key in kept})
    rows = []
    for name, count in cells:
        rounds = [value for key, value in sorted(kept.items()) if key.split()[:2] == [name, str(count)]]
        right, loss = (
            {
                who: np.array([one[what][who] for one in rounds if who in one[what]], float).T
                for who in ("probe", "finetuned", "adapters")
                if any(who in one[what] for one in rounds)
            }
            for what in ("right", "loss")
        )
        crossed = [one["crossed"] for one in rounds if one["crossed"] is not None]
        rows.append(
            {
                "data": name,
                "about": ABOUT[name],
                "model": MODELS[name][0],
                "size": MODELS[name][1],
                "pictures": count,
                "seeds": len(rounds),
                "tested": len(right["probe"]),
                "cross_validated": float(np.mean(crossed)) if crossed else None,
                "probe": list(over_prompts_and_seeds(right["probe"])),
                "finetuned": list(over_prompts_and_seeds(right["finetuned"])),
                "gain": list(over_prompts_and_seeds(right["finetuned"] - right["probe"])),
                "loss_change": list(over_prompts_and_seeds(loss["finetuned"] - loss["probe"])),
            }
        )
        if "adapters" in right:
            rows[-1]["adapters"] = list(over_prompts_and_seeds(right["adapters"]))
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    heads = (
        f"{'linear probe':>22}  {'fine-tuned':>22}  {'gain (points)':>22}  {'change of log loss':>26}  {'adapters':>22}"
    )
    print(f"{'data':8} {'a class':>7} {'seeds':>5} {heads}")
    for row in rows:
        cells = [f"{100 * a:.1f} ({100 * b:.1f} to {100 * c:.1f})" for a, b, c in (row["probe"], row["finetuned"])]
        gain, change = row["gain"], row["loss_change"]
        told = f"{100 * gain[0]:+.1f} ({100 * gain[1]:+.1f} to {100 * gain[2]:+.1f})"
        lost = f"{change[0]:+.3f} ({change[1]:+.3f} to {change[2]:+.3f})"
        start = f"{row['data']:8} {row['pictures']:>7} {row['seeds']:>5} {cells[0]:>22}  {cells[1]:>22}"
        third = row.get("adapters")
        also = f"{100 * third[0]:.1f} ({100 * third[1]:.1f} to {100 * third[2]:.1f})" if third else ""
        print(f"{start}  {told:>22}  {lost:>26}  {also:>22}")


def main(options: argparse.Namespace) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    store = options.out / "results.json"
    kept = dict(read_object(store) or {})
    for count in [] if options.table else options.counts:
        chosen = ALIKE if options.set == "digits" else [str(digit) for digit in range(10)]
        photos = kinds(options.data) if options.set == "kinds" else digits(options.out / "digits", chosen)
        for seed in options.seeds:
            key = f"{options.set} {count} {seed}"
            if key not in kept:
                arms = (options.most, count in options.adapters)
                kept[key] = measured(photos, options.set, count, seed, options.out, *arms)
                write_json(store, kept)
    rows = summary(kept)
    show(rows)
    if options.table:
        write_json(guidance.FILE, rows + ELSEWHERE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", nargs="?", choices=list(MODELS), default="digits")
    parser.add_argument("--data", type=Path, help="folder of ImageNet's sample photos, for `kinds`")
    parser.add_argument("--counts", type=int, nargs="+", default=[2, 5, 12, 25])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--most", type=int, default=600, help="steps at most; by default finetune takes 25 passes")
    parser.add_argument("--adapters", type=int, nargs="*", default=[], help="counts at which adapters train too")
    parser.add_argument("--out", type=Path, default=Path("photos-per-class"))
    parser.add_argument("--table", action="store_true", help="train nothing; write what finetune reads")
    with listening(Terminal()):
        main(parser.parse_intermixed_args())
