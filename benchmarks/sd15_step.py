"""Time and peak memory of DreamBooth steps at the size of Stable Diffusion 1.5 (random weights, 512x512).

    python benchmarks/sd15_step.py --steps 2 --batch-size 1

UNet and text encoder train in full, with gradient checkpointing and AdamW; the weights are random, which changes
neither time nor memory. Needs about 20 GiB on a CPU.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from femtobooth.core import config
from femtobooth.core.console import Terminal
from femtobooth.core.events import listening, table
from femtobooth.generator import locate
from femtobooth.generator.dreambooth import DreamBooth
from femtobooth.generator.families.stable_diffusion import StableDiffusion
from femtobooth.generator.formats.folder import load_tokenizer
from femtobooth.generator.latents import LatentSet, encode
from femtobooth.generator.memory import peak_memory
from femtobooth.generator.settings import PersonalizeSettings
from femtobooth.parsing import overrides
from femtobooth.training import trainer


def stable_diffusion_15() -> StableDiffusion:
    """The architecture of Stable Diffusion 1.5 with random weights, and the bundled tokenizer."""
    tokenizer = load_tokenizer(locate.bundled_folder() / "tokenizer")
    tokenizer.model_max_length = 77
    text = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=77,
    )
    unet = UNet2DConditionModel(
        sample_size=64, block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768, attention_head_dim=8
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        sample_size=512,
    )
    schedule = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    return StableDiffusion(
        tokenizer=tokenizer,
        text_encoder=CLIPTextModel(text),
        vae=vae.requires_grad_(False),
        unet=unet,
        scheduler=schedule,
        source="sd15-shaped",
        hash="random",
    )


class Timed(DreamBooth):
    """The module, with the time of each step."""

    def on_train_batch_start(self, *_: object) -> None:
        self._began = time.monotonic()

    def on_train_batch_end(self, *_: object) -> None:
        print(
            (
                f"step {self.global_step}: {time.monotonic() - self._began:.1f} s, "
                f"peak {peak_memory(self.device) / 2**30:.2f} GiB"
            ),
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", default="2")
    parser.add_argument("--batch-size", default="1", help="photos, and as many class images")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--train", default="unet,text_encoder")
    options = parser.parse_args()
    sets = {
        "photos.paths": "none",
        "photos.class_noun": "dog",
        "training.steps": options.steps,
        "training.batch_size": options.batch_size,
        "training.precision": options.precision,
        "training.gradient_checkpointing": "true",
        "train.parts": options.train,
    }
    settings = config.resolve(PersonalizeSettings, overrides(PersonalizeSettings, [], sets))
    model = stable_diffusion_15()
    pictures = np.random.default_rng(0).integers(0, 256, (int(options.batch_size), 512, 512, 3), dtype=np.uint8)

    def prepare(_: object) -> tuple[LatentSet, LatentSet | None]:
        began = time.monotonic()
        subject, kept = (
            encode(model, pictures, [[text]] * len(pictures), mirrored=False, batch=1)
            for text in ("a sks dog", "a dog")
        )
        print(
            f"encoding {2 * len(pictures)} pictures: {time.monotonic() - began:.1f} "
            f"s, peak {peak_memory(model.device) / 2**30:.2f} GiB"
        )
        return subject, kept

    module = Timed(model, settings, "sks", prepare)
    rows = [
        (name, f"{sum(p.numel() for p in part.parameters()):,}")
        for name, part in (("unet", model.unet), ("text_encoder", model.text_encoder))
    ]
    table("Stable Diffusion 1.5's shape", ["part", ">parameters"], rows)
    with tempfile.TemporaryDirectory() as scratch:
        trainer.build(settings.training, Path(scratch), [], []).fit(module)
    print(f"peak memory {peak_memory(torch.device('cuda' if torch.cuda.is_available() else 'cpu')) / 2**30:.2f} GiB")


if __name__ == "__main__":
    with listening(Terminal()):
        main()
