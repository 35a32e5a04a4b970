"""Paths as a person gives them."""

from __future__ import annotations

from pathlib import Path

import pytest

from femtobooth.core.paths import expanded


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("~", Path.home()),
        ("~/photos", Path.home() / "photos"),
        ("~$scan.jpg", Path("~$scan.jpg")),  # Office leaves it beside an open file; Path.expanduser raises RuntimeError
        ("~nobody-of-this-name/1.jpg", Path("~nobody-of-this-name/1.jpg")),
        ("cat/~1.jpg", Path("cat/~1.jpg")),
        (Path("~$x"), Path("~$x")),
    ],
)
def test_only_a_home_that_exists_is_expanded(given: str | Path, path: Path) -> None:
    assert expanded(given) == path
