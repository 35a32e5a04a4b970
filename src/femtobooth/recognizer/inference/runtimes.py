"""What runs a recognizer, by format: PyTorch, ONNX Runtime, OpenVINO, TorchScript; others in a process of their own.

All give the same outputs. Importing it needs none of them: each opener imports its own, and says how to get it where it
is missing.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ...core import machine
from ...core.errors import ModelError, SettingsError, first_line, needs
from ..model import artifact
from ..model.engine import Engine, Outputs
from ..model.formats import CONVERTED, FORMATS, OUTPUTS
from ..model.preprocess import Preprocess
from . import child

if TYPE_CHECKING:
    from ..model.backbone import Recognizer


class Opener(Protocol):
    """Opens an exported artifact's folder on `threads` threads of the CPU."""

    def __call__(self, folder: Path, threads: int) -> Engine: ...


def pytorch(reference: str | Path, threads: int, device: str = "cpu", extra: Sequence[str | int] = ()) -> Engine:
    """Open weights in PyTorch on a device, with `extra` outputs. Raises ModelError, and InputError for the device."""
    import torch

    from ..model.backbone import Recognizer

    where = machine.device(device)  # a device that is not here is told before anything is loaded
    torch.set_num_threads(threads)
    return of_recognizer(Recognizer.load(reference).to(where), extra)


def of_recognizer(recognizer: Recognizer, extra: Sequence[str | int] = ()) -> Engine:
    """Make an engine of a recognizer in memory."""
    import torch

    stages = [stage for stage in extra if isinstance(stage, int)]

    def run(pixels: np.ndarray) -> Outputs:
        with torch.inference_mode():
            batch = recognizer.preprocess.normalize(torch.from_numpy(pixels).to(recognizer.device))
            outputs = recognizer.outputs(batch, stages)
            return {str(name): outputs[name].float().cpu().numpy() for name in ("logits", "embedding", *extra)}

    return Engine("torch", recognizer.describe(), run)


def onnx(folder: Path, threads: int) -> Engine:
    """Open an artifact's model.onnx in ONNX Runtime."""
    try:
        import onnxruntime
    except ImportError:
        raise SettingsError("`engine=ort`: needs ONNX Runtime, which is not installed", needs("onnx")) from None
    description, file = artifact.read(folder), folder / FORMATS["onnx"].file
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no class of their own
        raise ModelError(f"{file}: ONNX Runtime cannot load it ({first_line(error)})", "export it again") from None
    inputs = session.get_inputs()
    prepare = _prepare(description.preprocess, integer=inputs[0].type == "tensor(uint8)")
    names = [output.name for output in session.get_outputs()]

    def run(pixels: np.ndarray) -> Outputs:
        return dict(zip(names, session.run(names, {inputs[0].name: prepare(pixels)}), strict=True))

    return _checked(Engine("ort", description, run), file, names)


@functools.cache
def _openvino_core() -> Any:
    """Make the one OpenVINO core of this process.

    Each core gives its thread a stack for signals, and when it goes puts back the one that it found, which may have
    gone before: the next signal, or Ctrl-C, would end the process.
    """
    import openvino as runtime

    return runtime.Core()


def openvino(folder: Path, threads: int, reduced: bool = False) -> Engine:
    """Open an artifact's model.xml or model.onnx in OpenVINO; `reduced` lets it compute in bf16."""
    try:
        import openvino as runtime
    except ImportError:
        raise SettingsError("`engine=openvino`: needs OpenVINO, which is not installed", needs("openvino")) from None
    core, description = _openvino_core(), artifact.read(folder)
    own = folder / FORMATS["openvino"].file
    file = own if own.is_file() else folder / FORMATS["onnx"].file
    hints: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    if not reduced:
        hints["INFERENCE_PRECISION_HINT"] = "f32"
    try:
        compiled = core.compile_model(file, "CPU", hints)
    except Exception as error:
        raise ModelError(f"{file}: OpenVINO cannot load it ({first_line(error)})", "export it again") from None
    prepare = _prepare(description.preprocess, integer=compiled.input(0).get_element_type() == runtime.Type.u8)
    names = [output.get_any_name() for output in compiled.outputs]
    local = threading.local()  # an infer request serves one caller at a time

    def run(pixels: np.ndarray) -> Outputs:
        if not hasattr(local, "request"):
            local.request = compiled.create_infer_request()
        found = local.request.infer([prepare(pixels)], share_inputs=True)
        return {name: np.array(found[index]) for index, name in enumerate(names)}

    return _checked(Engine("openvino", description, run), file, names)


