"""What a settings model says of its fields: type, choices, unit, help text, flag, and the group people find it in.

    class TrainingSettings(Settings):
        steps: Annotated[int, Flag("--steps", common=True, unit="steps")] = Field(800, ge=1)
        \"\"\"Optimizer steps to train for.\"\"\"

That is all a setting is: command line, `--help`, shell completion and any form read it from there. A field that holds
settings of its own says with `Flags` which of their flags the command has.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel
from pydantic.fields import FieldInfo

Named = Literal["", "path", "file", "folder", "run", "model", "base"]
"""What a text names. file, folder, run: one that has to be there; model: a recognizer or generator, by a path that has
to be there or by a name; base: the same, looked at by the command itself; path: anything, there or not.
"""


@dataclass(frozen=True)
class Flag:
    """Marks a field, as `Annotated` does, with what the command line calls it and what a form shows beside it."""

    name: str = ""
    """The flag, such as --steps; "" for a setting that only `--set` and files reach."""
    common: bool = False
    """Whether it is one of the ten that most people need, which `--help` begins with."""
    unit: str = ""
    """Unit of a number: pixels, steps, photos."""
    group: str = ""
    """Title under which it is listed; "" for that of the settings it stands in."""
    names: Named = ""


@dataclass(frozen=True)
class Argument:
    """Marks a field that the command line takes without a flag."""

    count: str | None = None
    """How many, as argparse says it: None for one, ?, * or +."""
    names: Named = ""
    needed: bool = False
    """Whether the command says what is missing where it is not given."""
    unless: str = ""
    """The setting that can be given in its place."""


@dataclass(frozen=True)
class Flags:
    """Marks a field that holds settings of its own."""

    group: str = ""
    """Title under which they are listed."""
    none: bool = False
    """Whether the command has no flag for any of them."""
    without: Collection[str] = ()
    """Those that the command has no flag for."""


@dataclass(frozen=True)
class SettingsOf:
    """Marks a mapping, as `Annotated` does, that holds some settings of this model."""

    model: type[BaseModel]


Mark = TypeVar("Mark", Flag, Argument, Flags, SettingsOf)


@dataclass(frozen=True)
class Setting:
    """A leaf of a settings model, as a command line or a form shows it."""

    path: str
    """Its dotted name, such as training.steps."""
    field: FieldInfo
    flag: str
    """What the command line calls it; "" where only `--set` reaches it."""
    argument: Argument | None
    """How the command line takes it without a flag."""
    common: bool
    unit: str
    group: str
    names: Named

    @property
    def called(self) -> str:
        """What the command line calls it: its flag, or its name in capitals where it stands without one."""
        return metavar(self.path) if self.argument else self.flag

    @property
    def help(self) -> str:
        """Its help text, in one line."""
        return _text(self.field)

    @property
    def choices(self) -> tuple[str, ...]:
        """What it can be, where that is a list."""
        return choices(self.field)

    @property
    def is_switch(self) -> bool:
        """Whether it is on or off."""
        return leaf_types(self.field) == {bool}

    @property
    def is_list(self) -> bool:
        """Whether it takes several values."""
        return list in leaf_types(self.field) or named_model(self.field) is not None


def metavar(path: str) -> str:
    """Name what stands for a setting that is given without a flag: ``metavar("photos.paths") == "PHOTOS"``."""
    return path.partition(".")[0].upper()


def settings(model: type[BaseModel]) -> list[Setting]:
    """Collect every setting of a model, in order. Raises ValueError where two of them have one flag."""
    found = list(_settings(model, "", Flags()))
    flags = [one.flag for one in found if one.flag]
    if twice := {flag for flag in flags if flags.count(flag) > 1}:
        raise ValueError(f"{model.__name__}: {', '.join(sorted(twice))} stands for two settings")
    return found


def _settings(model: type[BaseModel], prefix: str, around: Flags) -> Iterator[Setting]:
    for name, field in model.model_fields.items():
        if inner := _model(field.annotation):
            of = _mark(field, Flags) or Flags()
            none = of.none or around.none or name in around.without
            yield from _settings(inner, f"{prefix}{name}.", Flags(of.group or around.group, none, of.without))
            continue
        argument, flag = _mark(field, Argument), _mark(field, Flag) or Flag()
        flagged = not around.none and name not in around.without
        yield Setting(
            path=prefix + name,
            field=field,
            flag=flag.name if flagged else "",
            argument=argument,
            common=flag.common and flagged,
            unit=flag.unit,
            group=flag.group or around.group,
            names=argument.names if argument else flag.names,
        )


def _mark(field: FieldInfo, kind: type[Mark]) -> Mark | None:
    return next((one for one in reversed(field.metadata) if isinstance(one, kind)), None)


def _model(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def dotted_keys(model: type[BaseModel]) -> list[str]:
    """List all leaf settings of a model as dotted paths, in order."""
    return [one.path for one in _settings(model, "", Flags())]


def field_at(model: type[BaseModel], path: str) -> FieldInfo | None:
    """Find the field at a dotted path; None for an unknown one."""
    parent, _, rest = path.partition(".")
    field = model.model_fields.get(parent)
    if not rest or field is None:
        return field
    if named := named_model(field):
        return field_at(named, rest.partition(".")[2])
    held = _mark(field, SettingsOf)
    inside = held.model if held else _model(field.annotation)
    return field_at(inside, rest) if inside else None


def named_model(field: FieldInfo | None) -> type[BaseModel] | None:
    """Give the model of a mapping that holds settings of one kind by names of the user's own; None for other fields."""
    if field is None or typing.get_origin(field.annotation) is not dict:
        return None
    return _model(typing.get_args(field.annotation)[1])


def leaf_types(field: FieldInfo | None) -> set[Any]:
    """Collect the plain types that a field takes; none of an unknown one."""
    found: set[Any] = set()
    waiting: list[Any] = [field.annotation] if field else []
    while waiting:
        part = waiting.pop()
        origin = typing.get_origin(part)
        if origin in (typing.Union, types.UnionType):
            waiting += typing.get_args(part)
        elif origin is typing.Literal:
            found |= {type(value) for value in typing.get_args(part)}
        elif origin is typing.Annotated:
            waiting.append(typing.get_args(part)[0])
        else:
            found.add(origin or part)
    return found


def choices(field: FieldInfo | None) -> tuple[str, ...]:
    """List the values of an enumeration, or of a list of them; () for any other field."""
    waiting: list[Any] = [field.annotation] if field else []
    for part in waiting:
        if typing.get_origin(part) is typing.Literal:
            return tuple(map(str, typing.get_args(part)))
        waiting += typing.get_args(part)
    return ()


def holds_words(field: FieldInfo | None) -> bool:
    """Tell whether a field is a list whose items are names without commas."""
    return list in leaf_types(field) and ("words" in getattr(field, "metadata", ()) or bool(choices(field)))


def help_text(model: type[BaseModel], path: str) -> str:
    """Say what the setting at a dotted path is. Raises KeyError for an unknown one."""
    field = field_at(model, path)
    if field is None:
        raise KeyError(path)
    return _text(field)


def _text(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())


def in_force(model: type[BaseModel], path: str, recommended: Mapping[str, Any] = {}) -> str:
    """Give the value of a setting not given, for people: recommended, or the default; "" where there is none."""
    field = field_at(model, path)
    value: Any = None if field is None or field.is_required() else field.default
    given: Any = recommended
    for key in path.split("."):
        given = given.get(key) if isinstance(given, Mapping) else None
    value = value if given is None else given
    if value in (None, [], ""):
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return ", ".join(str(one) or "(none)" for one in value) if isinstance(value, list) else str(value)
