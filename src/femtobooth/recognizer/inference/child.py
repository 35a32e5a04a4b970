"""Runtimes in a process of their own: those whose packages pin other versions of everything.

The process may belong to another interpreter, one that has numpy and the runtime. It is this file run as a module, and
answers batches of pixels through its standard streams.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import weakref
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np

from ...core import children
from ...core.errors import FemtoboothError, ModelError, SettingsError
from ..model import artifact
from ..model.artifact import Description
from ..model.engine import Engine, Outputs
from ..model.formats import BATCH, FORMATS, INPUT, MISSING, OUTPUTS, not_installed

ELSEWHERE = 4  # exit code: this kind of machine cannot run the format
MODULE = "femtobooth.recognizer.inference.child"


class CannotRunHereError(ModelError):
    """This kind of machine cannot run the format, whatever is installed."""


def opened(format: str, folder: Path, threads: int, python: str | None = None) -> Engine:
    """Open a converted model in a process of its own, by `python` where this interpreter lacks the runtime.

    Raises CannotRunHereError where this kind of machine cannot run the format, SettingsError where its runtime is not
    installed, and FemtoboothError with the reason for any other failure: none of them passes for "converted only".
    """
    description = artifact.read(folder)
    normalizes(description)
    errors = tempfile.TemporaryFile()  # noqa: SIM115  (it lives as long as the engine)
    try:
        process = subprocess.Popen(  # noqa: S603
            children.command(MODULE, format, str(folder.absolute()), str(threads), python=python),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=children.environment(python),
        )
    except OSError as error:
        errors.close()
        raise SettingsError(
            f"`python={python}`: cannot be run ({error.strerror})", "give the path of a Python interpreter"
        ) from None
    weakref.finalize(process, errors.close)
    to, back = process.stdin, process.stdout
    assert to is not None and back is not None  # noqa: S101  (they are pipes)
    one = threading.Lock()  # its pipes serve one caller at a time

    def run(pixels: np.ndarray) -> Outputs:
        parts = []
        try:
            with one:
                for picture in pixels:
                    write(to, picture[None])
                    parts.append((read(back), read(back)))
        except (BrokenPipeError, EOFError):
            raise _ended(format, process.wait(), errors, python) from None
        return {name: np.concatenate(column) for name, column in zip(OUTPUTS, zip(*parts, strict=True), strict=True)}

    run(np.zeros((BATCH, *description.preprocess.size, 3), np.uint8))
    return Engine(format, description, run)


def normalizes(description: Description) -> bool:
    """Tell whether an exported graph normalizes bytes itself. Raises ModelError where its description does not say."""
    found = (description.provenance.get("export") or {}).get("normalizes")
    if not isinstance(found, bool):
        raise ModelError(
            f"{artifact.DESCRIPTION}: does not say whether the graph normalizes", "export it with `femtobooth export`"
        )
    return found


def _ended(format: str, code: int, errors: IO[bytes], python: str | None) -> FemtoboothError:
    """Tell why the process that ran a model ended."""
    errors.seek(0)
    last = children.last_line(errors.read())
    if code == ELSEWHERE:
        return CannotRunHereError(
            f"{format}: cannot run on this machine, which has {sys.platform}", "export it to onnx, which runs anywhere"
        )
    if code == MISSING:
        return not_installed(format, last, python)
    return FemtoboothError(f"{format}: was converted, but does not run ({last})", "export it again, here or to onnx")


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


def _serve(format: str, folder: str, threads: str) -> None:
    """Answer each batch of pixels on stdin with logits and embedding on stdout, until stdin ends."""
    stdin, stdout = sys.stdin.buffer, children.own_stdout("wb")
    description = artifact.read(Path(folder))
    inside = normalizes(description)
    file = str(Path(folder) / FORMATS[format].file)
    run = {"litert": _litert, "coreml": _coreml, "executorch": _executorch, "ncnn": _ncnn}[format](file, int(threads))
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


def _ncnn(file: str, threads: int) -> Any:
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    if net.load_param(file) or net.load_model(str(Path(file).with_suffix(".bin"))):
        raise ValueError("ncnn cannot load it")

    def run(batch: np.ndarray) -> list[np.ndarray]:
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(np.ascontiguousarray(batch[0])).clone())
        return [np.array(extractor.extract(name)[1])[None] for name in ("out0", "out1")]

    return run


def main(arguments: list[str]) -> None:
    """Run the process."""
    try:
        _serve(*arguments)
    except ImportError as error:
        print(error.name or error, file=sys.stderr)
        sys.exit(MISSING)


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        main(sys.argv[1:])
