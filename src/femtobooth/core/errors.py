"""Everything femtobooth raises on purpose.

    FemtoboothError                exit 1   something went wrong while running
    ├── InputError                 exit 2   what the user gave cannot be used
    │   ├── SettingsError                   a flag, a --set or a line of the YAML file
    │   ├── PhotoError                      pictures: none found, unreadable, too few
    │   ├── ModelError                      a base model or run: not found, incomplete, of another kind
    │   │   └── UnsafeFileError             a pickle that wants to run code
    │   ├── ExistsError                     would overwrite something that may not go
    │   │   └── InUseError                  another process writes there
    │   ├── StorageError                    the disk is full, read-only, or not ours to write to
    │   ├── CheckpointError                 every checkpoint of a run is damaged
    │   └── NotFiniteError                  NaN or infinite values, in training or in what a model draws
    └── ParityError                exit 1   an exported model strays further from the original than it may

    Interrupted                    exit 130 stopped by a signal, after saving; no Exception, so that nothing swallows it

Each carries the problem (which names the file or flag) and, on a second line, the way out. Names stand in both as they
are; `cli.py` makes them harmless for a terminal.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .names import shown


class FemtoboothError(Exception):
    """A problem and, where there is one, the way out; `cli.py` prints both and exits with `exit_code`.

    `details` are further problems, each on a line of its own between the two.
    """

    exit_code = 1

    def __init__(self, problem: str, way_out: str | None = None, details: Sequence[str] = ()) -> None:
        self.problem = problem
        self.way_out = way_out
        self.details = details
        self.lines = (
            problem,
            *(f"  {detail}" for detail in details),
            *([] if way_out is None else [f"  -> {way_out}"]),
        )
        super().__init__("\n".join(self.lines))

    def __reduce__(self) -> tuple[type[FemtoboothError], tuple[str, str | None], dict[str, Any]]:
        return type(self), (self.problem, self.way_out), vars(self)


class InputError(FemtoboothError):
    exit_code = 2


class SettingsError(InputError):
    faults: Sequence[tuple[str, str, str | None]] = ()
    """Where settings were validated: dotted name, problem and way out of each fault, for a form's fields."""


class PhotoError(InputError):
    pass


class ModelError(InputError):
    pass


class UnsafeFileError(ModelError):
    pass


class ExistsError(InputError):
    pass


class InUseError(ExistsError):
    pass


class StorageError(InputError):
    pass


class CheckpointError(InputError):
    pass


class NotFiniteError(InputError):
    step: int | None = None
    """The optimizer step in which training met them first, where that is known."""


class ParityError(FemtoboothError):
    pass


class ProcessLost(FemtoboothError):
    """Another process of the same training has ended; with its exit code, where it said so."""


class Interrupted(BaseException):
    """Stopped by a signal after everything was saved. `signum` sets the exit code (128 + signum).

    Like KeyboardInterrupt it is no Exception: it may be raised anywhere, and what catches the faults of a library must
    not take it for one.
    """

    def __init__(self, problem: str, way_out: str | None = None, signum: int = 2) -> None:
        self.problem = problem
        self.way_out = way_out
        self.lines = (problem, *([] if way_out is None else [f"  -> {way_out}"]))
        self.exit_code = 128 + signum
        super().__init__("\n".join(self.lines))


def first_line(error: BaseException) -> str:
    """Say what an error of a library says first, for a parenthesis."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


def shortened(text: str, limit: int = 60) -> str:
    """Shorten a text to what an error may hold: of one line, without what a terminal would obey, and cut."""
    cut = text if len(text) <= limit else f"{text[: limit - 3]}..."
    return shown(cut)


def command(*words: object, program: str = "femtobooth") -> str:
    """Write a command of femtobooth's that can be pasted into a shell, whatever is in the names."""
    return " ".join(map(_quoted, (program, *words)))


def _quoted(word: object) -> str:
    text = f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word)
    if shown(text) == text:
        return shlex.quote(text)
    return "$'" + "".join("\\" + letter if letter in "\\'" else _byte_by_byte(letter) for letter in text) + "'"


def _byte_by_byte(letter: str) -> str:
    if shown(letter) == letter:
        return letter
    return "".join(f"\\x{byte:02x}" for byte in letter.encode("utf-8", "surrogateescape"))


def needs(extra: str) -> str:
    """Say how to get the libraries of an extra, wherever femtobooth was installed from: no package index has it."""
    from importlib import metadata

    try:
        listed = [line.partition(";") for line in metadata.requires("femtobooth") or ()]
    except metadata.PackageNotFoundError:
        listed = []
    wanted = [line.strip() for line, _, marker in listed if re.search(rf"""extra == ['"]{extra}['"]""", marker)]
    return f"pip install {shlex.join(wanted)}" if wanted else f"pip install '.[{extra}]' in femtobooth's own folder"
