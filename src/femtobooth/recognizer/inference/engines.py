"""Opening a recognizer: an exported artifact in the runtime of its format, weights in PyTorch or as a cached export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...core import machine
from ...core.errors import SettingsError, UnsafeFileError
from ..model.engine import Engine
from ..model.formats import FORMATS, PROGRAMS, Exported, exported
from . import cache, runtimes

RUNTIMES = {name: ("ort", "openvino") if name in ("onnx", "tensorrt") else (name,) for name in FORMATS}
"""Engines that run an artifact, by its format; `auto` takes the first."""


def open_engine(
    reference: str | Path,
    engine: str = "auto",
    threads: int = 1,
    device: str = "auto",
    extra: Sequence[str | int] = (),
    many: bool = False,
    reduced: bool = False,
    trust: bool = False,
) -> Engine:
    """Open a recognizer or an exported artifact.

    `auto` takes the runtime of an artifact's format; of weights, ONNX Runtime where the cache holds their export, or
    where `many` pictures make it worth while, else PyTorch, which also takes an accelerator that is here. `threads` are
    those of one call of `run`. `extra` names further outputs that only PyTorch can give: `prelogits`, and stages by
    number (0 to 3; maps (B, C, H, W)). `reduced` lets OpenVINO compute in bf16 where the processor can, which it does
    in silence unless told otherwise. `trust` runs TorchScript and torch.export, which are programs. Raises ModelError,
    SettingsError, UnsafeFileError, and InputError for a device that is not here.
    """
    found = exported(reference)
    if engine == "auto":
        engine = RUNTIMES[found.format][0] if found else _quickest(reference, device, extra, many)
    if engine == "torch":
        return runtimes.pytorch(reference, threads, device, extra)
    if extra:
        raise SettingsError(
            f"`engine={engine}`: gives logits and embeddings only", "use `engine=torch` for stages and pre-logits"
        )
    if device not in ("cpu", "auto"):
        raise SettingsError(f"`engine={engine}`: computes on the CPU, not on `device={device}`", "use `engine=torch`")
    format = found.format if found else "onnx"
    if engine not in RUNTIMES[format]:
        raise SettingsError(
            f"`engine={engine}`: does not run {format}", f"leave it out: the runtime of {format} is taken"
        )
    refuse_program(found, reference, trust)
    folder = found.folder if found else cache.make(reference)
    if engine == "openvino":
        return runtimes.openvino(folder, threads, reduced)
    return runtimes.OPENERS[format](folder, threads)


def refuse_program(found: Exported | None, reference: str | Path, trust: bool) -> None:
    """Raise UnsafeFileError for an artifact of `PROGRAMS`, unless whoever asks for it trusts whoever made it."""
    if found and found.format in PROGRAMS and not trust:
        raise UnsafeFileError(
            f"{reference}: a {PROGRAMS[found.format]} artifact, which is a program of whoever made it, and was not run",
            "add `trust=true` if you know where it is from, or use an ONNX export",
        )


def _quickest(reference: str | Path, device: str, extra: Sequence[str | int], many: bool) -> str:
    """Choose what runs weights soonest: PyTorch on an accelerator, a cached export on the CPU."""
    accelerated = device not in ("auto", "cpu") or (
        device == "auto" and machine.may_accelerate() and machine.device(device).type != "cpu"
    )
    if extra or accelerated or not cache.possible():
        return "torch"
    return "ort" if many or cache.is_made(reference) else "torch"
