"""The README tells the truth about the tree, the commands and the files it links to."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from femtobooth import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def tree() -> str:
    """src/femtobooth as the README prints it: each file with the first line of its docstring."""
    source, lines = ROOT / "src" / "femtobooth", ["src/femtobooth/"]
    files = sorted(source.rglob("*.py"), key=lambda path: (len(path.relative_to(source).parts), path))
    room = source
    for path in files:
        if path.parent != room:
            room = path.parent
            about = _summary(room / "__init__.py")
            lines.append(f"  {room.relative_to(source)}/{'':{24 - len(room.name)}}{about}")
        if not path.name.startswith("__"):
            indent = "  " * len(path.relative_to(source).parts)
            lines.append(f"{indent}{path.name:{27 - len(indent)}}{_summary(path)}")
    return "\n".join(lines)


def _summary(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.split(r"\.( |$)", docstring.splitlines()[0])[0] if docstring else ""


def test_the_tree_is_true() -> None:
    assert tree() in README, f"put this into README.md:\n\n{tree()}\n"


def test_commands_exist() -> None:
    named = set(re.findall(r"^\s*(?:\.venv/bin/)?femtobooth ([a-z-]+)", README, re.MULTILINE))
    assert named
    assert named <= set(cli.COMMANDS)


def test_flags_exist(capsys: pytest.CaptureFixture[str]) -> None:
    for line in re.findall(r"^\s*femtobooth (.+)$", README, re.MULTILINE):
        command, flags = line.split()[0], re.findall(r" (--[a-z-]+)", line)
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        known = capsys.readouterr().out
        assert all(f"{flag} " in known or f"{flag}," in known or f"{flag}]" in known for flag in flags), line


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README) + re.findall(r'src="([^"]+)"', README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
