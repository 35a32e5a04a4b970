"""Leave unimported what other libraries only mention: torch's compiler, and two large parts of scipy.

`torch._dynamo`, with sympy and triton, costs as much processor as torch itself. torchvision and timm import it for one
name each, which they call only where something is compiled. diffusers' schedulers import `scipy.stats` for one kind of
noise levels, torchmetrics `scipy.signal` to give an old name to programs that miss it. While those modules are read, a
stand-in answers for that name; it is gone when they have been read, and whoever asks for more, then or later, gets the
real one: of torch by its own lazy decorator, of scipy because that imports its parts itself when they are asked for.

Nor does Python look for garbage while a large library is imported: nearly all that it makes stays, and going through
it again and again takes a sixth of the time.
"""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import ModuleType
from typing import Any


def _disable(function: Any = None, recursive: bool = True, **_: Any) -> Any:
    """Do what torch does for its own functions: keep one from the compiler, which is imported with its first call."""
    import torch

    return torch._disable_dynamo(function, recursive)


def _is_compile_supported(device: Any) -> bool:
    return bool(importlib.import_module("torch._dynamo.utils").is_compile_supported(device))


def _hamming(*given: Any, **named: Any) -> Any:
    return importlib.import_module("scipy.signal.windows").hamming(*given, **named)


Names = dict[str, dict[str, Callable[..., Any]]]
COMPILER: Names = {
    "torch._dynamo": {"disable": _disable},
    "torch._dynamo.utils": {"is_compile_supported": _is_compile_supported},
}
SIGNAL: Names = {"scipy.signal": {"hamming": _hamming}}
STATISTICS: Names = {"scipy.stats": {}}
MENTIONS = {
    "torchvision.ops.roi_align": COMPILER,
    "timm.models.naflexvit": COMPILER,
    "torchmetrics": SIGNAL,
}
SCHEDULERS = "diffusers.schedulers.scheduling_"  # each of them mentions STATISTICS
LARGE = frozenset(
    (
        *("femtobooth", "torch", "torchvision", "torchmetrics", "lightning", "diffusers", "transformers", "timm"),
        *("peft", "scipy", "sklearn", "onnxruntime", "onnx", "onnxscript", "openvino", "fastapi", "pydantic"),
    )
)


class _StandIn(ModuleType):
    def __init__(self, name: str, names: Names) -> None:
        super().__init__(name)
        vars(self).update(names[name], _names=names)

    def __getattr__(self, name: str) -> Any:
        package = self.__name__ != "torch._dynamo.utils"
        if name.startswith("__") and not (package and name == "__path__"):  # what Python asks of every module
            raise AttributeError(name)
        _leave(self._names)
        return getattr(importlib.import_module(self.__name__), name)


def _leave(names: Names) -> None:
    for name in names:
        if isinstance(sys.modules.get(name), _StandIn):
            del sys.modules[name]


@contextmanager
def _standing_in(names: Names) -> Iterator[None]:
    if any(name in sys.modules for name in names):
        yield
        return
    sys.modules.update((name, _StandIn(name, names)) for name in names)
    try:
        yield
    finally:
        _leave(names)


@contextmanager
def _collecting_nothing() -> Iterator[None]:
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if _Finder.keeps:
            gc.freeze()
        elif not gc.get_freeze_count():
            gc.freeze()
            gc.unfreeze()  # into the oldest generation, without going through the younger ones
        gc.enable()


class _Loader(SourceFileLoader):
    mentioned: Names = {}

    def exec_module(self, module: ModuleType) -> None:
        with _collecting_nothing(), _standing_in(self.mentioned):
            super().exec_module(module)


class _OldName(_Loader):
    """Gives the real `scipy.signal` the name that torchmetrics would have given it."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        if "torchmetrics" in sys.modules and not hasattr(module, "hamming"):
            vars(module)["hamming"] = _hamming


class _Finder:
    keeps = False

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Find these modules as Python does, by whoever comes after us, and leave all others to it."""
        if name.partition(".")[0] not in LARGE:
            return None
        others = sys.meta_path[sys.meta_path.index(_Finder) + 1 :]
        spec = next((found for one in others if (found := one.find_spec(name, path, target))), None)
        if spec and type(spec.loader) is SourceFileLoader:
            mentioned = MENTIONS.get(name) or (STATISTICS if name.startswith(SCHEDULERS) else None)
            spec.loader = loader = (_OldName if name in SIGNAL else _Loader)(spec.loader.name, spec.loader.path)
            loader.mentioned = mentioned or {}
        return spec


def keep() -> None:
    """Never look through what is imported in this process for garbage either: for a process that is all femtobooth's,
    as an object once imported would stay even if nothing pointed to it any more.
    """
    _Finder.keeps = True


def install() -> None:
    """Watch for these modules, in this process."""
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)
