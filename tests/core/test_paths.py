"""A mistyped path is told from a hub id, and its near name is found."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from femtobooth.core import paths
from femtobooth.core.errors import ModelError
from femtobooth.generator.locate import locate
from femtobooth.recognizer.model import weights


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "bases" / "sd15").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What was looked up or connected to; nothing is."""
    tried: list[object] = []

    def refuse(*arguments: object, **_: object) -> None:
        tried.append(arguments)
        raise OSError("no network in this test")

    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tried


PATHS = {
    "runs/mnie": "did you mean runs/mine?",
    "runs/quite-another": "give",
    "bases/sd14": "did you mean bases/sd15?",
    "base/sd15": None,  # no such folder: an owner on the hub
    "checkpoints/sd15": "give",
    "./nothing": "give",
    "../nothing": "give",
    "~/nothing-of-this-name": "give",
    "~nobody-of-this-name/x": "give",
    "/nowhere/at/all": "give",
    "a/b/c": "give",
    "owner/name/": "give",
    "model.safetensors": "give",
    "owner/model.ckpt": "give",
    "windows\\path": "give",
    "hf-hub:runs/mine": None,
    "owner/name": None,
    "resnet18": None,
}


@pytest.mark.parametrize(("reference", "way_out"), PATHS.items())
def test_what_means_a_path(reference: str, way_out: str | None) -> None:
    assert paths.means_path(reference) == (way_out is not None)
    if way_out is None:
        paths.refuse_missing_path(reference, "give")
        return
    with pytest.raises(ModelError) as caught:
        paths.refuse_missing_path(reference, "give")
    assert reference in caught.value.problem
    assert str(caught.value.way_out).startswith(way_out)


@pytest.mark.parametrize("reference", [name for name, way_out in PATHS.items() if way_out])
@pytest.mark.parametrize("find", [locate, weights.resolve], ids=["base", "recognizer"])
def test_a_mistyped_path_never_reaches_for_the_hub(find: object, reference: str, asked: list[object]) -> None:
    with pytest.raises(ModelError, match="no such file or folder"):
        find(reference)  # type: ignore[operator]
    assert asked == []


def test_a_hub_id_does(asked: list[object]) -> None:
    """The watch above sees what it is there for; without a network that is told at once."""
    began = time.monotonic()
    with pytest.raises(ModelError, match="the hub cannot be reached"):
        locate("owner/name")
    assert asked
    assert time.monotonic() - began < 10


def test_a_runs_name_alone_is_told_where_it_lies() -> None:
    assert paths.nearest("mine") == "runs/mine"
    assert paths.nearest("mnie") == "runs/mine"
    with pytest.raises(ModelError, match=r"no such base model.*\n.*did you mean runs/mine\?"):
        locate("mine")


def test_the_bundled_base_mistyped() -> None:
    with pytest.raises(ModelError, match=r"did you mean bundled\?"):
        locate("bundeld")


def test_every_part_of_a_path_may_be_mistyped(place: Path) -> None:
    assert paths.nearest("rnus/mnie") == "runs/mine"
    assert paths.nearest(f"{place}/bases/sd51") == f"{place}/bases/sd15"
    assert paths.nearest("bases/xyz") is None
    assert paths.nearest("x" * 5000) is None
    assert paths.nearest("a\0b") is None


def test_hub_ids() -> None:
    assert paths.hub_id("owner/name.v1_x") == "owner/name.v1_x"
    assert paths.hub_id("hf-hub:runs/mine") == paths.hub_id("hf_hub:runs/mine") == "runs/mine"
    assert [paths.hub_id(name) for name in ("runs/mnie", "plain", "../x", "a/b/c", "owner/..", "")] == [None] * 6
