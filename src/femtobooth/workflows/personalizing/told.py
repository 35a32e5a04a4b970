"""What `femtobooth personalize` says of what trains."""

from __future__ import annotations

from collections.abc import Sequence

from ...core.events import note, table
from ...generator.dreambooth import DreamBooth
from ...generator.memory import Part, parts, told
from ...generator.photos import Photo, in_proportion, shape_counts
from ...generator.settings import PersonalizeSettings
from ...training.optimizers import KINDS


def memory(module: DreamBooth, settings: PersonalizeSettings) -> list[Part]:
    """Count what a training with these settings holds of each part."""
    return parts(module.model, module.teacher, module.optimizer_groups(), settings.training)


def shapes(settings: PersonalizeSettings, photos: Sequence[Photo]) -> None:
    """Tell which buckets photos and class images are in, where there are buckets."""
    if settings.photos.shapes == "square":
        return
    counts = shape_counts(photos)
    images = in_proportion(counts, settings.prior.images) if settings.prior.uses_images else {}
    each = [
        f"{width}x{height}: {sum(photo.shape == (width, height) for photo in photos)}"
        + (f" with {images[width, height]} class images" if images and not settings.prior.folder else "")
        for width, height in counts
    ]
    note(f"buckets of photos: {', '.join(each)}; a micro-batch is of one, and every photo is seen equally often")


def what_trains(module: DreamBooth) -> None:
    """Tell what trains of a model, at which rate, and what that takes of memory."""
    kept = module.anchor.kept_bytes if module.anchor else 0
    tell_parts(memory(module, module.settings), module.settings, kept)


def tell_parts(rows: Sequence[Part], settings: PersonalizeSettings, kept: int = 0) -> None:
    """Tell what is held of each part; `kept` bytes of the base's values lie in main memory."""
    found = " x what it finds" if KINDS[settings.training.optimizer].multiplies else ""
    extra = [name for name in ("average", "teacher") if any(getattr(row, name) for row in rows)]
    kinds = ["weights", "gradients", "optimizer", *extra]
    blank = [""] * (len(kinds) - 1)
    table(
        f"What trains; passes in {settings.training.precision}, activations come on top",
        ["part", ">trained", ">frozen", ">rate", *(f">{kind}" for kind in kinds)],
        [
            (
                row.name,
                _count(row.trained),
                _count(row.frozen),
                f"{row.learning_rate:g}{found}" if row.learning_rate else "-",
                *(told(getattr(row, kind)) for kind in kinds),
            )
            for row in rows
        ]
        + ([("base's values, in main memory", "", "", "", told(kept), *blank)] if kept else [])
        + [("total", "", "", "", told(sum(row.total for row in rows) + kept), *blank)],
    )


def _count(numbers: int) -> str:
    return f"{numbers / 1e6:.2f} M" if numbers >= 1e5 else f"{numbers:,}"
