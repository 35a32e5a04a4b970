"""The deterministic loss: the training loss on fixed photos, noise and timesteps, so that its changes are the model's
alone.

Loss curves of diffusion models look flat because most of a loss is decided by how noisy each picture was made; with
everything random held fixed the same loss falls visibly (DVAR: Voronov et al. 2023, arXiv 2302.04841).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from .dreambooth import Draw, LatentSet, draw, predict, training_target

SAMPLES = 4


def fixed_draw(pictures: LatentSet, seed: int, scale: float, steps: int) -> Draw:
    """The same `SAMPLES` photos, noises and captions at every call; their timesteps are the middles of equal parts of
    the schedule.
    """
    drawn = draw(pictures, "deterministic loss", seed, 0, 0, 1, SAMPLES, scale, steps)
    return replace(drawn, timesteps=(torch.arange(SAMPLES) * 2 + 1) * steps // (2 * SAMPLES))


@torch.no_grad()
def deterministic_loss(module: Any) -> float:
    """Mean weighted loss of a `DreamBooth` module's current weights on the fixed draw; random state and modes are left
    as they were.
    """
    scheduler = module.model.scheduler
    steps = int(scheduler.config.num_train_timesteps)
    fixed = fixed_draw(
        module.instance, module.settings.training.seed, float(module.model.vae.config.scaling_factor), steps
    )
    latents, noise, timesteps, ids, places = (
        part.to(module.device) for part in (fixed.latents, fixed.noise, fixed.timesteps, fixed.token_ids, fixed.places)
    )
    modes = [(part, part.training) for part in (*module.unet.modules(), *module.text_encoder.modules())]
    try:
        for part in (module.unet, module.text_encoder):
            part.eval()
        with torch.autocast(module.device.type, enabled=False):
            prediction = predict(
                module.unet, module.text_encoder, scheduler.add_noise(latents, noise, timesteps), timesteps, ids
            )
    finally:
        for part, mode in modes:
            part.training = mode
    return float(
        module.weighted_losses(
            prediction, training_target(scheduler, latents, noise, timesteps), timesteps, places
        ).mean()
    )
