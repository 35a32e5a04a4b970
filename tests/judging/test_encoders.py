"""Encoders by name: what they are, what they refuse, and what they say where there is no hub."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from femtobooth.core.errors import ModelError
from femtobooth.judging import encoders
from femtobooth.judging.encoders import open_encoder
from femtobooth.recognizer.model.backbone import Recognizer

PICTURES = list(np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), np.uint8))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_a_recognizer_encodes_as_it_embeds(tiny: Path) -> None:
    encoder = open_encoder(str(tiny))
    recognizer = Recognizer.load(tiny)
    expected = recognizer.embed(recognizer.batch(Image.fromarray(one) for one in PICTURES))
    assert np.array_equal(encoder.images(PICTURES), expected.numpy())
    assert encoder.texts is None


def test_of_what_is_no_square_the_most_detailed_one_is_encoded(tiny: Path) -> None:
    encoder, plain = open_encoder(str(tiny)), np.full((40, 30, 3), 90, np.uint8)
    lying = np.concatenate([plain, PICTURES[0]], axis=1)
    standing = lying.transpose(1, 0, 2)
    expected = encoder.images([PICTURES[0], PICTURES[0].transpose(1, 0, 2)])
    assert np.array_equal(encoder.images([lying, standing]), expected)


def test_a_network_without_classes_encodes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch16_224.dino", pretrained=False, num_classes=0).eval()
    file = tmp_path / "vit_small_patch16_224.dino.safetensors"
    safetensors.torch.save_file(model.state_dict(), file)
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    with torch.inference_mode():
        expected = model(torch.stack([transform(Image.fromarray(one)) for one in PICTURES]))
    found = open_encoder(str(file)).images(PICTURES)
    assert found.shape == (3, 384)
    assert found == pytest.approx(expected.numpy(), abs=1e-5)


def test_an_encoder_computes_where_it_was_moved(tiny: Path) -> None:
    """Pictures follow the network: on the device `meta`, which holds no numbers, only the last copy back can fail."""
    encoder = open_encoder(str(tiny))
    before = encoder.images(PICTURES)
    assert encoder.to(torch.device("cpu")) is encoder
    assert np.array_equal(encoder.images(PICTURES), before)
    encoder.to(torch.device("meta"))
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        encoder.images(PICTURES)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_encoder_says_the_same_on_a_gpu(tiny: Path) -> None:
    here, there = open_encoder(str(tiny)), open_encoder(str(tiny)).to(torch.device("cuda"))
    assert there.images(PICTURES) == pytest.approx(here.images(PICTURES), abs=1e-2)


@pytest.mark.parametrize("name", ["dino", "clip"])
@pytest.mark.usefixtures("offline")
def test_without_a_hub_the_error_says_what_to_do(name: str) -> None:
    with pytest.raises(ModelError, match="hub cannot be reached") as caught:
        open_encoder(name)
    assert len(str(caught.value).splitlines()) == 2


def test_an_encoder_refuses_what_it_was_trained_on(tiny: Path, tmp_path: Path) -> None:
    recognizer = Recognizer.load(tiny)
    recognizer.provenance = {"trained_on": ["aa", "bb"]}
    recognizer.save(tmp_path / "taught")
    encoder = open_encoder(str(tmp_path / "taught"))
    encoder.refuse_trained_on(["cc", "dd"])
    with pytest.raises(ModelError, match="was trained on 1 of the pictures"):
        encoder.refuse_trained_on(["cc", "bb"])


def test_what_is_usable_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders.weights, "cached_file", lambda repo: None)
    monkeypatch.setattr(encoders.weights, "bundled_folder", lambda: Path("nowhere"))
    monkeypatch.setattr(encoders.weights, "packaged_file", lambda: None)
    with pytest.raises(ModelError, match="no encoder works here"):
        encoders.usable()
