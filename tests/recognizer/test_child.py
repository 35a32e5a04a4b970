"""Converters in processes of their own: arrays through pipes, and failures that must not pass for "converted only"."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from femtobooth.core.errors import FemtoboothError, SettingsError
from femtobooth.recognizer.inference import child
from femtobooth.recognizer.model import artifact


@pytest.fixture
def folder(tiny_onnx: Path, tmp_path: Path) -> Path:
    """An exported artifact without its model."""
    artifact.write(replace(artifact.read(tiny_onnx), provenance={"export": {"normalizes": False}}), tmp_path)
    return tmp_path


def test_arrays_go_through_pipes() -> None:
    back, to = os.pipe()
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    with open(to, "wb") as writer, open(back, "rb") as reader:
        child.write(writer, array)
        child.write(writer, array[:, :, ::2])
        np.testing.assert_array_equal(child.read(reader), array)
        np.testing.assert_array_equal(child.read(reader), array[:, :, ::2])


def test_an_answer_cut_off_is_an_end() -> None:
    back, to = os.pipe()
    with open(back, "rb") as reader:
        with open(to, "wb") as writer:
            writer.write((100).to_bytes(8, "little") + b"short")
        with pytest.raises(EOFError):
            child.read(reader)


def test_a_runtime_that_is_not_installed_is_named(folder: Path) -> None:
    with pytest.raises(SettingsError, match="which is not installed"):
        child.opened("litert", folder, 1)


def test_a_process_that_dies_is_an_error_with_its_reason(folder: Path) -> None:
    script = folder / "python"
    script.write_text("#!/bin/sh\necho out of luck >&2\nexit 1\n")
    script.chmod(0o755)
    with pytest.raises(FemtoboothError, match="out of luck"):
        child.opened("litert", folder, 1, str(script))


@pytest.mark.skipif(os.uname().sysname == "Darwin", reason="Core ML runs there")
def test_core_ml_cannot_run_here(folder: Path) -> None:
    with pytest.raises(child.CannotRunHereError, match="coreml: cannot run on this machine"):
        child.opened("coreml", folder, 1)
