"""The table of commands: whatever shows a form for a row can fill it and run it."""

from __future__ import annotations

import typing

import pytest

from femtobooth.core.config import Settings
from femtobooth.core.fields import leaf_types, settings
from femtobooth.workflows.commands import COMMANDS, find

ROWS = {name: (row.settings, row.run) for name, row in COMMANDS.items()}
ROWS |= {f"{name}, instead": row.instead[:2] for name, row in COMMANDS.items() if row.instead}


@pytest.mark.parametrize("row", ROWS)
def test_a_row_runs_its_settings_and_nothing_else(row: str) -> None:
    model, run = map(find, ROWS[row])
    taken = {name: kind for name, kind in typing.get_type_hints(run).items() if name != "return"}
    assert issubclass(model, Settings)
    assert list(taken) == ["settings"]
    assert issubclass(model, taken["settings"])


@pytest.mark.parametrize("row", ROWS)
def test_a_form_can_show_every_setting(row: str) -> None:
    """Each says what it is, and what its number counts."""
    for one in settings(find(ROWS[row][0])):
        assert len(one.help) > 15, one.path
        assert one.unit or not one.flag or one.flag == "--seed" or not leaf_types(one.field) & {int, float}, one.path
        assert not (one.flag and one.argument), one.path
        assert one.flag.startswith("-") or not one.common, one.path


@pytest.mark.parametrize("name", COMMANDS)
def test_texts_of_a_row_can_be_shown(name: str) -> None:
    row = COMMANDS[name]
    assert row.description.endswith(".")
    assert not row.summary.endswith(".")
    assert name in ("models", "demo", "runs") or row.example
