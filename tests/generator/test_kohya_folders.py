"""kohya's folders: repeats, identifier and class noun from their names; class images left out; contradictions refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from femtobooth.core import config
from femtobooth.core.errors import PhotoError, SettingsError
from femtobooth.generator.kohya_folders import read_layout, told
from femtobooth.generator.photos import load_photos
from femtobooth.generator.run import PersonalizedRun, Subject
from femtobooth.generator.settings import PersonalizeSettings
from femtobooth.generator.stored_photos import store_photos
from femtobooth.workflows import personalize

pytestmark = pytest.mark.usefixtures("terminal")


def lay(root: Path, photos: Path, *folders: str) -> Path:
    """Make kohya's folders, the first with photos 0 and 1, the next with 2, the next with 3."""
    names = [["photo0.png", "photo1.png"], ["photo2.png"], ["photo3.png"]]
    for folder, own in zip(folders, names, strict=False):
        (root / folder).mkdir(parents=True)
        for name in own:
            shutil.copy(photos / name, root / folder / name)
    return root


def settle(*paths: Path, **more: object) -> PersonalizeSettings:
    layers = ({"photos": {"paths": [str(path) for path in paths]}}, more)
    return config.settle(PersonalizeSettings, *layers)


def test_names_say_repeats_identifier_and_class(tmp_path: Path, photo_folder: Path) -> None:
    train = lay(
        tmp_path / "img", photo_folder, "10_ohwx golden retriever", "40_ohwx  golden retriever", "1_golden retriever"
    )
    settings = settle(train)
    assert (settings.identifier.token, settings.photos.class_noun) == ("ohwx", "golden retriever")
    photos, rows = load_photos(settings.photos, 64)
    assert [(photo.path.name, photo.repeats) for photo in photos] == [
        ("photo0.png", 1),
        ("photo1.png", 1),
        ("photo2.png", 4),
    ]
    assert len(rows) == 3
    first, second = told(settings.photos.paths, None)
    assert "10_ohwx golden retriever x1" in first and "x4 (ohwx, a golden retriever)" in first
    reg = train / "1_golden retriever"
    assert second.startswith(f"{reg}: named like class images, so not trained") and f"`prior.folder={reg}`" in second
    assert told(settings.photos.paths, str(reg)) == [first]


def test_class_images_beside_are_named(tmp_path: Path, photo_folder: Path) -> None:
    train = lay(tmp_path / "img", photo_folder, "10_sks dog")
    lay(tmp_path / "reg", photo_folder, "1_dog")
    assert [folder.path for folder in read_layout([str(train)]).class_images] == [tmp_path / "reg" / "1_dog"]
    assert [photo.path.name for photo in load_photos(settle(train).photos, 64)[0]] == ["photo0.png", "photo1.png"]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"identifier": {"token": "zwx"}}, r"`identifier\.token=zwx`: the folder .*10_sks dog says sks"),
        ({"identifier": {"token": "auto"}}, r"`identifier\.token=auto`: the folder .* says sks"),
        ({"photos": {"class_noun": "cat"}}, r"`photos\.class_noun=cat`: the folder .*10_sks dog says dog"),
    ],
)
def test_a_contradiction_is_refused(given: dict, problem: str, tmp_path: Path, photo_folder: Path) -> None:
    train = lay(tmp_path / "img", photo_folder, "10_sks dog")
    with pytest.raises(SettingsError, match=problem) as raised:
        settle(train, **given)
    assert len(raised.value.lines) == 2
    same = settle(train, identifier={"token": "sks"}, photos={"class_noun": "dog"})
    assert same.photos == settle(train).photos
    alone = settle(
        train / "10_sks dog", identifier={"token": "zwx"}, photos={"class_noun": "cat"}
    )  # its name is not read
    assert [photo.repeats for photo in load_photos(alone.photos, 64)[0]] == [1, 1]


