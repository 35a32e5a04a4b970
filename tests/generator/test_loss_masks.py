"""How much each latent cell counts, by masks that people gave."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from femtobooth.generator.dreambooth import sample_losses
from femtobooth.generator.latents import encode
from femtobooth.generator.load import load
from femtobooth.generator.loss_masks import loss_mask, masked

SIDE, FACTOR = 256, 8


def _disc(radius: float) -> np.ndarray:
    rows, columns = np.indices((SIDE, SIDE)) - SIDE / 2
    return (np.hypot(rows, columns) < radius).astype(np.uint8) * 255


def _pixel(at: tuple[int, int] = (77, 200)) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[at] = 255
    return mask


@pytest.mark.parametrize("outside", [0.0, 0.1, 1.0])
def test_the_loss_of_a_constant_error_does_not_depend_on_the_area(outside: float) -> None:
    target = torch.zeros(1, 4, 32, 32)
    for mask in (_pixel(), _disc(5), _disc(40), _disc(90), _disc(400), _disc(60) // 3):
        loss = sample_losses(target + 0.5, target, torch.ones(1), masked(mask, FACTOR, outside)[None])
        assert loss.item() == pytest.approx(0.25, rel=1e-5)


@pytest.mark.parametrize("outside", [0.0, 0.25])
def test_the_gradient_outside_is_as_much_as_was_asked_for(outside: float) -> None:
    mask, prediction = _disc(60), torch.zeros(1, 4, 32, 32, requires_grad=True)
    weights = masked(mask, FACTOR, outside)[None]
    sample_losses(prediction, torch.ones(1, 4, 32, 32), torch.ones(1), weights).backward()
    assert prediction.grad is not None
    inside = torch.from_numpy(mask.reshape(32, 8, 32, 8).max((1, 3)) > 0)
    within, beyond = prediction.grad[0, :, inside], prediction.grad[0, :, ~inside]
    assert beyond.numel() > 100
    assert len(within.unique()) == 1
    assert torch.equal(beyond, torch.zeros_like(beyond)) if not outside else True
    torch.testing.assert_close(beyond.unique(), within.unique() * outside)


def test_an_empty_a_full_and_a_one_pixel_mask() -> None:
    empty, full, one = (masked(mask, FACTOR) for mask in (_disc(0), _disc(400), _pixel()))
    assert empty.shape == (1, 32, 32)
    assert torch.equal(empty, torch.zeros(1, 32, 32))
    torch.testing.assert_close(masked(_disc(0), FACTOR, 0.1), torch.ones(1, 32, 32))
    assert torch.equal(full, torch.ones(1, 32, 32))
    assert torch.equal(masked(_disc(60), FACTOR, 1.0), full)
    assert one.nonzero().tolist() == [[0, 9, 25]]
    assert one.max() == 32 * 32


def test_thin_parts_count_wholly() -> None:
    """A strap of two pixels, which a mean over 8 x 8 would leave a quarter of."""
    mask = _disc(40)
    mask[:100, 127:129] = 255
    weights = masked(mask, FACTOR)[0]
    assert (weights[:10, 15:17] == weights.max()).all()


def test_each_picture_counts_by_its_own_mask_or_by_what_is_found() -> None:
    pictures = np.full((3, 64, 64, 3), 200, np.uint8)
    pictures[:, 24:48, 8:32] = (220, 30, 30)
    mine = np.zeros((64, 64), np.uint8)
    mine[:8, 56:] = 255
    without = loss_mask(pictures, FACTOR, "subject")
    mixed = loss_mask(pictures, FACTOR, "subject", [None, mine, None])
    assert torch.equal(mixed[[0, 2]], without[[0, 2]])
    assert mixed[1].nonzero().tolist() == [[0, 0, 7]]
    whole = loss_mask(pictures, FACTOR, "all", [None, mine, None])
    assert torch.equal(whole[[0, 2]], torch.ones(2, 1, 8, 8))
    assert torch.equal(whole[1], mixed[1])
    softer = loss_mask(pictures, FACTOR, "subject", outside=0.5)
    assert set((softer / softer.amax((1, 2, 3), keepdim=True)).unique().tolist()) == {0.5, 1.0}


def test_mirrored_photos_have_mirrored_masks(tiny_base: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    mask[10:30, 5:20] = 255
    captions = [["a sks robot"]] * 2
    found = encode(load(str(tiny_base)), pictures, captions, mirrored=True, masks=[mask, None]).mask
    assert found.shape == (2, 2, 1, 8, 8)
    assert found[0, 0, 0, 1:4, 0:3].min() == found.max() == pytest.approx(64 / 9)
    assert (found[0, 0] > 0).sum() == 9
    assert torch.equal(found[0, 1], found[0, 0].flip(-1))
    assert torch.equal(found[1], torch.ones(2, 1, 8, 8))
