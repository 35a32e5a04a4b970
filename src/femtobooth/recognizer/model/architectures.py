"""timm's architectures, of which only the one that is asked for is imported: all of them take longer than torch.

What timm itself says and builds is not changed; where it was imported before, or has no function of a name, it is asked
as a whole.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Mapping
from importlib import util
from pathlib import Path
from typing import Any

from ...core import later

PACKAGES = {
    "timm": (),
    "timm.models": (),
    "timm.data": ("constants",),
    "torchvision": (),
    "torchvision.ops": (),
    "torchvision.models": (),
}
MENTIONED = ("timm.models._hub", "torchvision.models.feature_extraction")
"""Modules of which only functions are mentioned: the hub's library, and features by torch.fx."""


def is_known(name: str) -> bool:
    """Tell whether timm has an architecture of this name, with or without a tag."""
    return bool(_registry(name).is_model(name))


def create(name: str, **given: Any) -> Any:
    """Build an untrained network, as `timm.create_model` does."""
    _registry(name)
    return of("timm.models._factory", "create_model")(name, pretrained=False, **given)


def own_arguments() -> set[str]:
    """List the arguments that `create` takes for itself, and passes to no network."""
    return {*inspect.signature(of("timm.models._factory", "create_model")).parameters}


def pretrained_config(name: str) -> Any:
    """Give timm's description (`PretrainedCfg`) of weights. Raises RuntimeError where there is none."""
    return _registry(name).get_pretrained_cfg(name)


def clean_state_dict(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Take off what DDP and torch.compile put before names."""
    return dict(of("timm.models._helpers", "clean_state_dict")(tensors))


def data_config(config: Mapping[str, Any] | None = None, model: Any = None) -> dict[str, Any]:
    """Settle the preprocessing of a description of weights, or of a network."""
    return dict(of("timm.data.config", "resolve_data_config")({}, pretrained_cfg=config, model=model))


def imagenet_subset(count: int) -> str | None:
    """Name the part of ImageNet that has so many classes."""
    return of("timm.data.imagenet_info", "infer_imagenet_subset")({"num_classes": count})


def _registry(name: str) -> Any:
    """Return timm's register of architectures, with this one in it if there is such a one."""
    if "timm" not in sys.modules and not _has(name) and (module := _module_of(name.partition(".")[0])):
        _alone(f"timm.models.{module}")
    if not _has(name):
        importlib.import_module("timm")
    return sys.modules["timm.models._registry"]


def _has(name: str) -> bool:
    known = sys.modules.get("timm.models._registry")
    return known is not None and bool(known.is_model(name))


def of(module: str, name: str) -> Any:
    """Give what a module of timm has under a name."""
    if module not in sys.modules and ("timm" in sys.modules or not _alone(module)):
        importlib.import_module(module)
    return getattr(sys.modules[module], name)


def _alone(module: str) -> bool:
    """Import a module of timm without all others; False where it needs more of them."""
    try:
        with later.hollow(PACKAGES, MENTIONED):
            importlib.import_module(module)
    except ImportError:
        return False
    return True


def _module_of(architecture: str) -> str | None:
    """Find the module whose text defines an architecture, first among those of which its name begins."""
    spec = util.find_spec("timm")
    folders = spec.submodule_search_locations if spec else None
    files = [file for folder in folders or () for file in Path(folder, "models").glob("[a-z]*.py")]
    written = re.compile(rf"^def {re.escape(architecture)}\(".encode(), re.MULTILINE)
    for file in sorted(files, key=lambda file: (not architecture.startswith(file.stem), -len(file.stem), file.stem)):
        if written.search(file.read_bytes()):
            return file.stem
    return None
