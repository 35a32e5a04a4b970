"""docs/architecture.md tells the truth about the rooms of the house."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "femtobooth"


def tree() -> str:
    """src/femtobooth as docs/architecture.md prints it: each room with the first sentence of its docstring."""
    lines = []
    for package in sorted(SOURCE.rglob("__init__.py"), key=lambda path: path.parent.relative_to(SOURCE).parts):
        room = package.parent.relative_to(SOURCE)
        about = (ast.get_docstring(ast.parse(package.read_text(encoding="utf-8"))) or "").splitlines()[0].rstrip(".")
        indent = "  " * len(room.parts)
        name = f"{room.name}/" if room.parts else "src/femtobooth/"
        lines.append(f"{indent}{name:{20 - len(indent)}} {about}")
    return "\n".join(lines)


def test_the_tree_is_true() -> None:
    written = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert tree() in written, f"put this into docs/architecture.md:\n\n{tree()}\n"
