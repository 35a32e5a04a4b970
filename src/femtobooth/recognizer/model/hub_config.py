"""A hub's config.json, read as timm reads it (timm/models/_hub.py `_parse_model_cfg`, _builder.py
`resolve_pretrained_cfg`).

Older timm wrote one level: architecture, mean, labels and all the others side by side. Newer has `pretrained_cfg` for
what belongs to the weights and `model_args` for what shapes the network. Reading it needs neither torch nor timm;
building with it does.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ...core.errors import ModelError

NAME = "config.json"


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
        from timm.models import PretrainedCfg

        known = {one.name for one in fields(PretrainedCfg)}
        return dict(
            PretrainedCfg(**{name: value for name, value in self.pretrained.items() if name in known}).to_dict()
        )


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
