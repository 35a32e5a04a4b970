"""Formats whose converters pin other versions of everything: each is converted by a process of its own.

The process may belong to another interpreter (`python`), one that has torch, timm and the converter. It is this file
run as a module. What it writes is run by `inference.child`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ...core import children
from ...core.errors import FemtoboothError, SettingsError
from ..model.formats import BATCH, FORMATS, INPUT, MISSING, OUTPUTS, not_installed

MODULE = "femtobooth.recognizer.exporting.foreign"


def convert(format: str, source: Path, folder: Path, precision: str, inside: bool, python: str | None = None) -> None:
    """Write the model of an artifact folder `source` into `folder`.

    Raises SettingsError, or FemtoboothError if it fails.
    """
    arguments = [format, str(source.absolute()), str(folder.absolute()), precision, str(int(inside))]
    try:
        command = children.command(MODULE, *arguments, python=python)
        done = subprocess.run(command, capture_output=True, check=False, env=children.environment(python))  # noqa: S603
    except OSError as error:
        raise SettingsError(
            f"`python={python}`: cannot be run ({error.strerror})", "give the path of a Python interpreter"
        ) from None
    if done.returncode == MISSING:
        raise not_installed(format, children.last_line(done.stderr), python)
    if done.returncode:
        raise FemtoboothError(f"`format={format}`: the converter failed ({children.last_line(done.stderr)})")


# The child's side


def _convert(format: str, source: str, folder: str, precision: str, inside: str) -> None:
    import torch

    from ..model.backbone import Recognizer
    from .graph import Graph

    graph = Graph(Recognizer.load(source), inside == "1").eval()
    target, example = Path(folder) / FORMATS[format].file, (graph.example(BATCH),)
    if format == "litert":
        import litert_torch

        litert_torch.convert(graph, example).export(str(target))
        return
    if format == "ncnn":
        _ncnn(graph, example, target, precision)
        return
    program = torch.export.export(graph, example, strict=False)
    if format == "coreml":
        import coremltools as ct

        kind = np.float32  # Core ML has no 8-bit tensors as inputs: bytes come as whole floats
        made = ct.convert(
            program.run_decompositions({}),
            inputs=[ct.TensorType(name=INPUT, shape=tuple(example[0].shape), dtype=kind)],
            outputs=[ct.TensorType(name=name, dtype=np.float32) for name in OUTPUTS],
            compute_precision=ct.precision.FLOAT16 if precision == "fp16" else ct.precision.FLOAT32,
            minimum_deployment_target=ct.target.iOS17,
        )
        made.save(str(target))
    else:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
        target.write_bytes(lowered.buffer)


def _ncnn(graph: Any, example: Any, target: Path, precision: str) -> None:
    """Trace the graph, and have pnnx, a program of its own, write its two files."""
    import pnnx
    import torch

    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own deprecations
        traced = str(Path(scratch, "model.pt"))
        torch.jit.trace(graph, example).save(traced)
        shape = ",".join(map(str, example[0].shape))
        command = [pnnx.EXEC_PATH, traced, f"inputshape=[{shape}]", f"fp16={int(precision == 'fp16')}"]
        done = subprocess.run(command, capture_output=True, cwd=scratch, check=False)  # noqa: S603
        for ending in (".param", ".bin"):
            made = Path(scratch, f"model.ncnn{ending}")
            if done.returncode or not made.is_file():
                raise RuntimeError(f"pnnx: {children.last_line(done.stderr or done.stdout)}")
            shutil.copyfile(made, target.with_suffix(ending))


def main(arguments: list[str]) -> None:
    """Run the process."""
    try:
        _convert(*arguments)
    except ImportError as error:
        print(error.name or error, file=sys.stderr)
        sys.exit(MISSING)


if __name__ == "__main__":
    main(sys.argv[1:])
