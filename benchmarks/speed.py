"""How quick the everyday things are: start-up, drawing, training steps (bundled base, medians of several repeats).

    python benchmarks/speed.py

Training is compared, in the same run, with the bare arithmetic of a step (forward, backward and AdamW on a prepared
batch, no Trainer, no data): the difference is what everything around it costs.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from femtobooth.core import config
from femtobooth.core.console import Terminal
from femtobooth.core.events import listening, table
from femtobooth.generator.dreambooth import DreamBooth
from femtobooth.generator.families.family import Family
from femtobooth.generator.latents import LatentSet
from femtobooth.generator.load import load
from femtobooth.generator.sampling import sample
from femtobooth.generator.sampling_settings import SamplingSettings
from femtobooth.generator.settings import PersonalizeSettings
from femtobooth.parsing import overrides
from femtobooth.training import trainer


def median(repeats: int, action: Callable[[], object]) -> float:
    """Median seconds of `action`, after one call that is not counted."""
    action()
    taken = []
    for _ in range(repeats):
        began = time.monotonic()
        action()
        taken.append(time.monotonic() - began)
    return statistics.median(taken)


def latent(model: Family) -> tuple[int, int, int]:
    """Channels, height and width of a latent."""
    return model.latent_channels, model.cells, model.cells


def fit(steps: int) -> float:
    """Seconds a step of the real module in the real Trainer."""
    sets = {
        "photos.paths": "none",
        "photos.class_noun": "robot",
        "training.steps": str(steps),
        "training.batch_size": "4",
    }
    settings = config.resolve(PersonalizeSettings, overrides(PersonalizeSettings, [], sets))
    model = load("bundled")
    tokens = model.tokenize(["a sks robot"]).expand(24, 1, -1)
    mean = torch.randn(24, 1, *latent(model))
    pictures = LatentSet(mean, torch.full_like(mean, -5.0), tokens)
    module = DreamBooth(model, settings, "sks", lambda _: (pictures, pictures))
    with tempfile.TemporaryDirectory() as scratch:
        lightning = trainer.build(settings.training, Path(scratch), [], [])
        began = time.monotonic()
        lightning.fit(module)
    return (time.monotonic() - began) / steps


def bare(steps: int) -> float:
    """Seconds a step of forward, backward and AdamW alone."""
    model = load("bundled")
    parameters = [one for part in model.trainable.values() for one in part.requires_grad_(True).parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)
    noisy, target = torch.randn(2, 8, *latent(model))
    timesteps = torch.randint(1000, (8,))
    tokens = model.tokenize(["a sks robot", "a robot"]).repeat_interleave(4, dim=0)
    began = time.monotonic()
    for _ in range(steps):
        optimizer.zero_grad()
        predicted = model.denoise(noisy, timesteps, model.condition_once(tokens))
        (predicted - target).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return (time.monotonic() - began) / steps


def main(repeats: int) -> None:
    model = load("bundled")
    settings = SamplingSettings(steps=25, guidance=4.0)
    draw = median(
        repeats, lambda: sample(model, ["a glossy robot on the beach"] * 16, list(range(16)), settings, batch_size=8)
    )
    start = median(
        repeats,
        lambda: subprocess.run([sys.executable, "-m", "femtobooth", "--help"], check=True, stdout=subprocess.DEVNULL),
    )
    pairs = [(fit(30), bare(30)) for _ in range(repeats + 1)][1:]  # the first warms up
    step, ratio = statistics.median(one for one, _ in pairs), statistics.median(one / other for one, other in pairs)
    rows = [
        ("femtobooth --help", f"{start:.2f} s"),
        ("16 pictures, 25 steps, guidance", f"{draw:.1f} s"),
        ("training step, 4 photos + 4 class images", f"{step:.2f} s"),
        ("the same step against bare forward + backward + AdamW", f"{ratio:.2f} x"),
    ]
    table(f"Medians of {repeats}, {torch.get_num_threads()} threads", ["what", ">measured"], rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    with listening(Terminal()):
        main(parser.parse_args().repeats)
