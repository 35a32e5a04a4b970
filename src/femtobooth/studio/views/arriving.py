"""Take files that a browser sends: each passes through a file of its own before the studio takes it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from starlette.datastructures import UploadFile

from ..state import Studio
from ..uploads import Upload

Made = TypeVar("Made")


def in_a_file(sent: UploadFile, use: Callable[[Path], Made]) -> Made:
    """Write what was sent to a temporary file, and use that."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sent"
        with path.open("wb") as file:
            shutil.copyfileobj(sent.file, file)
        return use(path)


def take_picture(studio: Studio, sent: UploadFile) -> Upload:
    """Take a picture that was sent. Raises Refusal."""
    return in_a_file(sent, lambda path: studio.uploads.add_picture(path, sent.filename or "picture"))
