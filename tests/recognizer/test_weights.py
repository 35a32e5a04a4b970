"""Where weights are found, and what files must not get away with."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from femtobooth import cli
from femtobooth.core.errors import ModelError, UnsafeFileError
from femtobooth.recognizer.model import weights
from femtobooth.recognizer.model.backbone import Recognizer
from femtobooth.recognizer.model.labels import Labels
from femtobooth.recognizer.model.preprocess import Preprocess

ARCHITECTURE = "test_convnext"


def tensors(count: int = 3, architecture: str = ARCHITECTURE) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return timm.create_model(architecture, num_classes=count).state_dict()


@pytest.fixture(autouse=True)
def _no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty hub cache, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    folder = tmp_path / "run" / "model"
    Recognizer.create(ARCHITECTURE, Labels(("cat", "dog", "fox")), Preprocess((64, 64))).save(folder)
    return folder


def cache(root: Path, repo: str, architecture: str, count: int) -> None:
    """A repository in the hub's cache layout."""
    folder = root / "hub" / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    safetensors.torch.save_file(tensors(count, architecture), snapshot / "model.safetensors")
    (snapshot / "config.json").write_text(json.dumps({"architecture": architecture, "num_classes": count}))


# Finding


def test_all_paths_to_an_artifact(saved: Path) -> None:
    hashes = {
        Recognizer.load(path).hash
        for path in (saved, saved.parent, saved / "model.safetensors", saved / "recognizer.json")
    }
    assert len(hashes) == 1


def test_a_folder_as_the_hub_has_it(tmp_path: Path) -> None:
    safetensors.torch.save_file(tensors(), tmp_path / "model.safetensors")
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": 3,
        "label_names": ["a", "b", "c"],
        "pretrained_cfg": {"mean": [0.5] * 3},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    for path in (tmp_path, tmp_path / "model.safetensors"):
        model = Recognizer.load(path)
        assert model.labels.names == ("a", "b", "c")
        assert model.preprocess.mean == (0.5, 0.5, 0.5)


def test_a_file_named_after_its_architecture(tmp_path: Path) -> None:
    safetensors.torch.save_file(tensors(), tmp_path / f"{ARCHITECTURE}.safetensors")
    torch.save({"state_dict": tensors()}, tmp_path / f"{ARCHITECTURE}-d71d5b4c.pth")
    one, other = (Recognizer.load(path) for path in sorted(tmp_path.glob("test_*")))
    assert one.hash == other.hash
    assert one.labels.names == ("class 0", "class 1", "class 2")


