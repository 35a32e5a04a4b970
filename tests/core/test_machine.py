"""This machine: its devices by name, and one name for each number format."""

from __future__ import annotations

import pytest
import torch

from femtobooth.core import fields, machine
from femtobooth.core.errors import InputError
from femtobooth.generator.convert_settings import ConvertSettings
from femtobooth.generator.settings import GenerateSettings, PersonalizeSettings
from femtobooth.recognizer.settings import ExportSettings
from femtobooth.training.settings import TrainingSettings


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(2, False, "cuda"), (0, True, "mps"), (0, False, "cpu"), (1, True, "cuda")]
)
def test_auto_is_the_fastest_kind_that_is_here(
    monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert machine.device("auto") == torch.device(expected)
    for name in ("cuda:1", "mps"):
        if (cuda > 1) if name == "cuda:1" else mps:
            assert machine.device(name) == torch.device(name)
        else:
            with pytest.raises(InputError, match=f"^`device={name}`: not on this machine, which has"):
                machine.device(name)


@pytest.mark.parametrize("name", ["tpu-or-so", "", "cpu:1", "meta"])
def test_what_is_no_device_names_the_setting(name: str) -> None:
    with pytest.raises(InputError, match=rf"^`device={name}`: .*\n  -> use auto"):
        machine.device(name)


def test_every_setting_of_a_number_format_uses_the_same_words() -> None:
    words = set(machine.Precision.__args__)  # type: ignore[attr-defined]
    found = {
        (model.__name__, path): set(fields.choices(fields.field_at(model, path)))
        for model in (PersonalizeSettings, GenerateSettings, ConvertSettings, ExportSettings, TrainingSettings)
        for path in fields.dotted_keys(model)
        if path.rpartition(".")[2] in ("precision", "save_precision", "frozen_precision")
    }
    assert len(found) == 7
    assert all(values and values <= words for values in found.values()), found
    assert set.union(*found.values()) == words
    assert [machine.dtype(word) for word in ("fp32", "fp16", "bf16")] == [torch.float32, torch.float16, torch.bfloat16]


def test_only_a_machine_that_may_have_an_accelerator_is_asked_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.sys, "platform", "linux")
    monkeypatch.setattr(machine.metadata, "version", lambda name: "2.9.0+cu130")
    for found, expected in ((None, False), ("/usr/bin/nvidia-smi", True)):
        monkeypatch.setattr(machine.shutil, "which", lambda name, found=found: found)
        assert machine.may_accelerate() is expected
    monkeypatch.setattr(machine.metadata, "version", lambda name: "2.9.0+cpu")
    assert not machine.may_accelerate()
