"""This machine and what is installed on it: versions, memory, processor."""

from __future__ import annotations

import os
import platform
import resource
import sys
from importlib import metadata
from pathlib import Path


def environment() -> dict[str, str]:
    """Versions of what shaped a result; part of every manifest."""
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
    """Most bytes of main memory that this process has held.

    Linux's ru_maxrss counts what the parent held before exec; VmHWM does not.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def processor() -> str:
    """Name of this machine's processor, and how many cores it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {os.cpu_count()} cores"
