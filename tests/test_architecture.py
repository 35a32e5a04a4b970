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


SPEAKERS = {  # where stdout and stderr are touched below the command line
    "core/children.py": "what a process of its own answers over: its stdout",
    "core/console.py": "the terminal, as a listener that the command line installs",
    "core/streams.py": "stdout, for the command line, and the last words of a process",
    "recognizer/exporting/foreign.py": "a process of its own that answers over a pipe",
    "recognizer/inference/child.py": "a process of its own that answers over a pipe",
    "workflows/comparing/worker.py": "a process of its own that answers over a pipe",
}


def spoken(path: Path) -> list[str]:
    """Where a module prints, touches a standard stream or knows the terminal."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            found.append(f"{node.lineno}: print")
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if name in (
                "sys.stdout",
                "sys.stderr",
                "sys.__stdout__",
                "sys.__stderr__",
                "streams.write",
                "streams.show",
            ):
                found.append(f"{node.lineno}: {name}")
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module or "").rpartition(".")[2], *(name.name for name in node.names)]
            if "console" in names or "rich" in (node.module or ""):
                found.append(f"{node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.Import) and any(name.name.split(".")[0] == "rich" for name in node.names):
            found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


def test_only_the_command_line_speaks() -> None:
    """Everything below it tells events (core/events.py)."""
    below = [path for path in SOURCE.rglob("*.py") if path.parent != SOURCE]
    found = {path.relative_to(SOURCE).as_posix(): spoken(path) for path in below}
    assert {name: lines for name, lines in found.items() if lines and name not in SPEAKERS} == {}
    assert all(found[name] for name in SPEAKERS), "no longer an exception"


def test_no_file_is_long() -> None:
    files = sorted((ROOT / "src").rglob("*.py"))
    lengths = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8").count("\n") for path in files}
    assert len(lengths) > 200
    assert {path: lines for path, lines in lengths.items() if lines > 400} == {}
