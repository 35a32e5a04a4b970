"""A folder as the hub has it is read as timm reads it: the same preprocessing, the same logits."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from femtobooth.core.errors import ModelError
from femtobooth.recognizer.model import loading
from femtobooth.recognizer.model.backbone import Recognizer
from femtobooth.recognizer.model.labels import Labels
from femtobooth.recognizer.model.preprocess import Preprocess

pytestmark = pytest.mark.usefixtures("terminal")

OWN = {
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.25],
    "crop_pct": 0.95,
    "input_size": [3, 96, 96],
    "interpolation": "bilinear",
}
CONFIGS: dict[str, dict[str, Any]] = {
    "one level": {"architecture": "test_convnext", "num_classes": 3, "num_features": 64, **OWN, "labels": ["a", "b", "c"]},
    "one level, defaults of weights, not of the architecture": {"architecture": "test_convnext", "num_classes": 3},
    "two levels": {"architecture": "test_convnext", "num_classes": 3, "label_names": ["a", "b", "c"], "pretrained_cfg": OWN},
    "two levels with a crop mode": {"architecture": "test_resnet", "num_classes": 3, "pretrained_cfg": OWN | {"crop_mode": "border"}},
    "two levels, squashed": {"architecture": "test_resnet", "pretrained_cfg": OWN | {"num_classes": 3, "crop_mode": "squash"}},
    "little said": {"architecture": "test_convnext", "pretrained_cfg": {"num_classes": 3}},
    "the class count above goes before the one within": {
        "architecture": "test_convnext", "num_classes": 3, "pretrained_cfg": OWN | {"num_classes": 1000},
    },
    "a tag that timm does not know": {"architecture": "test_convnext", "num_classes": 3, "pretrained_cfg": OWN | {"tag": "mine_v2"}},
    "a tag that timm knows": {"architecture": "test_convnext", "num_classes": 3, "pretrained_cfg": OWN | {"tag": "r160_in1k"}},
    "a test size, which is not the size": {
        "architecture": "test_convnext", "num_classes": 3, "pretrained_cfg": OWN | {"test_input_size": [3, 128, 128], "test_crop_pct": 1.0},
    },
    "model_args": {"architecture": "test_convnext", "num_classes": 3, "model_args": {"depths": [1, 1, 1, 1]}, "pretrained_cfg": OWN},
    "model_args with the class count": {
        "architecture": "test_convnext", "model_args": {"num_classes": 3}, "pretrained_cfg": OWN | {"num_classes": 3},
    },
    "a size that is fixed": {
        "architecture": "test_vit", "num_classes": 3, "pretrained_cfg": OWN | {"fixed_input_size": True},
    },
    "img_size": {
        "architecture": "test_vit", "num_classes": 3, "model_args": {"img_size": 64}, "pretrained_cfg": OWN | {"fixed_input_size": True},
    },
    "img_size, not square": {
        "architecture": "test_vit", "num_classes": 3, "model_args": {"img_size": [64, 96]},
        "pretrained_cfg": OWN | {"fixed_input_size": True},
    },
    "img_size of a network that takes any": {
        "architecture": "test_vit", "num_classes": 3, "model_args": {"img_size": 64, "dynamic_img_size": True},
        "pretrained_cfg": OWN | {"fixed_input_size": True, "input_size": [3, 128, 128]},
    },
    "names with descriptions": {
        "architecture": "test_convnext", "num_classes": 3, "label_names": ["n1", "n2", "n3"],
        "label_descriptions": {"n1": "a", "n2": "b", "n3": "c"},
        "pretrained_cfg": OWN,
    },
}  # fmt: skip


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (150, 210, 3), np.uint8))


def _folder(folder: Path, config: dict[str, Any]) -> Path:
    """Weights that timm itself made for a description, and the description."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = timm.create_model(f"local-dir:{folder}", pretrained=False)
    torch.nn.init.normal_(model.get_classifier().weight)
    safetensors.torch.save_file(model.state_dict(), folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", CONFIGS)
def test_preprocessing_and_logits_are_timms(name: str, tmp_path: Path, picture: Image.Image) -> None:
    folder = _folder(tmp_path / "model", CONFIGS[name])
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    pixels = create_transform(**resolve_model_data_config(theirs))(picture)[None]
    ours = Recognizer.load(folder)
    assert torch.equal(ours.batch([picture]), pixels)
    with torch.inference_mode():
        assert torch.equal(ours(pixels), theirs(pixels))
    assert ours.labels.names == (
        ("a", "b", "c") if "label" in json.dumps(CONFIGS[name]) else ("class 0", "class 1", "class 2")
    )
    ours.save(tmp_path / "artifact")  # and an artifact of it is the same
    again = Recognizer.load(tmp_path / "artifact")
    assert torch.equal(again.batch([picture]), pixels)
    with torch.inference_mode():
        assert torch.equal(again(pixels), theirs(pixels))


def test_a_network_of_one_size_is_given_that_size(tmp_path: Path, picture: Image.Image) -> None:
    """Where config.json names the network's size and another one for the weights, timm's own transform gives what its
    network refuses.
    """
    args = {"img_size": 64, "dynamic_img_size": False}
    folder = _folder(
        tmp_path / "model", {"architecture": "test_vit", "num_classes": 3, "model_args": args, "pretrained_cfg": OWN}
    )
    ours = Recognizer.load(folder)
    assert ours.preprocess.size == (64, 64)
    assert ours(ours.batch([picture])).shape == (1, 3)


# Checkpoints


def _tensors(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    model = timm.create_model("test_convnext", num_classes=3)
    torch.nn.init.normal_(model.get_classifier().weight)
    return model.state_dict()


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


RAW, EMA = _tensors(1), _tensors(2)
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "plain": RAW,
    "state_dict": {"state_dict": RAW, "epoch": 3},
    "model": {"model": RAW, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
    "module.": {"state_dict": _under("module.", RAW)},
    "_orig_mod.": {"model": _under("_orig_mod.", RAW)},
    "both": {"model": _under("_orig_mod.module.", RAW)},
    "both, the other way round": _under("module._orig_mod.", RAW),
    "state_dict_ema": {"state_dict": RAW, "state_dict_ema": EMA},
    "model_ema": {"model": RAW, "model_ema": _under("module.", EMA)},
    "no average": {"state_dict": RAW, "state_dict_ema": None},
    "train.py": {
        "epoch": 9, "arch": "test_convnext", "state_dict": RAW, "state_dict_ema": EMA, "version": 2, "metric": 71.5,
        "args": Namespace(model="test_convnext", lr=0.1, opt_betas=None, mean=[0.5, 0.5, 0.5]),
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999)}]},
    },
}  # fmt: skip


