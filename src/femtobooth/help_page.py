"""What `--help` and `--help-all` show of a command: flags in groups, with what holds where nothing is given."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from .core.errors import FemtoboothError
from .parsing import BIG, EVERYTHING, HELP, Parser, build, layers_of, spoken, value_of
from .workflows.commands import Command, find

if TYPE_CHECKING:
    from .core.fields import Setting


class Formatter(argparse.HelpFormatter):
    """Leaves room for the flags, so that most have their help on the same line."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=36)


def show(name: str, command: Command, arguments: Sequence[str]) -> NoReturn:
    """Print the help of a command and exit: its common flags, or everything where `arguments` hold --help-all."""
    from .core.fields import settings

    model = find(command.settings)
    known = settings(model)
    parser = build(name, command)
    parser.formatter_class = Formatter
    positional = " ".join(_usage(one) for one in known if one.argument)
    parser.usage = " ".join(part for part in (parser.prog, positional, "[flags]") if part)
    recommended = _recommended(parser, known, model, arguments)
    parser.description = f"{parser.description} [ ]: the value if not given."
    actions = {action.dest: action for action in parser._actions}
    for one in known:
        if one.flag:
            actions[one.path].help = _with_value(one, model, recommended)
    if EVERYTHING in arguments:
        _add_the_rest(parser, known, model, recommended)
    elif len(flags := [one for one in known if one.flag]) > BIG:
        for one in flags:
            if not one.common:
                actions[one.path].help = argparse.SUPPRESS
        for action in parser._action_groups[-1]._group_actions:  # those of every command
            action.help = argparse.SUPPRESS
        rest = sum(not one.common for one in flags)
        parser.epilog = (
            f"{parser.epilog}; {EVERYTHING} shows {rest} more flags, all settings, --config, --set and --json"
        )
    for group in parser._action_groups:
        for action in group._group_actions:
            action.help = spoken(action.help or "", command) if action.help != argparse.SUPPRESS else action.help
    parser.print_help()
    sys.exit(0)


def _usage(one: Setting) -> str:
    count = one.argument.count if one.argument else None
    several = one.called + ("..." if count in ("*", "+") else "")
    return several if count in (None, "+") or (one.argument and one.argument.needed) else f"[{several}]"


def _recommended(parser: Parser, known: Sequence[Setting], model: Any, arguments: Sequence[str]) -> Mapping[str, Any]:
    """Find what is in force where a setting is not given: on the base that is given, as its card says."""
    from .core.config import merge

    try:
        rest = [word for word in arguments if word not in (*HELP, EVERYTHING)]
        options, _ = parser.parse_known_intermixed_args(rest)
        found: Mapping[str, Any] = model.recommended(merge(*layers_of(options, known, model)))
    except FemtoboothError:
        found = model.recommended({})
    return found


def _with_value(one: Setting, model: Any, recommended: Mapping[str, Any]) -> str:
    from .core.fields import in_force

    value = in_force(model, one.path, recommended)
    return (f"{one.help} [{value}]" if value else one.help).replace("%", "%%")


def _add_the_rest(parser: Parser, known: Sequence[Setting], model: Any, recommended: Mapping[str, Any]) -> None:
    """Put the settings without a flag into their groups, by the name that --set takes."""
    groups = {group.title: group for group in parser._action_groups}
    for one in known:
        if not one.called:
            text = _with_value(one, model, recommended)
            line = argparse.Action([f"--set {one.path}={value_of(one)}"], one.path, nargs=0, help=text)
            groups[one.group or "arguments"]._group_actions.append(line)
