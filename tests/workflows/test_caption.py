"""femtobooth caption: tiny random captioners made here write captions beside photos, and never over a person's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    BertTokenizerFast,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPImageProcessor,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
)

from femtobooth.cli import main
from femtobooth.core import config
from femtobooth.core.errors import ModelError, PhotoError
from femtobooth.generator.captioner import Captioner
from femtobooth.generator.captions import own_captions
from femtobooth.workflows import caption
from femtobooth.workflows.settings import CaptionSettings

pytestmark = pytest.mark.usefixtures("terminal")

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "[DEC]",
    "a",
    "dog",
    "red",
    "ball",
    "on",
    "the",
    "green",
    "grass",
    "small",
    "big",
]
LAYER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def tokenizer(folder: Path) -> BertTokenizerFast:
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    return BertTokenizerFast(str(folder / "vocab.txt"), bos_token="[DEC]")  # as those of BLIP


@pytest.fixture(scope="session")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BLIP of random weights whose captions are some of `WORDS`."""
    folder = tmp_path_factory.mktemp("captioners") / "blip"
    folder.mkdir()
    torch.manual_seed(2)
    text = {**LAYER, "vocab_size": len(WORDS), "encoder_hidden_size": 16, "bos_token_id": 5, "sep_token_id": 3}
    text |= {"eos_token_id": 3, "pad_token_id": 0, "max_position_embeddings": 64}
    vision = {**LAYER, "image_size": 32, "patch_size": 16}
    model = BlipForConditionalGeneration(
        BlipConfig(text_config=text, vision_config=vision, projection_dim=16, image_text_hidden_size=16)
    )
    for weights in model.parameters():
        if weights.ndim > 1:
            torch.nn.init.normal_(weights, std=0.5)
    with torch.no_grad():
        model.text_decoder.cls.predictions.decoder.bias[:6] = -9  # of marks
    model.save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer(folder)).save_pretrained(folder)
    return folder


def settle(photos: Path, model: Path, **more: object) -> CaptionSettings:
    return config.settle(CaptionSettings, {"paths": [str(photos)], "model": str(model), **more})


def run(photos: Path, model: Path, **more: object) -> dict[str, Any]:
    return caption.run(settle(photos, model, **more))


