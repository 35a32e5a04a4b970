"""Large libraries are imported without a look for garbage, which goes on afterwards as it was."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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


@pytest.fixture
def deep(large: Path) -> Iterator[Path]:
    """A package that counts as large, whose own code reads much more than one of its parts needs."""
    (folder := large.with_suffix("")).mkdir()
    large.unlink()
    (folder / "__init__.py").write_text("from .numbers import *\nfrom . import part\nwhole = True\n")
    (folder / "numbers.py").write_text("one = 1\n")
    (folder / "far.py").write_text("raise LookupError\ndef run(): ...\n")
    (folder / "part.py").write_text("from large_one import one\nfrom .far import run\n")
    (folder / "more.py").write_text("from large_one import whole\n")
    yield folder
    for name in [name for name in sys.modules if name.startswith("large_one")]:
        del sys.modules[name]


def test_a_part_of_a_package_without_the_whole(deep: Path) -> None:
    with later.hollow({"large_one": ("numbers",)}, ["large_one.far"]):
        part = importlib.import_module("large_one.part")
    assert part.one == 1 and "large_one" not in sys.modules
    with pytest.raises(LookupError):
        part.run()
    (deep / "far.py").write_text("def run(): return 'far'\n")
    importlib.invalidate_caches()
    assert part.run() == "far"
    whole = importlib.import_module("large_one")
    assert whole.whole and whole.part is part and whole.numbers.one == whole.one == 1


def test_a_part_that_needs_the_whole_says_so(deep: Path) -> None:
    with pytest.raises(ImportError, match="whole"), later.hollow({"large_one": ("numbers",)}):
        importlib.import_module("large_one.more")
    assert "large_one" not in sys.modules and "large_one.more" not in sys.modules
    (deep / "far.py").write_text("def run(): return 'far'\n")
    whole = importlib.import_module("large_one")
    assert importlib.import_module("large_one.more").whole is whole.whole
    with pytest.raises(ImportError, match="before"), later.hollow({"large_one": ()}):
        raise AssertionError


def test_another_thread_waits_for_the_whole(deep: Path) -> None:
    """Who has a hollow package in hand while it is one, gets the names of the whole."""
    (deep / "far.py").write_text("def run(): return 'far'\n")
    with ThreadPoolExecutor(1) as pool, later.hollow({"large_one": ("numbers",)}):
        seen = sys.modules["large_one"]
        asked = pool.submit(lambda: seen.whole)
        importlib.import_module("large_one.numbers")
        assert not asked.done()
    assert asked.result() is True and sys.modules["large_one"] is not seen and seen.part


def test_who_finds_modules_in_another_way_is_asked(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            if name == "large_one":
                raise LookupError(name)

    monkeypatch.setattr(sys, "meta_path", [later._Finder, Other, *sys.meta_path])
    with pytest.raises(LookupError, match="large_one"):
        importlib.import_module("large_one")
