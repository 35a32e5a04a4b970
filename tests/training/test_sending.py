"""What processes of one training send each other: it arrives as it was, and nothing else is read."""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from femtobooth.core.errors import FemtoboothError
from femtobooth.recognizer.finetuning.survey import Survey
from femtobooth.recognizer.model.labels import Labels
from femtobooth.training.sending import packed, unpacked


class Hostile:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


SURVEY = Survey(
    [Path("a/b.png"), Path("ü.png")],
    ["red", "blue"],
    np.array([0, 1]),
    ["train", "val"],
    np.array([True, False]),
    np.zeros(0, bool),
    np.arange(2),
    ["0" * 64, "1" * 64],
    judges=frozenset({"2" * 64}),
    several=Labels(("red", "blue"), groups={"colour": (0, 2)}),
    truth=np.asfortranarray(np.eye(2, dtype=np.float32)),
)


def test_what_is_sent_arrives() -> None:
    found = unpacked(packed(SURVEY), Survey)
    assert found is not None
    for name, value in vars(SURVEY).items():
        other = getattr(found, name)
        if isinstance(value, np.ndarray):
            assert (value.dtype, value.tolist()) == (other.dtype, other.tolist())
            assert value.flags.c_contiguous == other.flags.c_contiguous
        else:
            assert value == other and type(value) is type(other)
    assert unpacked(packed(None), Survey) is None
    tensor = torch.arange(6.0).reshape(2, 3).T
    sent = unpacked(packed({"tensor": tensor, "bytes": b"\0\xff", "none": b""}), dict)
    assert (
        sent is not None and torch.equal(sent["tensor"], tensor) and (sent["bytes"], sent["none"]) == (b"\0\xff", b"")
    )


def test_nothing_else_is_read(tmp_path: Path) -> None:
    bad: list[bytes] = [packed(value(tmp_path / "made")) for value in (Hostile, lambda one: {"a": [Hostile(one)]})]
    bad += [packed(replace(SURVEY, behind=(Hostile(tmp_path / "made"),))), pickle.dumps(Hostile(tmp_path / "made"), 2)]  # type: ignore[arg-type]
    bad += [packed({"another": "kind"}), packed(Other(3)), b"", b"nothing"]
    for data in bad:
        with pytest.raises(FemtoboothError, match="sent is of another kind, and was not read"):
            unpacked(data, Survey)
    assert not (tmp_path / "made").exists()


@dataclass
class Other:
    number: int
    more: list[int] = field(default_factory=list)
