"""Leave torch's compiler unimported where a library only mentions it.

`torch._dynamo`, with sympy and triton, costs as much processor as torch itself. torchvision and timm import it for one
name each, which they call only where something is compiled. While those modules are read, a stand-in answers for that
name; it is gone when they have been read, and whoever asks for more, then or later, gets torch's own.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

MENTION = ("torchvision.ops.roi_align", "timm.models.naflexvit")
COMPILER = "torch._dynamo"


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name == "__path__" and self.__name__ != COMPILER:  # Python asks this of whatever it imports a name from
            raise AttributeError(name)
        _leave()
        return getattr(importlib.import_module(self.__name__), name)


def _disable(function: Any = None, recursive: bool = True, **_: Any) -> Any:
    """Do what torch does for its own functions: keep one from the compiler, which is imported with its first call."""
    import torch

    return torch._disable_dynamo(function, recursive)


def _is_compile_supported(device: Any) -> bool:
    return bool(importlib.import_module(f"{COMPILER}.utils").is_compile_supported(device))


def _leave() -> None:
    for name in (COMPILER, f"{COMPILER}.utils"):
        if isinstance(sys.modules.get(name), _StandIn):
            del sys.modules[name]


@contextmanager
def _mentioned() -> Iterator[None]:
    if COMPILER in sys.modules:
        yield
        return
    sys.modules[COMPILER] = compiler = _StandIn(COMPILER)
    sys.modules[f"{COMPILER}.utils"] = utils = _StandIn(f"{COMPILER}.utils")
    vars(compiler)["disable"], vars(utils)["is_compile_supported"] = _disable, _is_compile_supported
    try:
        yield
    finally:
        _leave()


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        with _mentioned():
            super().exec_module(module)


class _Finder:
    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Find a module of MENTION as Python does, and leave all others to it."""
        if name not in MENTION:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def install() -> None:
    """Watch for these modules, in this process."""
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)
