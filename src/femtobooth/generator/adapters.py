"""Adapters in memory: small tensors beside a model's layers, which say how each of their weights changes.

An adapter names the layers as the model's own modules are called (`unet.mid_block.attentions.0.proj_in`) and its
tensors as kohya's files do, without `.weight` (r rank, k kernel):

    LoRA (arXiv 2106.09685)   lora_down (r, in[, k, k]), lora_up (out, r[, 1, 1]); LoCon also lora_mid (r, r, k, k)
    LoHa (arXiv 2108.06098)   hada_w1_a (out, r), hada_w1_b (r, in*k*k), hada_w2_a, hada_w2_b; or with hada_t1, hada_t2
    LoKr (arXiv 2309.14859)   lokr_w1 or lokr_w1_a, lokr_w1_b; lokr_w2 or lokr_w2_a, lokr_w2_b[, lokr_t2]
    any of these              alpha (): the change is scaled by alpha / r, and by 1 without it
    DoRA (arXiv 2402.09353)   dora_scale (out, 1[, 1, 1]) or (1, in[, 1, 1]): the norms of the changed weight
    OFT (arXiv 2306.07280)    oft_blocks (n, b, b), which turn the outputs, as LyCORIS and kohya have it, with
                              alpha () their constraint and rescale (out, 1[, 1, 1]); or oft_R (n, b*(b-1)/2), which
                              turns the inputs, as peft has it

Everything is computed in 32 bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..core.errors import ModelError, shortened
from .families.family import Family

Tensors = Mapping[str, Tensor]
KINDS = {"lora_": "LoRA", "hada_": "LoHa", "lokr_": "LoKr", "oft_": "OFT"}
"""Kinds of adapters, by how the names of their tensors begin."""


@dataclass(frozen=True)
class Adapter:
    """What changes a model: for each layer, by `NETWORK.module.path`, its tensors by kind."""

    modules: Mapping[str, Tensors]
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What the header of the file says that it was read from."""
    source: str = ""
    """Where it was read from, for people."""
    hash: str = ""
    """SHA-256 of the file that it was read from."""
    content_hash: str = ""
    """SHA-256 of that file's tensors without the header, by which other programs know it."""

    @property
    def kind(self) -> str:
        """What it is: LoRA, LoCon, LoHa, LoKr, or DoRA; several where its layers differ."""
        return " and ".join(sorted({kind_of(tensors) for tensors in self.modules.values()}))


def kind_of(tensors: Tensors) -> str:
    """Name the kind of one layer's tensors."""
    if "dora_scale" in tensors:
        return "DoRA"
    if "lora_mid" in tensors:
        return "LoCon"
    return next((kind for start, kind in KINDS.items() if any(key.startswith(start) for key in tensors)), "unknown")


def delta(tensors: Tensors, weight: Tensor) -> Tensor:
    """Compute how one layer's weight changes at strength 1: fp32, of the weight's shape and on its device.

    Raises ValueError saying what does not fit.
    """
    refuse_misfit(tensors, weight)
    return _delta({name: tensor.to(weight.device, torch.float32) for name, tensor in tensors.items()}, weight.float())


def refuse_misfit(tensors: Tensors, weight: Tensor) -> None:
    """Raise ValueError where tensors do not fit each other or a weight, before anything large is computed."""
    try:
        shapes = {
            name: torch.empty_like(tensor, dtype=torch.float32, device="meta") for name, tensor in tensors.items()
        }
        _delta(shapes, torch.empty_like(weight, dtype=torch.float32, device="meta"))
    except KeyError as error:
        raise ValueError(f"lacks {error.args[0]}") from None
    except (RuntimeError, IndexError):  # of a product or a reshape
        held = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in sorted(tensors.items()))
        raise ValueError(f"holds {held}, which do not fit a weight of {list(weight.shape)}") from None


