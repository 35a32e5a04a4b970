"""What runs a recognizer:

PyTorch, or ONNX Runtime and OpenVINO without importing PyTorch; all with the same outputs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.errors import ModelError, SettingsError, needs
from ..model import artifact
from ..model.artifact import Description
from ..model.labels import Labels
from ..model.preprocess import Preprocess
from . import cache

if TYPE_CHECKING:
    from ..model.backbone import Recognizer

Outputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Engine:
    """A recognizer that is ready to run; `run` may be called from several threads at once."""

    name: str
    """torch, ort or openvino."""
    description: Description
    run: Callable[[np.ndarray], Outputs]
    """uint8 (B, H, W, 3) pixels to float32 `logits` (B, n), `embedding` (B, D) where the model has it, and what else
    was asked for.
    """

    @property
    def preprocess(self) -> Preprocess:
        return self.description.preprocess

    @property
    def labels(self) -> Labels:
        return self.description.labels

    @property
    def temperature(self) -> float:
        return self.description.temperature

    @property
    def unknown(self) -> dict[str, Any] | None:
        return self.description.unknown

    @property
    def hash(self) -> str:
        return self.description.hash


def open_engine(
    reference: str | Path,
    engine: str = "auto",
    threads: int = 1,
    device: str = "cpu",
    extra: Sequence[str | int] = (),
    many: bool = False,
    reduced: bool = False,
) -> Engine:
    """Open a recognizer or an exported artifact.

    `auto` takes what an artifact was exported for; of weights, ONNX Runtime where the cache holds their export, or
    where `many` pictures make it worth while, else PyTorch. `threads` are those of one call of `run`. `extra` names
    further outputs that only PyTorch can give: `prelogits`, and stages by number (0 to 3; maps (B, C, H, W)). `reduced`
    lets OpenVINO compute in bf16 where the processor can, which it does in silence unless told otherwise. Raises
    ModelError and SettingsError.
    """
    folder = cache.artifact_folder(reference)
    if engine == "auto":
        engine = _quickest(reference, folder, device, extra, many)
    if engine == "torch":
        return _torch(reference, threads, device, extra)
    if extra:
        raise SettingsError(
            f"--engine {engine}: gives logits and embeddings only", "use --engine torch for stages and pre-logits"
        )
    if device not in ("cpu", "auto"):
        raise SettingsError(f"--engine {engine}: computes on the CPU, not on --device {device}", "use --engine torch")
    folder = folder or cache.make(reference)
    return ort(folder, threads) if engine == "ort" else openvino(folder, threads, reduced)


def _quickest(reference: str | Path, folder: Path | None, device: str, extra: Sequence[str | int], many: bool) -> str:
    if folder is not None:
        return "openvino" if (folder / cache.OPENVINO).is_file() else "ort"
    if extra or device != "cpu" or not cache.possible():
        return "torch"
    return "ort" if many or (cache.cached(reference) / cache.ONNX).is_file() else "torch"


def _torch(reference: str | Path, threads: int, device: str, extra: Sequence[str | int]) -> Engine:
    import torch

    from ..model.backbone import Recognizer

    torch.set_num_threads(threads)
    return of(Recognizer.load(reference).to(_device(device)), extra)


def of(recognizer: Recognizer, extra: Sequence[str | int] = ()) -> Engine:
    """A recognizer in memory as an engine."""
    import torch

    stages = [stage for stage in extra if isinstance(stage, int)]

    def run(pixels: np.ndarray) -> Outputs:
        with torch.inference_mode():
            batch = recognizer.preprocess.normalize(torch.from_numpy(pixels).to(recognizer.device))
            outputs = recognizer.outputs(batch, stages)
            return {str(name): outputs[name].float().cpu().numpy() for name in ("logits", "embedding", *extra)}

    return Engine("torch", recognizer.describe(), run)


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise SettingsError(f"--device {name}: there is no CUDA device here", "use --device cpu")
    return name


def ort(folder: Path, threads: int) -> Engine:
    """An artifact's model.onnx in ONNX Runtime, on the CPU."""
    try:
        import onnxruntime
    except ImportError:
        raise SettingsError("--engine ort: needs ONNX Runtime, which is not installed", needs("onnx")) from None
    description = artifact.read(folder)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(folder / cache.ONNX, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no class of their own
        raise ModelError(
            f"{folder / cache.ONNX}: ONNX Runtime cannot load it ({_first_line(error)})", "export it again"
        ) from None
    inputs = session.get_inputs()
    prepare = _prepare(description.preprocess, integer=inputs[0].type == "tensor(uint8)")
    names = [output.name for output in session.get_outputs()]

    def run(pixels: np.ndarray) -> Outputs:
        return dict(zip(names, session.run(names, {inputs[0].name: prepare(pixels)}), strict=True))

    return _checked(Engine("ort", description, run), folder / cache.ONNX, names)


def openvino(folder: Path, threads: int, reduced: bool = False) -> Engine:
    """An artifact's model.xml or model.onnx in OpenVINO, on the CPU."""
    try:
        import openvino as runtime
    except ImportError:
        raise SettingsError("--engine openvino: needs OpenVINO, which is not installed", needs("openvino")) from None
    description = artifact.read(folder)
    file = folder / (cache.OPENVINO if (folder / cache.OPENVINO).is_file() else cache.ONNX)
    hints: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    if not reduced:
        hints["INFERENCE_PRECISION_HINT"] = "f32"
    try:
        compiled = runtime.Core().compile_model(file, "CPU", hints)
    except Exception as error:
        raise ModelError(f"{file}: OpenVINO cannot load it ({_first_line(error)})", "export it again") from None
    prepare = _prepare(description.preprocess, integer=compiled.input(0).get_element_type() == runtime.Type.u8)
    names = [output.get_any_name() for output in compiled.outputs]
    own = threading.local()  # an infer request serves one caller at a time

    def run(pixels: np.ndarray) -> Outputs:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        found = own.request.infer([prepare(pixels)], share_inputs=True)
        return {name: np.array(found[index]) for index, name in enumerate(names)}

    return _checked(Engine("openvino", description, run), file, names)


def _prepare(preprocess: Preprocess, integer: bool) -> Callable[[np.ndarray], np.ndarray]:
    """What the graph reads: the pixels themselves where it normalizes them, else float32 (B, 3, H, W)."""
    return (lambda pixels: pixels) if integer else preprocess.normalize


def _checked(engine: Engine, file: Path, names: Sequence[str]) -> Engine:
    """The engine, after one blank picture showed that its outputs are those the description speaks of."""
    if "logits" not in names:
        raise ModelError(
            f"{file}: has no output named logits (but {', '.join(names)})", "export it with `femtobooth export`"
        )
    try:
        outputs = engine.run(np.zeros((1, *engine.preprocess.size, 3), np.uint8))
    except Exception as error:
        raise ModelError(
            f"{file}: does not run on {engine.preprocess.size} pixels ({_first_line(error)})", "export it again"
        ) from None
    if outputs["logits"].shape != (1, len(engine.labels)):
        raise ModelError(
            (
                f"{file}: {outputs['logits'].shape[-1]} logits for the "
                f"{len(engine.labels)} labels of {artifact.DESCRIPTION}"
            ),
            "export it again",
        )
    return engine


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
