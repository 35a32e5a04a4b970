"""Stage 4, text encoder + U-Net: captions -> 16x16x20 latents, v-prediction with zero terminal SNR.

    python -m recipes.emoji_world.diffusion [--smoke]              start, or go on where it was stopped
    python -m recipes.emoji_world.diffusion --warm-start FOLDER    start from those weights of a Stable Diffusion folder
    that fit python -m recipes.emoji_world.diffusion --accelerator gpu --batch-size 512 --workers 14 python -m
    recipes.emoji_world.diffusion --export               write diffusion/{text_encoder,unet,scheduler} from the newest
    checkpoint

Needs stages 1 to 3. SIGTERM or Ctrl-C saves and stops. Curves are in diffusion/logs/metrics.csv, pictures of the same
prompts and seeds in diffusion/samples/.
"""

from __future__ import annotations

import argparse
import json
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from lightning.pytorch import LightningModule, Trainer
from timm.optim.muon import Muon
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPTextConfig, CLIPTextModel

from femtobooth.core.console import Terminal
from femtobooth.core.events import listening, note
from femtobooth.core.files import atomic_folder, write_json
from femtobooth.generator.families.stable_diffusion import StableDiffusion
from femtobooth.generator.formats.folder import load_tokenizer
from femtobooth.generator.latents import LatentSet
from femtobooth.generator.samples import Samples
from femtobooth.generator.sampling import to_pixels
from femtobooth.generator.sampling_settings import SamplingSettings
from femtobooth.generator.settings import SampleSettings
from femtobooth.training import averages, checkpoints, trainer
from femtobooth.training.callbacks import StepCallback
from femtobooth.training.module import NumberedSteps
from femtobooth.training.randomness import generator
from femtobooth.training.settings import TrainingSettings

from . import sprites, stages
from .autoencoder import LATENTS
from .scenes import SIZE, Scene, scene

SHARD = 4096
"""Scenes that are drawn and encoded at a time, which takes a minute or two."""
PASSES = 8
"""How often a shard is trained on, each time with other noise."""
SHIFT = 3.0
"""How far the noise schedule is moved towards noise.

Captions tell most where the share of signal is between 5 % and 0.1 %: there it is decided what stands where. Without
the shift that is a quarter of the timesteps, with it two fifths.
"""
CURRICULUM = 60_000
"""Pictures over which the share of plain scenes (one large sprite on one colour) falls from all to `PLAIN`."""
PLAIN = 0.15
DROPPED = 0.04
"""Captions emptied on top of the scenes' own tenth: a third of what guidance steers away from is then learned on full
scenes.
"""
STYLED = 0.65
"""Chance that a training caption says a thing's style, twice that of the evaluation's prompts: styles are learned last
of all.
"""
AROUND = (1 / 3, 1_000_000)
"""How much the loss around sprites counts at first, beside 1 where they stand, and the pictures after which it counts
as much.

Most of it is stars, windows and grain that nothing predicts; silhouettes come sooner without. An even colour comes
last.
"""
LEARNING_RATE = 7e-4
"""Of Muon (Jordan et al. 2024), whose steps timm scales to AdamW's size; AdamW itself trains embeddings, biases and
norms.

For batches of 64; others take it times the root of their ratio (Malladi et al., arXiv 2205.10287)."""
FITTING = 2000  # steps by which the time embedding learns another schedule, some ten seconds
SETTINGS = TrainingSettings(
    steps=6_000,
    batch_size=64,
    schedule="cosine",
    warmup=200,
    beta2=0.99,
    ema=0.995,
    accelerator="cpu",
    checkpoint_every=250,
    log_every=10,
)
SMOKE = {"steps": 4, "batch_size": 4, "warmup": 1, "checkpoint_every": 2, "log_every": 1}
SAMPLING = SamplingSettings(steps=25, guidance=4.0)
"""How it is looked at, here and in the evaluation."""
SAMPLES = SampleSettings(
    every=500,
    images=2,
    batch_size=16,
    prompts=[
        "a glossy teapot on the moon",
        "a robot on the beach",
        "a cat and a red apple on a blue background",
        "a flat dog in the snow",
        "two small blue cars in the city",
        "a teddy bear under water",
        "a cartoon duck on a wooden floor",
        "a backpack",
    ],
    sampling=SAMPLING,
)


