"""Does rejection by the nearest centroid carry over to pictures of several labels?

    python benchmarks/multi_label_rejection.py FOLDER

FOLDER holds sample photos of ImageNet, named by WordNet id (n01494475_hammerhead.jpg). The animals among them are
known, by labels that overlap (bird, water, hunter ...); everything else is out-of-distribution. Centroids and limit
come from five folds, as `finetune` makes them for the probe of several labels; the network is EfficientNet-Lite0.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from femtobooth.core import metrics
from femtobooth.recognizer.finetuning.finetuner import outputs
from femtobooth.recognizer.finetuning.stratification import folds
from femtobooth.recognizer.model import rejection
from femtobooth.recognizer.model.backbone import Recognizer

ANIMALS = 2_642_000  # WordNet ids of ImageNet's animals lie below
RANGES = {
    "bird": [(1514668, 1624000), (1795545, 1860000), (2002556, 2058000)],
    "reptile": [(1629819, 1770000)],
    "arthropod": [(1768244, 1785000), (1976957, 1991000), (2165105, 2282000)],
    "dog": [(2085620, 2114000)],
    "mammal": [(1871265, 1884000), (2062744, 2137000), (2325366, 2504500)],
    "primate": [(2480495, 2501000)],
    "water": [(1440764, 1500000), (1976957, 1991000), (2002556, 2078000), (2512053, 2660000)],
    "hunter": [(2114367, 2137000)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    photos = sorted(parser.parse_args().folder.glob("n*.jpg"))
    ids = np.array([int(photo.name[1:9]) for photo in photos])
    embedded = outputs(Recognizer.load("tf_efficientnet_lite0"), photos)["embedding"]
    truth = np.column_stack([np.any([(a <= ids) & (ids < b) for a, b in RANGES[name]], axis=0) for name in RANGES])
    known, foreign = embedded[ids < ANIMALS], embedded[ids >= ANIMALS]
    members = rejection.members(truth[ids < ANIMALS].astype(np.float32))
    fold = folds(truth[ids < ANIMALS].astype(np.float32), np.arange(len(known)), np.zeros(len(known), bool), 0, 5)
    held = np.full(len(known), np.nan)
    for number in np.unique(fold[fold >= 0]):
        own = fold == number
        held[own] = rejection.similarity(known[own], rejection.centroids(known[~own], members[~own]))
    held = held[np.isfinite(held)]
    centres, limit = rejection.centroids(known, members), rejection.limit(held)
    away = rejection.similarity(foreign, centres)
    area = metrics.auroc(-away, -held)
    said = f"{len(held)} animals, {len(foreign)} other pictures: AUROC {area:.3f}"
    print(f"{said}; {limit.how}; {(away < limit.threshold).mean():.0%} of the others are rejected")


if __name__ == "__main__":
    main()
