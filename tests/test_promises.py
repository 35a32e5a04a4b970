"""docs/promises.md names the test that holds each promise."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
ROWS = [
    line
    for line in (REPOSITORY / "docs" / "promises.md").read_text(encoding="utf-8").splitlines()
    if re.match(r"\| (?!promise )\S", line)
]


@pytest.mark.parametrize("row", ROWS)
def test_a_promise_has_its_test(row: str) -> None:
    tests = re.findall(r"`(tests/[^`]+)`", row)
    assert tests
    for test in tests:
        file, _, name = test.partition("::")
        text = (REPOSITORY / file).read_text(encoding="utf-8")
        assert re.search(rf"def {name}\(" if name else r"def test_", text), test
