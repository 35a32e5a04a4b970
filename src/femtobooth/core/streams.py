"""stdout, for programs: UTF-8 whatever the locale says, and two lines where it is closed or full.

Only the command line writes there; what a command gives piece by piece is a `Text`.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TextIO

from .errors import InputError
from .names import shown


def prepare() -> None:
    """Make the standard streams fit for what is to come, once, before anything is opened.

    A closed one is given to nobody else: the next file that is opened would get its number, and what is printed.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")


def stdout() -> TextIO:
    """Give the stream that rows and results go to. Raises InputError where it is closed."""
    if sys.stdout is None or sys.stdout.closed:
        raise InputError("stdout: is closed", "send it to a file or to another program")
    return sys.stdout


@dataclass(frozen=True)
class Text:
    """A command's result as text for stdout, made while it is written."""

    pieces: Callable[[int], Iterator[str]]
    """Takes the columns of a terminal that a line should fit into, 0 where it may be of any length."""


def show(text: Text) -> None:
    """Write a result as it is made. Raises as `write` does."""
    write(text.pieces(shutil.get_terminal_size().columns if stdout().isatty() else 0))


def write(pieces: Iterable[str]) -> None:
    """Write text to stdout, each piece to be seen at once; a terminal gets it without what it would act on.

    Raises InputError where it cannot be written; BrokenPipeError where nobody reads on.
    """
    stream = stdout()
    terminal = stream.isatty()
    for piece in pieces:
        try:
            stream.write(shown(piece, keep="\n\t") if terminal else piece)
            stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            silence()
            raise InputError(
                f"stdout: cannot be written ({error.strerror or error})", "make room, or send it to another place"
            ) from None


def silence() -> None:
    """Have what is still on its way to stdout go nowhere, so that leaving does not fail once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def last_words(lines: Sequence[str]) -> None:
    """Write the lines of an error to stderr from a thread that is about to end the process."""
    text = "\n".join(shown(line) for line in (f"femtobooth: {lines[0]}", *lines[1:]))
    with suppress(OSError):
        os.write(2, f"{text}\n".encode())