def _delta(tensors: Tensors, weight: Tensor) -> Tensor:
    kind = next((start for start in KINDS if any(name.startswith(start) for name in tensors)), None)
    if kind is None:
        raise ValueError(f"is of no known kind: {', '.join(sorted(tensors))}")
    if kind == "oft_":
        return _oft(tensors, weight)
    change, rank = {"lora_": _lora, "hada_": _loha, "lokr_": _lokr}[kind](tensors)
    if change.numel() != weight.numel() or len(change) != len(weight):
        raise ValueError(f"changes a weight of {list(change.shape)}, and this one has {list(weight.shape)}")
    change = change.reshape(weight.shape)
    if "alpha" in tensors and rank is not None:
        change = change * (tensors["alpha"].reshape(()) / rank)
    return _renormed(weight, change, tensors["dora_scale"]) if "dora_scale" in tensors else change


def _lora(tensors: Tensors) -> tuple[Tensor, int | None]:
    """Compute up @ down, or up @ mid @ down over a kernel (LoCon)."""
    up, down = tensors["lora_up"], tensors["lora_down"]
    rank = down.shape[0]
    if "lora_mid" in tensors:
        return torch.einsum("op,pqkl,qi->oikl", up.flatten(1), tensors["lora_mid"], down.flatten(1)), rank
    return (up.flatten(1) @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:]), rank


def _loha(tensors: Tensors) -> tuple[Tensor, int | None]:
    """Compute the elementwise product of two low-rank matrices."""

    def one(which: int) -> Tensor:
        a, b = tensors[f"hada_w{which}_a"], tensors[f"hada_w{which}_b"]
        core = tensors.get(f"hada_t{which}")
        return a @ b if core is None else torch.einsum("ijkl,jr,ip->prkl", core, b, a)

    return one(1) * one(2), tensors["hada_w1_b"].shape[0]


def _lokr(tensors: Tensors) -> tuple[Tensor, int | None]:
    """Compute the Kronecker product of two matrices, each whole or of low rank."""
    rank = None

    def one(which: int) -> Tensor:
        nonlocal rank
        if f"lokr_w{which}" in tensors:
            return tensors[f"lokr_w{which}"]
        a, b = tensors[f"lokr_w{which}_a"], tensors[f"lokr_w{which}_b"]
        rank = b.shape[0]
        core = tensors.get(f"lokr_t{which}")
        return a @ b if core is None else torch.einsum("ijkl,jr,ip->prkl", core, b, a)

    small, large = one(1), one(2)
    if large.ndim == 4 and small.ndim == 2:
        small = small[:, :, None, None]
    return torch.kron(small, large.contiguous()), rank  # which views them


def _renormed(weight: Tensor, change: Tensor, scale: Tensor) -> Tensor:
    """Compute the change of a weight whose norms along one axis, once changed, are `scale` (DoRA).

    The axis is told by the shape of `scale`, as files of both kinds have one name: an output's norm each, or an
    input's. Raises ValueError where it tells none.
    """
    outputs, inputs = weight.shape[:2]
    ones = (1,) * (weight.ndim - 2)
    axis: int | None = None
    if scale.ndim == 1 and outputs != inputs:
        axis = {outputs: 0, inputs: 1}.get(len(scale))
    elif scale.ndim > 1 and scale.numel() == max(scale.shape[:2]):
        axis = 0 if scale.shape[:2] == (outputs, 1) else 1 if scale.shape[:2] == (1, inputs) else None
    if axis is None:
        raise ValueError(
            f"dora_scale of shape {list(scale.shape)} does not tell whether it is of the inputs or the outputs of "
            f"a weight of {list(weight.shape)}"
        )
    changed = weight + change
    norm = changed.transpose(0, axis).flatten(1).norm(dim=1) + torch.finfo(torch.float32).eps
    factor = (scale.flatten() / norm).reshape(*((-1, 1) if axis == 0 else (1, -1)), *ones)
    return changed * factor - weight


