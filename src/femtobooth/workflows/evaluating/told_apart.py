"""Several subjects of one model: who was sampled when who was asked for, and both in one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...core.events import note, table
from ...core.files import atomic_file
from ...judging import confusion
from ...judging.confusion import Galleries
from ...judging.encoders import Encoder
from ...judging.scoring import Generated
from ...pictures.sheets import sheet
from ..settings import EvaluateSettings
from .asked import Asked


def measured(
    settings: EvaluateSettings,
    encoder: Encoder,
    photos: Mapping[str, Sequence[np.ndarray]],
    look_alikes: Mapping[str, Sequence[np.ndarray]],
    generated: Generated,
    asked: Asked,
) -> dict[str, Any]:
    """Tell subjects apart in pictures by their photos: `confusion` and `together`, as evaluation.json holds them."""

    def flat(pictures: np.ndarray) -> list[np.ndarray]:
        return list(pictures.reshape(-1, *pictures.shape[-3:]))

    others = {f"{name} (look-alike)": some for name, some in look_alikes.items()}
    everyone = Galleries(encoder, {**photos, **others}, settings.region)
    tuned, base = (
        {name: flat(some[asked.rows(name)]) for name in asked.prompts} for some in (generated.tuned, generated.base)
    )
    subjects = Galleries(encoder, photos, settings.region) if others else everyone
    both = []
    for row, pair in zip(asked.rows_of_pairs, asked.pairs, strict=True):
        pictures, control = flat(generated.tuned[row]), flat(generated.base[row])
        both.append({"prompt": asked.told[row], **confusion.together(subjects, pair, pictures, control)})
    found = confusion.confusion(everyone, tuned, base)
    return {"confusion": found, "together": {"rule": confusion.RULE, "pairs": both}}


def rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Give the rows of the confusion matrix: who was asked for, how often who was recognized, the share of right."""
    made = []
    for name, counts, right in zip(found["asked"], found["counts"], found["right"], strict=True):
        value, low, high = right
        made.append((name, *map(str, counts), f"{value:.0%} ({low:.0%} to {high:.0%})"))
    return made


def tell(result: Mapping[str, Any]) -> None:
    """Tell what `measured` found; nothing where there is one subject."""
    if not (found := result.get("confusion")):
        return
    right, total = found["photos"]
    columns = ["asked for", *(f">{name}" for name in found["recognized"]), ">right (95 %)"]
    table(f"Who was recognized when who was asked for, by {found['encoder']}", columns, rows(found), result=True)
    note(f"of the real photos {right} of {total} are recognized, each by the others\n")
    for one in result["together"]["pairs"]:
        each = ", ".join(
            f"{name} in {value:.0%} ({low:.0%} to {high:.0%})"
            for name, (value, low, high) in zip(one["subjects"], one["found"], strict=True)
        )
        value, low, high = one["both"]
        note(
            f'"{one["prompt"]}": {each}, both in {value:.0%} ({low:.0%} to {high:.0%}) of {one["of"]} pictures; '
            f"by the base {one['base'][-1]}"
        )


def show(path: Path, generated: Generated, asked: Asked) -> None:
    """Write a sheet of the pictures that two subjects were asked for in, by the base and by the tuned model."""
    lines = [[*generated.base[row], *generated.tuned[row]] for row in asked.rows_of_pairs]
    count = generated.tuned.shape[1]
    with atomic_file(path) as temporary:
        labels = [asked.told[row] for row in asked.rows_of_pairs]
        sheet(lines, labels, ["base"] * count + ["tuned"] * count, cell=128).save(temporary, format="PNG")
