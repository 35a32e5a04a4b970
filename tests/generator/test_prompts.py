"""[V] means the subject in either case, wherever it is read, and reading it needs no torch."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import femtobooth
from femtobooth.generator import prompts


def test_either_case_is_the_subject() -> None:
    for text in ("a [V] {class}", "a [v] {class}", "a {token} {class}"):
        assert prompts.filled(text, r"s\1k", "dog") == r"a s\1k dog"
    assert [prompts.names_subject(text) for text in ("[V]", "on [v]", "V", "[ V ]")] == [True, True, False, False]
    assert prompts.bare("a [V]  dog, [v] on the moon") == "a dog, on the moon"
    assert prompts.with_subject("[v] and [V]", "{token}") == "{token} and {token}"


def test_the_placeholder_is_written_in_one_place() -> None:
    """Elsewhere [V] stands in examples and messages for people; none looks for it by itself."""
    root = Path(femtobooth.__file__).parent
    pattern = re.compile(
        r"""\\\[[vV]\\\]|(replace|sub|split|partition|find|index|count)\(\s*r?["']\[[vV]\]["']|=\s*["']\[[vV]\]["']"""
    )
    found = [path.name for path in sorted(root.rglob("*.py")) if pattern.search(path.read_text(encoding="utf-8"))]
    assert found == ["prompts.py"]


def test_compare_fills_prompts_in_a_process_without_torch() -> None:
    code = (
        "import sys\nfrom femtobooth.workflows import compare\nprint(sorted({'torch', "
        "'diffusers', 'transformers'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"
