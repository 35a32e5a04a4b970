"""A recognizer's outputs, and its way to disk and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from femtobooth.core.errors import ExistsError, ModelError, PhotoError
from femtobooth.recognizer.model import artifact
from femtobooth.recognizer.model.backbone import Recognizer
from femtobooth.recognizer.model.embedding_transformer import EmbeddingTransformer
from femtobooth.recognizer.model.labels import Labels
from femtobooth.recognizer.model.preprocess import Preprocess

LABELS = Labels(("cat", "dog", "fox"))


def recognizer(architecture: str = "test_convnext", **model_args: Any) -> Recognizer:
    torch.manual_seed(0)
    return Recognizer.create(architecture, LABELS, Preprocess((64, 64)), **model_args).freeze()


def pictures(count: int = 2) -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (count, 80, 90, 3), dtype=np.uint8)
    return [Image.fromarray(values) for values in noise]


@pytest.mark.parametrize(
    "architecture", ["convnext_femto", "tf_efficientnet_lite0", "test_convnext", "mobilenetv3_small_050", "resnet10t"]
)
def test_one_pass_gives_what_each_method_gives(architecture: str) -> None:
    model = recognizer(architecture)
    x = model.batch(pictures())
    outputs = model.outputs(x, stages=(0, 1, 2, 3))
    assert torch.equal(outputs["logits"], model(x))
    assert torch.equal(outputs["logits"], model.model(x))
    assert torch.equal(outputs["embedding"], model.embed(x))
    assert torch.equal(outputs["prelogits"], model.prelogits(x))
    assert outputs["embedding"].shape == (2, model.model.num_features)
    assert outputs["prelogits"].shape == (2, model.model.head_hidden_size)
    assert [outputs[stage].shape[-1] for stage in range(4)] == [16, 8, 4, 2]
    last = model.model.get_classifier()(outputs["prelogits"])
    assert torch.allclose(last, outputs["logits"], atol=1e-6)


def test_a_hidden_layer_comes_between_embedding_and_prelogits() -> None:
    model = recognizer("convnext_femto", head_hidden_size=32)
    outputs = model.outputs(pictures())
    assert outputs["embedding"].shape == (2, 384)
    assert outputs["prelogits"].shape == (2, 32)
    head = model.model.head
    assert torch.allclose(head.fc(head.pre_logits(outputs["embedding"])), outputs["logits"], atol=1e-6)


def test_stages_come_as_asked_for() -> None:
    model = recognizer("convnext_femto")
    maps = model.features(pictures(), stages=(3, 1))
    assert {stage: tuple(part.shape) for stage, part in maps.items()} == {3: (2, 384, 2, 2), 1: (2, 96, 8, 8)}
    with pytest.raises(ModelError, match="has no stages 4"):
        model.features(pictures(), stages=(0, 4))
    with pytest.raises(ModelError, match="has no stages"):
        recognizer("test_vit", img_size=64).features(pictures())


def test_features_are_differentiable_once_it_is_unfrozen() -> None:
    model = recognizer()
    x = model.batch(pictures())
    assert not model.features(x)[3].requires_grad
    model.unfreeze().features(x)[3].sum().backward()
    assert all(parameter.grad is not None for parameter in model.model.stem.parameters())
    assert model.training
    assert not model.freeze().training


def test_it_saves_and_loads_everything(tmp_path: Path) -> None:
    model = recognizer()
    model.temperature = 1.5
    model.rejection = {"threshold": 0.25, "centroids": np.arange(6, dtype=np.float32).reshape(2, 3)}
    model.provenance = {"licence": "Apache-2.0", "trained_on": ["ab" * 32]}
    model.save(tmp_path / "model")
    again = Recognizer.load(tmp_path / "model")
    x = model.batch(pictures())
    assert torch.equal(model(x), again(x))
    assert not any(parameter.requires_grad for parameter in again.parameters())
    for name in ("architecture", "preprocess", "labels", "model_args", "temperature", "provenance", "hash"):
        assert getattr(again, name) == getattr(model, name), name
    assert again.rejection is not None
    assert again.rejection["threshold"] == 0.25
    assert np.array_equal(again.rejection["centroids"], model.rejection["centroids"])
    assert artifact.read(tmp_path / "model").hash == model.hash
    with pytest.raises(ExistsError):
        model.save(tmp_path / "model")
    model.save(tmp_path / "model", overwrite=True)


def test_model_args_come_back(tmp_path: Path) -> None:
    model = recognizer(depths=(1, 1, 1, 1))
    model.save(tmp_path / "model")
    again = Recognizer.load(tmp_path / "model")
    assert again.hash == model.hash
    assert again.model_args == {"depths": [1, 1, 1, 1]}


def test_half_precision_on_disk(tmp_path: Path) -> None:
    model = recognizer()
    model.save(tmp_path / "model", dtype=torch.float16)
    again = Recognizer.load(tmp_path / "model")
    full = sum(tensor.nbytes for tensor in model.model.state_dict().values())
    assert (tmp_path / "model" / "model.safetensors").stat().st_size < 0.6 * full
    assert again.model.stem[0].weight.dtype == torch.float32
    assert torch.allclose(again(model.batch(pictures())), model(model.batch(pictures())), atol=1e-2)


def test_what_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    model = recognizer()
    model.model.stem[0].weight.data[0] = 1e6
    with pytest.raises(ModelError, match=r"stem\.0\.weight holds NaN or infinite"):
        model.save(tmp_path / "model", dtype=torch.float16)
    assert not list(tmp_path.iterdir())


def test_the_hash_is_of_the_weights() -> None:
    model, same = recognizer(), recognizer()
    assert model.hash == same.hash
    same.model.stem[0].bias.data[0] += 1
    assert model.hash != same.hash


def test_it_is_an_sklearn_transformer(tmp_path: Path) -> None:
    model = recognizer()
    images = pictures(6)
    for index, image in enumerate(images):
        image.save(tmp_path / f"{index}.png")
    paths = [tmp_path / f"{index}.png" for index in range(6)]
    embedder = EmbeddingTransformer(model, batch_size=4)
    embeddings = embedder.fit_transform(paths)
    assert embeddings.shape == (6, model.model.num_features)
    assert embeddings.dtype == np.float32
    with torch.inference_mode():
        assert np.allclose(embeddings, model.embed(model.batch(images)).numpy(), atol=1e-5)
    assert np.array_equal(clone(embedder, safe=False).transform(images), embeddings)
    labels = [0, 1] * 3
    assert (
        make_pipeline(embedder, LogisticRegression(C=1e6, max_iter=500)).fit(paths, labels).predict(paths).tolist()
        == labels
    )
    (tmp_path / "no.png").write_bytes(b"no")
    with pytest.raises(PhotoError, match=r"no\.png"):
        embedder.transform([tmp_path / "no.png"])


def test_the_description_is_readable(tmp_path: Path) -> None:
    recognizer().save(tmp_path / "model")
    value = json.loads((tmp_path / "model" / "recognizer.json").read_text())
    assert value["num_classes"] == 3
    assert value["labels"]["names"] == ["cat", "dog", "fox"]
    assert value["parameters"] == sum(parameter.numel() for parameter in recognizer().model.parameters())


def test_a_folder_of_an_older_version_rejects_as_before(tmp_path: Path) -> None:
    model = recognizer()
    model.rejection = {"threshold": 0.25, "centroids": np.arange(6, dtype=np.float32).reshape(2, 3)}
    model.save(tmp_path / "model")
    (tmp_path / "model" / "rejection.safetensors").rename(tmp_path / "model" / "unknown.safetensors")
    description = tmp_path / "model" / artifact.DESCRIPTION
    text = description.read_text()
    assert '"rejection": {' in text
    description.write_text(text.replace('"rejection": {', '"unknown": {'))
    again = Recognizer.load(tmp_path / "model").rejection
    assert again is not None
    assert again["threshold"] == 0.25
    assert np.array_equal(again["centroids"], model.rejection["centroids"])
