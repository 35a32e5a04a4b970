"""The share of fine-tuned weights in the result is the one that validation pictures are best by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from femtobooth.recognizer.finetuning.averaging import SHARES, average
from femtobooth.recognizer.finetuning.finetuner import outputs
from femtobooth.recognizer.model.backbone import Recognizer
from femtobooth.recognizer.model.labels import Labels


def network(seed: int) -> Recognizer:
    torch.manual_seed(seed)
    return Recognizer.create("test_convnext", Labels(("a", "b", "c"))).freeze()


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    found = []
    for index in range(10):
        blocks = np.random.default_rng(index).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        found.append(tmp_path / f"{index}.png")
        Image.fromarray(blocks).resize((64, 64), Image.Resampling.BICUBIC).save(found[-1])
    return found


@pytest.mark.parametrize("share", SHARES)
def test_the_best_share_is_found(files: list[Path], share: float) -> None:
    start, tuned, wanted = network(0), network(1), network(1)
    with torch.no_grad():
        for parameter, began in zip(wanted.parameters(), start.parameters(), strict=True):
            parameter.lerp_(began, 1 - share)
    target = outputs(wanted, files)["logits"]
    found = average(start, tuned, files, np.arange(10), lambda logits: np.square(logits - target).sum(axis=1))
    assert found.share == share == min(found.losses, key=lambda one: found.losses[one])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(tuned.parameters(), wanted.parameters(), strict=True))
    np.testing.assert_allclose(found.unchosen, target, atol=1e-5)


def test_no_picture_chooses_its_own_share(files: list[Path]) -> None:
    """One picture in five, all of one fold, is for the first share as strongly as it can: it counts for the weights,
    and is itself told by what the others are for.
    """
    start, tuned = network(0), network(1)
    ends = outputs(start, files)["logits"], outputs(tuned, files)["logits"]
    loud, groups, calls = np.array([0, 5]), np.arange(10), iter(SHARES)

    def losses(logits: np.ndarray) -> np.ndarray:
        share = next(calls)
        lost = np.full(10, 1 - share)
        lost[loud] = 100 * share
        return lost

    found = average(start, tuned, files, groups, losses)
    assert found.share == SHARES[0]
    np.testing.assert_allclose(found.unchosen[loud], ends[1][loud], atol=1e-5)
    assert not np.allclose(found.unchosen[1], ends[1][1], atol=1e-3)


def test_few_pictures_that_are_all_of_one_group_choose_nothing_for_themselves(files: list[Path]) -> None:
    start, tuned = network(0), network(1)
    ended = outputs(tuned, files[:3])["logits"]
    found = average(start, tuned, files[:3], np.zeros(3, int), lambda logits: np.abs(logits).sum(axis=1))
    np.testing.assert_allclose(found.unchosen, ended, atol=1e-6)
