"""A Stable Diffusion 3 is personalized with a LoRA, killed and resumed to the bit, and diffusers draws the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image
from safetensors.torch import load_file

FLAGS = (
    "--steps", 4, "--train", "lora", "--rank", 4, "--prior-target", "photos", "--set", "training.checkpoint_every=2",
    "--lora-unet-lr", 1e-2,
)  # fmt: skip


def test_from_photos_to_pictures(
    femtobooth: Callable[..., int],
    personalize: Callable[..., Path],
    tiny_sd3: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = personalize(tiny_sd3, tmp_path, "whole", *FLAGS)
    cut = shutil.copytree(run, tmp_path / "cut", ignore=shutil.ignore_patterns("model", "overview.png", "step-000004"))
    facts = json.loads((cut / "run.json").read_text())
    (cut / "run.json").write_text(json.dumps({**facts, "status": "running"}))
    assert femtobooth("personalize", "--resume", cut) == 0
    name = "pytorch_lora_weights.safetensors"
    ours, resumed = (load_file(folder / "model" / name) for folder in (run, cut))
    assert ours.keys() == resumed.keys()
    assert all(torch.equal(ours[key], resumed[key]) for key in ours)
    assert {key.partition(".")[0] for key in ours} == {"transformer", "text_encoder", "text_encoder_2"}
    assert any(one.any() for key, one in ours.items() if ".lora_B" in key)

    assert (
        femtobooth("generate", run, "a [V] robot", "-n", 1, "--steps", 2, "--seed", 3, "--out", tmp_path / "out") == 0
    )
    (drawn,) = [path for path in (tmp_path / "out").glob("*.png") if path.name != "grid.png"]
    pipeline = StableDiffusion3Pipeline.from_pretrained(tiny_sd3, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(run / "model", weight_name=name)
    token = json.loads((run / "model" / "femtobooth.json").read_text())["token"]
    how = {"latents": torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(3)), "num_inference_steps": 2}
    theirs = pipeline(f"a {token} robot", guidance_scale=4.5, output_type="np", **how).images[0]
    assert np.abs(np.asarray(Image.open(drawn)) / 255 - theirs).max() <= 1 / 255

    capsys.readouterr()
    wrong = ("personalize", run / "photos", "--class-noun", "robot", "--base", tiny_sd3, "--runs", tmp_path)
    assert femtobooth(*wrong, "--snr-gamma", 5) == 2
    problem, way_out = capsys.readouterr().err.strip().splitlines()[-2:]
    assert problem.startswith("femtobooth: --snr-gamma")
    assert way_out == "  -> leave it out; --timestep-mean says which timesteps count more"
    assert femtobooth(*wrong, "--plan", "--train", "lora", "--frozen-precision", "bf16", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert [part["name"] for part in plan["parts"]] == [
        "transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "vae",
    ]  # fmt: skip