def test_a_file_of_which_nothing_is_known_is_taken_for_the_default(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    safetensors.torch.save_file(tensors(1000, "convnext_femto"), tmp_path / "x" / "model.safetensors")
    model = Recognizer.load(tmp_path / "x" / "model.safetensors")
    assert model.architecture == weights.DEFAULT
    assert model.labels.synsets is not None
    assert model.preprocess.crop_pct == 0.875


def test_the_local_hub_cache(tmp_path: Path) -> None:
    cache(tmp_path, "timm/convnext_femto.d1_in1k", "convnext_femto", 1000)
    cache(tmp_path, "someone/theirs", ARCHITECTURE, 4)
    model = Recognizer.load("convnext_femto")
    assert model.provenance["source"] == "timm/convnext_femto.d1_in1k (local hub cache)"
    assert (
        Recognizer.load(weights.DEFAULT).hash
        == Recognizer.load("hf-hub:timm/convnext_femto.d1_in1k").hash
        == model.hash
    )
    assert Recognizer.load("someone/theirs").architecture == ARCHITECTURE


def test_a_path_goes_before_a_name(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(saved, tmp_path / "convnext_femto")
    monkeypatch.chdir(tmp_path)
    assert Recognizer.load("convnext_femto").architecture == ARCHITECTURE


def test_the_packaged_model_has_imagenets_weights() -> None:
    model = Recognizer.load("tf_efficientnet_lite0")
    assert len(model.labels) == 1000
    assert model.preprocess.mean == model.preprocess.std == (0.5, 0.5, 0.5)
    assert model.preprocess.size == (224, 224)
    parameters = sum(parameter.numel() for parameter in model.model.parameters())
    assert parameters == 4_652_008
    spread = model.model.bn2.running_var  # of a trained network, not that of a new one
    assert not torch.equal(spread, torch.ones_like(spread))


def test_a_run_by_its_name(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(saved, tmp_path / "runs" / "mine" / "model")
    monkeypatch.chdir(tmp_path)
    assert Recognizer.load("mine").hash == Recognizer.load("runs/mine").hash
    with pytest.raises(ModelError, match="no such file"):
        Recognizer.load("mime")


def test_a_missing_default_fails_at_once_and_names_what_is_ready(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "runs" / "mine" / "model")
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    code = """
import sys, time
from femtobooth import cli
start = time.process_time()
try:
    cli.main(sys.argv[1:])
except SystemExit as stopped:
    assert not {"torch", "timm"} & sys.modules.keys()
    assert time.process_time() - start < 2
    raise
"""
    environment = os.environ | {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    for command in (
        ["classify", "."],
        ["embed", ".", "--out", "x.parquet"],
        ["export"],
        ["finetune", "."],
        ["evaluate-classifier"],
    ):
        given = [sys.executable, "-c", code, *command]
        if command[0] == "evaluate-classifier":
            given += [weights.DEFAULT, "."]
        ended = subprocess.run(given, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ended.returncode == 2, ended.stderr
        assert "not in the local hub cache and the hub cannot be reached" in ended.stderr
        assert (
            "-> ready here: bundled or tf_efficientnet_lite0 or runs/mine; where there is a network run" in ended.stderr
        )


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (
            "convnext_femto.d1_in1k",
            r"the hub cannot be reached[^\n]*\n  -> [^\n]*hf download timm/convnext_femto\.d1_in1k",
        ),
        ("owner/name", r"the hub cannot be reached[^\n]*\n  -> [^\n]*hf download owner/name"),
        ("convnext_fento", r"no such file, folder or timm model\n  -> did you mean [^\n]*convnext_femto\.d1_in1k"),
        ("convnext_femto.bad", r"knows no weights of this name\n  -> there are convnext_femto\.d1_in1k"),
        ("zzzz", "no such file, folder or timm model\n  -> `femtobooth models`"),
        ("no/such/folder", "no such file or folder"),
    ],
)
def test_what_is_not_there_says_what_to_do(reference: str, said: str) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        Recognizer.load(reference)
    assert str(caught.value).count("\n") == 1


def test_folders_of_other_things(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    (tmp_path / "sd" / "model").mkdir(parents=True)
    (tmp_path / "sd" / "model" / "model_index.json").write_text("{}")
    for name, said in {
        "empty": "holds no recognizer",
        "run": "not finished",
        "sd": "a Stable Diffusion, not a recognizer",
    }.items():
        with pytest.raises(ModelError, match=said):
            Recognizer.load(tmp_path / name)


def test_an_exported_artifact_says_so(saved: Path) -> None:
    (saved / "model.safetensors").rename(saved / "model.onnx")
    with pytest.raises(
        ModelError, match=r"an exported model \(model\.onnx\)[^\n]*\n  -> give the model that it was exported from"
    ):
        Recognizer.load(saved)


def test_a_torchscript_artifact_is_a_program(saved: Path) -> None:
    (saved / "model.safetensors").rename(saved / "model.pt")
    with pytest.raises(
        ModelError, match=r"a TorchScript artifact, which is a program[^\n]*and was not run\n  -> [^\n]*`trust=true`"
    ):
        Recognizer.load(saved)


def test_what_runs_exported_models_needs_no_torch() -> None:
    code = (
        "import sys, femtobooth.recognizer.model.weights, femtobooth.recognizer.model.artifact "
        "as a; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Safety


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("evil-was-run",)


def _describe(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "recognizer.json"
        value = json.loads(path.read_text())
        path.write_text(json.dumps({key: part for key, part in (value | changes).items() if part != "remove"}))

    return change


def _file(contents: Callable[[], dict[str, Any]]) -> Callable[[Path], None]:
    return lambda folder: safetensors.torch.save_file(contents(), folder / "model.safetensors")


def _with(name: str, value: torch.Tensor | None) -> Callable[[], dict[str, Any]]:
    def changed() -> dict[str, Any]:
        given: dict[str, Any] = tensors() | {name: value}
        return {key: tensor for key, tensor in given.items() if tensor is not None}

    return changed


def _cut(numerator: int) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        path = folder / "model.safetensors"
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * numerator // 4])

    return cut


def _bytes(content: bytes, name: str = "model.safetensors") -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "NaN weights": (_file(_with("head.fc.bias", torch.full((3,), torch.nan))), r"head\.fc\.bias holds NaN"),
    "infinite weights": (
        _file(_with("head.fc.bias", torch.full((3,), torch.inf))),
        r"head\.fc\.bias holds NaN or infinite",
    ),
    "another architecture": (
        _file(lambda: tensors(3, "test_resnet")),
        r"not the weights of test_convnext: stem\.0\.weight is missing",
    ),
    "another class count": (_file(lambda: tensors(5)), r"head\.fc\.weight is \(5, \d+\) instead of \(3, \d+\)"),
    "another class count described": (_describe(num_classes=5), "5 classes, but 3 labels"),
    "a tensor missing": (_file(_with("stem.0.bias", None)), r"stem\.0\.bias is missing"),
    "a tensor too many": (_file(_with("stem.9.bias", torch.ones(1))), r"stem\.9\.bias has no place"),
    "whole numbers": (
        _file(_with("head.fc.bias", torch.ones(3, dtype=torch.int64))),
        r"head\.fc\.bias holds torch\.int64",
    ),
    "other weights": (
        _file(_with("head.fc.bias", torch.ones(3))),
        r"is not the file that recognizer\.json beside it describes",
    ),
    "cut to nothing": (_cut(0), "empty"),
    "cut at a quarter": (_cut(1), "damaged or cut off"),
    "cut at half": (_cut(2), "damaged or cut off"),
    "cut at three quarters": (_cut(3), "damaged or cut off"),
    "a web page": (_bytes(b"<!DOCTYPE html>"), "a web page"),
    "a Git LFS pointer": (_bytes(b"version https://"), "Git LFS pointer"),
    "noise": (_bytes(bytes(range(1, 200))), "neither safetensors nor"),
    "a header too long": (_bytes(b"\xff" * 7 + b"\x7f{"), "its header is larger than that of any model"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"model\.safetensors: is missing"),
    "JSON cut off": (
        lambda folder: (folder / "recognizer.json").write_text('{"format": 1, "arch'),
        r"recognizer\.json: damaged",
    ),
    "not UTF-8": (_bytes(b"\xff\xfe{}", "recognizer.json"), r"recognizer\.json: damaged"),
    "a list": (_bytes(b"[]", "recognizer.json"), r"recognizer\.json: format 'list'"),
    "deep nesting": (_bytes(b"[" * 10**5, "recognizer.json"), r"recognizer\.json: damaged"),
    "another format": (_describe(format=99), "format 99 is not one"),
    "no architecture": (_describe(architecture="remove"), "`architecture` is missing"),
    "an unknown architecture": (_describe(architecture="nope"), "'nope' is no timm model"),
    "an architecture on the hub": (_describe(architecture="hf-hub:evil/model"), "is no timm model"),
    "a file to load": (
        _describe(model_args={"checkpoint_path": "/etc/passwd"}),
        "model_args must not hold checkpoint_path",
    ),
    "pretrained": (_describe(model_args={"pretrained": True}), "model_args must not hold pretrained"),
    "odd arguments": (_describe(model_args={"depths": "many"}), "cannot be built with"),
    "temperature 0": (_describe(temperature=0), "`temperature` must be above 0"),
    "temperature NaN": (_describe(temperature=float("nan")), "`temperature` must be above 0"),
    "no labels": (_describe(labels={"names": []}), "label groups"),
    "preprocessing": (_describe(preprocess={"size": [0, 0]}), "preprocessing cannot be done"),
    "the arrays of the rejection": (
        lambda f: (_describe(rejection={})(f), _bytes(b"x", "rejection.safetensors")(f)),
        r"rejection\.safetensors: damaged",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_artifacts_are_refused_in_two_lines(name: str, saved: Path) -> None:
    damage, said = BROKEN[name]
    damage(saved)
    with pytest.raises(ModelError, match=said) as caught:
        Recognizer.load(saved)
    assert str(saved) in str(caught.value)
    assert str(caught.value).count("\n") == 1


@pytest.mark.parametrize(
    ("name", "old", "said"),
    [
        ("test_convnext.pth", False, r"wants to run \S*mkdir, and was not loaded"),
        ("test_convnext.pth", True, "a pickle of more than tensors, and was not loaded"),
        ("test_convnext.safetensors", False, r"is a pickle, though named \.safetensors"),
        ("test_convnext.safetensors", True, r"is a pickle, though named \.safetensors"),
    ],
)
def test_a_pickle_with_code_is_refused_and_not_run(
    name: str, old: bool, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    if old:
        path.write_bytes(pickle.dumps(_Evil()))
    else:
        torch.save({"state_dict": tensors() | {"evil": _Evil()}}, path)
    with pytest.raises(UnsafeFileError, match=said):
        Recognizer.load(path)
    assert not (tmp_path / "evil-was-run").exists()


@pytest.mark.parametrize(
    "config", ["{", "[]", "{}", '{"architecture": 5}', '{"architecture": "nope"}', '{"architecture": null}']
)
def test_a_broken_hub_config(config: str, tmp_path: Path) -> None:
    safetensors.torch.save_file(tensors(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelError, match=r"not the description of a timm model|is no timm model"):
        Recognizer.load(tmp_path)


def test_other_weights_without_a_description_say_how_to_name_them(tmp_path: Path) -> None:
    safetensors.torch.save_file(tensors(), tmp_path / "mine.safetensors")
    with pytest.raises(
        ModelError, match=r"not the weights of convnext_femto[^\n]*\n  -> put the hub's config\.json beside it"
    ):
        Recognizer.load(tmp_path / "mine.safetensors")


# femtobooth models


def test_models_never_breaks_a_name(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "a-run-whose-name-is-rather-long-but-not-unheard-of"
    shutil.copytree(saved.parent, tmp_path / "runs" / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    cli.main(["models"])
    lines = capsys.readouterr().err.splitlines()
    for whole in (f"runs/{name}", "tf_efficientnet_lite0.in1k", weights.DEFAULT):
        assert any(line.startswith(f"{whole} ") for line in lines), lines


def test_models_lists_what_is_here(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache(tmp_path, f"timm/{ARCHITECTURE}.r160_in1k", ARCHITECTURE, 1000)
    shutil.copytree(saved.parent, tmp_path / "damaged")
    (tmp_path / "damaged" / "model" / "recognizer.json").write_text("{")
    cli.main(["models", "--runs", str(tmp_path), "--json"])
    listed = {model["name"]: model for model in json.loads(capsys.readouterr().out)["models"]}
    assert listed[str(saved.parent)]["ready"]
    assert listed[str(saved.parent)]["size"] == [64, 64]
    assert "damaged" in listed[str(tmp_path / "damaged")]["how"]
    assert not listed[str(tmp_path / "damaged")]["ready"]
    assert listed["tf_efficientnet_lite0.in1k"]["ready"]
    assert listed[f"{ARCHITECTURE}.r160_in1k"]["source"] == "local hub cache"
    default = listed[weights.DEFAULT]
    assert (default["parameters"], default["size"], default["licence"], default["ready"]) == (
        5217784,
        [224, 224],
        "apache-2.0",
        False,
    )
    assert "hf download" in default["how"]
    for name, model in listed.items():
        if model["ready"] and model["source"] != "run":
            assert weights.resolve(name)
