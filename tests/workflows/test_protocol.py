"""`femtobooth evaluate --protocol dreambooth`: the dataset's own lists, every subject once, and going on after a
kill.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quick_start
import torch
from PIL import Image

from femtobooth import cli
from femtobooth.core import config
from femtobooth.core.errors import ExistsError, PhotoError, SettingsError
from femtobooth.workflows import evaluate, personalize, protocol
from femtobooth.workflows.settings import ProtocolSettings

LISTS = """Classes

subject_name,class
ball,toy
rex,dog
absent,dog
wolf_plushie,stuffed animal

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
"a {0} {1} in a child's room".format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} wearing a red hat'.format(unique_token, class_token),
__import__('os').abort(),
'a wet {0} {1}'.format(unique_token, class_token)
]
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two subjects of three photos."""
    for seed, name in enumerate(("ball", "rex")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(3):
            pixels = np.random.default_rng(10 * seed + index).integers(0, 90, (96, 96, 3)).astype(np.uint8)
            pixels[20 + 8 * index : 70, 20:70] = (250 - 120 * seed, 60 * index, 30)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{index}.png")
    (tmp_path / "data" / protocol.LISTS).write_text(LISTS, encoding="utf-8")
    return tmp_path / "data"


def given(data: Path, base: Path, encoder: Path, **changes: Any) -> dict[str, Any]:
    few = {
        "count": 2,
        "class_count": 2,
        "other_classes": [],
        "device": "cpu",
        "sampling": {"steps": 1},
        "region": False,
    }
    train = {
        "base": str(base),
        "prior": {"weight": 0.0},
        "samples": {"every": 0, "images": 1, "prompts": ["a [V] {class}"], "sampling": {"steps": 1}},
        "training": {"steps": 2, "accelerator": "cpu", "trackers": []},
    }
    where = {"run": str(data), "protocol": "dreambooth", "runs": str(data.parent / "runs"), "encoders": [str(encoder)]}
    return {**where, **few, "personalize": train, **changes}


def settings(data: Path, base: Path, encoder: Path, **changes: Any) -> Any:
    return config.settle(ProtocolSettings, given(data, base, encoder, **changes))


def test_a_launcher_is_not_what_starts_it(
    data: Path, tiny_base: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingsError, match="was started as 2 processes, which would all measure"):
        protocol.run(settings(data, tiny_base, tiny))


def test_the_lists_are_read_and_not_executed(tmp_path: Path) -> None:
    path = tmp_path / protocol.LISTS
    path.write_text(LISTS, encoding="utf-8")
    classes, objects, live = protocol.read_lists(path)
    assert classes == {"ball": "toy", "rex": "dog", "absent": "dog", "wolf_plushie": "stuffed animal"}
    assert objects == ["a [V] {class} in the jungle", "a [V] {class} in a child's room"]
    assert live == ["a [V] {class} wearing a red hat", "a wet [V] {class}"]
    path.write_text(LISTS.partition("Live Subject")[0], encoding="utf-8")
    with pytest.raises(PhotoError, match="holds no prompts for live subjects"):
        protocol.read_lists(path)


@pytest.mark.usefixtures("terminal")
def test_every_subject_is_trained_drawn_and_scored_once(
    data: Path, tiny_base: Path, tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = protocol.run(settings(data, tiny_base, tiny))
    assert [row["subject"] for row in result["subjects"]] == ["ball", "rex"]
    assert not result["whole"]
    shown = capsys.readouterr().err
    for figure in ("0.696", "0.812", "0.306", "0.668", "0.803", "0.305", "0.569", "0.780", "0.255", "0.774", "0.885"):
        assert figure in shown
    evaluations = {
        name: json.loads((data.parent / "runs" / name / "evaluation" / "evaluation.json").read_text())
        for name in ("ball", "rex")
    }
    assert evaluations["ball"]["prompts"] == ["a [V] toy in the jungle", "a [V] toy in a child's room"]
    assert evaluations["rex"]["prompts"] == ["a [V] dog wearing a red hat", "a wet [V] dog"]  # a live subject
    assert all(found["pictures"] == 4 for found in evaluations.values())
    values = [
        next(row["tuned"][0] for row in found["scores"] if row["score"] == "subject fidelity")
        for found in evaluations.values()
    ]
    assert [row["verdict"] for row in result["subjects"]] == [found["verdict"] for found in evaluations.values()]
    outcomes = [found["verdict"]["outcome"] for found in evaluations.values()]
    told = [line for line in shown.splitlines() if re.match(r"\W*(ball|rex)\b", line)]
    assert [line.rstrip(" │|").endswith(outcome) for line, outcome in zip(told, outcomes, strict=False)] == [True, True]
    (mean,) = (mean for mean in result["means"] if mean["score"] == "subject fidelity")
    assert mean["tuned"][0] == pytest.approx(np.mean(values))
    assert json.loads((data.parent / "runs" / "protocol.json").read_text()) == result

    for module, name in ((personalize, "run"), (personalize, "resume"), (evaluate, "run")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("done again"))
    assert protocol.run(settings(data, tiny_base, tiny)) == result
    other = given(data, tiny_base, tiny)
    other["personalize"] = {**other["personalize"], "training": {**other["personalize"]["training"], "steps": 3}}
    with pytest.raises(ExistsError, match="begun with other settings of personalize"):
        protocol.run(config.settle(ProtocolSettings, other))


def test_what_was_measured_before_stays_in_the_table(
    data: Path, tiny_base: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = data.parent / "runs" / "protocol.json"
    alone = protocol.run(settings(data, tiny_base, tiny, subjects=["rex"]))
    both = protocol.run(settings(data, tiny_base, tiny, subjects=["ball"]))
    assert [row["subject"] for row in both["subjects"]] == ["ball", "rex"]
    assert both["subjects"][1] == alone["subjects"][0]
    assert all(mean["subjects"] == 2 for mean in both["means"])
    assert json.loads(file.read_text()) == both
    assert protocol.run(settings(data, tiny_base, tiny))["subjects"] == both["subjects"]

    same = tmp_path / "same"  # an encoder of another name has other columns
    shutil.copytree(tiny, same)
    for change, named in (({"count": 1}, "count"), ({"encoders": [str(same)]}, "encoders")):
        with pytest.raises(ExistsError, match=rf"rex: measured with other settings \({named}\)") as refused:
            protocol.run(settings(data, tiny_base, tiny, subjects=["ball"], **change))
        assert "`subjects=ball,rex`" in str(refused.value)
        assert json.loads(file.read_text()) == both
    again = protocol.run(settings(data, tiny_base, tiny, subjects=["ball", "rex"], encoders=[str(same)]))
    assert {mean["encoder"] for mean in again["means"]} == {str(same)}

    monkeypatch.setattr(personalize, "run", lambda _: pytest.fail("trained from another base"))
    file.write_text(json.dumps(again | {"base_hash": "f" * 64}))
    with pytest.raises(ExistsError, match="another base of the same name"):
        protocol.run(settings(data, tiny_base, tiny))


def test_killed_anywhere_it_goes_on(data: Path, tiny_base: Path, tiny: Path, tmp_path: Path) -> None:
    config = tmp_path / "protocol.yaml"
    config.write_text(json.dumps(given(data, tiny_base, tiny)), encoding="utf-8")  # JSON is YAML
    command = [sys.executable, "-m", "femtobooth", "evaluate", "--config", str(config), "--subjects", "ball"]
    runs = data.parent / "runs"
    threads = {
        **os.environ,
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }  # other numbers of threads round otherwise
    for awaited in (runs / "ball" / "run.json", runs / "ball" / "evaluation" / "pictures" / "tuned"):
        process = quick_start.start(command, stderr=subprocess.DEVNULL, env=threads)
        limit = time.monotonic() + 120
        while not awaited.exists() and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert awaited.exists()
    result = protocol.run(settings(data, tiny_base, tiny, subjects=["ball"]))
    fresh = protocol.run(settings(data, tiny_base, tiny, subjects=["ball"], runs=str(data.parent / "again")))
    assert result["means"] == fresh["means"]
    (mean,) = (mean for mean in result["means"] if mean["score"] == "subject fidelity")
    assert mean["tuned"][1] < mean["tuned"][0] < mean["tuned"][2]  # one subject does not make its mean certain


def test_what_the_protocol_cannot_use_is_named(
    data: Path, tiny_base: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SettingsError, match="`subjects=absent`: not in"):
        protocol.run(settings(data, tiny_base, tiny, subjects=["absent"]))
    with pytest.raises(SettingsError, match="takes those of the dataset"):
        protocol.run(settings(data, tiny_base, tiny, prompts=["a [V] dog"]))
    with pytest.raises(SettingsError, match=r"personalize\.name: the protocol"):
        protocol.run(settings(data, tiny_base, tiny, personalize={"name": "mine"}))
    (data.parent / "runs" / "rex").mkdir(parents=True)
    (data.parent / "runs" / "rex" / "mine.txt").write_text("kept")
    with pytest.raises(ExistsError, match="rex already exists"):
        protocol.run(settings(data, tiny_base, tiny))
    (data / protocol.LISTS).unlink()
    for arguments, said in (
        ([str(data), "--protocol", "dreambooth"], protocol.LISTS),
        ([str(tmp_path / "none"), "--protocol", "dreambooth"], "no such file or folder"),
        ([str(data), "--protocol", "clip"], "protocol"),
        ([str(data), "--subjects", "rex"], "subjects"),
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["evaluate", *arguments])
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err
