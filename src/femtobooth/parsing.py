"""What was typed behind a command, as settings, and what to say of mistakes: flags and help are the fields' own."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from .core import streams
from .core.errors import InputError, SettingsError, shortened
from .core.paths import existing, nearest, refuse_missing_path
from .core.processes import rank, world
from .workflows.commands import Command, find

if TYPE_CHECKING:
    from .core.config import Layer, Settings
    from .core.fields import Setting

HELP = ("-h", "--help")
LEVELS = ("-q", "--quiet", "-v", "--verbose")
EVERYTHING = "--help-all"
BIG = 10  # flags; a command of more shows the common ones, and all with --help-all
REQUIRED = "the following arguments are required: "  # how argparse begins its own errors
UNKNOWN = "unrecognized arguments: "
SET_HELP = (
    "any setting by its dotted name; nothing behind the = leaves an optional one out; what takes several (...) is "
    "given several times or as a JSON list, short words also as a,b"
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
        """Say what the positional argument of this name is, and how a whole command looks. Raises SettingsError."""
        told = (
            next((action.help or "" for action in self._actions if action.metavar == name), "")
            .replace("%%", "%")
            .rstrip(".")
        )
        told = told if told[:2].isupper() else told[:1].lower() + told[1:]
        raise SettingsError(
            f"{self.prog.split()[-1]}: no {name} given", f"{told}; for example {self.prog} {self.example}"
        )


class Parsed(NamedTuple):
    """A command line that was understood."""

    settings: Settings
    run: str
    """What takes these settings, as the table of commands names it."""
    begins: str
    json: bool
    """Whether the result is to be printed as JSON."""
    level: int
    """Of what is said meanwhile: -1 with -q, 1 with -v."""


def parse(name: str, command: Command, arguments: Sequence[str]) -> Parsed:
    """Read a command line. Raises SettingsError before anything heavy is imported."""
    from .core.config import Layer, merge, settle
    from .core.fields import settings

    model = find(command.settings)
    known = settings(model)
    parser = build(name, command)
    options = parser.parse_intermixed_args(arguments)
    layers = layers_of(options, known, model)
    given = merge(*layers)
    if command.instead and options.instead:
        other = find(command.instead.settings)
        first, *beside = settings(other)
        if set(given) - {one.path for one in beside}:
            raise InputError(f"{first.flag}: {command.instead.why}", spoken(command.instead.way_out, command))
        chosen = Layer({first.path: options.instead})
        chosen.names = {first.path: first.flag}
        found = settle(other, *layers, chosen)
        _refuse_missing_files(found)
        return Parsed(found, command.instead.run, command.instead.begins, options.json, options.level)
    for one in known:
        if one.argument and one.argument.needed and not (_at(given, one.path) or _at(given, one.argument.unless)):
            parser.missing(one.called)
    found = settle(model.narrowed(given), *layers)
    _refuse_missing_files(found)
    if command.plan and getattr(found, "plan", False):  # for hardware and packages that need not be here
        return Parsed(found, command.plan, "reading the shapes of {0.base}", options.json, options.level)
    found.refuse_at_once()
    if command.makes and getattr(found, "name", None) and rank() == 0 and world() == 1:
        find(command.makes).place(found).check()
    return Parsed(found, command.run, command.begins, options.json, options.level)


@cache
def names(command: Command) -> Mapping[str, Setting]:
    """Give everything that a command's settings can be called by, in place of its own too: dotted path to setting."""
    from .core.fields import settings

    models = [*([command.instead.settings] if command.instead else []), command.settings]
    return {one.path: one for model in models for one in settings(find(model))}


def spoken(text: str, command: Command) -> str:
    """Put flags in place of the settings that a text names in backticks.

    `training.steps` becomes --steps, `training.steps=400` --steps 400 and `overwrite=true` --overwrite; a setting
    without a flag becomes --set training.clip=1; what is no setting of this command stays.
    """
    known = names(command)

    def flag(found: re.Match[str]) -> str:
        path, value = found.groups()
        if path not in known:
            return found[0]
        called = known[path].called
        if not called:
            return f"--set {path}" + (f"={value}" if value else "")
        if value in ("true", "false") and known[path].is_switch:
            return called if value == "true" else f"--no-{called[2:]}"
        return called + (f" {value}" if value else "")

    return re.sub(r"`([a-z_]+(?:\.[a-z_]+)*)(?:=([^`]*))?`", flag, text)


def _at(values: Any, path: str) -> Any:
    for key in path.split("."):
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def _refuse_missing_files(found: Settings) -> None:
    from .core.fields import settings

    if world() > 1:  # the first process reads, and tells the others of what it lacks
        return
    for one in settings(type(found)):
        if one.names not in ("file", "folder", "run", "model"):
            continue
        value: Any = found
        for key in one.path.split("."):
            value = getattr(value, key)
        way_out = f"check the path ({one.called or one.path})"
        for name in value if isinstance(value, list) else [value]:
            if not name or existing(name):
                continue
            if one.names == "model":
                refuse_missing_path(name, way_out)
                if not hasattr(found, "paths"):  # classify and embed look at what is named first
                    _refuse_missing_default(name)
            else:
                near = nearest(name)
                raise InputError(f"{name}: no such file or folder", f"did you mean {near}?" if near else way_out)


