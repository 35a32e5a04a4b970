"""The command line: find the command, run it, turn errors into two lines and an exit code. No ML here."""

from __future__ import annotations

import argparse
import atexit
import errno
import gc
import itertools
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from . import __version__
from .core import events, later, streams
from .core.errors import FemtoboothError, InputError, Interrupted, SettingsError, first_line, shortened
from .core.names import shown
from .core.processes import first_here, rank, world
from .parsing import EVERYTHING, HELP, LEVELS, Parser, names, parse, spoken
from .workflows.commands import COMMANDS, Command, find

if TYPE_CHECKING:
    from .core.console import Terminal

OUTSIDE = (  # what a disk or a user's rights refuse, wherever it was not foreseen
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.EACCES, errno.EPERM),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EMFILE, errno.ENFILE, errno.ESTALE),
)
LONGEST = 2000  # characters of a line of an error
VARIABLES = {
    "FEMTOBOOTH_CACHE": (
        "folder of what is kept between commands: class images, pictures, exports [~/.cache/femtobooth]"
    ),
    "FEMTOBOOTH_SHARE_BASE": "1 has all processes of this machine that load a base hold it once, in the cache",
    "FEMTOBOOTH_DEBUG": "1 shows where an error of femtobooth's own came from, as Python's traceback",
}
INTERNAL = ("FEMTOBOOTH_RUN",)  # for the processes of one run


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line of `femtobooth`, as its entry point; exits with 0, or with the error's code (2 for bad
    input).
    """
    if arguments is None:
        later.keep()
        atexit.register(_end_quickly)
    given = list(sys.argv[1:] if arguments is None else arguments)
    before = [*itertools.takewhile(lambda word: word in LEVELS, given)]  # femtobooth -q classify ...
    name, *rest = [*given[len(before) :], *before] or ["--help"]
    if name == "help":
        name, *rest = [*rest, "--help"]
    streams.prepare()
    try:
        with events.listening(screen := _Screen(name)):
            _answer(name, rest, screen)
    except FemtoboothError as error:
        if world() > 1 and rank():
            _excuse(error)
        _exit(_as_typed(error, name), error.exit_code)
    except Interrupted as stop:
        _exit(stop.lines, stop.exit_code)
    except KeyboardInterrupt:
        _exit(["interrupted; what was finished is kept"], 130)
    except BrokenPipeError:
        streams.silence()
        sys.exit(141)
    except Exception as error:
        if os.environ.get("FEMTOBOOTH_DEBUG"):
            raise
        if isinstance(error, OSError) and error.errno in OUTSIDE:
            _exit(
                [
                    f"{error.filename or 'a file'}: {error.strerror}",
                    "  -> check its name and its disk, or choose another place",
                ],
                2,
            )
        first = first_line(error) if str(error).strip() else "no message"
        _exit([f"{type(error).__name__}: {first}", "  -> FEMTOBOOTH_DEBUG=1 shows where"], 1)


def _end_quickly() -> None:
    """Spare the interpreter its last search for garbage, which goes through all of torch for as long as a third of its
    import; a fit's loggers may need it, for what they have not closed.
    """
    if "lightning" not in sys.modules:
        gc.freeze()


class _Screen:
    """Listen for the terminal; what draws there is loaded with the first event, so that --help stays quick."""

    level = 0
    _terminal: Terminal | None = None

    def __init__(self, name: str) -> None:
        self._command = COMMANDS.get(name)

    def __call__(self, event: events.Event) -> None:
        if self._terminal is None:
            from .core.console import Terminal

            self._terminal = Terminal()
        self._terminal.level = self.level
        if self._command and event.kind in ("note", "warning"):
            event = replace(event, data={**event.data, "text": spoken(event.data["text"], self._command)})
        self._terminal(event)


def _answer(name: str, arguments: Sequence[str], screen: _Screen) -> None:
    _warn_of_unknown_variables()
    if name in COMMANDS:
        _run(name, COMMANDS[name], arguments, screen)
    elif name == "completion":
        streams.write([_completion(arguments)])
    elif name.startswith("-"):
        _overview().parse_args([name])
    else:
        near = _near(name, (*COMMANDS, "completion"))
        raise InputError(
            f"{shortened(name)}: no such command", f"did you mean {near}?" if near else f"one of {', '.join(COMMANDS)}"
        )


def _completion(arguments: Sequence[str]) -> str:
    from .completion import SHELLS, script

    parser = Parser(prog="femtobooth completion", description="Print a script that teaches your shell to complete.")
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=f"one of {', '.join(SHELLS)}")
    parser.example = "bash"
    parser.epilog = "for example: source <(femtobooth completion bash); for fish: femtobooth completion fish | source"
    return script(parser.parse_args(arguments).shell)


def _run(name: str, command: Command, arguments: Sequence[str], screen: _Screen) -> None:
    if any(word in (*HELP, EVERYTHING) for word in arguments):
        from .help_page import show

        show(name, command, arguments)
    parsed = parse(name, command, arguments)
    screen.level = parsed.level
    settings: Any = parsed.settings
    rows = command.rows and not settings.out
    if rows and parsed.json:
        settings = settings.model_copy(update={"format": "json"})
    if rows or parsed.json:
        streams.stdout()
    if parsed.begins:
        events.note(f"{parsed.begins.format(settings)} ...")
    result = find(parsed.run)(settings)
    result = result.plain() if hasattr(result, "plain") else result
    if isinstance(result, streams.Text):
        streams.show(result)
    elif parsed.json and result is not None and _speaks():
        streams.write([json.dumps(result, indent=2, ensure_ascii=False) + "\n"])


def _as_typed(error: FemtoboothError, name: str) -> Sequence[str]:
    """Give the lines of an error, in which settings are called as on this command line."""
    if name not in COMMANDS:
        return error.lines
    command = COMMANDS[name]
    problem, *others = (spoken(line, command) for line in error.lines)
    setting, colon, rest = problem.partition(":")
    known = names(command).get(setting) if colon else None
    flag = known.called if known else ""
    if isinstance(error, SettingsError) and error.way_out is None:
        others.append(f"  -> `femtobooth {name} --help` shows everything that can be given")
    return [f"{flag}:{rest}" if flag else problem, *others]


def _warn_of_unknown_variables() -> None:
    for given in os.environ:
        if given.startswith("FEMTOBOOTH_") and given not in (*VARIABLES, *INTERNAL):
            near = _near(given, VARIABLES)
            hint = f"; did you mean {near}?" if near else ""
            events.warn(f"{given}: femtobooth knows no such environment variable{hint}")


def _near(word: str, known: Iterable[str]) -> str | None:
    import difflib

    return next(iter(difflib.get_close_matches(word[:60], known, n=1)), None)


def _excuse(error: FemtoboothError) -> None:
    """Tell the other processes of a training, on other machines, of an error that may be this one's alone."""
    from .training import team

    team.excuse(error)


def _exit(lines: Sequence[str], code: int) -> NoReturn:
    """End the program with a message whose lines hold text of any origin: made harmless for a terminal, and cut where
    nobody reads on. Of several machines the first process of each says it.
    """
    if first_here() if world() > 1 else _speaks():
        print("\n".join(_cut(shown(line)) for line in (f"femtobooth: {lines[0]}", *lines[1:])), file=sys.stderr)
    sys.exit(code)


def _cut(line: str) -> str:
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"


def _speaks() -> bool:
    """Tell whether this is the first process of a run; the others would only repeat it."""
    return rank() == 0


def _overview() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:20} {command.summary}" for name, command in COMMANDS.items())
    listed += f"\n  {'completion':20} a script that teaches bash, zsh or fish to complete all this"
    variables = "\n".join(f"  {name:20} {about}" for name, about in VARIABLES.items())
    parser = Parser(
        prog="femtobooth",
        usage="femtobooth COMMAND ...",
        description="3-5 photos of one subject in; a Stable Diffusion that draws it anywhere out.",
        epilog=(
            f"commands:\n{listed}\n\nenvironment:\n{variables}\n\n`femtobooth "
            "COMMAND --help` shows everything a command can do."
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"femtobooth {__version__}")
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    return parser
