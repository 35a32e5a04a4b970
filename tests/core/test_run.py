"""What a run knows of itself, also where an older version wrote it."""

from __future__ import annotations

from pathlib import Path

import pytest

from femtobooth.core import run
from femtobooth.core.errors import SettingsError
from femtobooth.training.settings import TrainingSettings


@pytest.mark.parametrize(("old", "new"), [("32", "fp32"), (32, "fp32"), ("16-mixed", "fp16"), ("bf16-mixed", "bf16")])
def test_an_older_run_goes_on_with_its_number_format(tmp_path: Path, old: object, new: str) -> None:
    (tmp_path / "config.yaml").write_text(f"steps: 3\nprecision: {old!r}\n")
    settings = run.settings_of(tmp_path, {"settings": {"steps": 3, "precision": old}}, TrainingSettings)
    assert (settings.precision, settings.steps) == (new, 3)
    with pytest.raises(SettingsError, match="changed since the run was started: precision"):
        run.settings_of(tmp_path, {"settings": {"precision": "fp32" if new != "fp32" else "bf16"}}, TrainingSettings)
