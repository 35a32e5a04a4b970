"""Stage 5, recognizer: a 64x64 picture -> which concept, which style, which backdrop; timm's ConvNeXt-Femto, and a
judge.

    python -m recipes.emoji_world.recognizer [--smoke]          start, or go on where it was stopped
    python -m recipes.emoji_world.recognizer --judge            the one that only ever evaluates: another architecture,
    other scenes python -m recipes.emoji_world.recognizer --warm-start FOLDER    start from those weights of another
    recognizer that fit python -m recipes.emoji_world.recognizer --export           write recognizer/model, an artifact,
    from the newest checkpoint

SIGTERM or Ctrl-C saves and stops; the same command goes on, bit for bit. Curves are in logs/metrics.csv: the loss of
each group of labels, and the moving-average weights' accuracy on 1,024 scenes that training never draws.
"""

from __future__ import annotations

import argparse
import io
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from PIL import Image, ImageFilter

from femtobooth.core.console import Terminal
from femtobooth.core.events import listening, note
from femtobooth.core.files import write_json
from femtobooth.recognizer.model.backbone import Recognizer
from femtobooth.recognizer.model.labels import Labels
from femtobooth.recognizer.model.preprocess import Preprocess
from femtobooth.training import averages, checkpoints
from femtobooth.training.callbacks import StepCallback
from femtobooth.training.module import NumberedSteps
from femtobooth.training.randomness import generator
from femtobooth.training.settings import TrainingSettings

from . import backdrops, sprites, stages
from .autoencoder import UNSEEN_SEED
from .scenes import SIZE, Scene, Unseen, places_for, scene

LICENCE = "Apache-2.0; learned from Noto (Apache-2.0), Fluent (MIT) and Twemoji (CC BY 4.0) icons"
SMOOTHING = 0.1


