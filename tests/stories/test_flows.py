"""Bases that flow are personalized with a LoRA, killed and resumed to the bit, and diffusers draws the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, StableDiffusion3Pipeline, ZImagePipeline
from PIL import Image
from safetensors.torch import load_file

FLAGS = (
    "--steps", 4, "--train", "lora", "--rank", 4, "--prior-target", "photos", "--set", "training.checkpoint_every=2",
    "--lora-unet-lr", 1e-2,
)  # fmt: skip


class Base(NamedTuple):
    """A base, and what its run shows."""

    pipeline: Any
    trains: set[str]
    scale: float
    """What its pipeline calls the guidance that its folder recommends."""
    networks: list[str]


BASES = {
    "tiny_sd3": Base(
        StableDiffusion3Pipeline, {"transformer", "text_encoder", "text_encoder_2"}, 4.5,
        ["transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "vae"],
    ),
    "tiny_z_image": Base(ZImagePipeline, {"transformer"}, 4.0, ["transformer", "text_encoder", "vae"]),
    "tiny_flux": Base(
        FluxPipeline, {"transformer"}, 3.5, ["transformer", "text_encoder", "text_encoder_2", "vae"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("base", BASES)
def test_from_photos_to_pictures(
    base: str,
    request: pytest.FixtureRequest,
    femtobooth: Callable[..., int],
    personalize: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder: Path = request.getfixturevalue(base)
    known = BASES[base]
    run = personalize(folder, tmp_path, "whole", *FLAGS)
    cut = shutil.copytree(run, tmp_path / "cut", ignore=shutil.ignore_patterns("model", "overview.png", "step-000004"))
    facts = json.loads((cut / "run.json").read_text())
    (cut / "run.json").write_text(json.dumps({**facts, "status": "running"}))
    assert femtobooth("personalize", "--resume", cut) == 0
    name = "pytorch_lora_weights.safetensors"
    ours, resumed = (load_file(one / "model" / name) for one in (run, cut))
    assert ours.keys() == resumed.keys()
    assert all(torch.equal(ours[key], resumed[key]) for key in ours)
    assert {key.partition(".")[0] for key in ours} == known.trains
    assert any(one.any() for key, one in ours.items() if ".lora_B" in key)

    assert (
        femtobooth("generate", run, "a [V] robot", "-n", 1, "--steps", 2, "--seed", 3, "--out", tmp_path / "out") == 0
    )
    (drawn,) = [path for path in (tmp_path / "out").glob("*.png") if path.name != "grid.png"]
    pipeline = known.pipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(run / "model", weight_name=name)
    token = json.loads((run / "model" / "femtobooth.json").read_text())["token"]
    latents = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(3))
    if base == "tiny_flux":  # whose pipeline wants them as its transformer reads them
        latents = pipeline._pack_latents(latents, 1, 16, 8, 8)
    how = {"width": 64, "height": 64, "guidance_scale": known.scale, "output_type": "np"}
    theirs = pipeline(f"a {token} robot", latents=latents, num_inference_steps=2, **how).images[0]
    assert np.abs(np.asarray(Image.open(drawn)) / 255 - theirs).max() <= 1 / 255

    capsys.readouterr()
    wrong = ("personalize", run / "photos", "--class-noun", "robot", "--base", folder, "--runs", tmp_path)
    assert femtobooth(*wrong, "--snr-gamma", 5) == 2
    problem, way_out = capsys.readouterr().err.strip().splitlines()[-2:]
    assert problem.startswith("femtobooth: --snr-gamma")
    assert way_out == "  -> leave it out; --timestep-mean says which timesteps count more"
    assert femtobooth(*wrong, "--plan", "--train", "lora", "--frozen-precision", "bf16", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert [part["name"] for part in plan["parts"]] == known.networks
