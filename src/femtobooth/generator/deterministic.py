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
from .latents import Latents, LatentSet, MicroBatch

SAMPLES = 4


def fixed_batches(pictures: Latents, model: Family, seed: int) -> list[MicroBatch]:
    """Sample the same `SAMPLES` photos, noises and captions at every call, one by one where shapes differ; their
    timesteps are the middles of equal parts of the noise process.
    """
    several = 1 if isinstance(pictures, LatentSet) else SAMPLES
    timesteps = model.process.middles(SAMPLES).split(SAMPLES // several)
    return [
        replace(pictures.micro_batch(model, "deterministic loss", seed, turn, 0, 1, len(middles)), timesteps=middles)
        for turn, middles in enumerate(timesteps)
    ]


@torch.no_grad()
def deterministic_loss(module: DreamBooth) -> float:
    """Measure the mean weighted loss of the module's current weights on the fixed photos; random state and modes are
    left as they were.
    """
    batches = fixed_batches(module.instance, module.model, module.settings.training.seed)
    networks = module.model.trainable.values()
    modes = [(part, part.training) for network in networks for part in network.modules()]
    try:
        for network in networks:
            network.eval()
        with torch.autocast(module.device.type, enabled=False):
            losses = torch.cat([module.losses(batch) for batch in batches])
    finally:
        for part, mode in modes:
            part.training = mode
    return float(losses.mean())
