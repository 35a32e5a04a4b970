"""Training the bundled base: its noise schedule, a start from a model of another schedule, what the loss looks at, the
optimizer.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from recipes.emoji_world import diffusion
from recipes.emoji_world.scenes import Item, Scene

ORIGINAL = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=True)


def _deciding(scheduler: DDIMScheduler) -> int:
    """Timesteps at which captions tell most."""
    return int(((scheduler.alphas_cumprod < 0.05) & (scheduler.alphas_cumprod > 0.001)).sum())


def test_the_schedule_ends_in_pure_noise_and_dwells_where_the_layout_is_decided() -> None:
    signal = diffusion.new_scheduler().alphas_cumprod
    assert signal[0] > 0.99
    assert (signal.diff() < 0).all()
    assert signal[-1] == pytest.approx(0, abs=1e-8)
    assert _deciding(diffusion.new_scheduler()) > 1.6 * _deciding(ORIGINAL)


def test_solvers_read_the_schedule_from_its_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    scheduler = diffusion.new_scheduler()
    scheduler.save_pretrained(tmp_path)
    again = DDIMScheduler.from_pretrained(tmp_path)
    assert torch.allclose(again.alphas_cumprod, scheduler.alphas_cumprod, atol=1e-7)


def test_a_noise_level_means_what_it_meant_before_a_change_of_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusion, "FITTING", 600)
    torch.manual_seed(0)
    unet, new = diffusion.new_unet(), diffusion.new_scheduler()
    now = torch.arange(100, 900, 50)
    before = torch.stack([(ORIGINAL.alphas_cumprod - new.alphas_cumprod[step]).abs().argmin() for step in now])
    assert (before - now).min() > 50

    def embedded(timesteps: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return unet.time_embedding(unet.time_proj(timesteps))

    wanted = embedded(before)
    apart = (embedded(now) - wanted).norm()
    diffusion.read_alike(unet, ORIGINAL, new)
    assert (embedded(now) - wanted).norm() < apart / 3


def test_the_loss_looks_at_sprites_more_than_around_them() -> None:
    def item(size: float, x: float, y: float) -> Item:
        return Item(concept=0, style=0, size=size, x=x, y=y, colour="")

    pixels = np.zeros((64, 64, 3), np.uint8)
    scenes = [
        Scene(pixels, "", items) for items in ([item(20, 12, 40)], [item(90, 60, 32)], [item(8, 8, 8), item(8, 56, 8)])
    ]
    counts = diffusion.loss_mask(scenes, 16, 0.25)
    assert counts.shape == (3, 1, 16, 16)
    assert counts.mean() == pytest.approx(1)
    assert counts.max() / counts.min() == pytest.approx(4)
    within = counts > counts.min()
    assert within[0, 0, 7:13, 0:6].all()  # 12 pixels around (12, 40), in steps of 4
    assert within[0].sum() == 36
    assert within[1, 0, :, 4:].all()  # it reaches out of the picture
    assert within[2, 0, 1, 1]
    assert within[2, 0, 1, 14]
    assert not within[2, 0, 1, 8]


def test_matrices_are_trained_by_muon_and_embeddings_are_not() -> None:
    model = SimpleNamespace(unet=diffusion.new_unet(), text_encoder=diffusion.new_text_encoder(50, 8, 49))
    module = diffusion.Diffusion(model, diffusion.SETTINGS, None)  # type: ignore[arg-type]
    matrices, embeddings = module.configure_optimizers()["optimizer"].param_groups
    assert sum(len(group["params"]) for group in (matrices, embeddings)) == len(list(module.parameters()))
    assert [tuple(table.shape) for table in embeddings["params"]] == [(50, 192), (8, 192)]
    assert embeddings["use_fallback"]
    assert not matrices.get("use_fallback", False)
