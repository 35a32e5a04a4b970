"""Captions beside photos: found in the common spellings, fitted to what the text encoder reads, and used for class
images too.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from femtobooth.core.errors import PhotoError
from femtobooth.generator import locate
from femtobooth.generator.captions import class_captions, fitted, of_class, own_captions
from femtobooth.generator.formats.folder import load_tokenizer
from femtobooth.generator.photos import load_class_images
from femtobooth.generator.prompts import Reader, unseen_words

pytestmark = pytest.mark.usefixtures("terminal")

TOKENIZER = load_tokenizer(locate.bundled_folder() / "tokenizer")
READER = Reader(TOKENIZER, 22)


@pytest.mark.parametrize(
    "name", ["IMG_1.txt", "IMG_1.TXT", "IMG_1.caption", "IMG_1.CAPTION", "IMG_1.JPG.txt", "IMG_1.JPG.caption"]
)
def test_every_common_spelling_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("\ufeffa [V] dog on a sofa\n\n the [v]  dog\n", encoding="utf-8")
    assert own_captions(tmp_path / "IMG_1.JPG") == ("a {token} dog on a sofa", "the {token} dog")


@pytest.mark.parametrize("name", ["IMG_2.txt", "IMG_1.md", "txt", "IMG_1.txt.bak"])
def test_other_files_are_no_captions(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("a cat")
    assert own_captions(tmp_path / "IMG_1.JPG") == ()


def test_of_two_that_differ_the_one_that_is_not_used_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("a [V] dog")
    (tmp_path / "a.caption").write_text("a [V] dog")
    assert own_captions(tmp_path / "a.jpg") == ("a {token} dog",)
    assert capsys.readouterr().err == ""
    (tmp_path / "a.caption").write_text("tags, of, others")
    assert own_captions(tmp_path / "a.jpg") == ("a {token} dog",)
    assert "a.jpg has several captions: a.txt is used, a.caption is not" in " ".join(capsys.readouterr().err.split())


LONG = "a glossy red picture of one big happy wooden animal on the green grass by the blue water under the white moon"
CAPTIONS = {  # (caption, its last words as it is trained, what is said)
    "short": ("a photo of a {token} {class}", "a photo of a {token} {class}", ""),
    "long, subject first": (f"a {{token}} {{class}}, {LONG}", "under the white moon", "not read: '"),
    "long, subject last": (
        f"{LONG} with a {{token}} {{class}} on the beach",
        "{token} {class}",
        "shortened to end in [V]",
    ),
    "long, subject the last word": (f"{LONG} {{token}}", "{token}", "shortened to end in [V]"),
    "long, without subject": (f"{LONG} {LONG}", "under the white moon", "not read: '"),
}


@pytest.mark.parametrize("name", CAPTIONS)
def test_the_identifier_survives_the_cut(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    template, ending, warning = CAPTIONS[name]
    others = [(Path("b.jpg"), ("a {token} {class}",))]
    ((found,), _) = fitted([(Path("dir/a.jpg"), (template,)), *others], READER, "sks", "dog")
    said = " ".join(capsys.readouterr().err.split())
    kept = TOKENIZER(found.replace("{token}", "sks").replace("{class}", "dog")).input_ids[
        : TOKENIZER.model_max_length - 1
    ]
    assert (TOKENIZER.convert_tokens_to_ids("sks</w>") in kept) == ("{token}" in template)
    assert found.endswith(ending) and found.startswith(template[:9])
    assert ("a.jpg" in said and warning in said and "b.jpg" not in said) if warning else said == ""


def test_captions_none_of_which_names_the_subject(capsys: pytest.CaptureFixture[str]) -> None:
    fitted([(Path("a.jpg"), ("a dog",)), (Path("b.jpg"), ("a skson dog",))], READER, "sks", "dog")
    assert "no caption names the subject, so that 'sks' learns nothing" in " ".join(capsys.readouterr().err.split())
    fitted([(Path("a.jpg"), ("a dog",)), (Path("b.jpg"), ("a photo of SKS dog",))], READER, "sks", "dog")
    assert capsys.readouterr().err == ""


def test_class_images_keep_their_captions(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.new("RGB", (80, 64), (9, 9, 9)).save(tmp_path / f"{name}.png")
    (tmp_path / "b.txt").write_text("a small {class} in the snow\n")
    a, b = load_class_images(str(tmp_path), 64)
    assert (a.captions, b.captions) == ((), ("a small {class} in the snow",))
    assert "own caption" in b.notes
    (tmp_path / "a.caption").write_text("a [V] dog")
    with pytest.raises(PhotoError, match=r"a\.caption: names \[V\], but class images show others"):
        class_captions([tmp_path / "a.png"])


def test_words_that_a_small_base_has_never_seen() -> None:
    assert unseen_words("A glossy axolotl on the beach, photorealistic 8k", TOKENIZER) == ["axolotl", "photorealistic"]
    known = "a small glossy dog on a wooden floor, with a telescope"
    assert unseen_words(known, TOKENIZER) == ["telescope"]


AS_CLASS = {
    "identifier and noun": ("a photo of a {token} {class}", "a photo of a dog"),
    "noun written out": ("a {token}  Dog on the beach", "a Dog on the beach"),
    "several": ("two {token} dogs", "two dogs"),
    "alone": ("{token} on the beach", "dog on the beach"),
    "typed": ("a SKS dog, my sks", "a dog, my dog"),
    "with an adjective": ("a {token} red dog", "a dog red dog"),
    "whose": ("the {token}'s head", "the dog's head"),
    "part of a word": ("a {token} dog by sksville", "a dog by sksville"),
}


@pytest.mark.parametrize(("caption", "plain"), AS_CLASS.values(), ids=AS_CLASS)
def test_a_caption_is_said_of_the_class(caption: str, plain: str) -> None:
    assert of_class([(Path("a.jpg"), [caption, "a {token} {class}"])], READER, "sks", "dog") == [(plain, "a dog")]


@pytest.mark.parametrize(
    ("caption", "token", "why"),
    [
        ("a dog on the beach", "sks", r"\[V\] is not among what is read of it"),
        (f"{LONG} with a sks dog", "sks", r"\[V\] is not among what is read of it"),
        ("a {token} {class}", "dog", "'dog' stays in it"),
    ],
    ids=["no identifier", "cut off", "the noun itself"],
)
def test_what_cannot_be_said_of_the_class_is_an_error(caption: str, token: str, why: str) -> None:
    with pytest.raises(PhotoError, match=f"^b.jpg: its caption '.*' cannot be said of any dog, .*: {why}\n  -> write"):
        of_class([(Path("b.jpg"), [caption])], READER, token, "dog")
