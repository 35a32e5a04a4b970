"""What was typed behind a command, as settings: its flags from the settings' own names and help texts, and what to say
of mistakes.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .core import streams
from .core.errors import FemtoboothError, InputError, SettingsError, shortened
from .core.paths import existing, nearest, refuse_missing_path
from .workflows.commands import Command

if TYPE_CHECKING:
    from .core.config import Layer, Settings

HELP = ("-h", "--help")
REQUIRED = "the following arguments are required: "  # how argparse begins its own errors
UNKNOWN = "unrecognized arguments: "
SET_HELP = (
    "any setting by its name in the YAML file; nothing behind the = leaves "
    "an optional one out; what takes several (...) "
    "is given several times or as a JSON list, short words also as a,b"
)


class Parser(argparse.ArgumentParser):
    """Whose errors are those of the rest: two lines, not a page of usage."""

    example = ""
    unflagged: Mapping[str, str] = {}
    """What the flags of settings without one would be called."""

    def _print_message(self, message: str, file: object = None) -> None:  # help and version
        streams.write([message])

    def error(self, message: str) -> NoReturn:
        way_out = f"`{self.prog} --help` shows everything that can be given"
        if message.startswith(REQUIRED):
            self.missing(message.removeprefix(REQUIRED).split(", ")[0])
        if message.startswith(UNKNOWN):
            self._unknown(message.removeprefix(UNKNOWN), way_out)
        flag, colon, problem = message.removeprefix("argument ").partition(": ")
        if problem == "expected one argument":
            problem = "needs a value"
            way_out = f"{flag} VALUE; one that begins with - is given as {flag.rpartition('/')[2]}=VALUE"
        raise SettingsError(f"{flag}{colon}{problem}", way_out)

    def _unknown(self, given: str, way_out: str) -> NoReturn:
        word = next((word for word in given.split() if word.startswith("-")), given)
        flag = word.partition("=")[0]
        if not flag.startswith("-"):
            raise SettingsError(f"{shortened(given)}: more than {self.prog} takes", way_out)
        import difflib

        close = difflib.get_close_matches(flag[:60], {**self._option_string_actions, **self.unflagged}, n=1)
        near = flag if flag in self.unflagged else next(iter(close), "")
        hint = (
            f"; did you mean {f'--set {self.unflagged[near]}=VALUE' if near in self.unflagged else near}?"
            if near
            else ""
        )
        raise SettingsError(f"{shortened(flag)}: {self.prog} has no such flag{hint}", way_out)

    def missing(self, name: str) -> NoReturn:
        """Say what the positional argument of this name is, and how a whole command looks."""
        told = (
            next((action.help or "" for action in self._actions if action.metavar == name), "")
            .replace("%%", "%")
            .rstrip(".")
        )
        told = told if told[:2].isupper() else told[:1].lower() + told[1:]
        raise SettingsError(
            f"{self.prog.split()[-1]}: no {name} given", f"{told}; for example {self.prog} {self.example}"
        )


def parse(name: str, command: Command, arguments: Sequence[str]) -> tuple[Any, argparse.Namespace]:
    """The settings of a command line, None where an option stands in their place, and its options.

    `options.given` holds what was given of the settings, `options.instead` what stands in their place. Raises
    SettingsError before anything heavy is imported.
    """
    from .core.config import merge, settle

    model = _settings_class(command.settings)
    parser = _parser(name, command, model)
    if any(word in HELP for word in arguments):
        _show_values(parser, command, model, arguments)
    options = parser.parse_intermixed_args(arguments)
    layers = _layers(options, command, model)
    options.given = merge(*layers)
    instead = command.instead
    options.instead = getattr(options, instead.flag[2:]) if instead else None
    if instead and options.instead:
        if set(options.given) - set(instead.beside):
            raise InputError(f"{instead.flag}: {instead.why}", instead.way_out)
        return None, options
    for group in command.needs:
        if not any(_given(options.given, path) for path in group):
            parser.missing(_metavar(group[0]))
    narrowed = command.narrowed(options.given)
    settings = settle(_settings_class(narrowed) if narrowed else model, *layers)
    _refuse_missing_files(settings, command)
    return settings, options


def names(command: Command) -> dict[str, str]:
    """What the command line calls its settings, by dotted path."""
    return {path: flag for flag, path in command.flags.items()} | {path: _metavar(path) for path in command.takes}


def _settings_class(path: str) -> type[Settings]:
    module, _, name = path.rpartition(".")
    found: type[Settings] = getattr(importlib.import_module(f"femtobooth.{module}"), name)
    return found


def _metavar(path: str) -> str:
    return path.partition(".")[0].upper()


def _given(values: Any, path: str) -> Any:
    for key in path.split("."):
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def _refuse_missing_files(settings: Settings, command: Command) -> None:
    called = names(command)
    for path in command.files + command.models:
        value: Any = settings
        for key in path.split("."):
            value = getattr(value, key)
        for one in value if isinstance(value, list) else [value]:
            if not one or existing(one):
                continue
            way_out = f"check the path ({called[path]})"
            if path in command.models:
                refuse_missing_path(one, way_out)
                if not hasattr(
                    settings, "paths"
                ):  # classify and embed look at what is named first (recognizer.reading)
                    _refuse_missing_default(one)
            else:
                near = nearest(one)
                raise InputError(f"{one}: no such file or folder", f"did you mean {near}?" if near else way_out)


def _refuse_missing_default(model: str) -> None:
    """Raise ModelError where the default recognizer is neither in the hub's cache nor to be had, before anything heavy
    is imported.
    """
    from .recognizer.model import weights

    if model == weights.DEFAULT:
        weights.resolve(model)


def _parser(name: str, command: Command, model: type[Settings]) -> Parser:
    from .core.config import choices, dotted_keys, field_at, help_text, holds_words, leaf_types

    epilog = f"for example: femtobooth {name} {command.example}" if command.example else None
    parser = Parser(prog=f"femtobooth {name}", description=command.description, epilog=epilog, allow_abbrev=False)
    parser.example = command.example
    for path, count in command.takes.items():
        parser.add_argument(path, nargs=count, metavar=_metavar(path), help=help_text(model, path).replace("%", "%%"))
    if command.instead:
        parser.add_argument(command.instead.flag, type=Path, metavar=command.instead.metavar, help=command.instead.help)
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML file of settings; flags and --set win over it"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="sets", help=SET_HELP)
    for flag, path in command.flags.items():
        field = field_at(model, path)
        kinds, text = leaf_types(field), help_text(model, path).replace("%", "%%")
        if kinds == {bool}:
            parser.add_argument(flag, dest=path, action=argparse.BooleanOptionalAction, default=None, help=text)
            continue
        value = "{" + ",".join(choices(field)) + "}" if choices(field) else path.rpartition(".")[2].upper()
        value += ",..." if holds_words(field) else " ..." if list in kinds else ""
        parser.add_argument(flag, dest=path, action="append" if list in kinds else "store", metavar=value, help=text)
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    called = {"--" + path.rpartition(".")[2].replace("_", "-"): path for path in reversed(dotted_keys(model))}
    parser.unflagged = {
        flag: path for flag, path in called.items() if flag not in command.flags and path not in command.takes
    }
    return parser


def _layers(options: argparse.Namespace, command: Command, model: type[Settings]) -> list[Layer]:
    from .core.config import Layer, merge, nested, overrides
    from .core.run import read_settings

    given = {path: getattr(options, path) for path in command.flags.values() if getattr(options, path) is not None}
    typed = Layer(merge(*(nested(path, value) for path in command.takes if (value := getattr(options, path)))))
    typed.names = names(command)
    return [
        read_settings(options.config) if options.config else Layer(),
        overrides(model, options.sets, given, names(command)),
        typed,
    ]


def _show_values(parser: Parser, command: Command, model: type[Settings], arguments: Sequence[str]) -> None:
    """Put behind each help text what is in force where the setting is not given: on the base that is, as its card
    says.
    """
    from .core.config import in_force, merge

    try:
        options, _ = parser.parse_known_intermixed_args([word for word in arguments if word not in HELP])
        recommended = model.recommended(merge(*_layers(options, command, model)))
    except FemtoboothError:
        recommended = model.recommended({})
    for action in parser._actions:
        if action.dest in command.flags.values() and (value := in_force(model, action.dest, recommended)):
            action.help = f"{action.help} [{value}]".replace("%%", "%").replace("%", "%%")
    if recommended:
        parser.description = (
            f"{parser.description} In [ ] stands what holds where nothing is given, on this base as its card says."
        )
