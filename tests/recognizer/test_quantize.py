"""Static quantization: ranges, bias correction, sensitivity, accuracy control; on real ONNX models in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from femtobooth.recognizer.exporting import activation_ranges, quantize
from femtobooth.recognizer.exporting.quantize import Scheme


def agreement_lost(before: NDArray[np.floating], after: NDArray[np.floating]) -> float:
    return 100 * float((before.argmax(1) != after.argmax(1)).mean())


@pytest.fixture(scope="module")
def pictures() -> NDArray[np.float32]:
    blocks = np.random.default_rng(0).normal(size=(24, 3, 8, 8)).astype(np.float32)
    return blocks.repeat(8, axis=2).repeat(8, axis=3)


@pytest.fixture(scope="module")
def model(tiny_onnx: Path) -> ModelProto:
    return onnx.load(tiny_onnx / "model.onnx")


@pytest.fixture(scope="module")
def made(model: ModelProto, pictures: NDArray[np.float32]) -> quantize.Quantized:
    return quantize.quantize(model, pictures, agreement_lost, 100.0, Scheme())


def types(model: ModelProto) -> dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def test_weights_are_signed_per_channel_and_activations_unsigned(made: quantize.Quantized) -> None:
    kinds, constants = types(made.model), {tensor.name: tensor for tensor in made.model.graph.initializer}
    quantized = [
        node for node in made.model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in kinds
    ]
    weights = [node for node in quantized if kinds[node.input[0]] == onnx.TensorProto.INT8]
    assert len(weights) == sum(not layer.kept for layer in made.layers)
    assert all(len(numpy_helper.to_array(constants[node.input[1]])) > 1 for node in weights)
    activations = [node for node in made.model.graph.node if node.op_type == "QuantizeLinear"]
    assert {kinds[node.input[2]] for node in activations} == {onnx.TensorProto.UINT8}


def test_all_methods_are_tried_and_the_best_is_taken(made: quantize.Quantized) -> None:
    first = {trial.name: trial.snr for trial in made.trials[:3]}
    assert set(first) == set(activation_ranges.METHODS)
    assert made.activation_ranges == max(first, key=lambda name: first[name])


def test_the_report_says_which_variant_was_taken(
    made: quantize.Quantized, model: ModelProto, pictures: NDArray[np.float32]
) -> None:
    report = made.report()
    (taken,) = (trial for trial in report["trials"] if trial["taken"])
    before, after = (quantize._logits(one, pictures, 1) for one in (quantize._prepared(model), made.model))
    held_out = np.arange(len(pictures)) % quantize.HELD_OUT == quantize.HELD_OUT - 1
    assert taken["snr"] == pytest.approx(quantize._snr(before[held_out], after[held_out]), abs=0.1)


def test_a_layer_with_which_the_noise_grows_in_float_waits(
    model: ModelProto, pictures: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors that cancel each other, by hand: the noisiest layer alone in float makes things worse."""
    snr = iter(
        [30.0, 20.0, 33.8, 21.9, 35.0]
    )  # two methods, bias correction, then one layer in float and the next instead
    monkeypatch.setattr(quantize, "_ranked", lambda *_: [quantize.Layer(name, "Conv", 1.0, 0.01) for name in names])
    names = [layer.name for layer in activation_ranges.layers_of(quantize._prepared(model))][:2]
    monkeypatch.setattr(quantize, "_snr", lambda *_: next(snr))
    lost = iter([5.0, 5.0, 5.0, 5.0, 0.0])
    found = quantize.quantize(model, pictures[:8], lambda *_: next(lost), 1.0, Scheme(methods=("minmax", "percentile")))
    assert [layer.name for layer in found.layers if layer.kept] == [names[1]]
    assert [(trial.name, trial.snr) for trial in found.trials[2:]] == [
        ("bias correction", 33.8),
        ("1 in float", 21.9),
        ("1 in float", 35.0),
    ]
    assert found.taken == 4


def test_layers_are_ranked_and_account_for_all_work(made: quantize.Quantized) -> None:
    assert [layer.snr for layer in made.layers] == sorted(layer.snr for layer in made.layers)
    assert sum(layer.share for layer in made.layers) == pytest.approx(1)
    assert {layer.kind for layer in made.layers} <= set(activation_ranges.LAYERS)


