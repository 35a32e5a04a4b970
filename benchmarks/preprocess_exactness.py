"""Is femtobooth's preprocessing timm's, to the last bit? Compared on the same decoded pictures, for seven
configurations.

    python benchmarks/preprocess_exactness.py ../shared/data/imagenet-sample

Prints a table: for each configuration, in how many pictures every float32 value is the same as that of
`timm.data.create_transform`, and the largest difference. Exits with 1 if any differs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.data import create_transform, resolve_data_config

from femtobooth.core.console import Terminal
from femtobooth.core.events import listening, progress, table
from femtobooth.pictures.images import find_pictures, read_picture
from femtobooth.recognizer.model.preprocess import Preprocess


def configurations() -> dict[str, dict[str, Any]]:
    """timm's data configurations by name; the last four take its other code paths."""
    femto, lite0 = (
        timm.get_pretrained_cfg(name).to_dict() for name in ("convnext_femto.d1_in1k", "tf_efficientnet_lite0.in1k")
    )
    usual = resolve_data_config({}, pretrained_cfg=femto)
    return {
        "convnext_femto": usual,
        "convnext_femto, test size": resolve_data_config({}, pretrained_cfg=femto, use_test_size=True),
        "tf_efficientnet_lite0": resolve_data_config({}, pretrained_cfg=lite0),
        "squash, bilinear": usual | {"crop_mode": "squash", "interpolation": "bilinear", "crop_pct": 0.9},
        "border, lanczos": usual | {"crop_mode": "border", "interpolation": "lanczos", "crop_pct": 1.0},
        "not square, bicubic": usual | {"input_size": (3, 192, 256), "crop_pct": 0.95},
        "large, nearest": usual | {"input_size": (3, 600, 600), "interpolation": "nearest", "crop_pct": 1.0},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="pictures")
    paths, _ = find_pictures([parser.parse_args().folder], recursive=True)
    cases = {
        name: (config, Preprocess.from_timm(config), create_transform(**config))
        for name, config in configurations().items()
    }
    same, largest = dict.fromkeys(cases, 0), dict.fromkeys(cases, 0.0)
    for path in progress(paths, "comparing"):
        image = read_picture(path).image
        for name, (_, ours, theirs) in cases.items():
            pixels = ours.pixels(image)[None]  # (1, H, W, 3)
            wanted = theirs(image)[None]  # (1, 3, H, W)
            mine = ours.normalize(torch.from_numpy(pixels))
            same[name] += torch.equal(mine, wanted) and np.array_equal(ours.normalize(pixels), wanted.numpy())
            largest[name] = max(largest[name], float((mine - wanted).abs().max()))
    rows = [
        (name, f"{ours.size[0]}x{ours.size[1]}", ours.crop_pct, f"{same[name]}/{len(paths)}", f"{largest[name]:.2g}")
        for name, (_, ours, _) in cases.items()
    ]
    columns = ("configuration", ">size", ">crop", ">identical", ">largest difference")
    table(f"preprocessing against timm {timm.__version__}, {len(paths)} pictures", columns, rows)
    sys.exit(any(count != len(paths) for count in same.values()))


if __name__ == "__main__":
    with listening(Terminal()):
        main()