WRAPPED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Lightning": ({"state_dict": _under("model.", RAW) | {"loss.weight": torch.ones(3)}, "epoch": 1}, RAW),
    "Lightning over DDP": ({"state_dict": _under("model.module.", RAW)}, RAW),
    "averages beside": (_under("model.", RAW) | _under("ema_model.module.", EMA) | {"step": torch.tensor(3)}, EMA),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_checkpoint_of_another_trainer(name: str, tmp_path: Path) -> None:
    file = tmp_path / "test_convnext.ckpt"
    contents, expected = WRAPPED[name]
    torch.save(contents, file)
    found = Recognizer.load(file).model.state_dict()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


@pytest.mark.parametrize("head", [{}, {"head.fc.0.weight": torch.ones(7, 64), "projection.bias": torch.ones(7)}])
def test_another_last_layer_is_one_of_zeros_where_it_is_replaced(head: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "test_convnext.pth"
    body = {name: tensor for name, tensor in RAW.items() if not name.startswith("head.fc")}
    torch.save(body | head, file)
    with pytest.raises(ModelError, match=r"head\.fc\.weight is missing"):
        Recognizer.load(file)
    found = Recognizer.load(file, any_head=True).model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in body.items())
    assert not found["head.fc.weight"].any()


@pytest.mark.parametrize("architecture", ["test_convnext", "test_vit", "convnext_femto.d1_in1k"])
def test_timm_loads_what_is_saved(architecture: str, tmp_path: Path, picture: Image.Image) -> None:
    size = (64, 64) if architecture == "convnext_femto.d1_in1k" else (160, 160)
    preprocess = Preprocess(size, 0.9, "bilinear", (0.4, 0.5, 0.6), (0.3, 0.2, 0.1))
    saved = Recognizer.create(architecture, Labels(("cat", "dög", "x")), preprocess).freeze()
    saved.save(tmp_path / "m")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True).eval()
    x = create_transform(**resolve_model_data_config(theirs))(picture)[None]
    with torch.inference_mode():
        assert torch.equal(theirs(x), saved(saved.batch([picture])))
    assert theirs.pretrained_cfg["label_names"] == ["cat", "dög", "x"]
    (tmp_path / "m" / "recognizer.json").unlink()  # as from the hub, which has no more than this
    again = Recognizer.load(tmp_path / "m")
    assert (again.labels.names, again.preprocess) == (("cat", "dög", "x"), preprocess)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_that_timm_loads(
    name: str, tmp_path: Path, picture: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "test_convnext" / "model_best.pth.tar"
    file.parent.mkdir()
    torch.save(CHECKPOINTS[name], file)
    theirs = timm.create_model("test_convnext", num_classes=3, checkpoint_path=str(file)).eval()
    ours = Recognizer.load(file)
    with torch.inference_mode():
        assert torch.equal(ours(ours.batch([picture])), theirs(ours.batch([picture])))
    averaged = bool(set(CHECKPOINTS[name]) & {"state_dict_ema", "model_ema"}) and name != "no average"
    assert ("averaged weights" in capsys.readouterr().err) == averaged


def test_a_checkpoint_names_its_architecture(tmp_path: Path) -> None:
    torch.save(CHECKPOINTS["train.py"], tmp_path / "last.pth.tar")
    assert Recognizer.load(tmp_path / "last.pth.tar").architecture == "test_convnext"


# What a stranger's description asks for


@pytest.mark.parametrize(
    "args",
    [
        {"depths": [10**9, 1, 1, 1]},
        {"depths": [2000, 2000, 2000, 2000]},
        {"depths": [60_000] * 4},
        {"depths": [1] * 20_000},
        {"dims": [10**6] * 4},
        {"dims": [10**9] * 4},
        {"dims": [2**62] * 4},
        {"dims": [8192] * 4},
        {"head_hidden_size": 10**9},
        {"patch_size": 10**6},
    ],
    ids=lambda args: f"{next(iter(args))}-{str(args)[-20:-1]}",
)
@pytest.mark.parametrize("kind", ["artifact", "hub"])
def test_sizes_that_the_weights_could_not_fill(args: dict[str, Any], kind: str, tmp_path: Path) -> None:
    Recognizer.load(_folder(tmp_path / "hub", CONFIGS["two levels"])).save(tmp_path / "artifact")
    file = tmp_path / kind / {"artifact": "recognizer.json", "hub": "config.json"}[kind]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_args": args}))
    with pytest.raises(
        ModelError, match=r"would be far larger than the weights|cannot be built|not the weights of"
    ) as caught:
        Recognizer.load(tmp_path / kind)
    assert str(caught.value).count("\n") == 1


def test_classes_that_the_weights_could_not_fill() -> None:
    with pytest.raises(ModelError, match="10000000000 classes would be far larger than the weights"):
        loading.build("test_convnext", 10**10, {"drop_rate": 0.5}, Path("here"), {"weight": torch.zeros(9)})


IMPOSSIBLE: list[dict[str, Any]] = [
    {"mean": "grey"}, {"mean": [0.5]}, {"std": [0, 0, 0]}, {"std": [1e-300] * 3}, {"crop_pct": "x"}, {"crop_pct": 1e-300},
    {"input_size": 5}, {"input_size": [3, 10**9, 10**9]}, {"input_size": [1, 96, 96]}, {"interpolation": "magic"},
]  # fmt: skip


@pytest.mark.parametrize("change", IMPOSSIBLE, ids=str)
def test_preprocessing_that_cannot_be_done(change: dict[str, Any], tmp_path: Path) -> None:
    folder = _folder(tmp_path / "hub", CONFIGS["two levels"])
    (folder / "config.json").write_text(json.dumps(CONFIGS["two levels"] | {"pretrained_cfg": OWN | change}))
    with pytest.raises(ModelError, match=r"preprocessing|channels"):
        Recognizer.load(folder)
