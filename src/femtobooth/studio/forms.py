"""The commands that the studio offers, their settings as a form or a program needs them, and checking what is given."""

from __future__ import annotations

import types
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel

from ..core import fields
from ..core.config import Settings, settle
from ..core.events import Event, listening
from ..workflows.commands import COMMANDS, Command, find
from .references import REFUSED, is_place
from .refusals import Missing

OFFERED = (
    *("personalize", "caption", "generate", "evaluate", "synthesize", "report", "convert"),
    *("finetune", "classify", "embed", "evaluate-classifier", "export", "compare"),
)


class Field(BaseModel):
    """A setting, as a form shows it."""

    path: str
    """Dotted name."""
    title: str
    help: str
    group: str
    common: bool
    """Whether it is one of those that most people need."""
    type: str
    """text, number, integer, switch or list."""
    choices: list[str] = []
    unit: str = ""
    default: Any = None
    needed: bool = False
    names: str = ""
    """What a text names: file, folder, run, model, base or path, all given as references; "" for text itself."""


class Described(BaseModel):
    """A command."""

    name: str
    summary: str
    description: str
    fields: list[Field]
    json_schema: dict[str, Any]
    """Of its settings, with `x-unit` where a number counts something."""


def offered(name: str) -> Command:
    """Find a command. Raises Missing."""
    if name not in OFFERED:
        raise Missing("command")
    return COMMANDS[name]


def model_of(name: str) -> type[Settings]:
    """Give the settings of a command. Raises Missing."""
    model: type[Settings] = find(offered(name).settings).narrowed({})
    return model


@cache
def described(name: str) -> Described:
    """Describe a command and its settings. Raises Missing."""
    command, model = offered(name), model_of(name)
    known = [one for one in fields.settings(model) if one.path not in REFUSED and not is_place(one)]
    schema = model.model_json_schema()
    listed = [_field(one) for one in known]
    for one in known:
        if one.unit:
            _mark(schema, one.path, one.unit)
    return Described(
        name=name, summary=command.summary, description=command.description, fields=listed, json_schema=schema
    )


def _mark(schema: dict[str, Any], path: str, unit: str) -> None:
    """Put a unit beside the property that stands at a dotted path."""
    *groups, name = path.split(".")
    place = schema
    for group in groups:
        held = place["properties"][group]
        reference = held.get("$ref") or next(one["$ref"] for one in held["allOf"])
        place = schema["$defs"][reference.rpartition("/")[2]]
    place["properties"][name]["x-unit"] = unit


def _field(one: fields.Setting) -> Field:
    kinds = fields.leaf_types(one.field) - {types.NoneType}
    kind = "switch" if one.is_switch else "list" if one.is_list else "text"
    if kind == "text" and kinds <= {int, float} and kinds:
        kind = "integer" if kinds == {int} else "number"
    default = None if one.field.is_required() else one.field.get_default(call_default_factory=True)
    return Field(
        path=one.path,
        title=one.path.rpartition(".")[2].replace("_", " "),
        help=one.help,
        group=one.group,
        common=one.common or bool(one.argument and one.argument.needed),
        type=kind,
        choices=list(one.choices),
        unit=one.unit,
        default=default,
        needed=one.field.is_required() or bool(one.argument and one.argument.needed),
        names=one.names,
    )


def check(name: str, given: Mapping[str, Any]) -> tuple[Settings, list[str]]:
    """Settle what is given as the command line does; returns the settings, and what it warns of.

    Raises SettingsError and other InputError kinds.
    """
    notes: list[str] = []

    def hear(event: Event) -> None:
        if event.kind == "warning":
            notes.append(str(event.data["text"]))

    with listening(hear):
        found = settle(model_of(name), given)
        found.refuse_at_once()
    return found, notes
