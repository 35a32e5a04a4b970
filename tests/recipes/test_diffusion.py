"""The noise schedule of the bundled base, and starting from a model that was trained with another."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler

from recipes.emoji_world import diffusion

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
