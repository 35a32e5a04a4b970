"""The README tells the truth about the commands and the files it links to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from femtobooth import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_commands_exist() -> None:
    named = set(re.findall(r"^\s*(?:\.venv/bin/)?femtobooth ([a-z-]+)", README, re.MULTILINE))
    assert named
    assert named <= set(cli.COMMANDS)


def test_flags_exist(capsys: pytest.CaptureFixture[str]) -> None:
    for line in re.findall(r"^\s*femtobooth (.+)$", README, re.MULTILINE):
        command, flags = line.split()[0], re.findall(r" (--[a-z-]+)", line)
        with pytest.raises(SystemExit):
            cli.main([command, "--help-all"])
        known = capsys.readouterr().out
        assert all(f"{flag} " in known or f"{flag}," in known or f"{flag}]" in known for flag in flags), line


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README) + re.findall(r'src="([^"]+)"', README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
