"""A LoRA extracted from a tuned model: of every layer's change, the part of a low rank that is nearest to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import ModelError
from ..core.events import progress
from .adapters import Adapter, layers
from .families.family import Family


@dataclass(frozen=True)
class Extracted:
    """What a LoRA keeps of how a tuned model differs from its base. Energies are sums of squared differences."""

    adapter: Adapter
    kept: float
    """Share of the layers' energy that it holds, 0 to 1."""
    reach: float
    """Share of the energy of all differences that lies in layers which a LoRA can change; norms, biases and word
    embeddings are the rest.
    """
    elsewhere: int
    """How many tensors differ that no LoRA can change."""


def extract(tuned: Family, base: Family, rank: int) -> Extracted:
    """Extract a LoRA of this rank from a tuned model of the same architecture as its base; neither changes.

    The change of a layer, as a matrix (out, in*k*k), is projected onto its strongest `rank` directions, which no other
    matrix of this rank comes nearer to (Eckart-Young). Raises ModelError where the two are of different shapes, or the
    same.
    """
    _refuse_misfits(tuned, base)
    before = {name: layer.weight for name, layer in layers(base)}
    modules: dict[str, dict[str, Tensor]] = {}
    total = kept = 0.0
    for name, layer in progress(list(layers(tuned)), "layers"):
        change = layer.weight.detach().double() - before[name].detach().double()
        if energy := change.square().sum().item():
            modules[name], share = _nearest(change, rank)
            total, kept = total + energy, kept + energy * share
    if not modules:
        raise ModelError(
            f"{tuned.source}: its layers are those of {base.source}", "give the base that it was tuned from"
        )
    elsewhere, count = _elsewhere(tuned, base, set(before))
    return Extracted(Adapter(modules), kept / total, total / (total + elsewhere), count)


def _nearest(change: Tensor, rank: int) -> tuple[dict[str, Tensor], float]:
    """Split a change (out, in[, k, k]) into two factors of a low rank; also the share of its energy that they keep.

    Its left singular vectors are the eigenvectors of its Gram matrix, in double precision, whose side is at most that
    of the smaller side.
    """
    out, *rest = change.shape
    matrix = change.flatten(1)
    wide = matrix.shape[0] <= matrix.shape[1]
    values, vectors = torch.linalg.eigh(matrix @ matrix.T if wide else matrix.T @ matrix)  # ascending
    rank = min(rank, len(values))
    strongest = vectors[:, -rank:].flip(1)  # (side, r)
    root = values[-rank:].flip(0).clamp(min=0) ** 0.25  # the factors share a singular value evenly
    scale = torch.where(root > 0, root, 1)
    if wide:
        up, down = strongest * scale, (strongest.T @ matrix) / scale[:, None]
    else:
        up, down = (matrix @ strongest) / scale, strongest.T * scale[:, None]
    held = {
        "lora_down": down.reshape(rank, *rest).float().contiguous(),
        "lora_up": up.reshape(out, rank, *(1,) * (len(rest) - 1)).float().contiguous(),
        "alpha": torch.tensor(float(rank)),
    }
    return held, (values[-rank:].clamp(min=0).sum() / values.clamp(min=0).sum()).item()


def _elsewhere(tuned: Family, base: Family, known: set[str]) -> tuple[float, int]:
    """Sum the energy of the differences that lie in no layer, and count their tensors."""
    energy, count = 0.0, 0
    for network, part in tuned.trainable.items():
        others = base.trainable[network].state_dict()
        for name, tensor in part.state_dict().items():
            if f"{network}.{name.removesuffix('.weight')}" in known and name.endswith(".weight"):
                continue
            off = (tensor.double() - others[name].double()).square().sum().item()
            energy, count = energy + off, count + bool(off)
    return energy, count


def _refuse_misfits(tuned: Family, base: Family) -> None:
    for network, part in tuned.trainable.items():
        others = base.trainable[network].state_dict() if network in base.trainable else {}
        state = part.state_dict()
        wrong = [name for name in {*state, *others} if name not in state or name not in others]
        wrong = wrong or [name for name in state if state[name].shape != others[name].shape]
        if wrong:
            raise ModelError(
                f"{tuned.source} and {base.source} are of different shapes, {network}.{min(wrong)} among others",
                "give the base that it was tuned from",
            )
