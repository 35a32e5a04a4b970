"""Values on their way between the processes of one training, read without running any code that might be in them.

They travel as torch's checkpoints do. What is read may hold plain values, tensors, and the classes that the annotations
of what is expected name: those of femtobooth's own, paths and arrays.
"""

from __future__ import annotations

import io
import pickle
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from ..core.errors import FemtoboothError

Kind = TypeVar("Kind")
_ARRAY: Any = np.empty(0).__reduce__()[0]  # what makes one
_ARRAYS = (_ARRAY, np.ndarray, np.dtype, *(type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"))


def packed(value: Any) -> bytes:
    """Turn a value into bytes."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def unpacked(data: bytes, kind: type[Kind]) -> Kind | None:
    """Read a value of this kind, or None, of what `packed` made.

    Raises FemtoboothError for anything else, without having run any of it.
    """
    try:
        with torch.serialization.safe_globals([bytes, set, frozenset, *_ARRAYS, *_classes(kind, set())]):
            value = torch.load(io.BytesIO(data), weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, AttributeError, TypeError, ValueError, EOFError):
        value = data
    if value is not None and not isinstance(value, kind):
        raise FemtoboothError(
            "what the first process of this training sent is of another kind, and was not read",
            "install the same version of femtobooth on every machine",
        )
    return value


def _classes(hint: Any, seen: set[type]) -> Iterator[type]:
    """List the classes that a value of an annotation may be made of."""
    for part in typing.get_args(hint):
        yield from _classes(part, seen)
    if isinstance(hint, type) and hint not in seen:
        seen.add(hint)
        if issubclass(hint, Path):
            yield type(Path())
        if hint.__module__.partition(".")[0] == __name__.partition(".")[0]:
            yield hint
            for part in typing.get_type_hints(hint).values():
                yield from _classes(part, seen)