def test_layers_return_to_float_until_enough_is_right(model: ModelProto, pictures: NDArray[np.float32]) -> None:
    def strict(before: NDArray[np.floating], after: NDArray[np.floating]) -> float:
        return 100 * float(np.abs(before - after).max() > 1e-2)  # nothing but almost all in float is good enough

    made = quantize.quantize(model, pictures, strict, 1.0, Scheme(methods=("minmax",)))
    assert made.trials[-1].lost <= 1.0
    assert sum(layer.kept for layer in made.layers) > 1


def test_float_layers_keep_their_bias_uncorrected(model: ModelProto, pictures: NDArray[np.float32]) -> None:
    prepared = quantize._prepared(model)
    seen = activation_ranges.observe(prepared, pictures, 1)
    biases = quantize._corrected_biases(prepared, seen.means, Scheme())
    all_float = quantize._with_qdq(
        prepared, seen.ranges("minmax"), Scheme(), biases, [one.name for one in activation_ranges.layers_of(prepared)]
    )
    same = quantize._logits(prepared, pictures, 1)
    np.testing.assert_allclose(quantize._logits(all_float, pictures, 1), same, rtol=1e-5, atol=1e-5)


def test_bias_correction_takes_out_the_mean_error_of_rounded_weights() -> None:
    random = np.random.default_rng(1)
    weight, bias = random.normal(size=(5, 7)).astype(np.float32), np.zeros(5, np.float32)
    weight[:, 0] *= 30  # a wide range rounds the other weights coarsely
    x = (random.random((200, 7)) + 1).astype(np.float32)
    gemm = onnx.helper.make_node("Gemm", ["pixels", "w", "b"], ["logits"], name="layer", transB=1)
    inputs, outputs = (
        onnx.helper.make_tensor_value_info(name, 1, ["n", size]) for name, size in (("pixels", 7), ("logits", 5))
    )
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")]
    model = onnx.helper.make_model(onnx.helper.make_graph([gemm], "g", [inputs], [outputs], constants))
    corrected = quantize._corrected_biases(model, {"pixels": x.mean(axis=0)}, Scheme())["layer"]
    rounded = quantize._rounded(weight, 0, False)
    wrong = np.abs((x @ rounded.T - x @ weight.T).mean(axis=0)).max()
    assert wrong > 0.05
    assert np.abs((x @ rounded.T + corrected - x @ weight.T).mean(axis=0)).max() < wrong / 1000


def test_reduced_range_has_seven_bits(model: ModelProto, pictures: NDArray[np.float32]) -> None:
    prepared = quantize._prepared(model)
    ranges = activation_ranges.observe(prepared, pictures[:4], 1).ranges("minmax")
    made = quantize._with_qdq(prepared, ranges, Scheme(reduce_range=True), {}, [])
    largest = [
        np.abs(numpy_helper.to_array(t).astype(int)).max()
        for t in made.graph.initializer
        if t.data_type == onnx.TensorProto.INT8
    ]
    assert max(largest) == 64


def test_tensorrt_gets_symmetric_activations_and_float_biases(model: ModelProto, pictures: NDArray[np.float32]) -> None:
    prepared = quantize._prepared(model)
    ranges = activation_ranges.observe(prepared, pictures[:4], 1).ranges("minmax")
    made = quantize._with_qdq(prepared, ranges, Scheme(symmetric=True), {}, [])
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    zero_points = [
        constants[node.input[2]]
        for node in made.graph.node
        if node.op_type.endswith("quantizeLinear") or node.op_type == "QuantizeLinear"
    ]
    assert zero_points
    assert all((point == 0).all() for point in zero_points)
    assert not any(values.dtype == np.int32 for values in constants.values())


def test_outliers_widen_only_minmax() -> None:
    values = np.concatenate([np.random.default_rng(0).normal(size=10**6), [60.0]])
    counts = np.histogram(values, activation_ranges.BINS)[0]
    low, high = float(values.min()), float(values.max())
    assert activation_ranges._minmax(counts, low, high) == (low, high)
    for choose in (activation_ranges._percentile, activation_ranges._entropy):
        _, end = choose(counts, low, high)
        assert 2 < end < 30


def test_entropy_keeps_a_uniform_range() -> None:
    low, high = activation_ranges._entropy(np.full(activation_ranges.BINS, 1000), 0.0, 6.0)
    assert low == 0
    assert high > 5.9