@dataclass(frozen=True)
class Kind:
    """What tells the shipped recognizer and the judge apart."""

    architecture: str
    size: int
    """Side in pixels to which pictures are enlarged."""
    seed: int
    learning_rate: float
    start: str = ""
    """Weights that training starts from, as `--model` of the commands takes them."""
    model_args: dict[str, Any] = field(default_factory=dict)

    @property
    def preprocess(self) -> Preprocess:
        return Preprocess(size=(self.size, self.size), crop_pct=1.0, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


KINDS = {
    # A short run cannot wait until layer scales have grown from timm's 1e-6; 1 learned a sixth faster than 0.1.
    "recognizer": Kind("convnext_femto", SIZE, 11, 1.5e-3, model_args={"ls_init_value": 1.0}),
    "judge": Kind("tf_efficientnet_lite0", 96, 12, 5e-4, start="tf_efficientnet_lite0"),
}
SETTINGS = TrainingSettings(
    steps=12_000,
    batch_size=64,
    schedule="cosine",
    warmup=150,
    weight_decay=0.05,
    ema=0.999,
    accelerator="cpu",
    checkpoint_every=250,
    log_every=10,
)
SMOKE = {"steps": 4, "batch_size": 8, "warmup": 2, "checkpoint_every": 2, "log_every": 1}
EASY = 0.15
"""Part of the run over which plain scenes fall from all to what they are everywhere: concepts are learned from large
sprites first.
"""
UNEVEN = 4.0
"""Levels of 255 by which smooth unevenness of light may differ, as a standard deviation; the ends of gradients are 20
and more apart.
"""
UNSEEN: tuple[Unseen, ...] = ("", "backdrop", "style")
Groups = dict[str, tuple[int, int]]


def groups(world: sprites.World) -> Groups:
    """Which logits belong together: a softmax is taken within each group, [first, last)."""
    found, start = {}, 0
    for name, count in (
        ("concept", len(world.concepts)),
        ("style", len(world.styles)),
        ("backdrop", len(backdrops.names())),
    ):
        found[name] = (start, start + count)
        start += count
    return found


def names(world: sprites.World) -> list[str]:
    """The name of every logit, in the order of `groups`."""
    return [*(concept.name for concept in world.concepts), *world.styles, *backdrops.names()]


def new_recognizer(kind: Kind, world: sprites.World) -> Recognizer:
    """An untrained one with a linear head over all groups."""
    labels = Labels(names=tuple(names(world)), groups=groups(world))
    return Recognizer.create(kind.architecture, labels, kind.preprocess, **kind.model_args)


def warm(model: torch.nn.Module, start: str | Path) -> None:
    """Take over what fits from another recognizer: all tensors of the same name and shape."""
    here, there = model.state_dict(), Recognizer.load(start).model.state_dict()
    fitting = {name: value for name, value in there.items() if name in here and value.shape == here[name].shape}
    model.load_state_dict(here | fitting)
    note(f"{start}: took over {len(fitting)} of {len(here)} tensors")


def target(world: sprites.World, made: Scene) -> np.ndarray:
    """What the recognizer should say of a scene: one distribution a group, shared among what is there; (N,) float32.

    Where nothing stands concept and style are all equally likely.
    """
    wanted = np.zeros(len(names(world)), np.float32)
    where = groups(world)
    concepts = sorted({item.concept for item in made.items}) or range(len(world.concepts))
    styles = sorted({item.style for item in made.items}) or range(len(world.styles))
    wanted[[where["concept"][0] + number for number in concepts]] = 1 / len(concepts)
    wanted[[where["style"][0] + number for number in styles]] = 1 / len(styles)
    wanted[where["backdrop"][0] + backdrops.names().index(made.backdrop)] = 1
    return wanted


def batch(
    world: sprites.World, seed: int, step: int, rank: int, count: int, easy: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """The training batch of one micro-step: pictures (count, 3, 64, 64) in -1..1 and targets (count, N); plain ones go
    over `easy`.

    One scene in eight shows a combination that the generator's training never sees, so that its novel pictures are
    judged as fairly as the others.
    """
    pixels, targets = np.empty((count, SIZE, SIZE, 3), np.uint8), []
    for k in range(count):
        index = step * count + k
        random = Random(f"recognizer/{seed}/{rank}/{index}")
        unseen = random.choices(UNSEEN, (28, 3, 1))[0]
        unseen = unseen if places_for(world, unseen) else ""
        plain = max(0.15, 1 - 0.85 * index / easy)
        made = scene(world, seed * 1000 + rank, index, plain, unseen)
        pixels[k] = weathered(made.pixels, random)
        targets.append(target(world, made))
    return inputs(pixels), torch.from_numpy(np.stack(targets))


def weathered(pixels: np.ndarray, random: Random) -> np.ndarray:
    """A scene (64, 64, 3) uint8 as a generator or a camera might give it, its labels still true: a little soft, noisy,
    compressed.

    Light changes by so little that colours keep their names.
    """
    if random.random() < 0.3:
        return pixels
    if random.random() < 0.4:
        image = Image.fromarray(pixels)
        if random.random() < 0.6:
            image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 1.1)))
        else:
            side = random.randint(32, 52)
            image = image.resize((side, side), Image.Resampling.BILINEAR).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        pixels = np.asarray(image)
    light = np.array([random.uniform(0.95, 1.05) for _ in "rgb"], np.float32) * random.uniform(0.85, 1.12)
    lit = (pixels.astype(np.float32) - 128) * random.uniform(0.85, 1.12) + 128
    lit = lit * light + random.uniform(-8, 8)
    if random.random() < 0.4:
        grain = np.random.default_rng(random.getrandbits(64)).standard_normal(lit.shape, np.float32)
        if random.random() < 0.5:
            grain = grain[::2, ::2].repeat(2, 0).repeat(2, 1)
        lit += random.uniform(2, 14) * grain
    if random.random() < 0.5:
        lit += random.uniform(0, UNEVEN) * unevenness(random)
    pixels = lit.clip(0, 255).round().astype(np.uint8)
    if random.random() < 0.25:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=random.randint(35, 90))
        pixels = np.asarray(Image.open(buffer))
    return pixels


