"""Time and peak memory of DreamBooth steps at the size of Stable Diffusion 1.5, or of XL (random weights, 512x512).

    python benchmarks/sd15_step.py --steps 2 --batch-size 1
    python benchmarks/sd15_step.py --family xl --steps 1 --train lora

UNet and text encoder train in full, or a LoRA of rank 16 beside a base of bf16, with gradient checkpointing and AdamW;
the weights are random, which changes neither time nor memory. Needs about 20 GiB on a CPU, or 10 for XL's LoRA.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from diffusers import AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from femtobooth.core import config
from femtobooth.core.console import Terminal
from femtobooth.core.events import listening, table
from femtobooth.core.machine import give_back_freed_memory
from femtobooth.generator import frozen, locate
from femtobooth.generator.dreambooth import DreamBooth
from femtobooth.generator.families.family import Family
from femtobooth.generator.families.stable_diffusion import StableDiffusion
from femtobooth.generator.families.stable_diffusion_xl import StableDiffusionXL
from femtobooth.generator.formats.folder import load_tokenizer
from femtobooth.generator.latents import LatentSet, encode
from femtobooth.generator.memory import peak_memory, told
from femtobooth.generator.settings import PersonalizeSettings
from femtobooth.parsing import overrides
from femtobooth.training import trainer
from femtobooth.workflows.personalizing.planning import Planner

TEXTS = ((768, 12, 12, "quick_gelu"), (1280, 32, 20, "gelu"))
"""Width, layers, heads and activation of the CLIPs of Stable Diffusion XL, and of flows."""


def clip(width: int, layers: int, heads: int, act: str) -> CLIPTextConfig:
    """Describe a CLIP."""
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_act=act,
        projection_dim=width,
    )


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


def stable_diffusion_xl(part: int = 1, weights: bool = True) -> StableDiffusionXL:
    """Stable Diffusion XL's architecture, its widths divided by `part` (1, 2 or 10), with the bundled tokenizer.

    Its numbers are random, in 16 bits but for the VAE; without `weights` it has shapes alone.
    """
    texts = [*TEXTS]
    texts = [(width // part // 4 * 4, layers, 4, act) for width, layers, _, act in texts] if part > 1 else texts
    configs = [clip(*shape) for shape in texts]
    with torch.device("meta"):
        networks: dict[str, Any] = {
            "text_encoder": CLIPTextModel(configs[0]),
            "text_encoder_2": CLIPTextModelWithProjection(configs[1]),
            "vae": AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(32, 32, 64, 64)
                if part == 10
                else tuple(width // part for width in (128, 256, 512, 512)),
                layers_per_block=2,
                scaling_factor=0.13025,
                sample_size=1024,
            ),
            "unet": UNet2DConditionModel(
                sample_size=128,
                block_out_channels=tuple(width // part for width in (320, 640, 1280)),
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                transformer_layers_per_block=(1, 2, 10),
                attention_head_dim=(1, 2, 4) if part == 10 else (5, 10, 20),
                cross_attention_dim=sum(width for width, *_ in texts),
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=texts[1][0] + 6 * 256,
            ),
        }
    if not weights:
        return _xl(networks)
    some = torch.randn(1 << 24).mul_(0.02).to(torch.bfloat16)
    for network in networks.values():
        network.to(torch.bfloat16).to_empty(device="cpu")
        for key, one in network.named_parameters():
            with torch.no_grad():  # a norm scales by one, and all else is small
                numbers = some.repeat(-(-one.numel() // len(some)))[: one.numel()].view(one.shape)
                one.copy_(numbers + 1 if "norm" in key and key.endswith("weight") else numbers)
        for module in network.modules():
            if hasattr(module, "position_ids"):
                module.position_ids = torch.arange(77)[None]
    networks["vae"].float()
    return _xl(networks)


def _xl(networks: dict[str, Any]) -> StableDiffusionXL:
    for network in networks.values():
        network.eval().requires_grad_(False)
    tokenizer = load_tokenizer(locate.bundled_folder() / "tokenizer")
    tokenizer.model_max_length = 77
    return StableDiffusionXL(
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
        source="xl-shaped",
        hash="random",
        **networks,
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
    parser.add_argument("--family", choices=("1.5", "xl"), default="1.5")
    parser.add_argument("--part", type=int, choices=(1, 2, 10), default=1, help="of XL: what widths are divided by")
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
    if options.train == "lora":
        sets |= {"train.frozen_precision": "bf16", "lora.rank": "16", "lora.text_encoder": "false", "prior.weight": "0"}
    settings = config.resolve(PersonalizeSettings, overrides(PersonalizeSettings, [], sets))
    if options.train == "lora":
        give_back_freed_memory()  # as loading does for a base that is held in less
    libraries = int(psutil.Process().memory_info().rss)
    if options.family == "xl" and os.fork() == 0:  # so that what planning takes is not measured
        bare = stable_diffusion_xl(options.part, weights=False)
        plan = Planner(bare, 512, Path("none"), libraries).plan(settings)
        rows = [(one.name, told(one.process)) for one in plan.phases if one.name in ("encoding photos", "training")]
        table("Planned, on a CPU", ["phase", ">most"], rows)
        sys.stdout.flush()
        os._exit(0)
    elif options.family == "xl":
        os.wait()
    model: Family = stable_diffusion_xl(options.part) if options.family == "xl" else stable_diffusion_15()
    if options.train == "lora":
        frozen.hold(model, "bf16")
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
    rows = [(name, f"{sum(p.numel() for p in part.parameters()):,}") for name, part in model.trainable.items()]
    table(f"Stable Diffusion {options.family}'s shape", ["part", ">parameters"], rows)
    with tempfile.TemporaryDirectory() as scratch:
        trainer.build(settings.training, Path(scratch), [], []).fit(module)
    print(f"peak memory {peak_memory(torch.device('cuda' if torch.cuda.is_available() else 'cpu')) / 2**30:.2f} GiB")


if __name__ == "__main__":
    with listening(Terminal()):
        main()