def _refuse_missing_default(model: str) -> None:
    """Raise ModelError where the default recognizer is neither in the hub's cache nor to be had, before anything heavy
    is imported.
    """
    from .recognizer.model import weights

    if model == weights.DEFAULT:
        weights.resolve(model)


def build(name: str, command: Command) -> Parser:
    """Make the parser of a command: its flags in groups, those around its arguments first and output last."""
    from .core.fields import settings

    known = settings(find(command.settings))
    epilog = f"for example: femtobooth {name} {command.example}" if command.example else None
    parser = Parser(
        prog=f"femtobooth {name}", description=command.description, epilog=epilog, allow_abbrev=False, add_help=False
    )
    parser.example = command.example
    titles = dict.fromkeys(
        one.group for one in sorted(known, key=lambda one: (not one.argument, one.group == "output"))
    )
    groups = {title: parser.add_argument_group(title or "arguments") for title in titles}
    for one in known:
        if one.argument:
            text = one.help.replace("%", "%%")
            groups[one.group].add_argument(one.path, nargs=one.argument.count, metavar=one.called, help=text)
    for one in known:
        if one.flag:
            add_flag(groups[one.group], one)
    if command.instead:
        first = settings(find(command.instead.settings))[0]
        group = parser.add_argument_group("instead of all these")
        group.add_argument(first.flag, dest="instead", metavar=first.path.upper(), help=first.help)
    every = parser.add_argument_group("every command")
    every.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings; flags and --set win over it")
    every.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="sets", help=SET_HELP)
    every.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    level = every.add_mutually_exclusive_group()
    quiet, verbose = "say only warnings, errors and results", "also say how long each part took, and what was kept"
    level.add_argument("-q", "--quiet", action="store_const", dest="level", const=-1, default=0, help=quiet)
    level.add_argument("-v", "--verbose", action="store_const", dest="level", const=1, default=0, help=verbose)
    every.add_argument("-h", "--help", action="help", dest="help", help="the flags that most people need")
    about = "every flag, and the settings that only --set reaches"
    every.add_argument(EVERYTHING, action="help", dest="help_all", help=about)
    called = {"--" + one.path.rpartition(".")[2].replace("_", "-"): one.path for one in reversed(known)}
    flags = {one.flag for one in known}
    arguments = {one.path for one in known if one.argument}
    parser.unflagged = {flag: path for flag, path in called.items() if flag not in flags and path not in arguments}
    return parser


def add_flag(group: argparse._ArgumentGroup, one: Setting) -> None:
    """Add the flag of a setting to a group of a parser."""
    text = one.help.replace("%", "%%")
    if one.is_switch:
        group.add_argument(one.flag, dest=one.path, action=argparse.BooleanOptionalAction, default=None, help=text)
    else:
        action = "append" if one.is_list else "store"
        group.add_argument(one.flag, dest=one.path, action=action, metavar=value_of(one), help=text)


def value_of(one: Setting) -> str:
    """Say what stands for the value of a setting: its choices, its unit, or its name."""
    from .core.fields import holds_words

    name = one.unit or one.path.rpartition(".")[2]
    value = "{" + ",".join(one.choices) + "}" if one.choices else name.upper().replace(" ", "-")
    return value + (",..." if holds_words(one.field) else " ..." if one.is_list else "")


def layers_of(options: argparse.Namespace, known: Sequence[Setting], model: type[Settings]) -> list[Layer]:
    """List what was given, weakest first: by a file, by --set and flags, and without a flag."""
    from .core.config import Layer, merge, nested
    from .core.older_runs import read_settings

    called = {one.path: one.called for one in known if one.called}
    given = {one.path: value for one in known if one.flag and (value := getattr(options, one.path)) is not None}
    arguments = {one.path: value for one in known if one.argument and (value := getattr(options, one.path))}
    typed = Layer(merge(*(nested(path, value) for path, value in arguments.items())))
    typed.names = called
    file = read_settings(options.config) if options.config else Layer()
    return [file, overrides(model, options.sets, given, called), typed]


def overrides(
    model: type[Settings],
    sets: Iterable[str],
    flags: Mapping[str, str | bool | Sequence[str]],
    names: Mapping[str, str] = {},
) -> Layer:
    """Make one layer from ``--set a.b=c`` texts and from flags (dotted path -> text, or texts of one given several
    times; flags win).

    `names` says what the command line calls its settings, given or not.
    """
    from .core.config import Layer, merge, nested, parse_value

    texts: dict[str, list[str]] = {}
    for text in sets:
        path, equals, value = text.partition("=")
        if not equals or not path:
            raise SettingsError(f"--set {shortened(text)}: expected KEY=VALUE", "for example --set training.steps=400")
        texts.setdefault(path, []).append(value)
    layer = Layer(merge(*(nested(path, parse_value(model, path, given)) for path, given in texts.items())))
    for path, flag in flags.items():
        found = flag if isinstance(flag, bool) else parse_value(model, path, [flag] if isinstance(flag, str) else flag)
        layer = Layer(merge(layer, nested(path, found)))
    layer.names = {**names, **{path: f"--set {path}" for path in texts if path not in flags}}
    return layer
