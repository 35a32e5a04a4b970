"""What a LoRA needs: rank, layers and rates against training the whole networks, on the bundled base.

    python benchmarks/adapters.py --data ../shared/data/dreambooth [--subjects clock,teapot] [--ways full,all-16]

Everything but what trains and for how many steps is as the bundled base's card has it. The last photo of a subject is
never trained on. A way is written `LAYERS-RANK[@RATE][xSTEPS]`, such as `all-16@2e-3x150`: LoRA on `attention`,
`attention+ff` or `all` layers, the UNet's learning rate (the text encoder's is half of it) and optimizer steps;
`full[xSTEPS]` trains the whole networks.

    fidelity    cosine of pictures of the subject, on four backdrops, with the photo that was held out
    backdrop    share of them whose backdrop the bundled recognizer names as the prompt does
    drift       1 - cosine of pictures of the class with the base's of the same noise
    class       share of these whose thing it names as the class
    outside, named    the same two of eight other things
    megabytes   of the file that is shared (fp16)
    seconds     of processor time, of the run but for drawing class images

Finished runs and what was judged of them are kept under --out: stopped, it goes on where it was. The interval of a
difference from the whole networks is over subjects (2,000 bootstrap draws); that of six is rough.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import prior
import torch
from select_checkpoint import MASCOT

from femtobooth import Recognizer
from femtobooth.core import config, metrics
from femtobooth.core.console import Terminal
from femtobooth.core.events import listening, table
from femtobooth.core.files import write_json
from femtobooth.core.run import is_run
from femtobooth.generator.settings import PersonalizeSettings
from femtobooth.judging.encoders import open_encoder
from femtobooth.pictures.crops import make_square
from femtobooth.pictures.images import find_pictures, read_picture
from femtobooth.pictures.sheets import sheet
from femtobooth.training.settings import ResumeSettings
from femtobooth.workflows import personalize

LAYERS = ("attention", "attention+ff", "all")
WAYS = [
    "full",
    "fullx150",
    *(f"all-{rank}" for rank in (2, 4, 8, 16, 32, 64)),
    *(f"{layers}-16" for layers in LAYERS[:2]),
    "all-16@1e-3",
    "all-16@4e-3",
]
FULL_STEPS, STEPS, RATE = 300, 150, 2e-3
MEASURES = (*prior.MEASURES, "megabytes", "seconds")


@dataclass(frozen=True)
class Way:
    """What trains, and for how long."""

    layers: str | None
    rank: int
    rate: float
    steps: int

    @classmethod
    def parse(cls, text: str) -> Way:
        """Read `all-16@2e-3x150` or `fullx150`. Raises ValueError."""
        found = re.fullmatch(r"(?:full|([a-z+]+)-(\d+)(?:@([\d.]+(?:e-\d+)?))?)(?:x(\d+))?", text)
        if found is None or (found[1] and found[1] not in LAYERS):
            raise ValueError(f"{text}: is neither full[xSTEPS] nor LAYERS-RANK[@RATE][xSTEPS]")
        steps = int(found[4] or (STEPS if found[1] else FULL_STEPS))
        return cls(found[1], int(found[2] or 0), float(found[3] or RATE), steps)

    def settings(self, fast: bool) -> dict[str, Any]:
        """What differs from the card's settings."""
        training = {"steps": 2 if fast else self.steps, "trackers": ["csv"], "checkpoint_every": 0}
        if self.layers is None:
            return {"training": training}
        lora = {"targets": self.layers, "rank": self.rank}
        lora |= {"unet_learning_rate": self.rate, "text_encoder_learning_rate": self.rate / 2}
        return {"training": training, "train": {"parts": ["lora"]}, "lora": lora}


