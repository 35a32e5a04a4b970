"""Ask the process that works on a run for something, by a file in the run's folder: one way on every system.

RUN/requests/save     write a checkpoint, and go on
             sample   sample images of this step, and go on
             stop     write a checkpoint, and end

Training looks between two optimizer steps, and removes what it has done. What a process that is gone was asked for
counts for nobody: `Run.working` forgets it.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Literal, get_args

FOLDER = "requests"
Request = Literal["save", "sample", "stop"]


def ask(run: Path, what: Request) -> None:
    """Ask for `what`; asked twice before it is done, it is done once."""
    (run / FOLDER).mkdir(exist_ok=True)
    (run / FOLDER / what).touch()


def asked(run: Path, what: Request) -> bool:
    """Tell whether `what` was asked for, and is not done yet."""
    return (run / FOLDER / what).exists()


def forget(run: Path, *what: Request) -> None:
    """Remove requests, all without `what`: they are done, or nobody will do them."""
    for one in what or get_args(Request):
        with suppress(OSError):
            (run / FOLDER / one).unlink()
    with suppress(OSError):  # others are left
        (run / FOLDER).rmdir()