def new_text_encoder(vocabulary: int, length: int, end: int) -> CLIPTextModel:
    """CLIP's text transformer, 3 layers of width 192, 2 M parameters."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=192,
            intermediate_size=768,
            projection_dim=192,
            num_hidden_layers=3,
            num_attention_heads=3,
            max_position_embeddings=length,
            bos_token_id=end - 1,
            eos_token_id=end,
            pad_token_id=end,
        )
    )


def new_unet() -> UNet2DConditionModel:
    """Widths 64-128-192, one layer a level, cross-attention at the two lower levels; 11.0 M parameters."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENTS,
        out_channels=LATENTS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        cross_attention_dim=192,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion's schedule rescaled to zero terminal SNR (arXiv 2305.08891), moved towards noise.

    Timestep t of T is as noisy as s u / (1 + (s - 1) u) of the way through the original, u = t / T (Esser et al., arXiv
    2403.03206, eq. 23). Zero terminal SNR: plain white stays white.
    """
    common = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    common |= {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    original = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **common)
    log_snr = _log_snr(original)
    u = np.arange(len(log_snr)) / (len(log_snr) - 1)
    moved = np.interp(SHIFT * u / (1 + (SHIFT - 1) * u), u, log_snr)
    signal = 1 / (1 + np.exp(-moved))  # the cumulated product of 1 - beta
    signal[-1] = 0
    betas = 1 - signal / np.concatenate([[1], signal[:-1]])
    return DDIMScheduler(trained_betas=betas.tolist(), **common)


def _log_snr(scheduler: DDIMScheduler) -> np.ndarray:
    signal = scheduler.alphas_cumprod.double().numpy()
    return np.log(signal.clip(1e-9)) - np.log1p(-signal)


def new_model(root: Path, seed: int) -> StableDiffusion:
    """Untrained text encoder and U-Net beside the tokenizer and autoencoder of the stages before."""
    tokenizer = load_tokenizer(root / "tokenizer")
    vae = AutoencoderKL.from_pretrained(root / "autoencoder" / "vae").eval().requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = new_text_encoder(len(tokenizer), tokenizer.model_max_length, tokenizer.eos_token_id)
        unet = new_unet()
    return StableDiffusion(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=vae,
        unet=unet,
        scheduler=new_scheduler(),
        source="emoji world",
        hash="",
    )


def warm(model: StableDiffusion, folder: Path) -> None:
    """Take over what fits from another model:

    U-Net and transformer tensors by shape, embeddings of the words both know.
    """
    old_unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32).state_dict()
    old_text = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).state_dict()
    for part, old in ((model.unet, old_unet), (model.text_encoder, old_text)):
        here = part.state_dict()
        part.load_state_dict(
            here | {name: value for name, value in old.items() if name in here and value.shape == here[name].shape}
        )
    read_alike(model.unet, DDIMScheduler.from_pretrained(folder / "scheduler"), model.scheduler)
    mine, theirs = model.tokenizer.get_vocab(), load_tokenizer(folder / "tokenizer").get_vocab()
    state = model.text_encoder.state_dict()
    with torch.no_grad():
        for name, table in state.items():
            if name.endswith("token_embedding.weight"):
                for word in mine.keys() & theirs.keys():
                    table[mine[word]] = old_text[name][theirs[word]]
            elif name.endswith("position_embedding.weight"):
                table[: len(old_text[name])] = old_text[name][: len(table)]


def read_alike(unet: UNet2DConditionModel, old: DDIMScheduler, new: DDIMScheduler) -> None:
    """Fit the time embedding so that a noise level means what it meant, though it has another timestep in the new
    schedule, if it has.
    """
    before = np.interp(-_log_snr(new), -_log_snr(old), np.arange(len(old.betas)))
    if np.allclose(before, np.arange(len(new.betas)), atol=0.5):
        return
    now = unet.time_proj(torch.arange(len(new.betas)))
    embedding = unet.time_embedding
    with torch.no_grad():
        wanted = embedding(unet.time_proj(torch.from_numpy(before).float()))  # (T, D)
    optimizer = torch.optim.Adam(embedding.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, FITTING)
    for _ in range(FITTING):
        loss = F.mse_loss(embedding(now), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    note(f"time embedding: {(loss / wanted.var()).item():.2%} of its variance differs from the other schedule's")


def loss_mask(made: Sequence[Scene], side: int, around: float) -> torch.Tensor:
    """Weigh the cells of latents: 1 in the box around every sprite, `around` elsewhere, over the mean; (N, 1, side,
    side).
    """
    counts = torch.full((len(made), 1, side, side), around)
    for one, count in zip(made, counts, strict=True):
        for item in one.items:
            left, right, top, bottom = (
                round((centre + sign * (item.size / 2 + 2)) * side / SIZE)
                for centre in (item.x, item.y)
                for sign in (-1, 1)
            )
            count[:, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = 1
    return counts / counts.mean()


class _Drawing(Dataset[Scene]):
    """The scenes `first` to `first + size` of one stream."""

    def __init__(self, world: sprites.World, stream: int, first: int, size: int, plain: float) -> None:
        self.world, self.stream, self.first, self.size, self.plain = world, stream, first, size, plain

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Scene:
        return scene(self.world, self.stream, self.first + index, plain=self.plain, styled=STYLED)


def _undisturbed(_: int) -> None:
    """Ctrl-C is for the process that saves; those that draw for it end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Shards:
    """Scenes as latents, a shard at a time; each shard a function of (seed, rank, number) alone.

    A warm start goes on after the shards that its weights have seen (`before` pictures), and with the curriculum where
    it was. `workers` processes draw the next shard while one is trained on; with none, each is drawn when it is due.
    """

    def __init__(
        self, world: sprites.World, model: StableDiffusion, size: int, before: int = 0, workers: int = 0
    ) -> None:
        self.world, self.model, self.size, self.workers = world, model, size, workers
        self.first = before // (size * PASSES)
        self._kept: tuple[tuple[int, ...], LatentSet] | None = None
        self._begun: tuple[tuple[int, ...], Iterator[list[Scene]]] | None = None

    def get(self, seed: int, rank: int, number: int) -> LatentSet:
        key = (seed, rank, number)
        if self._kept is None or self._kept[0] != key:
            self._kept = None  # two do not fit beside each other on small machines
            self._kept = key, self._made(*key)
        return self._kept[1]

    def _seen(self, number: int) -> int:
        """Pictures that were trained on before shard `number`."""
        return number * self.size * PASSES

    def _drawing(self, seed: int, rank: int, number: int) -> Iterator[list[Scene]]:
        """The scenes of a shard in lots of 64, drawn from now on or, without workers, when they are asked for."""
        plain = max(PLAIN, 1 - (1 - PLAIN) * self._seen(number) / CURRICULUM)
        scenes = _Drawing(self.world, seed * 1000 + rank, number * self.size, self.size, plain)
        ahead = self.size // (64 * self.workers) + 1 if self.workers else None
        return iter(
            DataLoader(
                scenes,
                64,
                num_workers=self.workers,
                prefetch_factor=ahead,
                collate_fn=list,
                worker_init_fn=_undisturbed,
            )
        )

    @torch.no_grad()
    def _made(self, seed: int, rank: int, number: int) -> LatentSet:
        key = (seed, rank, number)
        drawing = self._begun[1] if self._begun and self._begun[0] == key else self._drawing(*key)
        made = [one for lot in drawing for one in lot]
        if self.workers:
            self._begun = (seed, rank, number + 1), self._drawing(seed, rank, number + 1)
        around = min(1.0, AROUND[0] + (1 - AROUND[0]) * self._seen(number) / AROUND[1])
        dropped = torch.rand(self.size, generator=generator(seed, "dropped", number, rank)) < DROPPED
        captions = ["" if drop else one.caption for one, drop in zip(made, dropped.tolist(), strict=True)]
        vae, lot = self.model.vae.to(self.model.device), 32 if self.model.device.type == "cpu" else 512
        pixels = np.stack([one.pixels for one in made])
        posteriors = [
            self.model.encode(to_pixels(part).to(vae.device))
            for part in np.array_split(pixels, max(self.size // lot, 1))
        ]
        mean, log_variance = (
            torch.cat([one.cpu() for one in parts])[:, None] for parts in zip(*posteriors, strict=True)
        )
        tokens, mask = self.model.tokenize(captions)[:, None], loss_mask(made, mean.shape[-1], around)[:, None]
        return LatentSet(mean, log_variance, tokens, mask)


class Diffusion(NumberedSteps):
    """Trains text encoder and U-Net together; all timesteps weigh alike, cells do not."""

    def __init__(
        self, model: StableDiffusion, settings: TrainingSettings, shards: Shards, learning_rate: float = LEARNING_RATE
    ) -> None:
        super().__init__(settings)
        self.shards, self.learning_rate = shards, learning_rate
        self.model = model  # whose autoencoder is no submodule
        self.unet, self.text_encoder = model.unet.train(), model.text_encoder.train()

    def training_step(self, micro_step: int) -> torch.Tensor:
        settings, process = self.regime, self.model.process
        shard, within = divmod(micro_step, self.shards.size * PASSES // settings.batch_size)
        shard += self.shards.first
        pictures, rank = self.shards.get(settings.seed, self.global_rank, shard), self.global_rank
        batch = pictures.micro_batch(self.model, f"shard {shard}", settings.seed, within, rank, 1, settings.batch_size)
        latents, noise, timesteps, mask = batch.on(self.device)
        noisy = process.add_noise(latents, noise, timesteps)  # (B, 20, 16, 16)
        prediction = self.model.denoise(noisy, timesteps, self.model.condition_once(batch.tokens))
        target = process.target(latents, noise, timesteps)
        loss = (mask * (prediction.float() - target).square()).mean()
        if (self.global_step + 1) % settings.log_every == 0:
            for logger in self.loggers:
                logger.log_metrics({"loss": loss.item()}, self.global_step + 1)
        return loss

    def configure_optimizers(self) -> Any:
        embeddings = [module.weight for module in self.modules() if isinstance(module, torch.nn.Embedding)]
        others = [parameter for parameter in self.parameters() if all(parameter is not table for table in embeddings)]
        groups = [{"params": others}, {"params": embeddings, "use_fallback": True}]
        betas, rate = (
            (self.regime.beta1, self.regime.beta2),
            self.learning_rate * (self.regime.batch_size / SETTINGS.batch_size) ** 0.5,
        )
        optimizer = Muon(groups, lr=rate, weight_decay=self.regime.weight_decay, nesterov=True, betas=betas)
        return self.scheduled(optimizer, trainer.learning_rate_schedule(self.regime, optimizer))


class Lines(StepCallback):
    """A line in the log every `every` steps: what a run in the background is looked at by."""

    def __init__(self, every: int) -> None:
        self.every = every
        self._losses: list[torch.Tensor] = []

    def on_optimizer_step(self, trainer: Trainer, module: LightningModule, step: int, outputs: Any) -> None:
        self._losses.append(
            outputs["loss"].detach()
        )  # read only when it is shown, as a GPU would wait for every reading
        if step % self.every == 0:
            note(f"step {step} of {trainer.max_steps}: loss {torch.stack(self._losses).mean().item():.4f}")
            self._losses.clear()


def export(root: Path, model: StableDiffusion) -> Path:
    """Write `root`/diffusion/model/{text_encoder,unet,scheduler} from the newest checkpoint's moving average; replaces
    the last export.
    """
    where = root / "diffusion"
    average, step = stages.averaged(where)
    for name, part in (("unet", model.unet), ("text_encoder", model.text_encoder)):
        part.load_state_dict(
            {key.removeprefix(f"{name}."): value for key, value in average.items() if key.startswith(f"{name}.")}
        )
    with atomic_folder(where / "model", overwrite=True) as temporary:
        model.unet.save_pretrained(temporary / "unet")
        model.text_encoder.save_pretrained(temporary / "text_encoder")
        model.scheduler.save_pretrained(temporary / "scheduler")
    settings, before = (
        json.loads((where / name).read_text(encoding="utf-8")) for name in ("settings.json", "before.json")
    )
    write_json(where / "diffusion.json", {"steps": step, "images": before["images"] + step * settings["batch_size"]})
    note(f"wrote {where / 'model'}: step {step}")
    return where / "model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a few steps on what the smoke run has made so far")
    parser.add_argument("--export", action="store_true", help="write what is learned so far, and stop")
    parser.add_argument(
        "--warm-start", type=Path, metavar="FOLDER", help="model to start from, where there is no checkpoint yet"
    )
    parser.add_argument(
        "--before", type=int, default=0, metavar="N", help="pictures that its weights were trained on, for the card"
    )
    parser.add_argument("--steps", type=int, help=f"optimizer steps [{SETTINGS.steps}]")
    parser.add_argument("--batch-size", type=int, help=f"pictures a step [{SETTINGS.batch_size}]")
    parser.add_argument(
        "--learning-rate", type=float, default=LEARNING_RATE, help="for batches of 64 [%(default)s]; a third to go on"
    )
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], help=f"hardware to train on [{SETTINGS.accelerator}]")
    parser.add_argument(
        "--precision", choices=["fp32", "bf16"], help=f"number format of the passes [{SETTINGS.precision}]"
    )
    parser.add_argument(
        "--workers", type=int, default=0, help="processes that draw scenes beside the training, which a GPU needs [0]"
    )
    given = parser.parse_args()
    root = sprites.folder() / "smoke" if given.smoke else sprites.folder()
    where, world = root / "diffusion", sprites.load(root)
    chosen = {
        name: getattr(given, name)
        for name in ("steps", "batch_size", "accelerator", "precision")
        if getattr(given, name)
    }
    settings = SETTINGS.model_copy(update=(SMOKE if given.smoke else {}) | chosen)
    model = new_model(root, settings.seed)
    if not given.export:
        if not checkpoints.newest(where / "checkpoints"):
            write_json(where / "before.json", {"images": given.before})
            if given.warm_start:
                warm(model, given.warm_start)
        write_json(where / "settings.json", json.loads(settings.model_dump_json()))
        average = averages.MovingAverage(settings.ema)
        samples = SAMPLES.model_copy(
            update={"every": settings.steps // 2, "prompts": SAMPLES.prompts[:1], "images": 1} if given.smoke else {}
        )
        callbacks = [
            average,
            Lines(settings.log_every * 5),
            Samples(where / "samples", samples.prompts, samples, model.size, average),
        ]
        before = json.loads((where / "before.json").read_text(encoding="utf-8"))["images"]
        module = Diffusion(
            model,
            settings,
            Shards(world, model, 16 if given.smoke else SHARD, before, given.workers),
            given.learning_rate,
        )
        stages.fit(module, settings, where, callbacks)
    export(root, model)


if __name__ == "__main__":
    with listening(Terminal()):
        main()
