"""Stage 3, autoencoder: 64x64 pictures <-> 16x16x20 latents, diffusers' AutoencoderKL.

    python -m recipes.emoji_world.autoencoder [--smoke]            start, or go on where it was stopped
    python -m recipes.emoji_world.autoencoder --warm-start VAE     start from those weights of a diffusers folder that
    fit python -m recipes.emoji_world.autoencoder --export             write autoencoder/vae from the newest checkpoint
    python -m recipes.emoji_world.autoencoder --sheet sheet.png    pictures | reconstructions, from the newest
    checkpoint

SIGTERM or Ctrl-C saves and stops; SIGUSR1 saves and goes on. Curves are in autoencoder/logs/metrics.csv: the loss and
its parts, and `psnr` in dB on 128 scenes that training never draws (of the mean squared error over all of them
together, with the moving-average weights; `psnr_each` averages the pictures' own values, which plain backgrounds
flatter).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from lightning.pytorch import LightningModule, Trainer
from PIL import Image

from femtobooth.core.console import Terminal
from femtobooth.core.events import listening, note
from femtobooth.core.files import atomic_file, atomic_folder, write_json
from femtobooth.training import averages, checkpoints
from femtobooth.training.callbacks import StepCallback
from femtobooth.training.module import NumberedSteps
from femtobooth.training.randomness import generator
from femtobooth.training.settings import TrainingSettings
from femtobooth.training.tracking import log_picture

from . import sprites, stages
from .scenes import SIZE, scene

CROP = 32
LATENTS = 20
"""Channels. Linear codes of these scenes reach 25.7, 27.9, 29.9 and 32.4 dB with 8, 12, 16 and 20."""
SPREAD = 0.7
"""What latents keep of the spread of principal components: 1 is their natural spread, 0 would make all channels unit
variance. Where fine detail counts as much as colour and silhouette, the diffusion model spends itself on what it cannot
predict.
"""
WIDTHS = (32, 64, 96)
UNSEEN_SEED = 900_001
"""A stream of scenes that no stage trains on."""
LEARNING_RATE = 1e-3
SETTINGS = TrainingSettings(
    steps=3_000,
    batch_size=12,
    schedule="cosine",
    warmup=100,
    weight_decay=0.0,
    ema=0.999,
    accelerator="cpu",
    checkpoint_every=500,
    log_every=10,
)
SMOKE = {"steps": 6, "batch_size": 4, "warmup": 2, "checkpoint_every": 3, "log_every": 1}
_CLOUDS = [
    np.random.default_rng(octave).normal(0, 1, (97 >> octave, 97 >> octave, 3)).astype(np.float32)
    for octave in (0, 2, 3, 4)
]


def new_autoencoder() -> AutoencoderKL:
    """Factor 4, 20 channels, 1.6 M parameters, no attention: crops teach what whole pictures need."""
    levels = len(WIDTHS)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=WIDTHS,
        layers_per_block=1,
        latent_channels=LATENTS,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
        scaling_factor=1.0,  # `linear_code` makes latents unit variance in the mean over channels
    )


def crops(world: sprites.World, seed: int, step: int, rank: int, count: int) -> torch.Tensor:
    """The training batch of one micro-step: (count, 3, 32, 32) in -1..1.

    Of two places in a scene the busier one is cut out, and one crop in eight gets the texture and light that drawings
    lack and photographs have.
    """
    cut = np.empty((count, CROP, CROP, 3), np.float32)
    for k in range(count):
        index = step * count + k
        random = Random(f"crop/{seed}/{rank}/{index}")
        pixels = scene(world, seed * 1000 + rank, index, plain=0.05).pixels
        places = [(random.randrange(65 - CROP), random.randrange(65 - CROP)) for _ in range(2)]
        both = [pixels[y : y + CROP, x : x + CROP].astype(np.float32) / 127.5 - 1 for y, x in places]
        one = max(both, key=np.std)
        cut[k] = _weathered(one, random) if random.random() < 0.125 else one
    return torch.from_numpy(cut).permute(0, 3, 1, 2).contiguous()


def _weathered(picture: np.ndarray, random: Random) -> np.ndarray:
    """The picture with cloudy texture on several scales and a slant of light."""
    for octave in _CLOUDS:
        side = min(max(CROP * octave.shape[0] // 97, 2), 32)
        y, x = random.randrange(octave.shape[0] - side + 1), random.randrange(octave.shape[1] - side + 1)
        patch = (
            octave[y : y + side, x : x + side]
            if random.random() < 0.5
            else octave[y : y + side, x : x + side, :1].repeat(3, 2)
        )
        smooth = F.interpolate(
            torch.from_numpy(patch.transpose(2, 0, 1).copy())[None], size=(CROP, CROP), mode="bilinear"
        )[0]
        picture = picture + random.uniform(0, 0.12) * smooth.numpy().transpose(1, 2, 0)
    ramp = np.linspace(-1, 1, CROP, dtype=np.float32)
    light = 1 + random.uniform(-0.3, 0.3) * ramp[:, None, None] + random.uniform(-0.3, 0.3) * ramp[None, :, None]
    return ((picture + 1) * light * random.uniform(0.7, 1.1) - 1).clip(-1, 1)


def unseen(world: sprites.World, count: int) -> torch.Tensor:
    """Whole scenes that training never draws: (count, 3, 64, 64) in -1..1."""
    pixels = np.stack([scene(world, UNSEEN_SEED, index).pixels for index in range(count)])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def reconstruct(vae: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    """Pictures (n, 3, h, w) in -1..1 through the mode of their posterior and back, 16 at a time."""
    with torch.no_grad():
        return torch.cat(
            [vae.decode(vae.encode(part).latent_dist.mode()).sample.clamp(-1, 1) for part in pictures.split(16)]
        )


def psnr(pictures: torch.Tensor, made: torch.Tensor) -> tuple[float, float]:
    """PSNR in dB of -1..1 pictures: of the error over all of them, and the mean of each one's own."""
    error = (pictures - made).square().mean(dim=(1, 2, 3)).clamp_min(1e-8)
    return (10 * torch.log10(4 / error.mean())).item(), (10 * torch.log10(4 / error)).mean().item()


