"""Shell completion: a script for bash, zsh or fish, made from the table of commands and their settings.

It completes commands, flags, the choices of a flag, paths, and the run folders under runs/ where a run or a model is
wanted. A script holds all it needs, so that a Tab starts no Python.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass

from .core.fields import Setting, settings
from .workflows.commands import COMMANDS, find

SHELLS = ("bash", "zsh", "fish")
WORDS = ("help", "completion")  # what stands where a command may, and is none
LONGEST = 70  # characters of what is said of a flag


@dataclass(frozen=True)
class Option:
    """One flag of a command, or what stands without one."""

    flags: tuple[str, ...]
    """Its spellings; none for an argument."""
    about: str
    kind: str
    """switch, choice, path, run, model or text."""
    choices: tuple[str, ...] = ()


def script(shell: str) -> str:
    """Write the completion script of a shell: bash, zsh or fish."""
    commands = {name: [*_options(name)] for name in COMMANDS}
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](commands)


def _options(name: str) -> Iterable[Option]:
    command = COMMANDS[name]
    for one in settings(find(command.settings)):
        if one.argument:
            yield Option((), _short(one.help), _kind(one), one.choices)
        elif one.is_switch and one.flag:
            yield Option((one.flag, f"--no-{one.flag[2:]}"), _short(one.help), "switch")
        elif one.flag:
            yield Option((one.flag,), _short(one.help), _kind(one), one.choices)
    if command.instead:
        first = settings(find(command.instead.settings))[0]
        yield Option((first.flag,), _short(first.help), _kind(first))
    yield Option(("--config",), "YAML file of settings", "path")
    yield Option(("--set",), "any setting by its dotted name", "text")
    for flag, about in (
        ("--json", "print the result as JSON"),
        ("--help", "common flags"),
        ("--help-all", "all flags"),
    ):
        yield Option((flag,), about, "switch")


def _kind(one: Setting) -> str:
    if one.choices:
        return "choice"
    return {"": "text", "file": "path", "folder": "path", "base": "model"}.get(one.names, one.names)


def _short(text: str) -> str:
    """Give the first clause of a help text."""
    for end in ("; ", ": ", ". ", " ("):
        text = text.partition(end)[0]
    text = text.rstrip(".")
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _words(commands: Iterable[str]) -> str:
    return " ".join((*commands, *WORDS))


def _bash(commands: dict[str, list[Option]]) -> str:
    cases = []
    for name, options in commands.items():
        flags = " ".join(flag for one in options for flag in one.flags)
        lines = [f"        {name})", f"            flags={shlex.quote(flags)}", "            case $prev in"]
        for one in options:
            if one.flags and one.kind != "switch":
                values = f" words={shlex.quote(' '.join(one.choices))}" if one.choices else ""
                lines.append(f"                {one.flags[0]}) kind={one.kind}{values} ;;")
        first = next((one for one in options if not one.flags), Option((), "", "path"))
        lines += [
            f"                *) kind={'path' if first.kind == 'text' else first.kind} flag= ;;",
            "            esac",
        ]
        cases.append("\n".join([*lines, "            ;;"]))
    summary = _words(commands)
    return f"""# bash completion of femtobooth; switch it on with: source <(femtobooth completion bash)
