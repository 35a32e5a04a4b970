"""FILE:0.8: which file, and how strongly."""

from __future__ import annotations

from pathlib import Path

import pytest

from femtobooth.core.errors import ModelError
from femtobooth.generator.lora_reference import find, parse


def test_file_and_strength(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse("rex.safetensors") == ("rex.safetensors", 1.0)
    assert parse("rex.safetensors:0.8") == ("rex.safetensors", 0.8)
    assert parse("rex.safetensors:-1") == ("rex.safetensors", -1.0)
    assert parse(r"C:\loras\rex.safetensors") == (r"C:\loras\rex.safetensors", 1.0)
    assert parse(r"C:\loras\rex.safetensors:.5") == (r"C:\loras\rex.safetensors", 0.5)
    Path("a:0.5").mkdir()
    assert parse("a:0.5") == ("a:0.5", 1.0) and parse("a:0.5:0.25") == ("a:0.5", 0.25)
    for wrong in ("rex:nan", "rex:inf"):
        with pytest.raises(ValueError, match="is no strength"):
            parse(wrong)


def test_a_folder_or_a_run_is_its_adapter(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    with pytest.raises(ModelError, match="holds no adapter"):
        find(str(run))
    file = run / "model" / "pytorch_lora_weights.safetensors"
    file.write_bytes(b"")
    assert {find(str(place)).weights for place in (run, run / "model", file)} == {file}
    assert find(f"{run}:0.5").strength == 0.5
    with pytest.raises(ModelError, match="no such file or folder"):
        find(str(tmp_path / "nothing.safetensors"))
