"""Large libraries are imported without a look for garbage, which goes on afterwards as it was."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from femtobooth.core import later


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of a library that counts as large, and says whether garbage is looked for while it is read."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(later, "LARGE", later.LARGE | {"large_one"})
    file = tmp_path / "large_one.py"
    file.write_text("import gc\nlooked = gc.isenabled()\n")
    yield file
    sys.modules.pop("large_one", None)


def test_nothing_is_collected_while_a_large_library_is_read(large: Path) -> None:
    assert importlib.import_module("large_one").looked is False
    assert gc.isenabled()


def test_a_library_that_fails_leaves_it_on(large: Path) -> None:
    large.write_text("import gc\nassert gc.isenabled()\n")
    with pytest.raises(AssertionError):
        importlib.import_module("large_one")
    assert gc.isenabled()


def test_it_stays_off_where_it_was(large: Path) -> None:
    gc.disable()
    try:
        importlib.import_module("large_one")
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_what_is_kept_is_never_gone_through_again(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large.write_text("many = [[] for _ in range(5000)]\n")
    monkeypatch.setattr(later._Finder, "keeps", True)
    before = gc.get_freeze_count()
    importlib.import_module("large_one")
    assert gc.get_freeze_count() >= before + 5000


def test_in_a_process_of_others_what_they_froze_stays_frozen(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(later._Finder, "keeps", False)
    gc.freeze()
    before = gc.get_freeze_count()
    importlib.import_module("large_one")
    assert gc.get_freeze_count() == before > 1000


def test_who_finds_modules_in_another_way_is_asked(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            if name == "large_one":
                raise LookupError(name)

    monkeypatch.setattr(sys, "meta_path", [later._Finder, Other, *sys.meta_path])
    with pytest.raises(LookupError, match="large_one"):
        importlib.import_module("large_one")
