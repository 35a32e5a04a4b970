"""Does a rectified flow learn? A toy of Stable Diffusion 3's kind, from noise, on pictures that the bundled base drew.

    python benchmarks/flow_learns.py --out DIR [--seconds 200] [--each 18]

The base draws `--each` pictures of eight things. A transformer of 1.4 M parameters is trained on their latents for
`--seconds` of processor time, by femtobooth's own micro-batches, flow and loss; what it reads is the bundled text
encoder, frozen, in the place of both CLIPs, and no T5. What is told of it: the loss on fixed photos, noise and times
(`generator/deterministic.py`), and the share of its pictures, of seeds that it never saw, that the bundled recognizer
names as the prompt does. DIR/flow.png shows them, those of the base above; DIR/figures.json has the numbers.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from femtobooth import Recognizer
from femtobooth.core.console import Terminal
from femtobooth.core.events import listening, note, progress
from femtobooth.generator.deterministic import fixed_batches
from femtobooth.generator.dreambooth import sample_losses
from femtobooth.generator.families.family import Family
from femtobooth.generator.families.stable_diffusion_3 import StableDiffusion3WithoutT5
from femtobooth.generator.latents import LatentSet, MicroBatch, encode
from femtobooth.generator.load import load
from femtobooth.generator.loss_settings import LossSettings
from femtobooth.generator.sampling import sample
from femtobooth.generator.sampling_settings import SamplingSettings
from femtobooth.pictures.sheets import sheet

THINGS = ("robot", "teapot", "red apple", "snowman", "rocket", "sunflower", "car", "owl")
WIDTH, LAYERS, HEADS = 96, 4, 3
BATCH, RATE, AVERAGE, DROPPED = 32, 2e-3, 0.99, 0.1
SHOWN = (0.1, 0.4, 1.0)  # of the time, after which pictures are drawn
UNSEEN = 5000  # the first seed of what is judged


class Toy(StableDiffusion3WithoutT5):
    """Without zeros in T5's place, which would be nine tenths of what it reads."""

    T5_TOKENS: ClassVar[int] = 0


def toy(base: Any) -> Toy:
    """Make the toy over the base's VAE and words."""
    config = {**base.text_encoder.config.to_dict(), "projection_dim": base.text_encoder.config.hidden_size}
    words = CLIPTextModelWithProjection(CLIPTextConfig(**config)).eval().requires_grad_(False)
    words.text_model.load_state_dict(base.text_encoder.state_dict())
    torch.nn.init.eye_(words.text_projection.weight)
    width = 2 * words.config.hidden_size
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=base.cells, patch_size=2, in_channels=base.latent_channels, out_channels=base.latent_channels,
        num_layers=LAYERS, attention_head_dim=WIDTH // HEADS, num_attention_heads=HEADS, joint_attention_dim=width,
        caption_projection_dim=WIDTH, pooled_projection_dim=width, pos_embed_max_size=base.cells // 2,
        qk_norm="rms_norm",
    )  # fmt: skip
    torch.nn.init.zeros_(transformer.proj_out.weight)
    return Toy(
        tokenizer=base.tokenizer,
        tokenizer_2=base.tokenizer,
        text_encoder=words,
        text_encoder_2=words,
        vae=base.vae,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        source="toy",
        hash="",
    )


def drawn(base: Family, options: argparse.Namespace) -> np.ndarray:
    """Let the base draw what is learned, once: uint8 (things, each, H, W, 3)."""
    kept = options.out / "pictures.npy"
    if not kept.is_file():
        how = SamplingSettings(sampler="dpmpp-2m", steps=12, guidance=4.0)
        some = []
        for number, thing in enumerate(progress(THINGS, "pictures of the base")):
            seeds = [1000 * number + seed for seed in range(options.each)]
            some.append(sample(base, [f"a {thing}"] * options.each, seeds, how, batch_size=8))
        np.save(kept, np.stack(some))
    return np.load(kept)


def step(model: Family, optimizer: torch.optim.Optimizer, batch: MicroBatch) -> None:
    """Take a step along the flow's loss."""
    process, how = model.process, LossSettings()
    noisy = process.add_noise(batch.latents, batch.noise, batch.timesteps)
    prediction = model.denoise(noisy, batch.timesteps, model.condition_once(batch.tokens))
    target = process.target(batch.latents, batch.noise, batch.timesteps)
    weights = process.weights(batch.timesteps, how)
    loss = sample_losses(prediction, target, weights, batch.mask).mean()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.transformer.parameters(), 1.0)  # type: ignore[attr-defined]
    optimizer.step()


