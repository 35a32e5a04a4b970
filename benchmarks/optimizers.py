"""How alike are pictures that each optimizer makes at its default learning rates, and at ten times less and more?

    python benchmarks/optimizers.py --data ../shared/data/dreambooth --subjects mascot,duck_toy
    python benchmarks/optimizers.py --subjects mascot --fast

The bundled base is personalized with its recommended settings, whose rates were tuned for AdamW with a cosine schedule;
only the optimizer and the rates change. Schedule-free AdamW runs without the schedule, as it must; Prodigy's rates are
multiples of what it finds. The last step is scored as in validation: cosine of pictures of three prompts with the
photos (fidelity), prompt match, drift of the class. Intervals are percentiles of 2000 bootstrap draws of pictures. One
seed each: differences within the intervals say nothing.

Stopped, it goes on where it was; finished runs stay under --out.
"""

from __future__ import annotations

import argparse
import itertools
import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from femtobooth.core import config
from femtobooth.core.console import Terminal
from femtobooth.core.errors import NotFiniteError
from femtobooth.core.events import listening
from femtobooth.core.run import is_run
from femtobooth.generator.run import PersonalizedRun
from femtobooth.generator.settings import PersonalizeSettings
from femtobooth.training.settings import ResumeSettings
from femtobooth.workflows import personalize

MASCOT = Path(str(resources.files("femtobooth") / "assets" / "mascot"))
SUBJECTS = {"mascot": "robot", "duck_toy": "toy", "clock": "clock", "teapot": "teapot", "backpack": "backpack"}
OPTIMIZERS = ("adamw", "adafactor", "schedulefree", "prodigy")
FACTORS = (0.1, 1.0, 10.0)
DRAWS = 2000


def settings(subject: str, optimizer: str, factor: float, options: argparse.Namespace) -> PersonalizeSettings:
    """Settle the settings of one run: what is recommended, and the optimizer's rates times `factor`."""
    photos = MASCOT if subject == "mascot" else options.data / subject
    wanted: dict[str, Any] = {
        "photos": {"paths": [str(photos)], "class_noun": SUBJECTS[subject]},
        "runs": str(options.out),
        "name": f"{subject}-{optimizer}-{factor:g}",
        "overwrite": True,
        "samples": {"every": 0, "images": 1},
        "validation": {"every": options.steps, "images": options.images, "loss_every": 0, "select": "final"},
        "training": {"optimizer": optimizer, "steps": options.steps, "trackers": ["csv"], "checkpoint_every": 0},
    }
    if options.batch_size:
        wanted["training"]["batch_size"] = options.batch_size
    usual = config.settle(PersonalizeSettings, wanted).rates
    return config.settle(PersonalizeSettings, wanted, *(config.nested(name, usual[name] * factor) for name in usual))


def scored(wanted: PersonalizeSettings) -> dict[str, Any] | None:
    """Train, unless that is done; give the scores of the base and of the last step; None where training diverged."""
    folder = Path(wanted.runs) / str(wanted.name)
    try:
        if is_run(folder) and PersonalizedRun.open(folder).status != "failed":
            personalize.resume(ResumeSettings(run=str(folder)))
        elif not is_run(folder):
            personalize.run(wanted)
        else:
            return None
    except NotFiniteError:
        return None
    points = json.loads((folder / "validation" / "validation.json").read_text(encoding="utf-8"))["points"]
    return {"base": points[0], "tuned": points[-1]}


def interval(values: np.ndarray) -> str:
    """Write mean and 95 % interval of scores (n,)."""
    random = np.random.default_rng(0)
    means = random.choice(values, (DRAWS, len(values))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{values.mean():.3f} ({low:.3f} to {high:.3f})"


def row(found: list[dict[str, Any] | None]) -> str:
    """Write the scores of one optimizer and factor over all subjects."""
    if not all(found):
        return "diverged | – | –"  # noqa: RUF001
    tuned = [one["tuned"] for one in found if one]
    means = [f"{np.mean([np.mean(one[name]) for one in tuned]):.3f}" for name in ("prompt", "drift")]
    return " | ".join([interval(np.concatenate([one["fidelity"] for one in tuned])), *means])


def main(options: argparse.Namespace) -> None:
    print(f"{', '.join(options.subjects)}; {options.steps} steps\n")
    print("| optimizer | rates | fidelity | prompt match | drift |\n|---|---|---|---|---|")
    base: list[float] = []
    for optimizer, factor in itertools.product(options.optimizers, FACTORS):
        made = [settings(subject, optimizer, factor, options) for subject in options.subjects]
        found = [scored(one) for one in made]
        base = base or [value for one in found if one for value in one["base"]["fidelity"]]
        unet = f"{made[0].train.unet_learning_rate:g}"
        print(f"| {optimizer} | {factor:g} x, U-Net {unet} | {row(found)} |", flush=True)
    print(f"\nthe untuned base: fidelity {interval(np.array(base))}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/dreambooth"), help="the dataset's folder")
    parser.add_argument("--subjects", type=lambda text: text.split(","), default=["mascot", "duck_toy"])
    parser.add_argument("--optimizers", type=lambda text: text.split(","), default=list(OPTIMIZERS))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, help="photos a step, if not as recommended")
    parser.add_argument("--images", type=int, default=4, help="pictures of each prompt that are scored")
    parser.add_argument("--out", type=Path, default=Path("runs/optimizers"))
    parser.add_argument("--fast", action="store_true", help="next to nothing, to see that it works")
    chosen = parser.parse_args()
    if chosen.fast:
        chosen.steps, chosen.images = 2, 1
    with listening(Terminal(level=-1)):
        main(chosen)