_femtobooth() {{
    local IFS=$'\\n' cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}}
    local kind= words= flags= flag=1 found=
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        COMPREPLY=($(compgen -W "$(tr ' ' '\\n' <<< '{summary} --help --version')" -- "$cur"))
        return
    fi
    case ${{COMP_WORDS[1]}} in
        help) kind=choice words='{" ".join(commands)}' ;;
        completion) kind=choice words='{" ".join(SHELLS)}' ;;
{chr(10).join(cases)}
    esac
    if [[ $cur == -* && -z $flag ]]; then
        COMPREPLY=($(compgen -W "$(tr ' ' '\\n' <<< "$flags")" -- "$cur"))
        return
    fi
    case $kind in
        choice) COMPREPLY=($(compgen -W "$(tr ' ' '\\n' <<< "$words")" -- "$cur")) ;;
        path) COMPREPLY=($(compgen -f -- "$cur")) ;;
        run | model)
            for found in runs/*/run.json; do
                found=${{found%/run.json}}
                [[ -d $found && ($found == "$cur"* || $found == "runs/$cur"*) ]] && COMPREPLY+=("$found")
            done
            [[ $kind == model && bundled == "$cur"* ]] && COMPREPLY+=(bundled)
            for found in $(compgen -f -- "$cur"); do
                [[ " ${{COMPREPLY[*]}} " == *"$found"* ]] || COMPREPLY+=("$found")
            done ;;
    esac
    [[ $kind == choice ]] || compopt -o filenames 2> /dev/null
}}
complete -F _femtobooth femtobooth
"""


def _zsh(commands: dict[str, list[Option]]) -> str:
    actions = {"switch": "", "path": "_files", "run": "_femtobooth_runs", "model": "_femtobooth_models", "text": " "}

    def spec(one: Option, last: bool) -> list[str]:
        action = f"({' '.join(one.choices)})" if one.choices else actions[one.kind]
        if not one.flags:
            return [f"{'*' if last else ''}:{_plain(one.about)}:{'_files' if action == ' ' else action}"]
        value = "" if one.kind == "switch" else f":{one.flags[0].lstrip('-')}:{action}"
        return [f"*{flag}[{_plain(one.about)}]{value}" for flag in one.flags]

    cases = []
    for name, options in commands.items():
        arguments = [one for one in options if not one.flags]
        specs = [line for one in options for line in spec(one, bool(arguments) and one is arguments[-1])]
        cases.append(
            "\n".join([f"        {name}) _arguments -S \\", *(f"            {shlex.quote(one)} \\" for one in specs)])
        )
    listed = "\n".join(f"            {shlex.quote(f'{name}:{_plain(COMMANDS[name].summary)}')}" for name in commands)
    body = "\n".join(f"{case}\n            && return ;;" for case in cases)
    return f"""#compdef femtobooth
# zsh completion of femtobooth; switch it on, after compinit, with: source <(femtobooth completion zsh)
_femtobooth_runs() {{
    local -a found
    found=(runs/*/run.json(N:h))
    (($#found)) && compadd -U -f -M 'l:|=* r:|=*' -- ${{(M)found:#(|runs/)$PREFIX*}}
    _files
}}
_femtobooth_models() {{
    compadd -- bundled
    _femtobooth_runs
}}
_femtobooth() {{
    if ((CURRENT == 2)); then
        local -a commands=(
{listed}
            'help:what a command can do'
            'completion:this, for bash, zsh or fish'
        )
        _describe command commands
        return
    fi
    local command=$words[2]
    shift words
    ((CURRENT--))
    case $command in
        help) compadd -- {" ".join(commands)} ;;
        completion) compadd -- {" ".join(SHELLS)} ;;
{body}
    esac
}}
if [[ $funcstack[1] == _femtobooth ]]; then
    _femtobooth "$@"
else
    compdef _femtobooth femtobooth
fi
"""


def _plain(text: str) -> str:
    """Give a text without what `_arguments` and `_describe` read."""
    return text.replace(":", " -").translate(str.maketrans("[]\\", "()/"))


def _fish(commands: dict[str, list[Option]]) -> str:
    values = {
        "path": "-r -F",
        "text": "-x",
        "run": "-r -F -a '(__femtobooth_runs)'",
        "model": "-r -F -a 'bundled (__femtobooth_runs)'",
    }
    lines = []
    for name in commands:
        lines.append(
            f"complete -c femtobooth -n __fish_use_subcommand -a {name} -d {_fish_text(COMMANDS[name].summary)}"
        )
    lines += [
        "complete -c femtobooth -n __fish_use_subcommand -a help -d 'what a command can do'",
        "complete -c femtobooth -n __fish_use_subcommand -a completion -d 'this, for bash, zsh or fish'",
        f"complete -c femtobooth -n '__fish_seen_subcommand_from help' -a '{' '.join(commands)}'",
        f"complete -c femtobooth -n '__fish_seen_subcommand_from completion' -a '{' '.join(SHELLS)}'",
    ]
    for name, options in commands.items():
        seen = f"complete -c femtobooth -n '__femtobooth_command {name}'"
        for one in options:
            takes = f"-x -a '{' '.join(one.choices)}'" if one.choices else values.get(one.kind, "")
            if not one.flags:
                lines.append(f"{seen} {takes.replace('-r ', '').replace('-x', '-F')}")
            for flag in one.flags:
                spelled = f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
                lines.append(f"{seen} {spelled} {takes} -d {_fish_text(one.about)}".replace("  ", " "))
    return f"""# fish completion of femtobooth; switch it on with: femtobooth completion fish | source
function __femtobooth_runs
    for found in runs/*/run.json
        string replace -r '/run.json$' '' -- $found
    end
end
function __femtobooth_command
    set -l words (commandline -opc)
    test (count $words) -ge 2; and test "$words[2]" = "$argv[1]"
end
complete -c femtobooth -f
{chr(10).join(lines)}
"""


def _fish_text(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
