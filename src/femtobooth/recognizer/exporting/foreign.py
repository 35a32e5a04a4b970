"""Formats whose converters pin other versions of everything: each is converted and run by a process of its own.

The process may belong to another interpreter (`--python`), one that has torch, timm and the converter. It is this file
run as a module, and speaks through its standard streams: `convert` writes the model, `serve` answers batches of pixels.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import weakref
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np

from ...core import children
from ...core.errors import FemtoboothError, SettingsError, needs
from ..inference.engines import Engine, Outputs
from ..model import artifact

FORMATS = {
    "litert": "litert_torch",
    "coreml": "coremltools",
    "executorch": "executorch",
}  # and the package that each needs
MISSING, ELSEWHERE = 3, 4  # exit codes: a package is not installed; this kind of machine cannot run the format
BATCH = 1  # these formats are made for a fixed batch
MODULE = "femtobooth.recognizer.exporting.foreign"


# The parent's side


def convert(format: str, source: Path, folder: Path, precision: str, inside: bool, python: str | None = None) -> None:
    """Write the model of an artifact folder `source` into `folder`.

    Raises SettingsError, or FemtoboothError if it fails.
    """
    arguments = ["convert", format, str(source.absolute()), str(folder.absolute()), precision, str(int(inside))]
    try:
        command = children.command(MODULE, *arguments, python=python)
        done = subprocess.run(command, capture_output=True, check=False, env=children.environment(python))  # noqa: S603
    except OSError as error:
        raise SettingsError(
            f"--python {python}: cannot be run ({error.strerror})", "give the path of a Python interpreter"
        ) from None
    if done.returncode == MISSING:
        raise _not_installed(format, _last_line(done.stderr), python)
    if done.returncode:
        raise FemtoboothError(f"--format {format}: the converter failed ({_last_line(done.stderr)})")


def opened(format: str, folder: Path, threads: int, python: str | None = None) -> Engine | None:
    """An engine that runs the converted model in a process of its own; None where this kind of machine cannot run the
    format.

    Any other failure to run is an error, not "converted only". Raises SettingsError, or FemtoboothError with the
    reason.
    """
    errors = tempfile.TemporaryFile()  # noqa: SIM115  (it lives as long as the engine)
    process = subprocess.Popen(  # noqa: S603
        children.command(MODULE, "serve", format, str(folder.absolute()), str(threads), python=python),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=children.environment(python),
    )
    weakref.finalize(process, errors.close)
    to, back = process.stdin, process.stdout
    assert to is not None and back is not None  # noqa: S101  (they are pipes)

    def run(pixels: np.ndarray) -> Outputs:
        parts = []
        try:
            for picture in pixels:
                write(to, picture[None])
                parts.append((read(back), read(back)))
        except (BrokenPipeError, EOFError):
            raise _ended(format, process.wait(), errors, python) from None
        logits, embedding = (np.concatenate(column) for column in zip(*parts, strict=True))
        return {"logits": logits, "embedding": embedding}

    description = artifact.read(folder)
    try:
        run(np.zeros((BATCH, *description.preprocess.size, 3), np.uint8))
    except _CannotRunHere:
        return None
    return Engine(format, description, run)


class _CannotRunHere(FemtoboothError):
    pass


def _ended(format: str, code: int, errors: IO[bytes], python: str | None) -> FemtoboothError:
    """Why the process that ran a model ended."""
    errors.seek(0)
    last = _last_line(errors.read())
    if code == ELSEWHERE:
        return _CannotRunHere(f"--format {format}: cannot run on this machine")
    if code == MISSING:
        return _not_installed(format, last, python)
    return FemtoboothError(
        f"--format {format}: was converted, but does not run ({last})", "--no-parity exports it unchecked"
    )


def _not_installed(format: str, package: str, python: str | None) -> SettingsError:
    return SettingsError(
        f"--format {format}: needs {package}, which is not installed{f' for {python}' if python else ''}",
        f"{needs(format)}, here or where --python points to",
    )


def _last_line(stderr: bytes) -> str:
    lines = [line.strip() for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    return (lines or ["no message"])[-1][:300]


def write(stream: IO[bytes], array: np.ndarray) -> None:
    """Send an array down a pipe.

    NumPy writes to what it takes for a file by seeking, which pipes refuse: hence the buffer.
    """
    buffer = BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    stream.write(len(buffer.getvalue()).to_bytes(8, "little") + buffer.getvalue())
    stream.flush()


def read(stream: IO[bytes]) -> np.ndarray:
    """Receive an array. Raises EOFError when the other side has ended."""
    size = stream.read(8)
    data = stream.read(int.from_bytes(size, "little")) if len(size) == 8 else b""
    if not data or len(data) < int.from_bytes(size, "little"):
        raise EOFError
    return np.load(BytesIO(data), allow_pickle=False)


# The child's side


def _convert(format: str, source: str, folder: str, precision: str, inside: str) -> None:
    import torch

    from ..model.backbone import Recognizer
    from .graph import FILES, INPUT, OUTPUTS, Graph

    graph = Graph(Recognizer.load(source), inside == "1").eval()
    target, example = Path(folder) / FILES[format], (graph.example(BATCH),)
    if format == "litert":
        import litert_torch

        litert_torch.convert(graph, example).export(str(target))
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


def _serve(format: str, folder: str, threads: str) -> None:
    """Answer each batch of pixels on stdin with logits and embedding on stdout, until stdin ends."""
    from .graph import FILES

    stdin, stdout = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not mix with answers
    description = artifact.read(Path(folder))
    inside = description.provenance["export"]["normalizes"]
    file = str(Path(folder) / FILES[format])
    run = {"litert": _litert, "coreml": _coreml, "executorch": _executorch}[format](file, int(threads))
    while True:
        try:
            pixels = read(stdin)
        except EOFError:
            return
        for output in run(pixels if inside else description.preprocess.normalize(pixels)):
            write(stdout, output)


def _litert(file: str, threads: int) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=file, num_threads=threads).get_signature_runner()
    name = next(iter(runner.get_input_details()))

    def run(batch: np.ndarray) -> list[np.ndarray]:
        outputs = runner(**{name: batch})
        return [outputs[key] for key in sorted(outputs)]  # output_0, output_1

    return run


def _coreml(file: str, threads: int) -> Any:
    if sys.platform != "darwin":
        sys.exit(ELSEWHERE)
    import coremltools as ct

    from .graph import INPUT, OUTPUTS

    model = ct.models.MLModel(file)

    def run(batch: np.ndarray) -> list[np.ndarray]:
        outputs = model.predict({INPUT: batch.astype(np.float32)})
        return [outputs[name] for name in OUTPUTS]

    return run


def _executorch(file: str, threads: int) -> Any:
    import torch
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(file).load_method("forward")
    return lambda batch: [output.numpy() for output in method.execute([torch.from_numpy(batch)])]


def main(arguments: list[str]) -> None:
    """Entry point of the process."""
    verb, format, *rest = arguments
    try:
        if verb == "convert":
            _convert(format, *rest)
        else:
            _serve(format, *rest)
    except ImportError as error:
        print(error.name or error, file=sys.stderr)
        sys.exit(MISSING)


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        main(sys.argv[1:])
