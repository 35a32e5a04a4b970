"""Leave unimported what other libraries only mention: torch's compiler, and two large parts of scipy.

`torch._dynamo`, with sympy and triton, costs as much processor as torch itself. torchvision and timm import it for one
name each, which they call only where something is compiled. diffusers' schedulers import `scipy.stats` for one kind of
noise levels, torchmetrics `scipy.signal` to give an old name to programs that miss it. While those modules are read, a
stand-in answers for that name; it is gone when they have been read, and whoever asks for more, then or later, gets the
real one: of torch by its own lazy decorator, of scipy because that imports its parts itself when they are asked for.

timm reads a hundred architectures, and torchvision its data sets, before the first of them is built: within `hollow`
such packages are their submodules alone, so that one of these can be imported without all others.

Nor does Python look for garbage while a large library is imported: nearly all that it makes stays, and going through
it again and again takes a sixth of the time.
"""

from __future__ import annotations

import gc
import importlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
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


_HOLLOW = threading.RLock()
_hollowed: set[str] = set()


class _Hollow(ModuleType):
    """A package whose own code is not run: `sources` are the submodules whose names it has, too."""

    def __init__(self, spec: ModuleSpec, sources: Sequence[str]) -> None:
        super().__init__(spec.name)
        self.__path__ = list(spec.submodule_search_locations or ())
        self.__package__, self.__spec__ = spec.name, spec
        vars(self).update(_sources=sources, _reader=threading.get_ident())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self and threading.get_ident() == self._reader:
            for source in self._sources:
                if hasattr(module := importlib.import_module(f"{self.__name__}.{source}"), name):
                    return getattr(module, name)
            raise AttributeError(f"{self.__name__}.{name}")
        with _HOLLOW:  # until whoever reads is done
            return getattr(importlib.import_module(self.__name__), name)


class _Functions(ModuleType):
    """A module of functions that is imported when one of them is called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*given: Any, **named: Any) -> Any:
            return getattr(importlib.import_module(self.__name__), name)(*given, **named)

        return call


@contextmanager
def hollow(packages: Mapping[str, Sequence[str]], functions: Sequence[str] = ()) -> Iterator[None]:
    """Import nothing of `packages` (each after the one that it lies in) but those submodules that are asked for.

    Each package has the names of the submodules that are given with it. `functions` are modules that only mention
    functions: read with the first call. Afterwards whoever imports a package gets all of it. Raises ImportError for a
    name that is elsewhere, and where the packages are found or loaded in a way of others.
    """
    with _HOLLOW:
        if any(name in sys.modules for name in packages):
            raise ImportError("imported before")
        made: dict[str, ModuleType] = {}
        try:
            for name, sources in packages.items():
                above = made.get(name.rpartition(".")[0])
                spec = _Finder.find_spec(name, above.__path__ if above else None) if _Finder in sys.meta_path else None
                if spec is None or not isinstance(spec.loader, _Loader):
                    raise ImportError(f"{name} is loaded by others")
                made[name] = sys.modules[name] = _Hollow(spec, sources)
                _hollowed.add(name)
            for name in functions:
                if name not in sys.modules:
                    made[name] = sys.modules[name] = _Functions(name)
            yield
        finally:
            for name, module in made.items():
                if sys.modules.get(name) is module:
                    del sys.modules[name]


def _bind(package: ModuleType) -> None:
    """Give a package the submodules that were imported while it was hollow, as importing them would have."""
    for name, module in list(sys.modules.items()):
        above, _, last = name.rpartition(".")
        if above == package.__name__:
            setattr(package, last, module)


class _Loader(SourceFileLoader):
    mentioned: Names = {}

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ in _hollowed:
            _bind(module)
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
