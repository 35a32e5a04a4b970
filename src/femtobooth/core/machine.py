"""This machine and what it computes with: devices, number formats, versions, memory, processor."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil

from .errors import InputError, shortened

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "fp16", "bf16", "int8", "nf4"]
"""Every number format, by the one name that settings, records and exports call it.

A setting takes those of them that make sense there.
"""
FloatPrecision = Literal["fp32", "fp16", "bf16"]
"""What a model computes in; training in fp16 or bf16 is mixed precision, whose weights stay fp32."""
WeightPrecision = Literal["fp32", "fp16"]
"""What the weights of a generator are stored in."""
ExportPrecision = Literal["fp32", "fp16", "int8"]
"""What a recognizer is exported in."""


def device(name: str) -> torch.device:
    """Find the device of this name: cpu, cuda, cuda:1, mps, or auto for the fastest kind that is here.

    Raises InputError, which names the setting `device`, where it is not on this machine.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        found = torch.device(name)
    except RuntimeError:
        raise InputError(f"`device={name}`: no such kind of device", "use auto, cpu, cuda, cuda:1 or mps") from None
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(
        found.type, 0
    )
    if (found.index or 0) >= count:
        raise InputError(f"`device={name}`: not on this machine, which has {count} of that kind", "use auto or cpu")
    if found.type == "cuda":
        use_tensor_cores()
    return found


def may_accelerate() -> bool:
    """Tell without torch, whose import takes seconds, whether it could find an accelerator; False only if it cannot."""
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    try:
        built = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return False
    return not built.endswith("+cpu") and shutil.which("nvidia-smi") is not None


def dtype(precision: FloatPrecision) -> torch.dtype:
    """Name a number format as torch does."""
    import torch

    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


def use_tensor_cores() -> None:
    """Let GPUs multiply 32-bit matrices and convolve in TF32: 10 bits of mantissa in, 32-bit sums out.

    Several times the speed on NVIDIA's GPUs since Ampere, and another rounding. Without one nothing is touched.
    """
    import torch

    if not torch.cuda.is_available():
        return
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True


def environment() -> dict[str, str]:
    """List the versions of what shaped a result; part of every manifest."""
    names = (
        "femtobooth",
        "torch",
        "lightning",
        "diffusers",
        "transformers",
        "timm",
        "safetensors",
        "onnxruntime",
        "openvino",
        "numpy",
        "pillow",
    )
    versions = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def peak_memory() -> int:
    """Read the most bytes of main memory that this process has held.

    Linux's ru_maxrss counts what the parent held before exec; VmHWM does not. Where nobody counts the most, it is what
    is held now.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        held = psutil.Process().memory_info()
        return int(getattr(held, "peak_wset", held.rss))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def give_back_freed_memory() -> None:
    """Let this process give what it frees back to the system at once, from 256 KiB on.

    Else glibc keeps freed pieces of up to 32 MiB, between which tensors of other sizes find no room: a step of a UNet's
    upper levels grew the process by 2.7 times what it held, and by 1.1 times after this. Costs time for fresh pages;
    numbers stay the same to the bit. Does nothing without glibc.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(-3, 256 << 10)  # M_MMAP_THRESHOLD


def size_in_bytes(text: str) -> int:
    """Read a size such as 8GiB, 8.5 GB or 900MiB. Raises ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT])(i?)B", text.strip(), re.IGNORECASE)
    if found is None or not float(found[1]):
        raise ValueError(f"{shortened(repr(text))} is no size, which is such as 8GiB")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** ("KMGT".index(found[2].upper()) + 1))


def cores() -> int:
    """Count the cores that this process may use."""
    with suppress(AttributeError, OSError):  # macOS has no such choice
        return len(psutil.Process().cpu_affinity())
    return os.cpu_count() or 1


def processor() -> str:
    """Give the name of this machine's processor, and how many cores it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {os.cpu_count()} cores"
