"""How weights that do not train are held beside an adapter (`train.frozen_precision`): in 32, 16, 8 or 4 bits a number.

    hold(model, "int8")

In 8 and 4 bits are the weights of Linear layers and convolutions, as bitsandbytes rounds them: int8 by a scale for each
output (Dettmers et al., arXiv 2208.07339), nf4 to the 16 quantiles of a normal distribution by a scale for 64 numbers
(QLoRA, arXiv 2305.14314). A denoiser's first and last convolution and all that is not such a weight is in bf16. Such a
layer computes with a bf16 weight that it makes when it is called and forgets again, in the backward pass too.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_input

from ..core import machine
from ..core.machine import Precision
from .families.family import Family

BESIDE: machine.FloatPrecision = "bf16"
"""What is held where 8 bits are too few, and what layers of 8 and 4 bits compute with."""
ENDS = (  # of a denoiser: errors would be seen most there
    "conv_in", "conv_out", "pos_embed.proj", "proj_out", "x_embedder",
    "all_x_embedder.2-1", "all_final_layer.2-1.linear",
)  # fmt: skip
BLOCK = 64  # numbers that share a scale in 4 bits
AT_ONCE = 1 << 20  # numbers that are rounded or restored at a time


def dtype(precision: Precision) -> torch.dtype:
    """Name the number format that is computed with."""
    if precision == "int8" or precision == "nf4":  # noqa: PLR1714  (mypy reads this alone)
        return machine.dtype(BESIDE)
    return machine.dtype(precision)


def hold(model: Family, precision: Precision) -> None:
    """Hold all networks but the VAE in this number format, in place; before an adapter is put into them."""
    for part in model.can_be_rounded() if precision != "fp32" else ():
        network, held = getattr(model, part), model.held_in(part, precision)
        for name, parameter in [*network.named_parameters()]:
            if (tensor := kept(network, name, parameter.data, held)) is not None:
                parameter.data = tensor
    model.held = precision


def kept(network: nn.Module, name: str, tensor: Tensor, precision: Precision) -> Tensor | None:
    """Copy a tensor that will be `name` of a network, as it is to be held; None where its layer has taken it."""
    path, _, kind = name.rpartition(".")
    if precision in ("int8", "nf4") and kind == "weight" and path not in ENDS:
        layer = network.get_submodule(path)
        if type(layer) in _ROUNDED:
            _take(layer, tensor, precision)
            return None
    return tensor.to(dtype(precision), copy=True, memory_format=torch.contiguous_format)


class Rounded(nn.Module):
    """What a layer becomes whose weight is held in 8 or 4 bits."""

    numbers: Tensor
    """(out, in) int8 with all axes of inputs in one, or (ceil(count / 2),) uint8 of two numbers each."""
    scales: Tensor
    """(out,) or (ceil(count / BLOCK),) float32."""
    shape: torch.Size
    precision: Literal["int8", "nf4"]
    stand_in: Tensor | None

    @property
    def weight(self) -> Tensor:
        """Give the weight in 16 bits, made anew each time."""
        if self.stand_in is not None:
            return self.stand_in
        made = torch.empty(self.shape, dtype=machine.dtype(BESIDE), device=self.numbers.device)
        if not made.is_meta:
            restore = {"int8": _restore_int8, "nf4": _restore_nf4}[self.precision]
            restore(self.numbers, self.scales, made)
        return made

    def forward(self, values: Tensor) -> Tensor:
        found: Tensor = _Forgetful.apply(values, self)
        return found

    def computed(self, values: Tensor, weight: Tensor) -> Tensor:
        """Compute what the layer does."""
        raise NotImplementedError

    def gradient(self, gradient: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        """Compute the gradient of values of this shape."""
        raise NotImplementedError


def count(network: nn.Module) -> int:
    """Count the parameters of a network, those that are held in fewer bits among them."""
    rounded = (one.shape.numel() for one in network.modules() if isinstance(one, Rounded))
    return sum(one.numel() for one in network.parameters()) + sum(rounded)


class _Linear(Rounded, nn.Linear):  # type: ignore[override]
    def computed(self, values: Tensor, weight: Tensor) -> Tensor:
        return functional.linear(values, weight, self.bias)

    def gradient(self, gradient: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        return gradient @ weight


class _Conv2d(Rounded, nn.Conv2d):  # type: ignore[override]
    def computed(self, values: Tensor, weight: Tensor) -> Tensor:
        return self._conv_forward(values, weight, self.bias)

    def gradient(self, gradient: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        how: Any = (self.stride, self.padding, self.dilation, self.groups)
        return conv2d_input(shape, weight, gradient, *how)


_ROUNDED: dict[type[nn.Module], type[Rounded]] = {nn.Linear: _Linear, nn.Conv2d: _Conv2d}


class _Forgetful(torch.autograd.Function):
    """A layer's call that keeps nothing for the backward pass but the layer."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, layer: Rounded) -> Tensor:
        ctx.layer, ctx.shape, ctx.dtype = layer, values.shape, values.dtype
        return layer.computed(values, layer.weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        found = ctx.layer.gradient(gradient, ctx.layer.weight.to(gradient.dtype), ctx.shape)
        return found.to(ctx.dtype), None


def _take(layer: nn.Module, weight: Tensor, precision: Literal["int8", "nf4"]) -> None:
    """Give a layer its weight in 8 or 4 bits, in place of what it has."""
    count, device = weight.numel(), weight.device
    if precision == "int8":
        numbers = torch.empty(len(weight), count // len(weight), dtype=torch.int8, device=device)
        scales = torch.empty(len(weight), device=device)
    else:
        numbers = torch.empty(-(-count // 2), dtype=torch.uint8, device=device)
        scales = torch.empty(-(-count // BLOCK), device=device)
    if not weight.is_meta:
        {"int8": _round_int8, "nf4": _round_nf4}[precision](weight, numbers, scales)
    become(layer, numbers, scales)


def become(layer: nn.Module, numbers: Tensor, scales: Tensor) -> None:
    """Make a layer one whose weight is held in 8 or 4 bits: in these numbers and scales."""
    made: Any = layer
    if not isinstance(layer, Rounded):
        made.shape, made.stand_in = made._parameters.pop("weight").shape, None
        made.__class__ = _ROUNDED[type(layer)]
    made.precision = "int8" if numbers.dtype == torch.int8 else "nf4"
    made.register_buffer("numbers", numbers, persistent=False)
    made.register_buffer("scales", scales, persistent=False)


# --- bitsandbytes', a piece at a time: what it needs for itself is many times the piece


def _functional() -> Any:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # kernels that it would do without
    from bitsandbytes import functional

    return functional


def _pieces(count: int, step: int) -> Iterator[slice]:
    return (slice(first, min(first + step, count)) for first in range(0, count, step))


def _round_int8(weight: Tensor, numbers: Tensor, scales: Tensor) -> None:
    ours = weight.reshape(numbers.shape)
    for rows in _pieces(len(ours), max(1, AT_ONCE // ours.shape[1])):
        numbers[rows], scales[rows], _ = _functional().int8_vectorwise_quant(ours[rows].half())


def _restore_int8(numbers: Tensor, scales: Tensor, made: Tensor) -> None:
    ours = made.view(numbers.shape)
    for rows in _pieces(len(ours), max(1, AT_ONCE // ours.shape[1])):
        ours[rows] = _functional().int8_vectorwise_dequant(numbers[rows], scales[rows])


def _round_nf4(weight: Tensor, numbers: Tensor, scales: Tensor) -> None:
    ours = weight.reshape(-1)
    for piece in _pieces(len(ours), AT_ONCE):
        made, state = _functional().quantize_4bit(ours[piece].float(), blocksize=BLOCK, quant_type="nf4")
        first = piece.start
        numbers[first // 2 : first // 2 + len(made)] = made.reshape(-1)
        scales[first // BLOCK : first // BLOCK + len(state.absmax)] = state.absmax


def _restore_nf4(numbers: Tensor, scales: Tensor, made: Tensor) -> None:
    library, ours = _functional(), made.view(-1)
    for piece in _pieces(len(ours), AT_ONCE):
        shape = torch.Size([piece.stop - piece.start])
        state = library.QuantState(
            absmax=scales[piece.start // BLOCK : -(-piece.stop // BLOCK)],
            shape=shape,
            code=library.get_4bit_type("nf4", device=made.device),
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=made.dtype,
        )
        half = numbers[piece.start // 2 : -(-piece.stop // 2), None]
        ours[piece] = library.dequantize_4bit(half, state)


@contextmanager
def looking_plain(network: nn.Module) -> Iterator[None]:
    """Let the weights of layers look like 32-bit zeros, for the time inside: what peft puts beside a layer takes on the
    number format of its weight, and what trains is 32-bit.
    """
    layers = [one for one in network.modules() if isinstance(one, (nn.Linear, nn.Conv2d))]
    rounded = [one for one in layers if isinstance(one, Rounded)]
    plain = [(one, one.weight.data) for one in layers if not isinstance(one, Rounded)]
    try:
        for layer in rounded:
            layer.stand_in = torch.zeros((), device=layer.numbers.device).expand(layer.shape)
        for one, weight in plain:
            one.weight.data = torch.zeros((), device=weight.device).expand(weight.shape)
        yield
    finally:
        for layer in rounded:
            layer.stand_in = None
        for one, weight in plain:
            one.weight.data = weight
