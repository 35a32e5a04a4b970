"""A hub's config.json, written as timm writes it, and read as timm reads it (timm/models/_hub.py `_parse_model_cfg`,
_builder.py `resolve_pretrained_cfg`).

Older timm wrote one level: architecture, mean, labels and all the others side by side. Newer has `pretrained_cfg` for
what belongs to the weights and `model_args` for what shapes the network. Reading it needs neither torch nor timm;
building with it does.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ...core.errors import ModelError
from . import architectures
from .artifact import Description

NAME = "config.json"
OF_NETWORKS = ("fixed_input_size", "pool_size", "first_conv", "classifier")
"""What timm's description says of a network, whatever its weights."""


@dataclass(frozen=True)
class HubConfig:
    """What config.json says; of no file, nothing."""

    architecture: str | None = None
    """timm's name, with the tag of the weights where they have one (which timm need not know)."""
    pretrained: dict[str, Any] = field(default_factory=dict)
    """Preprocessing, labels and class count of the weights, in timm's words."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Arguments that shape the network."""

    def settled(self) -> dict[str, Any]:
        """Lay `pretrained` over timm's defaults for weights that say nothing (not those of the architecture).

        Keys unknown to timm go.
        """
        kind = architectures.of("timm.models._pretrained", "PretrainedCfg")
        known = {one.name for one in fields(kind)}
        return dict(kind(**{name: value for name, value in self.pretrained.items() if name in known}).to_dict())


def write(folder: Path, described: Description, network: Mapping[str, Any], features: int) -> None:
    """Write the config.json of a folder under construction, by which `timm.create_model("local-dir:FOLDER")`, and
    `hf-hub:` where it is there, load its weights; `network` is timm's description of the architecture.
    """
    architecture, labels = described.architecture.partition(".")[0], described.labels
    own = {key: network[key] for key in OF_NETWORKS if network.get(key) is not None}
    if tuple(network.get("input_size") or ())[1:] != described.preprocess.size:
        own.pop("pool_size", None)
    own |= described.preprocess.to_timm() | {"num_classes": len(labels), "custom_load": False, "tag": "femtobooth"}
    if licence := described.provenance.get("licence"):
        own["license"] = licence
    value: dict[str, Any] = {
        "architecture": architecture,
        "num_classes": len(labels),
        "num_features": features,
        "label_names": list(labels.synsets or labels.names),
        "pretrained_cfg": own,
    }
    if labels.synsets:
        value["label_descriptions"] = dict(zip(labels.synsets, labels.names, strict=True))
    if described.model_args:
        value["model_args"] = described.model_args
    (folder / NAME).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read(path: Path) -> HubConfig:
    """Read a config.json; where there is none, HubConfig(). Raises ModelError."""
    if not path.is_file():
        return HubConfig()
    try:
        return _parsed(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ModelError(
            f"{path}: not the description of a timm model", "copy or download it again, or take it away"
        ) from None


def _parsed(config: dict[str, Any]) -> HubConfig:
    name = config["architecture"]
    if not isinstance(name, str):
        raise TypeError
    args = dict(config.get("model_args") or {})
    if "pretrained_cfg" in config:
        own = copy.deepcopy(config["pretrained_cfg"] or {})
        own |= {key: config[key] for key in ("num_classes", "label_names", "label_descriptions") if key in config}
    else:
        own = {key: value for key, value in config.items() if key not in ("architecture", "num_features")}
        own |= {"label_names": own.pop("labels")} if "labels" in own else {}
    if args.get("dynamic_img_size") or args.get("strict_img_size") is False or args.get("use_naflex"):
        own["fixed_input_size"] = False
    if args.get("in_chans") is not None:
        own["input_size"] = (args["in_chans"], *own.get("input_size", (3, 224, 224))[1:])
    if args.get("img_size") is not None and own.get("fixed_input_size"):
        size = args["img_size"]
        own["input_size"] = (own.get("input_size", (3,))[0], *((size, size) if isinstance(size, int) else size))
    tag = own.get("tag")
    return HubConfig(f"{name}.{tag}" if tag else name, own, args)
