"""Labelled pictures as they were read, before any of them is decoded."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from ...core.errors import PhotoError
from ...pictures.images import Skipped


@dataclass(frozen=True)
class Example:
    """A file and its class."""

    path: Path
    label: str
    part: str | None = None
    """`train`, `val` or `test` where the user has split, else None."""
    labels: tuple[str, ...] = ()
    """All its labels, where a picture may have several or none; `label` then says them all."""


@dataclass
class Labelled:
    """What was read."""

    source: Path
    examples: list[Example]
    skipped: list[Skipped]
    """What is no example, and why."""
    remarks: list[str] = field(default_factory=list)
    """How it was read, where that is not plain to see."""
    by: str = "folders"
    """What the labels were read from."""
    groups: tuple[str, ...] = ()
    """Groups of labels that exclude each other, where a picture may have several; such a label is `group=label`."""

    @property
    def parts(self) -> list[str]:
        """The parts that there are, of `train`, `val` and `test`."""
        there = {example.part for example in self.examples}
        return [part for part in ("train", "val", "test") if part in there]

    def to_train(self) -> list[Example]:
        """Find the examples to train and validate on: all but the test part.

        Without a validation part, the split is to be made.
        """
        kept = [example for example in self.examples if example.part != "test"]
        return kept if "val" in self.parts else [replace(example, part=None) for example in kept]

    def to_measure(self, part: str = "auto") -> tuple[list[Example], list[str]]:
        """Find the examples to test on, and a remark that says which: `auto` is the test part, else the validation
        part, else all.

        Raises PhotoError for a part that is not there.
        """
        chosen = next((name for name in ("test", "val") if name in self.parts), "all") if part == "auto" else part
        if chosen not in ("all", *self.parts):
            raise PhotoError(
                f"{self.source}: has no {chosen} part", f"give `split={' or '.join([*self.parts, 'all'])}`"
            )
        kept = [example for example in self.examples if chosen in ("all", example.part)]
        if chosen == "all":
            return kept, self.remarks
        others = [name for name in self.parts if name != chosen]
        other = f" (split {' or '.join(others)} measures the other{'s' if len(others) > 1 else ''})" if others else ""
        return kept, [
            *self.remarks,
            f"The data is split: only its {len(kept)} {NAMES[chosen]} pictures were measured{other}.",
        ]


NAMES = {"train": "training", "val": "validation", "test": "test"}
