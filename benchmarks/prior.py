"""What keeps a class as it was, at equal time: class images (true noise, or a teacher's target), the photos under
captions of their class, a pull of the weights to the base's, or nothing.

    python benchmarks/prior.py --data ../shared/data/dreambooth [--seconds 60] [--subjects clock,teapot] [--fast]

Every way has the same seconds, of one thread of this machine: `costs.json` has what a step of each takes, measured
in turns in processor time so that what else runs here counts little, and what a class image takes to draw. From them
come the steps of each way; the ways that draw have fewer. Everything else is as the bundled base's card has it (but the
schedule, which ends with the steps, and `--background`). The last photo of a subject is never trained on.

    fidelity    cosine of pictures of the subject, on four backdrops, with the photo that was held out
    backdrop    share of them whose backdrop the bundled recognizer names as the prompt does
    drift       1 - cosine of pictures of the class with the base's of the same noise
    class       share of these whose thing it names as the class (of the base's: in the row `base`)
    outside, named    the same two of eight other things

Finished runs and what was judged of them are kept under --out: stopped, it goes on where it was. Of the differences
from class images with true noise the interval is over subjects (2,000 bootstrap draws); that of six is rough.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from select_checkpoint import MASCOT, SUBJECTS

from femtobooth import Recognizer
from femtobooth.core import config, metrics
from femtobooth.core.console import Terminal
from femtobooth.core.events import listening, note, table
from femtobooth.core.files import write_json
from femtobooth.core.run import is_run
from femtobooth.generator import sampling
from femtobooth.generator.dreambooth import DreamBooth
from femtobooth.generator.families.family import Family
from femtobooth.generator.latents import LatentSet
from femtobooth.generator.load import load
from femtobooth.generator.run import PersonalizedRun
from femtobooth.generator.sampling_settings import SamplingSettings
from femtobooth.generator.settings import PersonalizeSettings
from femtobooth.judging import scores
from femtobooth.judging.encoders import Encoder, open_encoder
from femtobooth.pictures.crops import make_square
from femtobooth.pictures.images import find_pictures, read_picture
from femtobooth.pictures.sheets import sheet
from femtobooth.training import trainer
from femtobooth.training.settings import ResumeSettings
from femtobooth.workflows import personalize

WAYS: dict[str, dict[str, Any]] = {
    "noise": {"target": "noise"},
    "base": {"target": "base"},
    "photos": {"target": "photos"},
    "pull 50": {"weight": 0.0, "weights": 50.0},
    "pull 200": {"weight": 0.0, "weights": 200.0},
    "none": {"weight": 0.0},
}
DRAW = ("noise", "base")  # class images, before the first step
BACKDROPS = {"beach": "on the beach", "snow": "in the snow", "moon": "on the moon", "city": "in the city"}
NAMES = {"dog": {"dog", "dog face"}, "clock": {"clock", "alarm clock"}, "duck": {"duck"}, "robot": {"robot"}}
NOUNS = SUBJECTS | {"duck_toy": "duck"}
OUTSIDE = {
    "a cat on the grass": {"cat", "cat face"}, "a house in the snow": {"house"}, "a car in the city": {"car", "taxi"},
    "a pumpkin on a table": {"pumpkin"}, "a guitar in a room": {"guitar"}, "a rocket in space": {"rocket"},
    "a tree in the mountains": {"tree"}, "a chair on a wooden floor": {"chair"},
}  # fmt: skip
SEED = 500
MEASURES = ("fidelity", "backdrop", "drift", "class", "outside", "named")
LOWER = ("drift", "outside")


def settings_of(way: str, options: argparse.Namespace, **changes: Any) -> PersonalizeSettings:
    """The card's settings with this way to keep the class."""
    prior = WAYS[way] | ({"images": options.images} if way in DRAW else {})
    quiet = {"samples": {"every": 0, "images": 1, "prompts": ["a [V] {class}"], "sampling": {"steps": 4}}}
    given = {"prior": prior, "loss": {"background": options.background}, "validation": {"every": 0}}
    return config.settle(PersonalizeSettings, {**quiet, **given, **changes})


class Timed(DreamBooth):
    """Keeps the processor time at the end of every step."""

    ends: list[float]

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        super().optimizer_step(*arguments, **options)
        self.ends.append(time.process_time())


def step_seconds(way: str, options: argparse.Namespace, steps: int) -> float:
    """Processor seconds of a step after the first, in the real Trainer, on latents of the right shape."""
    photos = {"paths": ["none"], "class_noun": "robot"}
    regime = {"steps": steps, "trackers": ["csv"], "batch_size": options.batch}
    settings = settings_of(way, options, photos=photos, training=regime)
    model = load("bundled")
    mean = torch.randn(24, 1, model.latent_channels, model.cells, model.cells)
    own = LatentSet(mean, torch.full_like(mean, -5.0), model.tokenize(["a sks robot"]).expand(24, 1, -1))
    taught = torch.full((24,), settings.prior.target != "noise")
    if options.background == "class":
        taught[16:] = True
    prior = LatentSet(own.mean, own.log_variance, own.tokens, own.mask, taught) if settings.prior.weight else None
    module = Timed(model, settings, "sks", lambda _: (own, prior))
    module.ends = []
    with tempfile.TemporaryDirectory() as scratch:
        lightning = trainer.build(settings.training, Path(scratch), [], [])
        lightning.fit(module)
    return statistics.median(np.diff(module.ends))


