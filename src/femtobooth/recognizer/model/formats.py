"""The formats that a recognizer is exported to: their files, their number formats, and where an exported artifact is.

Importing it needs neither torch nor a runtime.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import SettingsError, needs
from ...core.files import read_json
from ...core.machine import ExportPrecision
from ...core.paths import expanded
from . import artifact

INPUT, OUTPUTS = "pixels", ("logits", "embedding")
"""Names of what a graph reads, float32 (B, 3, H, W) normalized or uint8 (B, H, W, 3), and of what it gives."""


BATCH = 1
"""Pictures at a time of the formats that a process of its own converts to and runs, which fix the batch."""
MISSING = 3
"""Exit code of such a process that lacks a package."""


@dataclass(frozen=True)
class Format:
    """One format of exported models."""

    file: str
    """Name of the model file (of Core ML a folder) in an artifact."""
    precisions: tuple[ExportPrecision, ...]
    """Number formats that it can be written in."""
    converter: str | None = None
    """Package that converts to it, where that pins other versions of everything and so needs a process of its own."""


FORMATS = {
    "onnx": Format("model.onnx", ("fp32", "fp16", "int8")),
    "tensorrt": Format("model.onnx", ("fp32", "fp16", "int8")),
    "openvino": Format("model.xml", ("fp32", "fp16", "int8")),
    "torchscript": Format("model.pt", ("fp32", "fp16")),
    "pt2": Format("model.pt2", ("fp32", "fp16")),
    "litert": Format("model.tflite", ("fp32",), "litert_torch"),
    "coreml": Format("model.mlpackage", ("fp32", "fp16"), "coremltools"),
    "executorch": Format("model.pte", ("fp32",), "executorch"),
    "ncnn": Format("model.ncnn.param", ("fp32", "fp16"), "pnnx"),
}
CONVERTED = tuple(name for name, format in FORMATS.items() if format.converter)
"""Formats that a process of its own converts to and runs."""
FLOATS = ("ncnn",)
"""Formats whose inputs are floats only."""
PROGRAMS = {"torchscript": "TorchScript", "pt2": "torch.export"}
"""The formats whose files are programs, or are read by pickle: opening one runs what whoever made it put in."""
_TOLD_BY_FILE = ("openvino", "onnx", "pt2", *CONVERTED)


@dataclass(frozen=True)
class Exported:
    """An exported artifact: its folder and its format."""

    folder: Path
    format: str

    @property
    def file(self) -> Path:
        """The model in it."""
        return self.folder / FORMATS[self.format].file


def exported(reference: str | Path) -> Exported | None:
    """Find the exported artifact that a folder, or the model file in it, is; None for anything else.

    Its recognizer.json names the format; where it does not, a model file of that name does. A model.pt without one is
    taken for weights.
    """
    path = expanded(reference)
    folder = path.parent if path.name in {format.file for format in FORMATS.values()} else path
    described = read_json(folder / artifact.DESCRIPTION)
    for key in ("provenance", "export", "format"):
        described = described.get(key) if isinstance(described, dict) else None
    named = described if isinstance(described, str) and described in FORMATS else None
    for format in (named, *_TOLD_BY_FILE):
        if format and (folder / FORMATS[format].file).exists():
            return Exported(folder, format)
    return None


def not_installed(format: str, package: str, python: str | None = None) -> SettingsError:
    """Name the package that a format needs, and how to get it."""
    if sys.platform == "win32" and format in ("coreml", "litert"):
        return SettingsError(
            f"`format={format}`: needs {package}, which there is not for Windows",
            "export on Linux, in WSL for example, or to onnx, which runs anywhere",
        )
    return SettingsError(
        f"`format={format}`: needs {package}, which is not installed{f' for {python}' if python else ''}",
        f"{needs(format)}, here or for the interpreter that `python` names",
    )