def unevenness(random: Random) -> np.ndarray:
    """Smooth patches of other light and tint, (64, 64, 3) float32 around 0 with a standard deviation of about 1."""
    numbers, side = np.random.default_rng(random.getrandbits(64)), random.randint(2, 8)
    patches = numbers.standard_normal((1, 4, side, side), np.float32)
    fields = F.interpolate(torch.from_numpy(patches), size=SIZE, mode="bicubic", align_corners=False)[0]  # (4, 64, 64)
    return (fields[:1] + 0.5 * fields[1:]).permute(1, 2, 0).numpy()


def enlarged(pictures: torch.Tensor, size: int) -> torch.Tensor:
    """Pictures (B, 3, 64, 64) at the side a model wants."""
    return (
        pictures
        if pictures.shape[-1] == size
        else F.interpolate(pictures, size=size, mode="bilinear", align_corners=False)
    )


def inputs(pixels: np.ndarray) -> torch.Tensor:
    """uint8 (B, 64, 64, 3) -> float32 (B, 3, 64, 64) in -1..1, what the model reads."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


class Recognition(NumberedSteps):
    """Cross-entropy within each group of labels, smoothed, the groups weighted alike."""

    def __init__(self, settings: TrainingSettings, world: sprites.World, kind: Kind) -> None:
        super().__init__(settings)
        self.world, self.kind = world, kind
        self.groups = groups(world)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator(settings.seed, "weights").initial_seed())
            self.model = new_recognizer(kind, world).model

    def on_train_start(self) -> None:
        self.keep_statistics()

    def keep_statistics(self) -> None:
        """Batch norm keeps the statistics it starts with: small batches of a curriculum would give it others than the
        evaluation's.
        """
        for one in self.model.modules():
            if isinstance(one, torch.nn.modules.batchnorm._BatchNorm):
                one.eval()

    def training_step(self, micro_step: int) -> torch.Tensor:
        settings = self.regime
        easy = int(EASY * settings.steps * settings.batch_size) + 1
        pictures, targets = batch(self.world, settings.seed, micro_step, self.global_rank, settings.batch_size, easy)
        logits, targets = (
            self.model(enlarged(pictures.to(self.device), self.kind.size)),
            targets.to(self.device),
        )  # (B, N)
        parts = {
            name: F.cross_entropy(logits[:, first:last], targets[:, first:last], label_smoothing=SMOOTHING)
            for name, (first, last) in self.groups.items()
        }
        loss = torch.stack(list(parts.values())).sum()
        if (self.global_step + 1) % settings.log_every == 0:
            values = {name: value.item() for name, value in parts.items()} | {"loss": loss.item()}
            for logger in self.loggers:
                logger.log_metrics(values, self.global_step + 1)
        return loss

    def optimizer_groups(self) -> list[dict[str, Any]]:
        decayed = [parameter for parameter in self.model.parameters() if parameter.ndim > 1]
        others = [parameter for parameter in self.model.parameters() if parameter.ndim <= 1]
        rate = self.kind.learning_rate
        return [{"params": decayed, "lr": rate}, {"params": others, "lr": rate, "weight_decay": 0.0}]


def accuracy(world: sprites.World, logits: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    """Share of pictures whose likeliest label of each group is there; logits and targets (n, N).

    Pictures without any object count for the backdrop alone.
    """
    found = {}
    for name, (first, last) in groups(world).items():
        wanted = targets[:, first:last]
        told = wanted.amax(dim=1) > 1.5 / (last - first)
        best = logits[:, first:last].argmax(dim=1, keepdim=True)
        found[name] = (wanted.gather(1, best)[:, 0] > 0)[told].float().mean().item()
    return found


def answers(model: torch.nn.Module, pictures: torch.Tensor, size: int) -> torch.Tensor:
    """Logits (n, N) of pictures (n, 3, 64, 64) enlarged to `size`, 64 at a time."""
    with torch.no_grad():
        return torch.cat([model(enlarged(part, size)) for part in pictures.split(64)])


def unseen_scenes(world: sprites.World, count: int, unseen: Unseen = "") -> tuple[torch.Tensor, torch.Tensor]:
    """Scenes that training never draws, and what they show: (count, 3, 64, 64) in -1..1 and (count, N)."""
    made = [scene(world, UNSEEN_SEED, index, unseen=unseen) for index in range(count)]
    return inputs(np.stack([one.pixels for one in made])), torch.from_numpy(
        np.stack([target(world, one) for one in made])
    )


class Quality(StepCallback):
    """Measures the moving-average weights on unseen scenes every `every` optimizer steps."""

    def __init__(self, world: sprites.World, count: int, average: averages.MovingAverage, every: int) -> None:
        self.world, self.average, self.every = world, average, every
        self.pictures, self.targets = unseen_scenes(world, count)

    def on_optimizer_step(self, trainer: Trainer, module: LightningModule, step: int, outputs: Any) -> None:
        if step % self.every and step != trainer.max_steps:
            return
        module.eval()
        with self.average.applied(module):
            found = accuracy(self.world, answers(module.model, self.pictures, module.kind.size), self.targets)
        module.train()
        module.keep_statistics()
        for logger in trainer.loggers:
            logger.log_metrics({f"{name}_accuracy": value for name, value in found.items()}, step)
        shares = ", ".join(f"{name} {value:.1%}" for name, value in found.items())
        note(f"step {step} of {trainer.max_steps}: {shares} on unseen scenes")


def export(where: Path, world: sprites.World, kind: Kind, count: int = 1024) -> Path:
    """Write `where`/model, an artifact in half precision, and `where`/model.json with its measured quality; replaces
    the last export.
    """
    average, step = stages.averaged(where)
    recognizer = new_recognizer(kind, world)
    recognizer.model.load_state_dict({name.removeprefix("model."): value for name, value in average.items()})
    recognizer.provenance = {"licence": LICENCE, "source": "recipes/emoji_world"}
    recognizer.save(where / "model", overwrite=True, dtype=torch.float16)
    model = Recognizer.load(where / "model").model
    found = {}
    for unseen in (kind for kind in UNSEEN if places_for(world, kind)):
        pictures, targets = unseen_scenes(world, count, unseen)
        found[f"unseen {unseen}s" if unseen else "seen"] = accuracy(world, answers(model, pictures, kind.size), targets)
    write_json(where / "model.json", {"step": step, "accuracy": found})
    shares = ", ".join(f"{name} {value:.1%}" for name, value in found["seen"].items())
    note(f"wrote {where / 'model'}: step {step}, {shares}")
    return where / "model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a few steps on the sprites of the smoke run")
    parser.add_argument("--judge", action="store_true", help="the one that only evaluates, in a folder of its own")
    parser.add_argument(
        "--warm-start", metavar="FOLDER", help="recognizer to start from, where there is no checkpoint yet"
    )
    parser.add_argument("--steps", type=int, help=f"optimizer steps; {SETTINGS.steps} if not given")
    parser.add_argument("--export", action="store_true", help="write what is learned so far, and stop")
    given = parser.parse_args()
    root = sprites.folder() / "smoke" if given.smoke else sprites.folder()
    name = "judge" if given.judge else "recognizer"
    where, world = root / name, sprites.load(root)
    kind = replace(KINDS[name], start="") if given.smoke else KINDS[name]
    changes = (SMOKE if given.smoke else {}) | {"seed": kind.seed} | ({"steps": given.steps} if given.steps else {})
    settings = SETTINGS.model_copy(update=changes)
    if not given.export:
        write_json(where / "settings.json", json.loads(settings.model_dump_json()))
        average = averages.MovingAverage(settings.ema)
        quality = Quality(world, 32 if given.smoke else 1024, average, settings.checkpoint_every)
        module, start = Recognition(settings, world, kind), given.warm_start or kind.start
        if start and not checkpoints.newest(where / "checkpoints"):
            warm(module.model, start)
        stages.fit(module, settings, where, [average, quality])
    export(where, world, kind, 32 if given.smoke else 1024)


if __name__ == "__main__":
    with listening(Terminal()):
        main()
