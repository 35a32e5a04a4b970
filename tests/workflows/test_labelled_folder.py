"""The folder of `synthesize`: one writer, never through a link, never what is not its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from femtobooth.core import locks
from femtobooth.core.errors import ExistsError, InUseError, StorageError
from femtobooth.workflows.labelled_folder import MANIFEST, open_folder

ASKED = {"count": 1}


def test_one_writer(tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    with open_folder(out, ASKED, overwrite=False):
        assert json.loads((out / MANIFEST).read_text())["status"] == "started"
        for overwrite in (False, True):
            with pytest.raises(InUseError, match="in use by process"), open_folder(out, ASKED, overwrite):
                pass
    assert locks.holder(out) is None
    with open_folder(out, ASKED, overwrite=False):  # it goes on
        pass
    with pytest.raises(ExistsError, match="begun with other settings"), open_folder(out, {"count": 2}, overwrite=False):
        pass


def test_not_through_a_link_and_not_over_others(tmp_path: Path) -> None:
    with open_folder(tmp_path / "real", ASKED, overwrite=False):
        pass
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(ExistsError, match="is a link"), open_folder(tmp_path / "link", ASKED, overwrite=True):
        pass
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with (
        pytest.raises(ExistsError, match="not a folder of femtobooth synthesize"),
        open_folder(tmp_path / "mine", ASKED, overwrite=True),
    ):
        pass
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    with (
        pytest.raises(StorageError, match="is no folder"),
        open_folder(tmp_path / "mine" / "thesis.tex" / "out", ASKED, overwrite=False),
    ):
        pass
