"""YAML: strict, bounded, and every fault with its line."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path

import pytest

from femtobooth.core.errors import SettingsError
from femtobooth.core.strict_yaml import parse_with_lines, parse_yaml, read_bytes


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"), ("yes", "yes"), ("true", True), ("~", None), ("", None), ("null", None), ("010", 10), ("0o10", 8), ("0x1f", 31),
        ("12:30", "12:30"), ("2026-13-45", "2026-13-45"), ("2026-01-02", "2026-01-02"), ("1e-4", 1e-4), ("1_000", 1000), (".5", 0.5),
        ("-.inf", float("-inf")), ("1.", 1.0), ("{a: &x {b: 1}, c: {<<: *x, d: 2}}", {"a": {"b": 1}, "c": {"b": 1, "d": 2}}),
    ],
)  # fmt: skip
def test_plain_values_are_those_of_yaml_1_2(text: str, value: object) -> None:
    found = parse_yaml(text, "here")
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("training:\n  steps: 3\n  seed: 1\n  steps: 4\n", "card, line 4: steps is given already in line 2"),
        ("a: 1\nb: 2\n'a': 3\n", "card, line 3: a is given already in line 1"),
        ("- {a: 1, a: 2}\n", "card, line 1: a is given already in line 1"),
        ("a: [1", "card, line 1: not valid YAML"),
        ("a:\n  !!python/object/apply:os.system ['true']", "card, line 2: not valid YAML"),
        ("a: !!timestamp 2026-13-45", "card: not valid YAML"),
        ("a: !!int x", "card, line 1: not valid YAML (no usable number)"),
        ("a: " + "9" * 5000, "card, line 1: not valid YAML (no usable number)"),
        ("? [a]\n: b", "card, line 1: not valid YAML"),
        ("a: \x1b", "card: not valid YAML"),
    ],
)
def test_what_cannot_be_meant(text: str, problem: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_yaml(text, "card")
    assert caught.value.problem.startswith(problem)
    assert caught.value.problem.isprintable()


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{n}: &{n} [{','.join(['*' + m] * 10)}]\n" for m, n in pairwise("abcdefghi")
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40))


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS, MERGES, "a: &a {b: *a}", "a: &a [*a]", "[" * 100_000, "{a: " * 1000, "- " * 100_000, "- 1\n" * 60_000, "x" * 10**6,
        "!" * 200_000, "k" * 200_000 + ": 1", "a: " + "9" * 250_000, "&a " * 50_000, "a: '" + "x" * 200_000,
    ],
    ids=range(14),
)  # fmt: skip
def test_bombs_end_soon_in_two_short_lines(text: str) -> None:
    started = time.monotonic()
    with pytest.raises(SettingsError) as caught:
        parse_yaml(text, "card")
    assert len(str(caught.value)) < 300
    assert len(str(caught.value).splitlines()) == 2
    assert time.monotonic() - started < 10  # under a second on a quiet machine


def test_lines_of_keys_and_a_file_without_end() -> None:
    assert parse_with_lines("a:\n  b: 1\n\n  c: {d: 2}\n", "here")[1] == {"a": 1, "a.b": 2, "a.c": 4, "a.c.d": 4}
    with pytest.raises(SettingsError, match="longer than 256 KiB"):
        parse_yaml(read_bytes(Path("/dev/zero")), "/dev/zero")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_editors_write(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes("name: Käse 🦊\n".encode(encoding))
    assert parse_yaml(read_bytes(tmp_path / "a.yaml"), "a") == {"name": "Käse 🦊"}
