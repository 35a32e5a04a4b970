"""Make forms of settings, and settings of forms: fields, units, help and choices are those of core/fields.py."""

from __future__ import annotations

import re
import types
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ..core.config import Settings, merge, nested, parse_value
from ..core.errors import FemtoboothError
from ..core.fields import Setting, field_at, in_force, leaf_types, settings

ELSEWHERE = ("path", "file", "folder", "run", "model", "base")
"""What a browser does not name: files of this machine."""
FLAGS = re.compile(r"\s*\(--[^)]*\)")


@dataclass(frozen=True)
class FormField:
    """Hold one setting as a form shows it."""

    path: str
    """Dotted name, which is the name of the input too."""
    label: str
    kind: str
    """switch, choice, number, lines (a list, one item a line) or text."""
    unit: str
    help: str
    value: str
    """What was given, as text; "" for nothing."""
    usual: str
    """What is in force where nothing is given."""
    choices: tuple[str, ...] = ()
    error: str = ""

    @property
    def id(self) -> str:
        """Name of the input element."""
        return self.path.replace(".", "-")


@dataclass(frozen=True)
class FormGroup:
    """Hold the fields that stand under one title."""

    title: str
    fields: list[FormField]

    @property
    def wrong(self) -> bool:
        """Whether one of them is to be mended."""
        return any(one.error for one in self.fields)


def offered(model: type[Settings], without: Collection[str] = ()) -> list[Setting]:
    """List the settings that a form may offer: those that name no file, and are not in `without`.

    An entry of `without` that ends with a dot leaves out all that begins with it.
    """
    left_out = tuple(one for one in without if one.endswith("."))
    return [
        one
        for one in settings(model)
        if one.names not in ELSEWHERE and one.path not in without and not one.path.startswith(left_out or ("\0",))
    ]


def groups(
    model: type[Settings],
    found: Iterable[Setting],
    given: Mapping[str, Any],
    recommended: Mapping[str, Any],
    errors: Mapping[str, str],
) -> list[FormGroup]:
    """Make the fields of some settings, by the titles that they are listed under; the common ones come first."""
    made: dict[str, list[FormField]] = {}
    for title, several in groupby(found, key=lambda one: one.group):
        name = FLAGS.sub("", title) or "other"
        made.setdefault(name[:1].upper() + name[1:], []).extend(
            field(model, one, given, recommended, errors) for one in several
        )
    return [FormGroup(title, fields) for title, fields in made.items()]


def field(
    model: type[Settings],
    one: Setting,
    given: Mapping[str, Any],
    recommended: Mapping[str, Any],
    errors: Mapping[str, str],
) -> FormField:
    """Make the field of one setting."""
    usual = in_force(model, one.path, recommended)
    several = one.is_list
    kind = "switch" if one.is_switch else "choice" if one.choices and not several else ""
    kinds = leaf_types(one.field)
    kind = kind or ("lines" if several else "number" if kinds & {int, float} and str not in kinds else "text")
    value = _text(_at(given, one.path))
    return FormField(
        path=one.path,
        label=label(one),
        kind=kind,
        unit="" if one.unit == "pixels" and kind == "text" else one.unit,
        help=one.help,
        value=value or (usual if kind in ("switch", "choice") else ""),
        usual=usual,
        choices=one.choices if not (types.NoneType in kinds and kind == "choice") else ("", *one.choices),
        error=errors.get(one.path, ""),
    )


def label(one: Setting) -> str:
    """Say what people call a setting: its name inside of its group, in words."""
    _, _, inside = one.path.partition(".")
    words = (inside or one.path).replace(".", ": ").replace("_", " ")
    return words[:1].upper() + words[1:]


def read(model: type[Settings], form: Mapping[str, Sequence[str]], recommended: Mapping[str, Any]) -> dict[str, Any]:
    """Read a form: nested settings of what was filled in and is not in force anyway."""
    found: dict[str, Any] = {}
    for one in settings(model):
        texts = [text.strip() for text in form.get(one.path, ())]
        if not texts or not any(texts):
            continue
        usual = in_force(model, one.path, recommended)
        if one.is_switch:  # a box that is not ticked sends nothing: a hidden `off` stands behind each
            if texts[0] != (usual or "off"):
                found = merge(found, nested(one.path, texts[0] == "on"))
            continue
        if one.is_list:
            texts = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
            if one.choices:
                texts = [word.strip() for text in texts for word in text.split(",")]
        if ", ".join(texts) == usual:
            continue
        found = merge(found, nested(one.path, parse_value(model, one.path, texts)))
    return found


def blame(model: type[Settings], error: FemtoboothError) -> dict[str, str]:
    """Find the settings that an error names: {dotted name: what is wrong}; "" stands for what no field shows."""
    faults = getattr(error, "faults", ()) or [(_named(model, error.problem), error.problem, error.way_out)]
    return {path: _said(path, problem, way_out) for path, problem, way_out in faults}


def _named(model: type[Settings], problem: str) -> str:
    found = re.match(r"`([a-z_.0-9]+)[=`]", problem)
    return found[1] if found and field_at(model, found[1]) else ""


def _said(path: str, problem: str, way_out: str | None) -> str:
    text = re.sub(rf"^`?{re.escape(path)}(=[^`]*)?`?:\s*", "", problem) if path else problem
    text = text.removeprefix("input ").removesuffix(".")
    return f"{text[:1].upper()}{text[1:]}" + (f". {way_out[:1].upper()}{way_out[1:]}." if way_out and not path else ".")


def _at(given: Mapping[str, Any], path: str) -> Any:
    value: Any = given
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)
