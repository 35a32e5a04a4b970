"""Files and folders appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from femtobooth.core import files
from femtobooth.core.errors import ExistsError


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(RuntimeError), files.atomic_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_folder_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with files.atomic_folder(path) as temporary:
        (temporary / "a").write_text("old")
    with pytest.raises(RuntimeError), files.atomic_folder(path, overwrite=True) as temporary:
        (temporary / "a").write_text("new")
        assert (path / "a").read_text() == "old"
        raise RuntimeError
    assert (path / "a").read_text() == "old"
    with files.atomic_folder(path, overwrite=True) as temporary:
        (temporary / "b").write_text("new")
    assert [entry.name for entry in path.iterdir()] == ["b"]
    assert list(tmp_path.iterdir()) == [path]


def test_existing_things_are_refused(tmp_path: Path) -> None:
    files.refuse_existing(tmp_path / "nothing", overwrite=False)
    (tmp_path / "empty").mkdir()
    files.refuse_existing(tmp_path / "empty", overwrite=False)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(ExistsError, match="already exists"), files.atomic_folder(tmp_path / "full"):
        pass
    files.refuse_existing(tmp_path / "full", overwrite=True)


def test_content_hash_sees_names_and_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text("1")
    second.write_text("2")
    before = files.content_hash([first, second], tmp_path)
    assert before == files.content_hash([second, first], tmp_path)
    second.write_text("3")
    assert files.content_hash([first, second], tmp_path) != before
