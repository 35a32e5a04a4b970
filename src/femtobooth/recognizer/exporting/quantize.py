"""A float ONNX classifier to INT8 (static QDQ), with every choice measured on pictures that did not set the ranges.

Activations are 8-bit per tensor, weights signed 8-bit per output channel, for Conv, Gemm and MatMul by a constant. In
order: ranges of activations by three methods, the one with the best signal-to-noise ratio wins; bias correction, if
it helps; layers ranked by the noise each makes alone; the noisiest stay in float while that pays, and then until the
accuracy lost is small enough, those last with which the noise grows. Nothing here sees the pictures that the parity
report is made of.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from ...core.events import note, progress_bar
from .activation_ranges import CLIPS, LAYERS, METHODS, Floats, Ranges, layers_of, observe, open_session

Biases = dict[str, Floats]  # corrected bias of a layer, by the layer's name

PROBE = 8  # pictures that rank layers: each costs a run for every layer
PAYS = 1.0  # dB of signal-to-noise ratio that a layer kept in float must bring ...
SPARE = 0.05  # ... for as long as the layers in float are at most this share of all multiply-adds
HELD_OUT = 4  # every fourth representative picture sets no range and chooses instead


@dataclass(frozen=True)
class Scheme:
    """How numbers become 8-bit ones."""

    methods: Sequence[str] = METHODS
    """Those to choose from."""
    reduce_range: bool = False
    """7-bit weights: without VNNI, x86 sums pairs of products in 16 bits, which 8-bit ones overflow in silence."""
    symmetric: bool = False
    """Signed activations around zero and float biases, as TensorRT wants them."""


@dataclass(frozen=True)
class Trial:
    """One variant that was tried."""

    name: str
    snr: float
    """Signal-to-noise ratio of the logits on held-out representative pictures [dB]."""
    lost: float
    """Top-1 accuracy lost (agreement, without labels) on all representative pictures [points]."""


@dataclass(frozen=True)
class Layer:
    """A layer and the noise that quantizing only this one makes."""

    name: str
    kind: str
    snr: float
    """Signal-to-noise ratio of the logits [dB]; low is sensitive."""
    share: float
    """Its part of all multiply-adds, 0 to 1."""
    kept: bool = False
    """Left in float."""


@dataclass(frozen=True)
class Quantized:
    """The result and how it came about."""

    model: ModelProto
    activation_ranges: str
    bias_corrected: bool
    trials: list[Trial]
    taken: int
    """Which of the trials this is."""
    layers: list[Layer]
    """Most sensitive first."""

    def report(self) -> dict[str, Any]:
        """Give plain JSON values."""
        return {
            "activation_ranges": self.activation_ranges,
            "bias_corrected": self.bias_corrected,
            "kept_in_float": [layer.name for layer in self.layers if layer.kept],
            "trials": [vars(trial) | {"taken": index == self.taken} for index, trial in enumerate(self.trials)],
            "layers": [vars(layer) for layer in self.layers],
        }


def quantize(
    model: ModelProto,
    pictures: NDArray[Any],
    lost: Callable[[Floats, Floats], float],
    max_drop: float,
    scheme: Scheme,
    threads: int = 1,
) -> Quantized:
    """Quantize `model` (one input; first output: logits) so that at most `max_drop` points are lost, if that can be
    done.

    `pictures` (N, ...) are rows of its input; `lost(before, after)` judges logits (N, n) in points. The caller checks
    the result on other pictures; here a miss is left to that check.
    """
    note("preparing the graph for 8 bits")
    model = _prepared(model)
    held_out = np.arange(len(pictures)) % HELD_OUT == HELD_OUT - 1
    before = _logits(model, pictures, threads)
    seen = observe(model, pictures[~held_out], threads)
    trials: list[Trial] = []

    def attempt(name: str, ranges: Ranges, biases: Biases, kept: Sequence[str] = ()) -> tuple[ModelProto, Trial]:
        made = _with_qdq(model, ranges, scheme, biases, kept)
        after = _logits(made, pictures, threads)
        trials.append(Trial(name, _snr(before[held_out], after[held_out]), lost(before, after)))
        note(f"tried {name}: {trials[-1].snr:.1f} dB, {trials[-1].lost:.1f} points lost")
        return made, trials[-1]

    candidates = {name: seen.ranges(name) for name in scheme.methods}
    tried = {name: attempt(name, ranges, {}) for name, ranges in candidates.items()}
    method = max(tried, key=lambda name: tried[name][1].snr)
    (best, trial), ranges = tried[method], candidates[method]

    biases = _corrected_biases(model, seen.means, scheme)
    corrected, after = attempt("bias correction", ranges, biases)
    bias_corrected = after.snr > trial.snr
    if bias_corrected:
        best, trial = corrected, after
    else:
        biases = {}

    ranking = _ranked(model, ranges, scheme, biases, pictures[held_out][:PROBE], seen.work, threads)
    kept: list[str] = []
    spent = 0.0
    waiting, put_off = [*ranking], set()
    while waiting:
        layer = waiting.pop(0)
        needed = trial.lost > max_drop
        spent += 0.0 if layer.name in put_off else layer.share
        if not needed and (spent > SPARE or layer.name in put_off):
            break
        made, after = attempt(f"{len(kept) + 1} in float", ranges, biases, [*kept, layer.name])
        if not needed and after.snr < trial.snr + PAYS:
            break
        if layer.name not in put_off and after.snr < trial.snr and after.lost >= trial.lost:
            put_off.add(
                layer.name
            )  # errors of layers may cancel each other: this one is worse in float while the others are not
            waiting.append(layer)
            continue
        kept, best, trial = [*kept, layer.name], made, after
    layers = [Layer(**{**vars(layer), "kept": layer.name in kept}) for layer in ranking]
    return Quantized(best, method, bias_corrected, trials, trials.index(trial), layers)


def saturates() -> bool:
    """Tell whether 8-bit sums may overflow on this machine: an x86 processor without VNNI."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx2" in flags and "vnni" not in flags


