"""A recognizer as a graph of another runtime: logits and embedding, dynamic batch, and in its metadata what belongs to
it.

    onnx, tensorrt   model.onnx    metadata_props of the model
    openvino         model.xml     rt_info/femtobooth of the model
    torchscript      model.pt      the extra file recognizer.json
    pt2              model.pt2     the same
    litert, coreml, executorch, ncnn     see foreign.py: converted by a process of its own

Input: `pixels`, float32 (B, 3, H, W) normalized, or uint8 (B, H, W, 3) where the graph normalizes; resizing and
cropping stay outside, for no runtime does them to the bit as PIL. Outputs: `logits` (B, n) and `embedding` (B, D),
float32.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...core.errors import SettingsError, needs
from ..model import artifact
from ..model.artifact import Description
from ..model.backbone import Recognizer
from ..model.formats import FORMATS, INPUT, OUTPUTS

OPSET = 20  # the first with Gelu as one operator


class Graph(nn.Module):
    """What is exported: one input, two outputs."""

    def __init__(self, recognizer: Recognizer, inside: bool, half: bool = False) -> None:
        """Wrap a recognizer: `inside` has the graph normalize; `half` has it compute in float16 between float32 (or
        uint8) and float32.
        """
        super().__init__()
        self.recognizer = copy.deepcopy(recognizer).half() if half else recognizer
        self.inside = inside
        self.dtype = torch.float16 if half else torch.float32

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        x = self.recognizer.preprocess.normalize(pixels) if self.inside else pixels
        outputs = self.recognizer.outputs(x.to(self.dtype))
        return outputs["logits"].float(), outputs["embedding"].float()

    def example(self, batch: int) -> Tensor:
        """Return an input of the right kind."""
        height, width = self.recognizer.preprocess.size
        return (
            torch.zeros(batch, height, width, 3, dtype=torch.uint8)
            if self.inside
            else torch.zeros(batch, 3, height, width)
        )


def to_onnx(graph: Graph) -> Any:
    """Return the graph as an onnx.ModelProto, its batch dynamic.

    Raises SettingsError where an exporter's package is missing.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise missing("onnx", str(error.name), "onnx") from None
    batch = {0: torch.export.Dim("batch", min=1)}
    with _quiet():
        program = torch.onnx.export(
            graph.eval(),
            (graph.example(2),),
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes={"pixels": batch},
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    model: onnx.ModelProto = program.model_proto
    del model.metadata_props[:]
    for part in (
        *model.graph.node,
        *model.graph.input,
        *model.graph.output,
        *model.graph.value_info,
        *model.graph.initializer,
        model.graph,
    ):
        del part.metadata_props[:]  # stack traces with paths of this machine
    return model


def write_onnx(model: Any, folder: Path, description: Description) -> None:
    """Write model.onnx with its metadata."""
    import onnx

    model.producer_name = "femtobooth"
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, metadata(description))
    onnx.checker.check_model(model)
    onnx.save(model, folder / FORMATS["onnx"].file)


def write_openvino(model: Any, folder: Path, description: Description, half: bool) -> None:
    """Write model.xml and model.bin, made from ONNX; `half` stores the weights as float16. Raises SettingsError."""
    try:
        import openvino
    except ImportError:
        raise missing("openvino", "openvino", "openvino") from None
    source = folder / "source.onnx"
    write_onnx(model, folder, description)
    (folder / FORMATS["onnx"].file).rename(source)
    try:
        converted = openvino.convert_model(source)
        for key, value in metadata(description).items():
            converted.set_rt_info(value, ["femtobooth", key])
        openvino.save_model(converted, folder / FORMATS["openvino"].file, compress_to_fp16=half)
    finally:
        source.unlink()


def write_torchscript(graph: Graph, folder: Path, description: Description) -> None:
    """Write model.pt, traced."""
    with torch.no_grad(), _quiet():
        frozen = torch.jit.freeze(torch.jit.trace(graph.eval(), graph.example(2), check_trace=False))
        held = json.dumps(metadata(description), ensure_ascii=False)
        torch.jit.save(frozen, str(folder / FORMATS["torchscript"].file), _extra_files={artifact.DESCRIPTION: held})


def write_pt2(graph: Graph, folder: Path, description: Description) -> None:
    """Write model.pt2 by torch.export, its batch dynamic, without the places in files that its nodes came from."""
    batch = {0: torch.export.Dim("batch", min=1)}
    with torch.no_grad(), _quiet():
        program = torch.export.export(graph.eval(), (graph.example(2),), dynamic_shapes={"pixels": batch})
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)
        held = json.dumps(metadata(description), ensure_ascii=False)
        torch.export.save(program, folder / FORMATS["pt2"].file, extra_files={artifact.DESCRIPTION: held})


def describe(recognizer: Recognizer, facts: dict[str, Any]) -> Description:
    """Return the description of an export of `recognizer`: the same, with `facts` under provenance/export."""
    description = recognizer.describe()
    return replace(
        description, provenance=description.provenance | {"export": facts | {"source_hash": description.hash}}
    )


def metadata(description: Description) -> dict[str, str]:
    """Write what an artifact says about itself, as JSON texts by name; arrays become nested lists."""
    rejection = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in (description.rejection or {}).items()}
    values = {
        "architecture": description.architecture,
        "labels": description.labels.to_dict(),
        "preprocess": description.preprocess.to_dict(),
        "temperature": description.temperature,
        "rejection": rejection or None,
        "provenance": description.provenance,
    }
    return {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}


def trtexec(folder: Path, recognizer: Recognizer, precision: str, inside: bool) -> str:
    """Write the command that builds a TensorRT engine (>= 10) from the ONNX file for batches of 1 to 64."""
    height, width = recognizer.preprocess.size
    shape = f"{height}x{width}x3" if inside else f"3x{height}x{width}"
    shapes = " ".join(
        f"--{kind}Shapes={INPUT}:{batch}x{shape}" for kind, batch in (("min", 1), ("opt", 8), ("max", 64))
    )
    return (
        f"trtexec --onnx={folder / FORMATS['onnx'].file} --saveEngine={folder / f'model.{precision}.engine'} "
        f"--stronglyTyped {shapes}"
    )


def missing(format: str, package: str, extra: str) -> SettingsError:
    """Return the error for a package that a format needs."""
    return SettingsError(f"`format={format}`: needs {package}, which is not installed", needs(extra))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence exporters, which warn about their own deprecations."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