def costs(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step of each way, and of drawing the class images; measured once."""
    kept = options.out / "costs.json"
    if not kept.is_file():
        torch.set_num_threads(1)
        repeats, steps = (1, 3) if options.fast else (3, 5)
        found: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(repeats):
            for way in WAYS:
                found[way].append(step_seconds(way, options, steps))
        given = settings_of("noise", options, photos={"paths": ["none"], "class_noun": "robot"}).prior
        count, model = 2 if options.fast else given.sampling_batch, load("bundled")
        began = time.process_time()
        sampling.sample(model, ["a robot"] * count, list(range(count)), given.sampling, (64, 64), batch_size=count)
        drawing = (time.process_time() - began) / count * options.images
        write_json(kept, {way: statistics.median(taken) for way, taken in found.items()} | {"drawing": drawing})
    return dict(json.loads(kept.read_text()))


def steps_of(way: str, cost: dict[str, float], seconds: float) -> int:
    """Steps that fit into the seconds, after what has to be drawn."""
    drawing = cost["drawing"] if way in DRAW else 0.0
    return max(2, int((seconds - drawing) / cost[way]))


def train(subject: str, way: str, photos: list[Path], steps: int, options: argparse.Namespace) -> PersonalizedRun:
    """The run, trained unless it is done already."""
    name = f"{subject}-{way}".replace(" ", "-")
    if is_run(options.out / name):
        return personalize.resume(ResumeSettings(run=str(options.out / name)))
    training = {"steps": steps, "trackers": ["csv"], "checkpoint_every": 0, "batch_size": options.batch}
    given = {"paths": [str(path) for path in photos], "class_noun": NOUNS[subject]}
    place = {"runs": str(options.out), "name": name}
    made = personalize.run(settings_of(way, options, photos=given, training=training, **place))
    shutil.rmtree(options.out / name / "checkpoints", ignore_errors=True)
    return made


def pictures(model: Family, who: str, noun: str, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """The subject on each backdrop, its class, and other things: uint8 (n, H, W, 3) each."""
    asked = {
        "subject": [f"a {who} {place}" for place in BACKDROPS.values() for _ in range(options.seeds)],
        "class": [f"a {noun}"] * 2 * options.seeds,
        "outside": [prompt for prompt in OUTSIDE for _ in range(max(1, options.seeds // 2))],
    }
    texts = [text for group in asked.values() for text in group]
    seeds = [SEED + number for group in asked.values() for number in range(len(group))]
    settings = SamplingSettings(sampler="dpmpp-2m", steps=options.drawn, guidance=4.0)
    drawn = sampling.sample(model, texts, seeds, settings, (64, 64), batch_size=16)
    ends = np.cumsum([len(group) for group in asked.values()])
    return dict(zip(asked, np.split(drawn, ends[:-1]), strict=True))


def base_pictures(subject: str, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """The same by the base, which knows no subject: its class stands on the backdrops. Drawn once."""
    kept = options.out / "judged" / f"{subject}.npz"
    if not kept.is_file():
        drawn: dict[str, Any] = {**pictures(load("bundled"), NOUNS[subject], NOUNS[subject], options)}
        np.savez_compressed(kept, **drawn)
    return dict(np.load(kept))


def judge(
    run: PersonalizedRun | None, subject: str, unseen: np.ndarray, base: dict[str, np.ndarray] | None, judging: Any
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Each measure of a run, of the base where there is none; and the pictures."""
    options, encoder, recognizer = judging
    noun = NOUNS[subject]
    if run:
        drawn = pictures(load(str(run.folder)), f"{run.subject.token} {noun}", noun, options)
    else:
        drawn = base_pictures(subject, options)

    def named(some: np.ndarray, wanted: list[set[str]], kind: str) -> float:
        """Share whose likeliest label of a kind, concept or backdrop, is wanted."""
        first, last = recognizer.labels.groups[kind]
        with torch.inference_mode():
            logits = recognizer.outputs(recognizer.preprocess.normalize(torch.from_numpy(some)))["logits"]
        best = logits[:, first:last].argmax(dim=1) + first
        labels = [recognizer.labels.names[number] for number in best.tolist()]
        return float(np.mean([label in ours for label, ours in zip(labels, wanted, strict=True)]))

    def moved(part: str) -> float:
        if base is None:
            return 0.0
        return float(1 - np.diag(scores.cosines(encoder.images([*drawn[part]]), encoder.images([*base[part]]))).mean())

    each = max(1, options.seeds // 2)
    found = {
        "fidelity": float(
            scores.subject_fidelity(encoder.images([*drawn["subject"]]), encoder.images([unseen])).mean()
        ),
        "backdrop": named(drawn["subject"], [{place} for place in BACKDROPS for _ in range(options.seeds)], "backdrop"),
        "drift": moved("class"),
        "class": named(drawn["class"], [NAMES.get(noun, {noun})] * len(drawn["class"]), "concept"),
        "outside": moved("outside"),
        "named": named(drawn["outside"], [labels for labels in OUTSIDE.values() for _ in range(each)], "concept"),
    }
    return found, drawn


def one(subject: str, way: str, cost: dict[str, float], judging: Any) -> dict[str, Any]:
    """What was measured of one subject and way, kept."""
    options: argparse.Namespace = judging[0]
    kept = options.out / "judged" / f"{subject}-{way}.json"
    if kept.is_file():
        return dict(json.loads(kept.read_text()))
    paths = find_pictures([MASCOT if subject == "mascot" else options.data / subject])[0]
    unseen = np.array(make_square(read_picture(paths[-1]).image, 64, "smart")[0])
    if way == "base model":
        found, _ = judge(None, subject, unseen, None, judging)
        facts: dict[str, Any] = {"steps": 0}
    else:
        steps = steps_of(way, cost, options.seconds)
        run = train(subject, way, paths[:-1], steps, options)
        found, drawn = judge(run, subject, unseen, base_pictures(subject, options), judging)
        facts = {"steps": steps, "seconds": run.seconds}
        rows = [[*drawn["subject"][:: options.seeds], *drawn["class"][:2], *drawn["outside"][:4]]]
        sheet(rows, [f"{subject}, {way}"], []).save(options.out / "judged" / f"{subject}-{way}.png")
        shutil.rmtree(run.folder / "model")
    write_json(kept, {**found, **facts})
    return {**found, **facts}


def main(options: argparse.Namespace) -> None:
    (options.out / "judged").mkdir(parents=True, exist_ok=True)
    cost = costs(options)
    encoder: Encoder = open_encoder(options.judge)
    judging = (options, encoder, Recognizer.load("bundled").network())
    note(" ".join(f"{name} {value:.3f} s" for name, value in cost.items()))
    found = {way: {} for way in ("base model", *options.ways)}  # type: dict[str, dict[str, dict[str, Any]]]
    for subject in options.subjects:
        for way, subjects in found.items():
            subjects[subject] = one(subject, way, cost, judging)
    rows = []
    for way, subjects in found.items():
        means = {name: np.mean([own[name] for own in subjects.values()]) for name in MEASURES}
        rows.append([way, f"{next(iter(subjects.values()))['steps']}", *(f"{means[name]:.3f}" for name in MEASURES)])
    heads = [f">{name}{' ↓' if name in LOWER else ''}" for name in MEASURES]
    table(f"Means of {len(options.subjects)} subjects, {options.seconds:g} s each", ["way", ">steps", *heads], rows)
    rows = []
    for way in options.ways:
        cells = []
        for name in MEASURES:
            apart = np.array([found[way][who][name] - found["noise"][who][name] for who in options.subjects])
            if len(apart) < 2 or way == "noise":
                continue
            value = metrics.bootstrap(lambda values: float(values.mean()), apart, resamples=2000)
            cells.append(f"{value.value:+.3f} ({value.low:+.3f} to {value.high:+.3f})")
        rows += [[way, *cells]] if cells else []
    table("Minus class images with true noise (95 % interval over subjects)", ["way", *heads], rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with a folder of photos for each subject but the mascot")
    parser.add_argument("--out", type=Path, default=Path("runs/prior"), help="where runs and judgements are kept")
    parser.add_argument("--subjects", type=lambda text: text.split(","), default=[*NOUNS], help="some of them")
    parser.add_argument("--ways", type=lambda text: text.split(","), default=[*WAYS], help="some of " + ",".join(WAYS))
    parser.add_argument("--seconds", type=float, default=180.0, help="for each run, drawing of class images included")
    parser.add_argument("--batch", type=int, default=8, help="photos a step, and class images")
    parser.add_argument("--images", type=int, default=32, help="class images")
    parser.add_argument("--background", choices=("class", "photos"), default="class", help="as of personalize")
    parser.add_argument("--judge", default="tf_efficientnet_lite0", help="the encoder of fidelity and drift")
    parser.add_argument("--seeds", type=int, default=4, help="pictures for each backdrop")
    parser.add_argument("--drawn", type=int, default=15, help="denoising steps of the pictures that are judged")
    parser.add_argument("--fast", action="store_true", help="a tiny run of everything")
    given = parser.parse_args()
    if given.fast:
        given.seconds, given.seeds, given.drawn, given.out = 14.0, 2, 3, given.out / "fast"
        given.subjects = given.subjects[:1]
    if unknown := set(given.subjects) - set(NOUNS) | set(given.ways) - set(WAYS):
        sys.exit(f"no such subject or way: {', '.join(sorted(unknown))}")
    if given.data is None and set(given.subjects) != {"mascot"}:
        sys.exit("--data: where the photos are, or --subjects mascot")
    with listening(Terminal()):
        main(given)
