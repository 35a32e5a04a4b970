"""Settings: strict, typed, in layers of growing strength, such as a YAML file and what was typed.

A settings model is a pydantic class; the text under each field is its help, and fields.py has what else it says.
Unknown keys are refused with the nearest known one, and all faults are reported at once.
"""

from __future__ import annotations

import difflib
import json
import re
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import SettingsError, shortened
from .fields import choices, dotted_keys, field_at, help_text, holds_words, leaf_types, named_model
from .strict_yaml import dump_yaml, parse_with_lines, parse_yaml, read_bytes

MOST_FAULTS = 10  # that one error lists

Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""A seed, to which a number of pictures can still be added: random generators take 64 bits."""
Words = Annotated[list[str], "words"]
"""A list of names without commas, which the command line may also give as a,b."""
MaybeEmpty = Annotated[str | None, "empty"]
"""A text that may be left out, where the empty one is another thing."""


class Settings(BaseModel):
    """Base of every settings model: no unknown keys, no silent conversions, nothing infinite."""

    model_config = ConfigDict(
        extra="forbid", strict=True, validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @classmethod
    def recommended(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Say what stands in place of the defaults where `given` is: for some commands, what the card of the model
        says.
        """
        return {}

    @classmethod
    def narrowed(cls, given: Mapping[str, Any]) -> type[Settings]:
        """Give the class that settles what is given: this one, or another where what is given decides."""
        return cls

    @classmethod
    def of_text(cls, text: str) -> dict[str, Any]:
        """Read what the command line gives for one of several such settings. Raises SettingsError."""
        raise NotImplementedError

    @classmethod
    def implied(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Say which settings stand in `given` without being given: for some commands, in the names of folders.

        Raises SettingsError where they contradict those that are given.
        """
        return {}

    def refuse_at_once(self) -> None:
        """Raise InputError for what cannot be done here, as far as that shows without loading anything heavy."""
        for name in type(self).model_fields:
            if isinstance(value := getattr(self, name), Settings):
                value.refuse_at_once()

    def without_effect(self) -> dict[str, str]:
        """List the settings, by dotted path, that change nothing beside the others, and why."""
        inside = {name: value for name in type(self).model_fields if isinstance(value := getattr(self, name), Settings)}
        return {f"{name}.{path}": why for name, value in inside.items() for path, why in value.without_effect().items()}


Model = TypeVar("Model", bound=Settings)


class Layer(dict[str, Any]):
    """Settings from one place, with what they are called there by dotted path: `--steps`, or their file and line."""

    names: Mapping[str, str] = {}


def read_yaml(path: Path) -> Layer:
    """Read a YAML mapping. Raises SettingsError naming the file."""
    try:
        value, lines = parse_with_lines(read_bytes(path), str(path))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror})", "check the file") from None
    if not isinstance(value, dict | None):
        raise SettingsError(f"{path}: must hold `key: value` lines, not a {type(value).__name__}", "such as `size: 64`")
    layer = Layer(value or {})
    layer.names = {key: f"{path}, line {line}: {key}" for key, line in lines.items()}
    return layer


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Lay nested mappings over each other, later ones on top; lists are replaced whole."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = merged.get(key)
            both = isinstance(below, Mapping) and isinstance(value, Mapping)
            merged[key] = merge(below, value) if both else value  # type: ignore[arg-type]
    return merged


def nested(path: str, value: Any) -> dict[str, Any]:
    """Nest a value under a dotted path: ``nested("a.b", 1) == {"a": {"b": 1}}``."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def parse_value(model: type[Settings], path: str, texts: Sequence[str]) -> Any:
    """Read what the command line gave, once or several times, as the field at `path` wants it.

    Text is taken as it was typed. Of a list each text is one item, or a JSON list of them, or, where its items are
    words, several with commas between; of settings by name it is NAME=TEXT. Nothing at all leaves an optional setting
    out.
    """
    field = field_at(model, path)
    if field is None:  # unknown, or in a mapping that takes anything
        return parse_yaml(texts[-1], path)
    if kind := named_model(field):
        return _by_name(kind, path, texts)
    return _of_types(field, leaf_types(field), texts)


def _of_types(field: Any, kinds: set[Any], texts: Sequence[str]) -> Any:
    """Read texts as a field of these plain types wants them."""
    if list in kinds:
        return [item for text in texts for item in _items(text, words=holds_words(field))]
    text = texts[-1]
    if not text and types.NoneType in kinds and "empty" not in field.metadata:
        return None
    if str in kinds:
        return text
    if bool in kinds:
        return {"true": True, "false": False}.get(text.lower(), text)
    return _number(text, kinds)


def _by_name(kind: Any, path: str, texts: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, given = text.partition("=")
        if not equals or name in found:
            why = f"{name} was given already" if equals else "expected NAME=..."
            raise SettingsError(f"`{path}={shortened(text)}`: {why}", "give each once, by its name")
        found[name] = kind.of_text(given)
    return found


def _items(text: str, words: bool) -> list[Any]:
    if text.startswith("["):
        try:
            return list(json.loads(text))
        except (ValueError, TypeError, RecursionError):  # a text such as "[V] on the moon", or words without quotes
            text = text.strip("[]") if words else text
    return [part.strip(" '\"") for part in text.split(",") if part.strip()] if words else [text] if text else []


def _number(text: str, kinds: set[Any]) -> Any:
    """Read the number as people write it, else the text itself, which the setting then refuses."""
    try:
        if float in kinds:
            return float(text)
        return int(text) if int in kinds and re.fullmatch(r"[-+]?\d+", text) else text
    except ValueError:
        return text


def settle(model: type[Model], *layers: Mapping[str, Any]) -> Model:
    """Make settings from layers over what is recommended for them.

    Raises SettingsError, for a fault of theirs before anything is looked up.
    """
    layers = (Layer(model.implied(merge(*layers))), *layers)
    resolve(model, *layers)
    settings = resolve(model, model.recommended(merge(*layers)), *layers)
    _refuse_without_effect(settings, layers)
    return settings


def _refuse_without_effect(settings: Settings, layers: Sequence[Mapping[str, Any]]) -> None:
    """Raise SettingsError for what was typed and changes nothing; warn of it where a file says it, which may serve many
    calls.
    """
    from .events import warn

    for path, why in settings.without_effect().items():
        name = _called(path, layers)
        if not any(_gives(layer, path) for layer in layers):  # a card recommends it
            continue
        if name.startswith("--"):
            raise SettingsError(f"{name}: has no effect {why}", "leave it out, or change that")
        warn(f"{name}: has no effect {why}")


def resolve(model: type[Model], *layers: Mapping[str, Any]) -> Model:
    """Validate merged layers. Raises SettingsError listing every fault, with the nearest key for unknown ones."""
    try:
        return model.model_validate(merge(*layers))
    except ValidationError as error:
        faults = error.errors(include_url=False)
    found = [(_path_of(fault), *_fault(model, fault, layers)) for fault in faults[:MOST_FAULTS]]
    if len(found) == 1:
        told = SettingsError(*found[0][1:])
    else:
        more = [f"and {len(faults) - MOST_FAULTS} more"] if len(faults) > MOST_FAULTS else []
        told = SettingsError(f"{len(faults)} settings are wrong:", details=[one[1] for one in found] + more)
    told.faults = found
    raise told


def _path_of(fault: Any) -> str:
    """Give the dotted name of the setting that pydantic found a fault with."""
    keys = [str(part) for part in fault["loc"]]
    while len(keys) > 1 and keys[-1].isdigit():  # an item of a list
        keys.pop()
    return ".".join(keys)


def _fault(model: type[Settings], fault: Any, layers: Sequence[Mapping[str, Any]]) -> tuple[str, str | None]:
    """Say what is wrong with one setting, and what it takes."""
    path, kind, given = _path_of(fault), fault["type"], fault["input"]
    name, field, known = _called(path, layers), field_at(model, path), dotted_keys(model)
    if kind == "extra_forbidden":
        if path in known:
            *groups, key = path.split(".")
            inside = f"{key}: {shortened(repr(given))}"
            for group in reversed(groups):
                inside = f"{group}: {{{inside}}}"
            return f"{name}: stands inside its group in a file", inside
        same_name = [key for key in known if key.rpartition(".")[2] == path.rpartition(".")[2]]
        near = same_name or difflib.get_close_matches(path[:60], known, n=1)
        return f"{name}: no such setting" + (f"; did you mean {near[0]}?" if near else ""), help_text(
            model, near[0]
        ) if near else None
    about = (
        help_text(model, path)
        if path in known
        else next((f"such as {key}" for key in known if key.startswith(f"{path}.")), None)
    )
    if kind == "missing":
        return f"{name}: not given" + (f"; {about[:1].lower()}{about[1:]}" if about else ""), None
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if kind == "value_error":
        return (f"{name}: {message}" if path else message), about
    if kind == "model_type":
        message = "holds settings of its own"
    hint = "; put it in quotes" if kind == "string_type" and isinstance(given, bool | int | float) else ""
    if kind == "literal_error":
        hint = "".join(
            f"; did you mean {near}?" for near in difflib.get_close_matches(str(given)[:60], choices(field), n=1)
        )
    return f"{name}: {message[0].lower()}{message[1:]} (got {shortened(repr(given))}){hint}", about


def _called(path: str, layers: Sequence[Mapping[str, Any]]) -> str:
    """Say what the layer that gives a setting calls it; for one that none gives, what any would."""
    named = [layer for layer in layers if isinstance(layer, Layer) and path in layer.names]
    giving = [layer for layer in layers if _gives(layer, path)]
    if giving:
        return giving[-1].names[path] if giving[-1] in named else shortened(path)  # type: ignore[attr-defined]
    return named[-1].names[path] if named else shortened(path)


def _gives(layer: Mapping[str, Any], path: str) -> bool:
    for key in path.split("."):
        if not isinstance(layer, Mapping) or key not in layer:
            return False
        layer = layer[key]
    return True


def dump(settings: Settings) -> str:
    """Write the YAML that `read_yaml` and `resolve` turn back into equal settings."""
    return dump_yaml(settings.model_dump(mode="json"))