# Bias correction


def _corrected_biases(model: ModelProto, means: dict[str, Floats], scheme: Scheme) -> Biases:
    """Compute biases without the mean error that rounded weights cause (Nagel et al. 2019, arXiv 1906.04721, section
    4.2).

    A layer is linear: its mean output error over pictures is that of the mean input under the weights round(W) - W.
    """
    import torch
    from torch.nn import functional

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    corrected: Biases = {}
    for layer in layers_of(model):
        attributes = {one.name: onnx.helper.get_attribute_value(one) for one in layer.attribute}
        if (
            len(layer.input) < 3
            or layer.input[2] not in constants
            or attributes.get("auto_pad", b"NOTSET") != b"NOTSET"
        ):
            continue
        weight, bias = (numpy_helper.to_array(constants[name]) for name in layer.input[1:3])
        mean = torch.from_numpy(np.asarray(means[layer.input[0]], np.float32))
        axis = 0 if layer.op_type == "Conv" or attributes.get("transB") else 1
        error = torch.from_numpy(_rounded(weight, axis, scheme.reduce_range) - weight)
        if layer.op_type == "Conv" and mean.ndim == 3:
            pads = attributes.get("pads", [0, 0, 0, 0])
            padded = functional.pad(mean[None], (pads[1], pads[3], pads[0], pads[2]))
            strides, dilations = attributes.get("strides", [1, 1]), attributes.get("dilations", [1, 1])
            moved = functional.conv2d(padded, error, None, strides, 0, dilations, attributes.get("group", 1)).mean(
                (0, 2, 3)
            )
        elif layer.op_type == "Gemm" and not attributes.get("transA"):
            moved = mean.flatten() @ (error.T if axis == 0 else error)
        else:
            continue
        corrected[layer.name] = bias - moved.numpy().reshape(bias.shape)
    return corrected