def linear_code(world: sprites.World, scenes: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
    """The principal components of 4x4 patches as a convolution of stride 4: weight (LATENTS, 3, 4, 4), bias (LATENTS,).

    Its channels have mean 0, mean square 1 over all of them, and of their natural spread the power `SPREAD`.
    """
    pixels = np.stack([scene(world, UNSEEN_SEED + 7, index).pixels for index in range(scenes)]) / 127.5 - 1
    patches = pixels.reshape(scenes, SIZE // 4, 4, SIZE // 4, 4, 3).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 48)
    values, vectors = np.linalg.eigh(np.cov(patches.T))
    values, basis = values[::-1][:LATENTS], vectors[:, ::-1][:, :LATENTS]
    basis = basis * np.sign(basis.sum(axis=0))  # an eigenvector's sign is arbitrary
    scale = values ** ((SPREAD - 1) / 2) / np.sqrt(np.mean(values**SPREAD))
    weight = (basis * scale).T
    return torch.from_numpy(weight.reshape(LATENTS, 3, 4, 4)).float(), torch.from_numpy(
        -weight @ patches.mean(axis=0)
    ).float()


class Autoencoder(NumberedSteps):
    """L1 + 0.5 x gradient L1 + 2 x squared error + 1e-6 x KL + 0.5 x the squared distance of latents from a linear
    code.

    The code says what latents are like, coarse to fine, as pixels are; the networks learn it, and to draw sharper from
    it than a linear decoder can.
    """

    def __init__(self, settings: TrainingSettings, world: sprites.World) -> None:
        super().__init__(settings)
        self.world = world
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.vae = new_autoencoder()
        self.code = linear_code(world)

    def training_step(self, micro_step: int) -> torch.Tensor:
        seed, rank = self.regime.seed, self.global_rank
        target = crops(self.world, seed, micro_step, rank, self.regime.batch_size).to(self.device)  # (B, 3, 32, 32)
        posterior = self.vae.encode(target).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator(seed, "posterior", micro_step, rank)).to(
            self.device
        )
        latents = posterior.mean + posterior.std * noise  # (B, 20, 8, 8)
        made = self.vae.decode(latents).sample
        parts = {
            "l1": (made - target).abs().mean(),
            "edges": sum((made.diff(dim=dim) - target.diff(dim=dim)).abs().mean() for dim in (2, 3)),
            "square": (made - target).square().mean(),
            "kl": posterior.kl().mean(),
            "code": (posterior.mean - F.conv2d(target, *self.code, stride=4)).square().mean(),
        }
        loss = parts["l1"] + 0.5 * parts["edges"] + 2 * parts["square"] + 1e-6 * parts["kl"] + 0.5 * parts["code"]
        if (self.global_step + 1) % self.regime.log_every == 0:
            values = {name: value.item() for name, value in parts.items()} | {"loss": loss.item()}
            for logger in self.loggers:
                logger.log_metrics(values, self.global_step + 1)
        return loss

    def optimizer_groups(self) -> list[dict[str, Any]]:
        return [{"params": self.vae.parameters(), "lr": LEARNING_RATE}]


class Quality(StepCallback):
    """Measures the moving-average weights on unseen scenes every `every` optimizer steps."""

    def __init__(self, pictures: torch.Tensor, average: averages.MovingAverage, every: int) -> None:
        self.pictures, self.average, self.every = pictures, average, every
        self._began = (0, 0.0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._began = trainer.global_step, time.perf_counter()

    def on_optimizer_step(self, trainer: Trainer, module: LightningModule, step: int, outputs: Any) -> None:
        if step % self.every:
            return
        pace = (time.perf_counter() - self._began[1]) / (step - self._began[0])
        with self.average.applied(module):
            made = reconstruct(module.vae, self.pictures)
        overall, each = psnr(self.pictures, made)
        for logger in trainer.loggers:
            logger.log_metrics({"psnr": overall, "psnr_each": each}, step)
        log_picture(trainer, "unseen | reconstructed", side_by_side(self.pictures[:32], made[:32]), step)
        note(f"step {step} of {trainer.max_steps}: {overall:.2f} dB on unseen scenes, {pace:.2f} s a step")
        self._began = step, time.perf_counter()


def side_by_side(pictures: torch.Tensor, made: torch.Tensor) -> np.ndarray:
    """Pairs (n, 3, h, w) in -1..1 as one uint8 picture (H, W, 3), four pairs a row, enlarged twice."""
    pairs = torch.cat([pictures, made], dim=3)
    rows = [torch.cat(list(part), dim=2) for part in pairs[: len(pairs) // 4 * 4 or len(pairs)].split(4)]
    whole = torch.cat(rows, dim=1).repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    return ((whole.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()


def train(
    where: Path, world: sprites.World, settings: TrainingSettings, measure: int = 128, warm: Path | None = None
) -> None:
    """Train from the newest checkpoint under `where`, or from the start (with those weights in `warm` that fit)."""
    module, average = Autoencoder(settings, world), averages.MovingAverage(settings.ema)
    if warm and not checkpoints.newest(where / "checkpoints"):
        here, there = (
            module.vae.state_dict(),
            AutoencoderKL.from_pretrained(warm, torch_dtype=torch.float32).state_dict(),
        )
        module.vae.load_state_dict(
            here | {name: value for name, value in there.items() if value.shape == here[name].shape}
        )
    stages.fit(module, settings, where, [average, Quality(unseen(world, measure), average, settings.checkpoint_every)])


def trained(where: Path) -> tuple[AutoencoderKL, int]:
    """The moving-average weights of the newest checkpoint under `where`, and its step. Raises CheckpointError."""
    average, step = stages.averaged(where)
    vae = new_autoencoder()
    vae.load_state_dict({name.removeprefix("vae."): value for name, value in average.items()})
    return vae.eval().requires_grad_(False), step


def export(where: Path, world: sprites.World, vae: AutoencoderKL, step: int, count: int = 128) -> Path:
    """Write `where`/vae in diffusers' layout, and `where`/vae.json with its measured quality; replaces the last
    export.
    """
    pictures = unseen(world, count)
    overall, each = psnr(pictures, reconstruct(vae, pictures))
    with atomic_folder(where / "vae", overwrite=True) as temporary:
        vae.save_pretrained(temporary)
    write_json(where / "vae.json", {"step": step, "psnr": round(overall, 3), "psnr_each": round(each, 3)})
    note(f"wrote {where / 'vae'}: step {step}, {overall:.2f} dB")
    return where / "vae"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a few steps on the sprites of the smoke run")
    parser.add_argument("--export", action="store_true", help="write what is learned so far, and stop")
    parser.add_argument("--sheet", type=Path, help="write a picture of reconstructions, and stop")
    parser.add_argument("--use", type=Path, metavar="VAE", help="take this finished one instead of training, and stop")
    parser.add_argument(
        "--warm-start", type=Path, metavar="VAE", help="weights to start from, where there is no checkpoint yet"
    )
    given = parser.parse_args()
    root = sprites.folder() / "smoke" if given.smoke else sprites.folder()
    where, world = root / "autoencoder", sprites.load(root)
    if given.sheet:
        vae, _ = trained(where)
        pictures = unseen(world, 48)
        with atomic_file(given.sheet) as temporary:
            Image.fromarray(side_by_side(pictures, reconstruct(vae, pictures))).save(temporary, format="PNG")
        return
    settings = SETTINGS.model_copy(update=SMOKE) if given.smoke else SETTINGS
    if given.use:
        vae = AutoencoderKL.from_pretrained(given.use, torch_dtype=torch.float32).eval().requires_grad_(False)
        export(where, world, vae, settings.steps)
        return
    if not given.export:
        write_json(where / "settings.json", json.loads(settings.model_dump_json()))
        train(where, world, settings, 16 if given.smoke else 128, given.warm_start)
    export(where, world, *trained(where), 16 if given.smoke else 128)


if __name__ == "__main__":
    with listening(Terminal()):
        main()