@torch.no_grad()
def fixed_loss(model: Family, photos: LatentSet) -> float:
    """Measure the loss on pictures, noise and times that stay the same."""
    found = []
    for seed in range(8):
        for batch in fixed_batches(photos, model, seed):
            noisy = model.process.add_noise(batch.latents, batch.noise, batch.timesteps)
            said = model.denoise(noisy, batch.timesteps, model.condition_once(batch.tokens))
            target = model.process.target(batch.latents, batch.noise, batch.timesteps)
            found.append(sample_losses(said, target, torch.ones(len(batch)), batch.mask))
    return float(torch.cat(found).mean())


def judged(recognizer: Any, pictures: np.ndarray) -> float:
    """Tell the share of pictures (things, n, H, W, 3) whose likeliest concept is their thing."""
    first, last = recognizer.labels.groups["concept"]
    with torch.inference_mode():
        pixels = recognizer.preprocess.normalize(torch.from_numpy(pictures.reshape(-1, *pictures.shape[2:])))
        best = recognizer.outputs(pixels)["logits"][:, first:last].argmax(dim=1) + first
    names = [recognizer.labels.names[number] for number in best.tolist()]
    return float(np.mean([name == THINGS[row // pictures.shape[1]] for row, name in enumerate(names)]))


def main(options: argparse.Namespace) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    base: Any = load("bundled")
    pictures = drawn(base, options)
    model, recognizer = toy(base), Recognizer.load("bundled").network()
    seen, unseen = np.split(pictures, [options.each - 2], axis=1)
    sets = []
    for some in (seen, unseen):
        captions = [[f"a {thing}"] for thing in THINGS for _ in range(some.shape[1])]
        with torch.no_grad():
            sets.append(encode(model, some.reshape(-1, *some.shape[2:]), captions))
    photos, others = sets
    trained, average = model.transformer.train(), copy.deepcopy(model.transformer).eval()
    optimizer = torch.optim.AdamW(trained.parameters(), lr=RATE, weight_decay=0.01)
    figures: dict[str, Any] = {
        "parameters": sum(one.numel() for one in trained.parameters()),
        "pictures": len(photos),
        "base_named": judged(recognizer, pictures),
        "rows": [],
    }
    rows, labels, spent, taken = [[one for some in pictures for one in some[:2]]], ["the base"], 0.0, 0

    def show() -> None:
        model.transformer = average
        how = SamplingSettings(sampler="euler", steps=20, guidance=2.0)
        texts = [f"a {thing}" for thing in THINGS for _ in range(options.judged)]
        found = sample(model, texts, [UNSEEN + seed for seed in range(len(texts))], how, batch_size=16)
        found = found.reshape(len(THINGS), options.judged, *found.shape[1:])
        row = {"seconds": spent, "steps": taken, "loss": fixed_loss(model, others), "named": judged(recognizer, found)}
        figures["rows"].append(row)
        rows.append([one for thing in found for one in thing[:2]])
        labels.append(f"{taken} steps, {spent:.0f} s")
        note(f"{taken} steps, {spent:.0f} s: loss {row['loss']:.3f}, {row['named']:.0%} named as asked")
        model.transformer = trained

    show()
    for share in SHOWN:
        while spent < share * options.seconds:
            began = time.process_time()
            rate = RATE * min(1.0, (taken + 1) / 50) * min(1.0, 5 * (1.001 - spent / options.seconds))
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch = photos.micro_batch(model, "toy", 0, taken, 0, 1, BATCH)
            step(model, optimizer, batch.without_captions(DROPPED, model.no_prompt(), 0, taken, 0))
            with torch.no_grad():
                now = min(AVERAGE, (taken + 1) / (taken + 10))
                for kept, one in zip(average.parameters(), trained.parameters(), strict=True):
                    kept.lerp_(one, 1 - now)
            taken += 1
            spent += time.process_time() - began
        show()
    (options.out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    sheet(rows, labels, [thing for thing in THINGS for _ in range(2)], cell=64).save(options.out / "flow.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=200)
    parser.add_argument("--each", type=int, default=18)
    parser.add_argument("--judged", type=int, default=8, help="pictures of each thing that the recognizer names")
    parser.add_argument("--threads", type=int, default=1)
    with listening(Terminal()):
        main(parser.parse_args())