def test_captions_are_written_beside_photos(blip: Path, photo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("L", (96, 96), 255).save(photo_folder / "photo0.mask.png")
    made = run(photo_folder, blip, tokens=6)
    said = capsys.readouterr().err
    assert sorted(made["captions"]) == [str(photo_folder / f"photo{index}.png") for index in range(4)]
    model = Captioner.load(blip, torch.device("cpu"))
    for file, text in made["captions"].items():
        assert text and set(text.split()) <= set(WORDS) and len(text.split()) <= 6
        assert Path(file).with_suffix(".txt").read_text(encoding="utf-8") == text + "\n" and text[:20] in said
        assert text == model.caption(Image.open(file).convert("RGB"), 6)
    assert len(set(made["captions"].values())) > 1  # the pictures have a say
    assert "4 captions written: read and correct them before training; write [V] for the subject" in " ".join(
        said.split()
    )


def test_nothing_that_a_person_wrote_is_replaced_unasked(blip: Path, photo_folder: Path) -> None:
    (photo_folder / "photo0.txt").write_text("mine")
    (photo_folder / "photo1.caption").write_text("mine too")
    (photo_folder / "metadata.jsonl").write_text(json.dumps({"file_name": "photo2.png", "text": "and mine"}))
    made = run(photo_folder, blip)
    assert [Path(file).name for file in made["captions"]] == ["photo3.png"]
    assert [Path(file).name for file in made["left"]] == ["photo0.png", "photo1.png", "photo2.png"]
    assert run(photo_folder, photo_folder)["captions"] == {}  # all have one: no model is loaded
    made = run(photo_folder, blip, overwrite=True)
    assert [Path(file).name for file in made["files"]] == ["photo0.txt", "photo1.caption", "photo2.txt", "photo3.txt"]
    for file, text in made["captions"].items():
        assert own_captions(Path(file)) == (text,)


def test_photos_of_one_name_have_a_file_each(blip: Path, photo_folder: Path) -> None:
    Image.open(photo_folder / "photo1.png").save(photo_folder / "photo0.jpg")
    made = run(photo_folder, blip)
    assert [Path(file).name for file in made["files"]] == ["photo0.jpg.txt", "photo0.png.txt", "photo1.txt", "photo2.txt", "photo3.txt"]  # fmt: skip
    assert all(own_captions(Path(file)) == (text,) for file, text in made["captions"].items())


def test_the_subject_is_named(blip: Path, photo_folder: Path) -> None:
    assert caption.naming("a small dog on a dogsled", "dog") == "a small [V] dog on a dogsled"
    assert caption.naming("Two dogs", "dog") == "a [V] dog, Two dogs"
    assert caption.naming("a C++ book", "c++") == "a [V] C++ book"
    plain = run(photo_folder, blip)["captions"]
    named = run(photo_folder, blip, overwrite=True, class_noun="teapot")["captions"]
    assert named == {file: f"a [V] teapot, {text}" for file, text in plain.items()}


def test_blip_and_git_go_on_from_a_prompt(blip: Path, photo_folder: Path, tmp_path: Path) -> None:
    image = Image.open(photo_folder / "photo0.png").convert("RGB")
    assert Captioner.load(blip, torch.device("cpu"), "a red").caption(image, 4).startswith("a red")
    torch.manual_seed(1)
    vision = {**LAYER, "image_size": 32, "patch_size": 16, "model_type": "git_vision_model"}
    ids = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "max_position_embeddings": 64}
    model = GitForCausalLM(GitConfig(vision_config=vision, vocab_size=len(WORDS), **LAYER, **ids))
    with torch.no_grad():
        model.output.bias[:6] = -9
    model.save_pretrained(tmp_path)
    size = {"shortest_edge": 32}
    GitProcessor(CLIPImageProcessor(size=size, crop_size=32), tokenizer(tmp_path)).save_pretrained(tmp_path)
    git = Captioner.load(tmp_path, torch.device("cpu"))
    assert set(git.caption(image, 4).split()) <= set(WORDS)
    assert Captioner.load(tmp_path, torch.device("cpu"), "the big").caption(image, 4).startswith("the big")


def test_what_is_no_captioner_is_refused(
    blip: Path, tiny_sd1: Path, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asked the network"))
    with pytest.raises(ModelError, match="clip_text_model is no captioner that is known here"):
        run(photo_folder, tiny_sd1 / "text_encoder")
    with pytest.raises(ModelError, match="cannot be loaded as a captioner"):
        run(photo_folder, photo_folder)
    shutil.copytree(blip, tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"cannot be loaded as a captioner .*safetensors"):
        run(photo_folder, tmp_path / "pickled")
    from safetensors.torch import load_file, save_file

    weights = load_file(blip / "model.safetensors")
    del weights["vision_model.embeddings.class_embedding"]
    shutil.copytree(blip, tmp_path / "torn")
    save_file(weights, tmp_path / "torn" / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ModelError, match=r"1 of its weights are missing, such as vision_model\.embeddings\.class_embedding"
    ):
        run(photo_folder, tmp_path / "torn")
    assert not list(photo_folder.glob("*.txt"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(PhotoError, match=r"no picture in .*empty"):
        run(tmp_path / "empty", blip)


def test_the_command(
    blip: Path, photo_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["femtobooth", "caption", str(photo_folder), "--model", str(blip), "--json"])
    main()
    made = json.loads(capsys.readouterr().out)
    assert len(made["captions"]) == 4 and made["left"] == [] and made["skipped"] == {}