def _rounded(weight: Floats, axis: int, reduce_range: bool) -> Floats:
    """Round weights as 8 (7) symmetric bits for each channel hold them."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    largest = 64 if reduce_range else 127
    scale = np.maximum(np.abs(weight).max(axis=others, keepdims=True) / largest, 1e-30)
    return (np.rint(weight / scale) * scale).astype(np.float32)


# Quantizing and judging


def _ranked(
    model: ModelProto,
    ranges: Ranges,
    scheme: Scheme,
    biases: Biases,
    pictures: NDArray[Any],
    work: dict[str, float],
    threads: int,
) -> list[Layer]:
    """Quantize each layer alone, the noisiest first."""
    before = _logits(model, pictures, threads)
    layers = layers_of(model)
    found = []
    with progress_bar("sensitivity of layers", len(layers)) as bar:
        for layer in layers:
            others = [other.name for other in layers if other.name != layer.name]
            after = _logits(_with_qdq(model, ranges, scheme, biases, kept=others), pictures, threads)
            found.append(Layer(layer.name, layer.op_type, _snr(before, after), work[layer.name]))
            bar.advance()
    return sorted(found, key=lambda layer: layer.snr)


def _with_qdq(model: ModelProto, ranges: Ranges, scheme: Scheme, biases: Biases, kept: Sequence[str]) -> ModelProto:
    """Build the model with QuantizeLinear/DequantizeLinear and corrected biases for all layers but those `kept` in
    float.
    """
    from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData

    source = ModelProto()
    source.CopyFrom(model)
    data = {name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in ranges.items()}
    constants = {tensor.name: tensor for tensor in source.graph.initializer}
    layers = layers_of(source)
    for layer in layers:
        if layer.name in biases and layer.name not in kept:
            constants[layer.input[2]].CopyFrom(numpy_helper.from_array(biases[layer.name], layer.input[2]))
    quantized = {layer.output[0] for layer in layers if layer.name not in kept}
    quantizer = QDQQuantizer(
        source,
        per_channel=True,
        reduce_range=scheme.reduce_range,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8 if scheme.symmetric else QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, data),
        nodes_to_quantize=[],
        nodes_to_exclude=[
            *kept,
            *(node.name for node in source.graph.node if node.op_type in CLIPS and node.input[0] not in quantized),
        ],
        op_types_to_quantize=[*LAYERS, *CLIPS],
        extra_options={
            "ActivationSymmetric": scheme.symmetric,
            "QuantizeBias": not scheme.symmetric,
            "MatMulConstBOnly": True,
            "QDQOpTypePerChannelSupportToAxis": {"MatMul": 1},
        },
    )
    with _quiet():
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    return quantizer.model.model


def _prepared(model: ModelProto) -> ModelProto:
    """Infer shapes, fold constants, fuse BatchNorm and name every node."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, target = Path(folder) / "source.onnx", Path(folder) / "target.onnx"
        onnx.save(model, source)
        quant_pre_process(source, target, skip_symbolic_shape=True)
        prepared = onnx.load(target)
    for index, node in enumerate(prepared.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    return prepared


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence ONNX Runtime's quantizer, which logs advice about itself on the root logger."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)


def _logits(model: ModelProto, pictures: NDArray[Any], threads: int) -> Floats:
    session = open_session(model, threads)
    name, first = session.get_inputs()[0].name, session.get_outputs()[0].name
    return np.concatenate([session.run([first], {name: pictures[i : i + 8]})[0] for i in range(0, len(pictures), 8)])


def _snr(before: Floats, after: Floats) -> float:
    """Compute the signal-to-noise ratio [dB]."""
    noise = float(((before - after).astype(np.float64) ** 2).sum())
    return float(10 * np.log10(max(float((before.astype(np.float64) ** 2).sum()), 1e-30) / max(noise, 1e-30)))