def test_folders_of_several_subjects_name_them(tmp_path: Path, photo_folder: Path) -> None:
    train = lay(tmp_path / "img", photo_folder, "10_sks dog", "5_zwx tea pot")
    settings = settle(train)
    found = {name: (one.class_noun, one.token, one.repeats) for name, one in settings.subjects.items()}
    assert found == {"zwx": ("tea pot", "zwx", 1), "sks": ("dog", "sks", 2)}
    assert settings.photos.paths == [] and settings.subjects["sks"].paths == [str(train / "10_sks dog")]
    _, rows = load_photos(settings.each["sks"].photos, 64)
    assert [Path(row["file"]).name for row in rows] == ["photo0.png", "photo1.png"]
    photos = personalize._photos(settings, 64, [])[0]
    assert {name: [photo.repeats for photo in ours] for name, (ours, _) in photos.items()} == {
        "zwx": [1],
        "sks": [2, 2],
    }
    with pytest.raises(SettingsError, match="says the photos and the noun of each"):
        settle(train, photos={"class_noun": "dog"})


@pytest.mark.parametrize(
    "folders", [("10_sks dog", "5_sks mug"), ("10_sks dog", "4_sks dog", "5_zwx mug"), ("5_a", "6_b")]
)
def test_folders_that_do_not_tell_subjects_apart_are_refused(
    folders: tuple[str, ...], tmp_path: Path, photo_folder: Path
) -> None:
    train = lay(tmp_path / "img", photo_folder, *folders)
    if folders[0] == "5_a":  # nothing says that these are two
        assert settle(train, photos={"class_noun": "dog"}).subjects == {}
        return
    with pytest.raises(PhotoError, match="are of several subjects, which their names do not tell apart") as raised:
        settle(train)
    assert "--subject" in raised.value.lines[1]


def test_one_word_says_repeats_alone(tmp_path: Path, photo_folder: Path) -> None:
    train = lay(tmp_path / "img", photo_folder, "2_dog", "6_dog", "0_dog")
    with pytest.raises(SettingsError, match=r"photos\.class_noun: not given"):
        settle(train)
    settings = settle(train, photos={"class_noun": "dog"})
    assert settings.identifier.token == "sks"
    assert [photo.repeats for photo in load_photos(settings.photos, 64)[0]] == [1, 1, 3]
    assert "no identifier in the name" in told(settings.photos.paths, None)[0]


def test_a_folder_with_photos_of_its_own_is_read_as_ever(tmp_path: Path, photo_folder: Path) -> None:
    train = lay(tmp_path / "img", photo_folder, "10_sks dog")
    shutil.copy(photo_folder / "photo3.png", train)
    assert read_layout([str(train)]).paths == [train] and told([str(train)], None) == []
    photos, rows = load_photos(settle(train, photos={"class_noun": "toy"}).photos, 64)
    assert [photo.path.name for photo in photos] == ["photo3.png"]
    assert [row["notes"] for row in rows if row["status"] == "skipped"] == [
        ["a folder inside a folder; name it too to use its pictures"]
    ]


def test_a_run_that_goes_on_knows_the_repeats(tmp_path: Path, photo_folder: Path) -> None:
    train = lay(tmp_path / "img", photo_folder, "1_sks dog", "3_sks  dog")
    settings = settle(train, base="bundled")
    photos = load_photos(settings.photos, 64)[0]
    store_photos(photos, tmp_path / "run" / "photos")
    about: dict = {"base": "bundled", "base_hash": "", "size": 64}
    kept = {"token": "sks", "class_noun": "dog", "photos": ["photos/00.png", "photos/01.png", "photos/02.png"]}
    for repeats in ([1, 1, 3], []):  # [] of a run from before there were repeats
        subject = Subject(**kept, repeats=repeats)
        PersonalizedRun.create(tmp_path / "run", settings, subjects={"V": subject}, **about)
        run = PersonalizedRun.open(tmp_path / "run")
        assert [photo.repeats for photo in run.photos()] == (repeats or [1, 1, 1])
