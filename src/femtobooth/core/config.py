"""Settings: strict, typed, from a YAML file, `--set a.b=c` and flags, in that order of growing strength.

A settings model is a pydantic class; the text under each field is its help, with unit and range. Unknown keys
are refused with the nearest known one, and all faults are reported at once.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import SettingsError


class Settings(BaseModel):
    """Base of every settings model: no unknown keys, no silent conversions."""

    model_config = ConfigDict(extra="forbid", strict=True, validate_default=True, use_attribute_docstrings=True)


Model = TypeVar("Model", bound=Settings)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's floats: PyYAML follows 1.1, where `1e-4` is a string."""


_Loader.yaml_implicit_resolvers = {key: list(value) for key, value in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML safely. Raises SettingsError naming `source` and the line."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  (a SafeLoader)
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        where = source if line is None else f"{source}, line {line + 1}"
        raise SettingsError(f"{where}: not valid YAML ({getattr(error, 'problem', None) or error})") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping. Raises SettingsError naming the file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read ({error})", "check the path given to --config") from None
    value = parse_yaml(text, str(path))
    if not isinstance(value, dict):
        raise SettingsError(f"{path}: must hold `key: value` lines, not a {type(value).__name__}")
    return value


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings laid over each other, later ones on top; lists are replaced whole."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = merged.get(key)
            both = isinstance(below, Mapping) and isinstance(value, Mapping)
            merged[key] = merge(below, value) if both else value  # type: ignore[arg-type]
    return merged


def nested(path: str, value: Any) -> dict[str, Any]:
    """``nested("a.b", 1) == {"a": {"b": 1}}``."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def overrides(model: type[Settings], sets: Iterable[str], flags: Mapping[str, Any]) -> dict[str, Any]:
    """One layer from ``--set a.b=c`` texts and from flags (dotted path -> text, flags win)."""
    layers = []
    for text in sets:
        path, equals, value = text.partition("=")
        if not equals or not path:
            raise SettingsError(f"--set {text}: expected KEY=VALUE", "for example --set training.steps=400")
        layers.append(nested(path, parse_value(model, path, value, f"--set {path}")))
    for path, value in flags.items():
        parsed = parse_value(model, path, value, path) if isinstance(value, str) else value
        layers.append(nested(path, parsed))
    return merge(*layers)


def parse_value(model: type[Settings], path: str, text: str, source: str) -> Any:
    """Read a command-line text as the field at `path` wants it: text stays text, `a,b` becomes a list."""
    field = leaf_types(model, path)
    if list in field:
        return [part.strip() for part in text.split(",") if part.strip()] if not text.startswith("[") else parse_yaml(text, source)
    value = parse_yaml(text, source)
    wants_text = str in field and not field & {int, float, bool}
    return text if wants_text and not (value is None and type(None) in field) else value


def leaf_types(model: type[Settings], path: str) -> set[Any]:
    """The plain types that the field at a dotted path takes; empty for an unknown path."""
    annotation: Any = model
    for key in path.split("."):
        fields = getattr(annotation, "model_fields", {})
        if key not in fields:
            return set()
        annotation = fields[key].annotation
    found: set[Any] = set()
    waiting = [annotation]
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


def resolve(model: type[Model], *layers: Mapping[str, Any]) -> Model:
    """Validate merged layers. Raises SettingsError listing every fault, with the nearest key for unknown ones."""
    try:
        return model.model_validate(merge(*layers))
    except ValidationError as error:
        faults = [_fault(model, fault) for fault in error.errors()]
    if len(faults) == 1:
        raise SettingsError(faults[0])
    raise SettingsError(f"{len(faults)} settings are wrong:", details=faults)


def _fault(model: type[Settings], fault: Any) -> str:
    path = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = dotted_keys(model)
        same_name = [key for key in known if key.rpartition(".")[2] == path.rpartition(".")[2]]
        near = same_name or difflib.get_close_matches(path, known, n=1)
        return f"{path}: no such setting" + (f"; did you mean {near[0]}?" if near else "")
    if fault["type"] == "missing" and path in dotted_keys(model):
        about = describe(model, path)
        return f"{path}: not given; {about[:1].lower()}{about[1:]}"
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    given = "" if fault["type"] in ("missing", "value_error") else f" (got {fault['input']!r})"
    return f"{path}: {message[0].lower()}{message[1:]}{given}" if path else message


def dotted_keys(model: type[Settings], prefix: str = "") -> list[str]:
    """All leaf settings of a model as dotted paths, in order."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Settings):
            keys += dotted_keys(inner, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def describe(model: type[Settings], path: str) -> str:
    """The help text of the setting at a dotted path, with its default."""
    *parents, name = path.split(".")
    for parent in parents:
        model = model.model_fields[parent].annotation  # type: ignore[assignment]
    field = model.model_fields[name]
    text = " ".join((field.description or "").split())
    default = field.default
    shown = "" if field.is_required() or default in (None, [], "") else f" [{default}]"
    if isinstance(default, list) and default:
        shown = f" [{','.join(map(str, default))}]"
    return text + shown


def dump(settings: Settings) -> str:
    """YAML that `read_yaml` and `resolve` turn back into equal settings."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
