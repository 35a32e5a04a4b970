"""A run never takes the place of anything but a run."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from femtobooth.core import config
from femtobooth.core.errors import ExistsError, Interrupted, SettingsError
from femtobooth.core.runs import sweep
from femtobooth.training.checkpoints import Signals
from femtobooth.workflows import personalize


def _settings(tmp_path: Path, **changes: Any) -> Any:
    wanted = {"photos": {"paths": [str(tmp_path / "photos")], "class_noun": "dog"}, "runs": str(tmp_path), "overwrite": True}
    return personalize.settings_from(wanted, changes)


def test_overwrite_spares_what_is_not_a_run(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    diary = tmp_path / "precious" / "diary.txt"
    diary.write_text("dear diary")
    with pytest.raises(ExistsError, match="is not a run"):
        personalize.run(_settings(tmp_path, name="precious"))
    assert diary.read_text() == "dear diary"


def test_overwrite_spares_what_the_run_needs(tmp_path: Path) -> None:
    (tmp_path / "old" / "photos").mkdir(parents=True)
    (tmp_path / "old" / "run.json").write_text(json.dumps({"status": "done"}))
    with pytest.raises(ExistsError, match="which would be replaced"):
        personalize.run(_settings(tmp_path, name="old", photos={"paths": [str(tmp_path / "old" / "photos")], "class_noun": "dog"}))
    assert (tmp_path / "old" / "run.json").exists()


@pytest.mark.parametrize("name", ["..", ".", "a/b", "/absolute", "..\\x", ".hidden", ""])
def test_a_name_is_one_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="name: "):
        config.resolve(personalize.PersonalizeSettings, _settings(tmp_path).model_dump(), {"name": name})


def test_class_nouns_never_lead_out_of_the_runs(tmp_path: Path) -> None:
    settings = _settings(tmp_path, photos={"paths": ["x"], "class_noun": "../toy car"})
    assert personalize._new_folder(settings).parent == tmp_path


def test_paths_are_kept_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    settled = personalize._settled(_settings(tmp_path, photos={"paths": ["photos"], "class_noun": "dog"}))
    assert settled.photos.paths == [str(tmp_path / "photos")]
    assert settled.base == "bundled"


def test_a_lone_token_needs_no_class_images(tmp_path: Path) -> None:
    assert personalize._settled(_settings(tmp_path, train={"parts": ["token"]})).prior.weight == 0
    assert personalize._settled(_settings(tmp_path, train={"parts": ["token", "attention"]})).prior.weight == 1


def test_what_a_killed_write_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / ".tmp-1-step-000003").mkdir(parents=True)
    (tmp_path / "checkpoints" / ".tmp-1-step-000003" / "state.ckpt").touch()
    (tmp_path / ".tmp-2-run.json").touch()
    (tmp_path / "run.json").touch()
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["checkpoints", "run.json"]


def test_a_signal_before_the_first_step_stops_with_the_way_on() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with (
        pytest.raises(Interrupted, match="femtobooth personalize --resume runs/x") as caught,
        Signals("femtobooth personalize --resume runs/x"),
    ):
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.exit_code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