def _oft(tensors: Tensors, weight: Tensor) -> Tensor:
    """Compute the change of a weight whose outputs, or inputs, are turned block by block (Cayley transform)."""
    if "oft_R" in tensors:
        skew = _skew(tensors["oft_R"])
        count = weight[0].numel() // skew.shape[1]
        turns = torch.linalg.solve(_eye(skew) + skew, _eye(skew) - skew, left=False).expand(count, -1, -1)
        turned = torch.einsum("okc,krc->okr", weight.reshape(len(weight), count, -1), turns)
        return turned.reshape(weight.shape) - weight
    blocks = tensors["oft_blocks"]
    if blocks.ndim != 3:
        raise ValueError("is a BOFT, which is not supported")
    skew = blocks - blocks.transpose(1, 2)
    if "alpha" in tensors:  # the largest norm, for each output; 0 for none
        norm, most = skew.norm() + 1e-8, tensors["alpha"].reshape(()) * len(weight)
        skew = skew * torch.where(most > 0, (most / norm).clamp(max=1), 1)
    turns = torch.linalg.solve(_eye(skew) - skew, _eye(skew) + skew, left=False)
    turned = torch.einsum("knm,kn...->km...", turns, weight.unflatten(0, blocks.shape[:2])).flatten(0, 1)
    return (turned * tensors["rescale"] if "rescale" in tensors else turned) - weight


def _eye(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], device=like.device, dtype=like.dtype)


def _skew(upper: Tensor) -> Tensor:
    """Make skew-symmetric matrices (n, b, b) of their upper triangles (n, b*(b-1)/2), row by row."""
    side = round((1 + (1 + 8 * upper.shape[1]) ** 0.5) / 2)
    rows, columns = torch.triu_indices(side, side, 1, device=upper.device)
    found = upper.new_zeros(len(upper), side, side)
    found[:, rows, columns] = upper
    return found - found.transpose(1, 2)


def layers(model: Family) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """List every layer of the model that an adapter can change, by `NETWORK.module.path`."""
    for network, root in model.trainable.items():
        for name, module in root.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                yield f"{network}.{name}", module


@torch.no_grad()
def apply(model: Family, adapter: Adapter, strength: float = 1.0) -> None:
    """Add `strength` times an adapter's change to the weights of a model, in place; at 0 nothing changes, to the bit.

    Raises ModelError naming the layer that does not fit, before anything has changed.
    """
    if not strength:
        return
    name_of = adapter.source or "adapter"
    known = dict(layers(model))
    if missing := [name for name in adapter.modules if name not in known]:
        raise ModelError(
            f"{name_of}: {len(missing)} of {len(adapter.modules)} layers are not in {model.source}: "
            f"{', '.join(shortened(name, 100) for name in missing[:3])}",
            "it was made for another base",
        )
    for name, tensors in adapter.modules.items():
        try:
            refuse_misfit(tensors, known[name].weight)
        except ValueError as error:
            raise ModelError(
                f"{name_of}: {name} {error}", f"it was made for another base than {model.source}"
            ) from None
    for name, weight in changed(adapter, {name: known[name].weight for name in adapter.modules}, strength):
        known[name].weight.copy_(weight)


@torch.no_grad()
def changed(adapter: Adapter, weights: Mapping[str, Tensor], strength: float = 1.0) -> Iterator[tuple[str, Tensor]]:
    """Compute the weights that an adapter makes of those of its layers, one at a time, and leave these as they are.

    Raises ModelError for one that is no longer finite.
    """
    for name, tensors in adapter.modules.items():
        weight = weights[name]
        made = (weight.float() + strength * delta(tensors, weight)).to(weight.dtype)
        if not made.isfinite().all():
            raise ModelError(
                f"{adapter.source or 'adapter'}: makes {name} NaN or infinite", "lower its strength, or leave it out"
            )
        yield name, made
