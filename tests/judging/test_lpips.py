"""LPIPS agrees with another implementation of it, on weights in a cache folder made here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics.functional.image.lpips import _LPIPS
from torchvision.models import alexnet

from femtobooth.core.errors import ModelError
from femtobooth.judging import lpips

CPU = torch.device("cpu")
PICTURES = list(np.random.default_rng(0).integers(0, 256, (4, 48, 40, 3), np.uint8))


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache that holds an AlexNet of random weights."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    torch.manual_seed(0)
    lpips.trunk_file().parent.mkdir(parents=True)
    torch.save(alexnet(weights=None).state_dict(), lpips.trunk_file())
    return lpips.trunk_file()


@pytest.mark.usefixtures("weights")
def test_distances_are_those_of_another_implementation() -> None:
    assert lpips.usable()
    found = lpips.open_distances(CPU)(PICTURES)
    reference = _LPIPS(net="alex").eval()  # torchmetrics', whose AlexNet torchvision reads from the same cache
    x = torch.from_numpy(np.stack(PICTURES)).permute(0, 3, 1, 2) / 127.5 - 1
    expected = [[reference(x[i : i + 1], x[j : j + 1]).item() for j in range(4)] for i in range(4)]
    assert found == pytest.approx(np.array(expected), rel=1e-3, abs=1e-6)  # they part only in how they avoid 0 / 0
    assert (np.diag(found) == 0).all()
    assert found[0, 1] > 0.01


def test_what_is_missing_or_damaged_is_named(weights: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(2)}, weights)
    with pytest.raises(ModelError, match="not the weights of torchvision's AlexNet"):
        lpips.open_distances(CPU)(PICTURES)
    weights.unlink()
    assert not lpips.usable()
    with pytest.raises(ModelError, match="not on this machine") as caught:
        lpips.open_distances(CPU)
    assert weights.name in str(caught.value)
