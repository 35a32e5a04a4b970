"""A segmentation model that makes masks: an ONNX file that tells red from the rest stands in for one."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from femtobooth.core.errors import ModelError
from femtobooth.generator.mask_model import DEVIATION, MEAN, MaskModel
from femtobooth.generator.photos import load_photos
from femtobooth.generator.subject_settings import PhotoSettings

onnx = pytest.importorskip("onnx")


def _red(path: Path, *, logits: bool = False, side: int | str = 64, channels: int = 3) -> Path:
    """Write a model: where there is more than half of red and little blue, in what ImageNet's normalization makes of it."""
    from onnx import TensorProto, helper, numpy_helper

    # red - blue - 0.5 of undone normalization, times 100
    weight = np.zeros((1, channels, 1, 1), np.float32)
    weight[0, 0], weight[0, 2] = 100 * DEVIATION[0], -100 * DEVIATION[2]
    bias = np.array([100 * (MEAN[0] - MEAN[2] - 0.5)], np.float32)
    nodes = [helper.make_node("Conv", ["picture", "w", "b"], ["logits" if not logits else "mask"])]
    if not logits:
        nodes.append(helper.make_node("Sigmoid", ["logits"], ["mask"]))
    graph = helper.make_graph(
        nodes, "red",
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, [1, channels, side, side])],
        [helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1, 1, side, side])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


def _picture() -> Image.Image:
    image = Image.new("RGB", (256, 128), (40, 60, 255))
    ImageDraw.Draw(image).rectangle((64, 32, 127, 95), fill=(250, 20, 10))
    return image


@pytest.mark.parametrize("side", [64, "side"])
@pytest.mark.parametrize("logits", [False, True])
def test_a_model_makes_masks(tmp_path: Path, logits: bool, side: int | str) -> None:
    mask = MaskModel(str(_red(tmp_path / "red.onnx", logits=logits, side=side))).mask(_picture())
    assert mask.shape == (128, 256)
    assert mask.dtype == np.uint8
    assert (mask[40:88, 72:120] == 255).all()
    assert mask[:24].max() == mask[104:].max() == mask[:, :52].max() == mask[:, 140:].max() == 0


def test_photos_without_a_mask_get_theirs_from_the_model(tmp_path: Path) -> None:
    folder, model = tmp_path / "photos", _red(tmp_path / "red.onnx")
    folder.mkdir()
    _picture().save(folder / "0.png")
    _picture().transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "1.png")
    Image.new("L", (256, 128), 255).save(folder / "1.mask.png")
    settings = PhotoSettings(paths=[str(folder)], class_noun="toy", crop="pad", mask_model=str(model))
    photos, rows = load_photos(settings, 64)
    assert [row["notes"][-1].partition(",")[0] for row in rows] == ["mask by red.onnx", "mask 1.mask.png"]
    assert photos[0].mask is not None and photos[1].mask is not None
    assert (photos[0].mask[26:38, 18:30] == 255).all()
    assert (photos[1].mask[16:48] == 255).all()


def test_what_is_no_such_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "no.onnx").write_bytes(b"rubbish")
    with pytest.raises(ModelError, match=r"`photos.mask_model=.*no.onnx`: not a usable ONNX model"):
        MaskModel(str(tmp_path / "no.onnx"))
    with pytest.raises(ModelError, match=r"reads \[\[1, 4, 64, 64\]\], not one picture"):
        MaskModel(str(_red(tmp_path / "four.onnx", channels=4)))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelError, match=r"needs onnxruntime\n.*pip install .*onnxruntime"):
        MaskModel(str(tmp_path / "no.onnx"))
