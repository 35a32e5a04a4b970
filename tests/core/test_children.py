"""Children run this femtobooth and nothing that lies in the current folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from femtobooth.core import children
from femtobooth.core.errors import SettingsError
from femtobooth.recognizer.exporting import foreign
from femtobooth.workflows import compare
from femtobooth.workflows.comparing.settings import CompareSettings

EVIL = "open({mark!r}, 'a').write(__name__ + ' was run; ')\n"


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that appears if anything of the current folder is run; that folder holds programs by names that are
    imported.
    """
    mark, folder = tmp_path / "mark", tmp_path / "downloads"
    folder.mkdir()
    names = (
        "torch",
        "json",
        "numpy",
        "femtobooth",
        "runpy",
        "sitecustomize",
        "usercustomize",
        "timm",
        "onnxruntime",
        "pathlib",
    )
    for name in names:
        (folder / f"{name}.py").write_text(EVIL.format(mark=str(mark)))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", ":.:downloads")
    monkeypatch.setenv("PYTHONSTARTUP", str(folder / "torch.py"))
    monkeypatch.setenv("PYTHONINSPECT", "1")
    return mark


def test_the_trap_works(mark: Path) -> None:
    subprocess.run([sys.executable, "-c", "import torch"], check=False, capture_output=True, stdin=subprocess.DEVNULL)
    assert "torch was run" in mark.read_text()


def test_compare_runs_nothing_of_the_current_folder(mark: Path, tiny: Path, tiny_onnx: Path, tmp_path: Path) -> None:
    settings = CompareSettings(
        models=[str(tiny), str(tiny_onnx)], speed=False, fresh=True, out=str(tmp_path / "page.html")
    )
    report = compare.run(settings)
    assert not mark.exists(), mark.read_text()
    rows = {row["name"]: row for row in report["tables"]["recognizer"]}
    assert [one["value"] for one in rows["runs in"]["figures"]] == ["torch", "ort"]
    assert not [name for name in rows if name.startswith("latency") or name == "throughput"]
    assert not any("speed" in told for one in report["verdicts"] for told in one["told"])


def test_converters_run_nothing_of_the_current_folder(mark: Path, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match="needs coremltools, which is not installed"
    ):  # found out after torch was imported
        foreign.convert("coreml", tiny, tmp_path, "fp32", False)
    assert not mark.exists(), mark.read_text()


def test_what_the_user_has_set_on_purpose_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/a::b:/c")
    monkeypatch.setenv("PYTHONUTF8", "1")
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    monkeypatch.setenv("HF_HOME", "/hub")
    given = children.environment(OMP_NUM_THREADS="3")
    assert (given["PYTHONPATH"], given["PYTHONUTF8"], given["HF_HOME"], given["OMP_NUM_THREADS"]) == (
        "/a:/c",
        "1",
        "/hub",
        "3",
    )
    assert "PYTHONWARNINGS" not in given
    assert "PYTHONPATH" not in children.environment("/usr/bin/python3.12")
