"""YAML read strictly: version 1.2's plain values, every key once, and bounded in size, depth and what its aliases
unfold to.

So `on`, `no`, `0123` behind a leading zero, `12:30` and `2026-13-45` are what they look like, and a file of a few lines
cannot fill the memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from .errors import SettingsError, shortened

MOST_BYTES = 2**18
MOST_VALUES = 10_000
DEEPEST = 32

_FLOAT = (
    r"^[-+]?(\d[\d_]*\.[\d_]*|\.\d[\d_]*|\d[\d_]*(?=[eE]))([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
)
_PLAIN = {
    "null": (r"^(~|null|Null|NULL|)$", [*"~nN", ""]),
    "bool": (r"^(true|True|TRUE|false|False|FALSE)$", [*"tTfF"]),
    "int": (r"^([-+]?\d[\d_]*|0o[0-7]+|0x[\da-fA-F]+)$", [*"-+0123456789"]),
    "float": (_FLOAT, [*"-+.0123456789"]),
    "merge": (r"^<<$", ["<"]),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would take for something else than text."""

    yaml_implicit_resolvers = {key: list(value) for key, value in yaml.SafeDumper.yaml_implicit_resolvers.items()}


for _kind, (_pattern, _first) in _PLAIN.items():
    for _end in (_Loader, _Dumper):
        _end.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(_pattern), _first)


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    try:
        return int(text, 0 if text[:2] in ("0o", "0x") else 10)
    except ValueError:  # more digits than Python reads
        raise yaml.constructor.ConstructorError(None, None, "no usable number", node.start_mark) from None


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


def parse_yaml(text: str | bytes, source: str) -> Any:
    """Parse YAML. Raises SettingsError naming `source` and the line."""
    return _parse(text, source)[0]


def parse_with_lines(text: str | bytes, source: str) -> tuple[Any, dict[str, int]]:
    """Parse YAML into its value, and the line of each key of its mappings by dotted path.

    Raises SettingsError naming `source` and the line.
    """
    value, root = _parse(text, source)
    return value, dict(_lines(root, "")) if root else {}


def read_bytes(path: Path) -> bytes:
    """Read as much of a file as YAML may have, and one byte more of a larger one, which `parse_yaml` then refuses."""
    with path.open("rb") as file:
        return file.read(MOST_BYTES + 1)


def dump_yaml(value: Any) -> str:
    """Write the YAML that `parse_yaml`, and readers of version 1.1, turn back into an equal value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _parse(text: str | bytes, source: str) -> tuple[Any, yaml.Node | None]:
    if len(text) > MOST_BYTES:
        raise SettingsError(
            f"{source}: longer than {MOST_BYTES // 1024} KiB, which no settings are", "check which file it is"
        )
    try:
        _refuse_large(text, source)
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return None, None
            _refuse_unfolding(root, source)
            return loader.construct_document(root), root
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = shortened(str(getattr(error, "problem", None) or error).splitlines()[0], 100)
        where = source if mark is None else f"{source}, line {mark.line + 1}"
        raise SettingsError(
            f"{where}: not valid YAML ({problem})", "put texts with : # [ { or quotes in them in quotes"
        ) from None
    except (
        ValueError,
        OverflowError,
    ) as error:  # an explicit tag on a value that is none, such as !!timestamp 2026-13-45
        raise SettingsError(
            f"{source}: not valid YAML ({shortened(str(error), 100)})", "leave the !!tags out"
        ) from None


def _refuse_large(text: str | bytes, source: str) -> None:
    """Raise SettingsError before anything is built, as building it goes down a stack."""
    depth = values = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        values += isinstance(event, yaml.NodeEvent)
        if depth > DEEPEST or values > MOST_VALUES:
            _refuse(
                event.start_mark,
                source,
                f"more than {f'{DEEPEST} levels' if depth > DEEPEST else f'{MOST_VALUES:,} values'}",
            )


def _refuse_unfolding(root: yaml.Node, source: str) -> None:
    """Raise SettingsError for keys given twice, and for aliases that unfold to too much or to themselves."""
    sizes: dict[int, int] = {}
    unfinished = 0

    def size(node: yaml.Node) -> int:
        if isinstance(node, yaml.ScalarNode):
            return 1
        if id(node) not in sizes:
            sizes[id(node)] = unfinished  # found again below itself
            if isinstance(node, yaml.MappingNode):
                _refuse_twice(node, source)
            parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
            sizes[id(node)] = 1 + sum(size(part) for part in parts)
        found = sizes[id(node)]
        if found == unfinished or found > MOST_VALUES:
            _refuse(
                node.start_mark,
                source,
                "itself, by an alias" if found == unfinished else f"more than {MOST_VALUES:,} values",
            )
        return found

    size(root)


def _refuse_twice(mapping: yaml.MappingNode, source: str) -> None:
    seen: dict[tuple[str, str], int] = {}
    for key, _ in mapping.value:
        if isinstance(key, yaml.ScalarNode):
            line, same = key.start_mark.line + 1, (key.tag, key.value)
            if same in seen:
                problem = f"{source}, line {line}: {shortened(key.value)} is given already in line {seen[same]}"
                raise SettingsError(problem, "leave one of the two out")
            seen[same] = line


def _refuse(mark: yaml.Mark, source: str, what: str) -> None:
    raise SettingsError(
        f"{source}, line {mark.line + 1}: holds {what}", "write it without so much nesting and so many aliases"
    )


def _lines(node: yaml.Node, prefix: str) -> Iterator[tuple[str, int]]:
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if isinstance(key, yaml.ScalarNode):
            yield prefix + key.value, key.start_mark.line + 1
            yield from _lines(value, f"{prefix}{key.value}.")
