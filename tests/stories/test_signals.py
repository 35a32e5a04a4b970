"""A signal ends a run in the same way whenever it comes: what is finished is kept, exit 128 + n, and `--resume` gives
the same bits.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from femtobooth.core.locks import LOCK
from femtobooth.generator import prior
from femtobooth.generator.formats import folder as folders
from femtobooth.training import checkpoints
from femtobooth.workflows import report
from femtobooth.workflows.personalizing import outcome

FemtoBooth = Callable[..., int]
Weights = Callable[[Path], dict[str, torch.Tensor]]
MOMENTS: dict[str, tuple[Any, str]] = {
    "while class images are drawn": (prior, "_write"),
    "in the last save": (checkpoints, "save"),
    "while pictures of the result are drawn": (outcome, "generate_samples"),
    "while the model is written": (folders, "save_tokenizer"),
    "while the picture is put together": (outcome, "_overview"),
    "while the page is written": (report, "write"),
}


@pytest.fixture(scope="module")
def whole(personalize: Callable[..., Path], tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return personalize(tiny_base, tmp_path_factory.mktemp("runs"), "whole")


@pytest.mark.parametrize(("moment", "signum"), list(zip(MOMENTS, [signal.SIGTERM, signal.SIGINT] * 3, strict=True)))
def test_a_signal_at_any_moment(
    whole: Path,
    moment: str,
    signum: signal.Signals,
    femtobooth: FemtoBooth,
    personalize: Callable[..., Path],
    tiny_base: Path,
    weights: Weights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place, name = MOMENTS[moment]
    real, sent = getattr(place, name), list[int]()

    def interrupted(*arguments: Any, **named: Any) -> Any:
        if not sent:
            sent.append(signum)
            signal.raise_signal(signum)
        return real(*arguments, **named)

    if place is prior:
        monkeypatch.setenv("FEMTOBOOTH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(place, name, interrupted)
    with pytest.raises(AssertionError, match=f"assert {128 + signum} == 0"):
        personalize(tiny_base, tmp_path, "run")
    run = tmp_path / "run"
    assert f"femtobooth personalize --resume {run}" in capsys.readouterr().err
    assert not (run / LOCK).exists()
    assert json.loads((run / "run.json").read_text())["status"] == ("done" if place is report else "interrupted")
    assert femtobooth("personalize", "--resume", run) == 0
    assert json.loads((run / "run.json").read_text())["status"] == "done"
    assert (run / "report.html").is_file()
    expected = weights(whole / "model")
    found = weights(run / "model")
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