def torchscript(folder: Path, threads: int) -> Engine:
    """Open an artifact's model.pt, which is a program: only one that whoever asks for it trusts."""
    import torch

    torch.set_num_threads(threads)
    description, file = artifact.read(folder), folder / FORMATS["torchscript"].file
    try:
        with warnings.catch_warnings():  # torch warns of its own deprecations
            warnings.simplefilter("ignore")
            model = torch.jit.load(str(file))
    except Exception as error:  # what a program is not, or cannot be
        raise ModelError(f"{file}: TorchScript cannot load it ({first_line(error)})", "export it again") from None
    return _checked(Engine("torchscript", description, _of_torch(model, description)), file, OUTPUTS)


def pt2(folder: Path, threads: int) -> Engine:
    """Open an artifact's model.pt2, which torch reads by pickle: only one that whoever asks for it trusts."""
    import torch

    torch.set_num_threads(threads)
    description, file = artifact.read(folder), folder / FORMATS["pt2"].file
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = torch.export.load(file).module()
    except Exception as error:
        raise ModelError(f"{file}: torch.export cannot load it ({first_line(error)})", "export it again") from None
    return _checked(Engine("pt2", description, _of_torch(model, description)), file, OUTPUTS)


def _of_torch(model: Callable[..., Any], description: artifact.Description) -> Callable[[np.ndarray], Outputs]:
    """Make what runs a program of torch on pixels."""
    import torch

    inside = child.normalizes(description)

    def run(pixels: np.ndarray) -> Outputs:
        batch = torch.from_numpy(pixels)
        with torch.inference_mode():
            outputs = model(batch if inside else description.preprocess.normalize(batch))
        return {name: output.numpy() for name, output in zip(OUTPUTS, outputs, strict=True)}

    return run


OPENERS: dict[str, Opener] = {
    "onnx": onnx,
    "tensorrt": onnx,  # TensorRT builds its engine from this file, where it is; here ONNX Runtime says the same
    "openvino": openvino,
    "torchscript": torchscript,
    "pt2": pt2,
    **{format: functools.partial(child.opened, format) for format in CONVERTED},
}
"""What opens an exported artifact, by its format."""


def _prepare(preprocess: Preprocess, integer: bool) -> Callable[[np.ndarray], np.ndarray]:
    """Make what the graph reads: the pixels themselves where it normalizes them, else float32 (B, 3, H, W)."""
    return (lambda pixels: pixels) if integer else preprocess.normalize


def _checked(engine: Engine, file: Path, names: Sequence[str]) -> Engine:
    """Run one blank picture, to show that the outputs are those that the description speaks of; the engine."""
    if "logits" not in names:
        raise ModelError(
            f"{file}: has no output named logits (but {', '.join(names)})", "export it with `femtobooth export`"
        )
    try:
        outputs = engine.run(np.zeros((1, *engine.preprocess.size, 3), np.uint8))
    except Exception as error:
        raise ModelError(
            f"{file}: does not run on {engine.preprocess.size} pixels ({first_line(error)})", "export it again"
        ) from None
    found, labels = outputs["logits"].shape, len(engine.labels)
    if found != (1, labels):
        raise ModelError(
            f"{file}: logits of shape {found} for a picture and the {labels} labels of {artifact.DESCRIPTION}",
            "export it again",
        )
    return engine
