"""A Stable Diffusion XL is personalized, killed and resumed to the bit, and draws what diffusers' pipeline draws of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline
from PIL import Image

FLAGS = ("--steps", 4, "--set", "training.checkpoint_every=2", "--set", "photos.flip=true", "--text-encoder-2-lr", 1e-4)


def test_from_photos_to_pictures(
    femtobooth: Callable[..., int],
    personalize: Callable[..., Path],
    weights: Callable[[Path], dict[str, torch.Tensor]],
    tiny_xl: Path,
    tmp_path: Path,
) -> None:
    run = personalize(tiny_xl, tmp_path, "whole", *FLAGS)
    with Image.open(run / "photos" / "00.png") as photo:
        height, width, top, left, right = map(int, photo.text["framing"].split())
    assert (height, width, top, left + right) == (80, 96, 0, round(96 * 64 / 80) - 64)

    cut = shutil.copytree(run, tmp_path / "cut", ignore=shutil.ignore_patterns("model", "overview.png", "step-000004"))
    facts = json.loads((cut / "run.json").read_text())
    (cut / "run.json").write_text(json.dumps({**facts, "status": "running"}))
    assert femtobooth("personalize", "--resume", cut) == 0
    ours, resumed, base = (weights(folder) for folder in (run / "model", cut / "model", tiny_xl))
    assert ours.keys() == resumed.keys() == base.keys()
    assert all(torch.equal(ours[name], resumed[name]) for name in ours)
    moved = {name.partition("/")[0] for name in ours if not torch.equal(ours[name], base[name])}
    assert moved == {"unet", "text_encoder", "text_encoder_2"}

    assert (
        femtobooth(
            "generate",
            run,
            "a [V] robot",
            "-n",
            1,
            "--steps",
            2,
            "--seed",
            3,
            "--sampler",
            "ddim",
            "--out",
            tmp_path / "drawn",
        )
        == 0
    )
    (drawn,) = [path for path in (tmp_path / "drawn").glob("*.png") if path.name != "grid.png"]
    pipeline = StableDiffusionXLPipeline.from_pretrained(run / "model", add_watermarker=False, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    token = json.loads((run / "model" / "femtobooth.json").read_text())["token"]
    how = {"latents": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3)), "num_inference_steps": 2}
    theirs = pipeline(f"a {token} robot", guidance_scale=5.0, output_type="np", **how).images[0]
    assert np.abs(np.asarray(Image.open(drawn)) / 255 - theirs).max() <= 1 / 255