def one(subject: str, text: str, judging: Any) -> dict[str, Any]:
    """Train a subject in a way unless it is done, and judge it unless it is judged; keeps what was measured."""
    options: argparse.Namespace = judging[0]
    name = f"{subject}-{text}"
    kept = options.out / "judged" / f"{name}.json"
    if kept.is_file():
        return dict(json.loads(kept.read_text()))
    way, noun, place = Way.parse(text), prior.NOUNS[subject], options.out / name
    paths = find_pictures([MASCOT if subject == "mascot" else options.data / subject])[0]
    given: list[dict[str, Any]] = [
        {"photos": {"paths": [str(path) for path in paths[:-1]], "class_noun": noun}},
        {"samples": {"every": 0, "images": 1, "prompts": ["a [V] {class}"], "sampling": {"steps": 4}}},
        {"validation": {"every": 0}, "save_precision": "fp16", "runs": str(options.out)},
    ]
    if not (options.out / f"{subject}-cache").exists():  # class images are drawn by the first run of a subject
        first = {"name": f"{subject}-cache", "training": {"steps": 1, "trackers": ["csv"]}}
        personalize.run(config.settle(PersonalizeSettings, *given, first))
    began = time.process_time()
    if is_run(place):
        run = personalize.resume(ResumeSettings(run=str(place)))
    else:
        run = personalize.run(config.settle(PersonalizeSettings, *given, {"name": name}, way.settings(options.fast)))
    seconds = time.process_time() - began
    unseen = np.array(make_square(read_picture(paths[-1]).image, 64, "smart")[0])
    found, drawn = prior.judge(run, subject, unseen, prior.base_pictures(subject, options), judging)
    files = [path for path in (place / "model").rglob("*.safetensors") if not path.name.startswith("pytorch_lora")]
    found |= {"megabytes": sum(path.stat().st_size for path in files) / 1e6, "seconds": seconds, "steps": way.steps}
    rows = [[*drawn["subject"][:: options.seeds], *drawn["class"][:2], *drawn["outside"][:4]]]
    sheet(rows, [name], []).save(options.out / "judged" / f"{name}.png")
    shutil.rmtree(place / "checkpoints", ignore_errors=True)
    shutil.rmtree(place / "model")
    write_json(kept, found)
    return found


def show(found: dict[str, dict[str, dict[str, Any]]], subjects: list[str]) -> None:
    """Print the means, and the differences from training whole networks."""
    rows = []
    for way, measured in found.items():
        means = [float(np.mean([own[name] for own in measured.values()])) for name in MEASURES]
        steps = next(iter(measured.values()))["steps"]
        rows.append([way, f"{steps}", *(f"{mean:.3f}" for mean in means[:-2]), f"{means[-2]:.2f}", f"{means[-1]:.0f}"])
    heads = [f">{name}{' ↓' if name in (*prior.LOWER, *MEASURES[-2:]) else ''}" for name in MEASURES]
    table(f"Means of {len(subjects)} subjects: {', '.join(subjects)}", ["way", ">steps", *heads], rows)
    if "full" not in found or len(subjects) < 2:
        return
    rows = []
    for way in (way for way in found if way != "full"):
        cells = []
        for name in prior.MEASURES:
            apart = np.array([found[way][who][name] - found["full"][who][name] for who in subjects])
            value = metrics.bootstrap(lambda values: float(values.mean()), apart, resamples=2000)
            cells.append(f"{value.value:+.3f} ({value.low:+.3f} to {value.high:+.3f})")
        rows.append([way, *cells])
    table("Minus the whole networks (95 % interval over subjects)", ["way", *heads[:-2]], rows)


def main(options: argparse.Namespace) -> None:
    """Go through subjects and ways."""
    (options.out / "judged").mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    judging = (options, open_encoder(options.judge), Recognizer.load("bundled").network())
    found: dict[str, dict[str, dict[str, Any]]] = {way: {} for way in options.ways}
    for subject in options.subjects:
        for way, measured in found.items():
            measured[subject] = one(subject, way, judging)
    show(found, options.subjects)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with a folder of photos for each subject but the mascot")
    parser.add_argument("--out", type=Path, default=Path("runs/adapters"), help="where runs and judgements are kept")
    parser.add_argument("--subjects", type=lambda text: text.split(","), default=[*prior.NOUNS], help="some of them")
    parser.add_argument("--ways", type=lambda text: text.split(","), default=WAYS, help="what to train")
    parser.add_argument("--judge", default="tf_efficientnet_lite0", help="the encoder of fidelity and drift")
    parser.add_argument("--seeds", type=int, default=4, help="pictures for each backdrop")
    parser.add_argument("--drawn", type=int, default=15, help="denoising steps of the pictures that are judged")
    parser.add_argument("--threads", type=int, default=1, help="threads of the processor")
    parser.add_argument("--fast", action="store_true", help="a tiny run of everything")
    given = parser.parse_args()
    if given.fast:
        given.seeds, given.drawn, given.out, given.subjects = 2, 3, given.out / "fast", given.subjects[:1]
    if unknown := set(given.subjects) - set(prior.NOUNS):
        sys.exit(f"no such subject: {', '.join(sorted(unknown))}")
    if given.data is None and set(given.subjects) != {"mascot"}:
        sys.exit("--data: where the photos are, or --subjects mascot")
    try:
        [Way.parse(way) for way in given.ways]
    except ValueError as error:
        sys.exit(str(error))
    with listening(Terminal()):
        main(given)
