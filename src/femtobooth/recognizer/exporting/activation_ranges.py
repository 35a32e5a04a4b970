"""What the activations of an ONNX model look like on pictures, and the 8-bit ranges that three methods make of
it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from ...core.events import progress_bar

Floats = NDArray[np.floating]
Ranges = dict[str, tuple[float, float]]

METHODS = ("minmax", "percentile", "entropy")
LAYERS = ("Conv", "Gemm", "MatMul")
CLIPS = ("Clip", "Relu")  # what follows a layer and only clips is folded into its quantized range
BINS = 2048
LEVELS = 256
PERCENTILE = 99.99
SAMPLE = 2**16  # values of each tensor and picture that a histogram counts


class Seen:
    """What activations looked like: histograms (BINS,) of each tensor, and the mean input of each layer."""

    def __init__(self, low: dict[str, float], high: dict[str, float]) -> None:
        self.low, self.high = low, high
        self.counts = {name: np.zeros(BINS, np.int64) for name in low}
        self.means: dict[str, Floats] = {}
        self.work: dict[str, float] = {}

    def ranges(self, method: str) -> Ranges:
        """Choose the range of each tensor by a method."""
        choose = {"minmax": _minmax, "percentile": _percentile, "entropy": _entropy}[method]
        return {name: choose(counts, self.low[name], self.high[name]) for name, counts in self.counts.items()}


def _minmax(counts: NDArray[np.int64], low: float, high: float) -> tuple[float, float]:
    return low, high


def _percentile(counts: NDArray[np.int64], low: float, high: float) -> tuple[float, float]:
    """Cut (100 - PERCENTILE) % of the values, half of them on each side."""
    edges = np.linspace(low, high, BINS + 1)
    share = np.cumsum(counts) / counts.sum()
    cut = (100 - PERCENTILE) / 200
    first, last = int(np.searchsorted(share, cut)), int(np.searchsorted(share, 1 - cut))
    return float(edges[first]), float(edges[min(last + 1, BINS)])


def _entropy(counts: NDArray[np.int64], low: float, high: float) -> tuple[float, float]:
    """Find the range whose 256 levels lose the least information about the histogram (Migacz 2017, "8-bit inference
    with TensorRT").

    Values of a magnitude above a limit are cut off: they count at the ends of the reference, not of its coarse copy.
    """
    best, chosen = np.inf, (low, high)
    edges = np.linspace(low, high, BINS + 1)
    counts = counts.copy()
    for spike in (
        int(np.searchsorted(edges, 0.0, side="right")) - 1,
        BINS - 1,
    ):  # clips pile values up there, which hides the shape
        if 0 <= spike < BINS:
            counts[spike] = min(int(counts[spike]), int(counts[spike - 1 if spike else 1]))
    for limit in max(abs(low), abs(high)) * np.linspace(1.0, 0.05, 96):
        first = int(np.searchsorted(edges, -limit, side="right")) - 1 if low < -limit else 0
        end = int(np.searchsorted(edges, limit, side="left")) if high > limit else BINS
        inside = counts[first:end].astype(np.float64)
        if len(inside) < LEVELS:
            break
        reference = inside.copy()
        reference[0] += counts[:first].sum()
        reference[-1] += counts[end:].sum()
        level = np.arange(len(inside)) * LEVELS // len(inside)
        filled = inside > 0
        mass = np.bincount(level, inside, LEVELS) / np.maximum(np.bincount(level, filled, LEVELS), 1)
        coarse = mass[level] * filled
        p, q = reference / reference.sum(), coarse / max(coarse.sum(), 1e-30)
        support = p > 0
        divergence = float((p[support] * np.log(p[support] / np.maximum(q[support], 1e-10))).sum())
        if divergence < best - 1e-12:
            best, chosen = divergence, (float(edges[first]), float(edges[end]))
    return chosen


def observe(model: ModelProto, pictures: NDArray[Any], threads: int) -> Seen:
    """Run the float model twice over the pictures, one at a time: for the ends of each range, then for histograms
    within.
    """
    layers = layers_of(model)
    inputs, names = {layer.input[0] for layer in layers}, _activations(model)
    probe = ModelProto()
    probe.CopyFrom(model)
    given = model.graph.input[0].name
    present = {output.name for output in probe.graph.output}
    probe.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in {*present, given}
    )
    session = open_session(probe, threads)
    low: dict[str, float] = {}
    high: dict[str, float] = {}

    def passes(what: str) -> Iterator[dict[str, Floats]]:
        with progress_bar(what, len(pictures)) as bar:
            asked = [name for name in names if name != given]
            for picture in pictures:
                yield {
                    given: picture[None],
                    **dict(zip(asked, session.run(asked, {given: picture[None]}), strict=True)),
                }
                bar.advance()

    for values in passes("ranges"):
        for name in names:
            low[name] = min(low.get(name, np.inf), float(values[name].min()))
            high[name] = max(high.get(name, -np.inf), float(values[name].max()))
    seen = Seen(low, high)
    for values in passes("histograms"):
        for name in names:
            some = values[name].ravel()[:: values[name].size // SAMPLE | 1]  # an odd stride meets every column
            bins = (some - low[name]) * ((BINS - 1) / max(high[name] - low[name], 1e-30))
            seen.counts[name] += np.bincount(bins.astype(np.int32), minlength=BINS)
        for name in inputs:
            seen.means[name] = seen.means.get(name, 0.0) + values[name][0] / len(pictures)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    work = {
        layer.name: _multiply_adds(layer, weights[layer.input[1]].dims, values[layer.output[0]].shape)
        for layer in layers
    }
    seen.work = {name: part / sum(work.values()) for name, part in work.items()}
    return seen


def _activations(model: ModelProto) -> list[str]:
    """List tensors that need a range: in and out of every layer, and behind what clips it."""
    layers = layers_of(model)
    outputs = {layer.output[0] for layer in layers}
    clipped = {node.output[0] for node in model.graph.node if node.op_type in CLIPS and node.input[0] in outputs}
    return sorted(outputs | clipped | {layer.input[0] for layer in layers})


def _multiply_adds(layer: NodeProto, weight: Sequence[int], output: Sequence[int]) -> float:
    each = np.prod(weight[1:]) if layer.op_type == "Conv" else weight[0] * weight[1] / output[-1]
    return float(np.prod(output[1:]) * each)


def layers_of(model: ModelProto) -> list[NodeProto]:
    """List what is quantized: layers whose weights are constants, in order."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [node for node in model.graph.node if node.op_type in LAYERS and node.input[1] in constants]


def open_session(model: ModelProto, threads: int) -> onnxruntime.InferenceSession:
    """Open a model in ONNX Runtime on the processor."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
