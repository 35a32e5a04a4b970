"""The deterministic loss: the training loss on fixed photos, noise and timesteps, so that its changes are the model's
alone.

Loss curves of diffusion models look flat because most of a loss is decided by how noisy each picture was made; with
everything random held fixed the same loss falls visibly (DVAR: Voronov et al. 2023, arXiv 2302.04841).
"""

from __future__ import annotations

from dataclasses import replace

import torch

from .dreambooth import DreamBooth
from .families.family import Family
from .latents import LatentSet, MicroBatch

SAMPLES = 4


def fixed_batch(pictures: LatentSet, model: Family, seed: int) -> MicroBatch:
    """Sample the same `SAMPLES` photos, noises and captions at every call; their timesteps are the middles of equal
    parts of the noise process.
    """
    sampled = pictures.micro_batch(model, "deterministic loss", seed, 0, 0, 1, SAMPLES)
    return replace(sampled, timesteps=model.process.middles(SAMPLES))


@torch.no_grad()
def deterministic_loss(module: DreamBooth) -> float:
    """Measure the mean weighted loss of the module's current weights on the fixed batch; random state and modes are
    left as they were.
    """
    batch = fixed_batch(module.instance, module.model, module.settings.training.seed)
    networks = module.model.trainable.values()
    modes = [(part, part.training) for network in networks for part in network.modules()]
    try:
        for network in networks:
            network.eval()
        with torch.autocast(module.device.type, enabled=False):
            losses = module.losses(batch)
    finally:
        for part, mode in modes:
            part.training = mode
    return float(losses.mean())
