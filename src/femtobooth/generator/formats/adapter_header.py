"""What the header of an adapter's file says of it: modelspec 1.0.1 (Stability-AI/ModelSpec), and as few of kohya's
`ss_` fields as programs need to tell its family and strength.

No path, no user's name and no caption goes into it; what a hash or a date says can be checked.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from ... import __version__
from ..adapters import Adapter, Tensors
from ..families.family import Family
from . import ldm_configs

THUMBNAIL = 256  # pixels along its longer side
KOHYA_MODULE = "networks.lora"
LYCORIS_MODULE = "lycoris.kohya"


@dataclass(frozen=True)
class About:
    """What people should know of an adapter; whatever is empty is left out."""

    title: str
    """What it is called; programs show it in lists."""
    description: str = ""
    trigger_phrase: str = ""
    """What to write into a prompt."""
    merged_from: str = ""
    """The base's name."""
    license: str = ""
    date: str = ""
    """When it was made, ISO 8601; no time is put in by itself, so that the same adapter gives the same file."""
    steps: int | None = None
    seed: int | None = None
    photos: int | None = None
    """How many photos it was trained on."""
    picture: Path | None = None
    """A picture of what it draws, which becomes a small thumbnail."""


def header(adapter: Adapter, model: Family, about: About) -> dict[str, str]:
    """Say what an adapter is, for this model or one like it; the hashes are added when it is written."""
    pixels, predicts_v = model.size, model.process.prediction_type == "v_prediction"
    version = "" if model.FLOWS else ldm_configs.version(model)
    published = ldm_configs.is_published(model)
    architecture, base = {
        "1.x": ("stable-diffusion-v1", "sd_v1"),
        "2.x": ("stable-diffusion-v2-768-v" if predicts_v else "stable-diffusion-v2-512", "sd_v2"),
        "XL": ("stable-diffusion-xl-v1-base", "sdxl_base_v1-0"),
        "": (model.architecture, ""),
    }[version]
    ranks = Counter(map(_rank, adapter.modules.values()))
    alphas = Counter(map(_alpha, adapter.modules.values()))
    plain = adapter.kind == "LoRA"
    spec = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{architecture}{'' if published else '-other-size'}/lora",
        "implementation": "sgm" if version == "XL" else "diffusers",
        "title": about.title,
        "resolution": f"{pixels}x{pixels}",
        "description": about.description,
        "date": about.date,
        "implementation_version": f"femtobooth {__version__}",
        "license": about.license,
        "thumbnail": thumbnail(about.picture) if about.picture else "",
        "merged_from": about.merged_from,
        "trigger_phrase": about.trigger_phrase,
        "prediction_type": "" if model.FLOWS else "v" if predicts_v else "epsilon",
    }
    kohya = {
        "base_model_version": base if published else "",
        "v2": str(version == "2.x") if published and version else "",
        "network_module": KOHYA_MODULE if plain else LYCORIS_MODULE,
        "network_args": "" if plain else json.dumps({"algo": _algorithm(adapter)}),
        "network_dim": next(iter(ranks)) if len(ranks) == 1 else "Dynamic",
        "network_alpha": next(iter(alphas)) if len(alphas) == 1 else "Dynamic",
        "output_name": about.title,
        "resolution": f"({pixels}, {pixels})",
        "steps": "" if about.steps is None else str(about.steps),
        "seed": "" if about.seed is None else str(about.seed),
        "num_train_images": "" if about.photos is None else str(about.photos),
    }
    found = {f"modelspec.{key}": value for key, value in spec.items()} | {
        f"ss_{key}": value for key, value in kohya.items()
    }
    return {key: value for key, value in found.items() if value}


def diffusers_config(adapter: Adapter) -> str:
    """Say in diffusers' words which layers a LoRA changes, and that each one's alpha is its rank."""
    found: dict[str, object] = {}
    networks: dict[str, dict[str, int]] = {}
    for name, held in adapter.modules.items():
        network, _, path = name.partition(".")
        networks.setdefault(network, {})[path] = len(held["lora_down"])
    for network, ranks in networks.items():
        usual = Counter(ranks.values()).most_common(1)[0][0]
        others = {path: rank for path, rank in ranks.items() if rank != usual}
        config = {"r": usual, "lora_alpha": usual, "rank_pattern": others, "alpha_pattern": others}
        config |= {"target_modules": sorted(ranks), "lora_bias": False, "use_dora": False}
        found |= {f"{network}.{key}": value for key, value in config.items()}
    return json.dumps(found, sort_keys=True)


def thumbnail(picture: Path) -> str:
    """Make a small copy of a picture, as the data URL of a JPEG."""
    from PIL import Image

    with Image.open(picture) as image:
        small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    file = BytesIO()
    small.save(file, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _rank(held: Tensors) -> str:
    for kind in ("lora_down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b", "oft_blocks", "oft_R"):
        if kind in held:
            return str(held[kind].shape[0])
    return "Full"


def _alpha(held: Tensors) -> str:
    return str(float(held["alpha"].item())) if "alpha" in held else _rank(held)


def _algorithm(adapter: Adapter) -> str:
    kinds: Mapping[str, str] = {"hada_": "loha", "lokr_": "lokr", "oft_": "diag-oft"}
    for held in adapter.modules.values():
        for start, algorithm in kinds.items():
            if any(kind.startswith(start) for kind in held):
                return algorithm
    return "locon"
