"""Generated pictures are known again wherever they go; every test here fails where its sign is not looked at."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from femtobooth.core.errors import PhotoError
from femtobooth.core.files import sha256_of
from femtobooth.pictures import duplicates
from femtobooth.pictures.provenance import Origin, Provenance

pytestmark = pytest.mark.usefixtures("terminal")


def picture(path: Path, seed: int = 0, text: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    info = PngInfo()
    for key, value in (text or {}).items():
        info.add_text(key, value)
    Image.fromarray(blocks).resize((64, 64), Image.Resampling.BICUBIC).save(path, pnginfo=info)
    return path


def listed(folder: Path, *paths: Path) -> None:
    """The manifest of a folder of pictures without any text of their own."""
    entries = []
    for path in paths:
        views = duplicates.views(Image.open(path))
        assert views is not None
        entries.append({"file": path.name, "sha256": sha256_of(path), "signs": duplicates.signs(views)})
    facts = {"generated": entries, "photos": ["a" * 64], "encoder": {"name": "judge", "hash": "b" * 64}}
    (folder / "provenance.json").write_text(json.dumps(facts))


@pytest.mark.parametrize("mark", ["femtobooth", "femtobooth-class-image", "femtobooth-evaluation"])
def test_the_text_of_the_file_tells_wherever_it_lies(tmp_path: Path, mark: str) -> None:
    assert Provenance().generated(picture(tmp_path / "elsewhere" / "photo.png", text={mark: "{}"}))
    assert not Provenance().generated(picture(tmp_path / "elsewhere" / "other.png", text={"parameters": "a dog"}))


def test_the_text_tells_the_photos_behind_and_the_judge(tmp_path: Path) -> None:
    record = {"synthesized": {"photos": ["c" * 64], "encoder": {"hash": "d" * 64}}}
    path = picture(tmp_path / "1.png", text={"femtobooth": json.dumps(record)})
    assert Provenance().origin(path) == Origin(frozenset({"c" * 64}), "d" * 64)
    odd = picture(tmp_path / "2.png", text={"femtobooth": '{"synthesized": 3}'})
    assert Provenance().origin(odd) == Origin()


class TestWithoutText:
    @pytest.fixture
    def drawn(self, tmp_path: Path) -> Path:
        path = picture(tmp_path / "rex" / "drawn.png")
        listed(path.parent, path)
        return path

    def test_by_name(self, drawn: Path) -> None:
        assert Provenance().origin(drawn) == Origin(frozenset({"a" * 64}), "b" * 64)

    def test_saved_anew_under_its_name(self, drawn: Path) -> None:
        Image.new("RGB", (64, 64), "red").save(drawn)
        assert Provenance().generated(drawn)

    def test_renamed(self, drawn: Path) -> None:
        assert Provenance().generated(drawn.rename(drawn.with_name("holiday.png")))

    def test_renamed_where_it_has_no_looks_to_compare(self, tmp_path: Path) -> None:
        flat = tmp_path / "flat.png"
        Image.new("RGB", (64, 64), "red").save(flat)
        (tmp_path / "provenance.json").write_text(
            json.dumps({"generated": [{"file": "flat.png", "sha256": sha256_of(flat)}]})
        )
        assert Provenance().generated(flat.rename(tmp_path / "holiday.png"))

    def test_saved_as_jpeg(self, drawn: Path) -> None:
        Image.open(drawn).save(drawn.with_suffix(".jpg"), quality=60)
        drawn.unlink()
        assert Provenance().generated(drawn.with_suffix(".jpg"))

    def test_saved_as_a_smaller_jpeg_under_another_name(self, drawn: Path) -> None:
        Image.open(drawn).resize((48, 48)).save(drawn.with_name("holiday.jpg"), quality=70)
        drawn.unlink()
        assert Provenance().generated(drawn.with_name("holiday.jpg"))

    def test_a_photo_beside_it_is_a_photo(self, drawn: Path) -> None:
        assert not Provenance().generated(picture(drawn.with_name("photo.png"), seed=1))

    def test_the_limit_moved_away_and_without_its_text(self, drawn: Path, tmp_path: Path) -> None:
        """What the module says it cannot tell."""
        (tmp_path / "away").mkdir()
        assert not Provenance().generated(drawn.rename(tmp_path / "away" / "holiday.png"))


@pytest.mark.parametrize(
    "content",
    [
        '{"generated": [{"file": 1}]}',
        '{"generated": [{"sha256": "ab"}]}',
        '{"generated": [{"file": "1.png", "signs": "xyz"}]}',
        '{"generated": [7]}',
        '{"femtobooth": "1.0"}',
        '{"femtobooth": "1.0", "generated": [{"fi',
        '{"generated": ["1.png", "2',
    ],
)
def test_a_manifest_that_hides_something_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "provenance.json").write_text(content)
    with pytest.raises(PhotoError, match=r"provenance\.json: which pictures are generated"):
        Provenance().generated(picture(tmp_path / "1.png"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"not JSON",
        b"\xff\xfe\x00",
        b'{"generated": "2026-05-01T10:00:00Z", "source": "camera"}',
        b'{"prefix": {"prov": "https://www.w3.org/ns/prov#"}, "wasGeneratedBy": {}}',
        b"[" * 100_000,
    ],
)
def test_a_strangers_file_of_that_name_is_passed_over(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "provenance.json").write_bytes(content)
    known = Provenance()
    assert not known.generated(picture(tmp_path / "1.png"))
    assert not known.generated(picture(tmp_path / "2.png"))
    assert capsys.readouterr().err.count("provenance.json: is no list of generated pictures") == 1
