import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from femtobooth.core import config
from femtobooth.core.claims import MARKER
from femtobooth.core.errors import ExistsError, InputError, ModelError, SettingsError
from femtobooth.core.files import sha256_of
from femtobooth.generator import locate
from femtobooth.generator.convert_settings import ConvertSettings
from femtobooth.generator.load import load
from femtobooth.generator.locate import SUBJECT_FILE
from femtobooth.generator.process import SOLVERS
from femtobooth.generator.settings import AgainSettings, GenerateSettings
from femtobooth.generator.start_picture import fit, read_start
from femtobooth.pictures import records
from femtobooth.workflows import convert, generate, regenerate

FAST = {"steps": 2, "guidance": 4.0}
SUBJECT = {"token": "sks", "class_noun": "dog"}


@pytest.fixture(scope="session")
def run_folder(tiny_sd1: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose tiny model has learned a subject."""
    folder = tmp_path_factory.mktemp("runs") / "dog"
    shutil.copytree(tiny_sd1, folder / "model")
    (folder / "model" / SUBJECT_FILE).write_text(json.dumps(SUBJECT))
    (folder / "run.json").write_text("{}")
    return folder


def draw(run: Path | str, *prompts: str, **other: object) -> dict:
    return generate.run(
        config.settle(GenerateSettings, {"run": str(run), "prompts": list(prompts), "sampling": FAST, **other})
    )


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_pictures_grid_and_manifest(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("\ufeffa dog in the snow\n\n  a café \n", encoding="utf-8")
    manifest = draw(
        run_folder,
        "a [V] dog on the moon",
        prompts_file=str(tmp_path / "more.txt"),
        count=3,
        seed=9,
        batch_size=2,
        out=str(tmp_path / "o"),
    )
    names = [image["file"] for image in manifest["images"]]
    assert names[:3] == [f"00-a-sks-dog-on-the-moon-seed{seed}.png" for seed in ("09", "10", "11")]
    assert names[6] == "02-a-cafe-seed09.png" and names == sorted(names)
    assert {path.name for path in (tmp_path / "o").iterdir()} == {*names, "grid.png", "manifest.json", MARKER}
    stored = json.loads((tmp_path / "o" / "manifest.json").read_text())
    assert stored == manifest and stored["complete"] and stored["model"]["hash"] == load(str(run_folder)).hash
    assert all(image["sha256"] == sha256_of(tmp_path / "o" / image["file"]) for image in stored["images"])
    text = Image.open(tmp_path / "o" / names[1]).text  # type: ignore[attr-defined]
    record = json.loads(text["femtobooth"])
    assert (record["prompt"], record["seed"], record["settings"]["sampling"]["steps"]) == (
        "a sks dog on the moon",
        10,
        2,
    )
    assert text["parameters"].startswith(
        "a sks dog on the moon\nSteps: 2, Sampler: DDIM, CFG scale: 4, Seed: 10, Size: 64x64, Model: dog, "
    )


def test_pictures_of_a_run_go_into_its_own_new_folder(run_folder: Path) -> None:
    first, second = (draw(place, "a dog", count=1) for place in (run_folder, run_folder / "model"))
    folders = [Path(manifest["folder"]) for manifest in (first, second)]
    assert folders[0] != folders[1] and {folder.parent for folder in folders} == {run_folder / "images"}


@pytest.mark.parametrize(
    "how", [{}, {"sampling": {**FAST, "sampler": "euler-a", "negative": "a cat"}}, {"precision": "bf16"}], ids=str
)
def test_the_same_picture_again(run_folder: Path, tmp_path: Path, how: dict) -> None:
    settings = {"count": 2, "batch_size": 3, "out": str(tmp_path / "a"), **how}
    manifest = draw(run_folder, "a [V] dog", "a cat", **settings)
    for index in (1, 3):  # the last is alone in its batch
        name = manifest["images"][index]["file"]
        again = _again(tmp_path / "a" / name, run=str(run_folder), out=str(tmp_path / "b"))
        assert again["identical"] and np.array_equal(pixels(tmp_path / "a" / name), pixels(tmp_path / "b" / name))
        assert Image.open(tmp_path / "b" / name).text == Image.open(tmp_path / "a" / name).text  # type: ignore[attr-defined]
    with pytest.raises(ExistsError):
        _again(tmp_path / "a" / name, out=str(tmp_path / "a"))


def test_bundled_pictures_are_the_same_to_the_bit(tmp_path: Path) -> None:
    manifest = draw(
        "bundled", "a glossy dog on the beach", "a flat cat in the snow", count=2, batch_size=3, out=str(tmp_path / "a")
    )
    name = manifest["images"][2]["file"]
    assert _again(tmp_path / "a" / name, out=str(tmp_path / "b"))["identical"]


def test_a_moved_run_is_found_and_another_model_refused(run_folder: Path, tiny_sd2: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(run_folder, old)
    shutil.rmtree(old / "images", ignore_errors=True)
    folder = Path(draw(old, "a [V] dog", count=1)["folder"])
    shutil.move(old, new)
    picture = next((new / folder.relative_to(old)).glob("00*.png"))
    assert _again(picture, out=str(tmp_path / "b"))["identical"]
    with pytest.raises(ModelError, match="not the model that drew"):
        _again(picture, run=str(tiny_sd2), out=str(tmp_path / "c"))
    lost = Path(shutil.copy(picture, tmp_path / "lost.png"))
    with pytest.raises(ModelError, match="femtobooth generate RUN --from"):
        _again(lost, out=str(tmp_path / "c"))
    assert not (tmp_path / "c").exists()


def test_inpainting_again_needs_the_same_start(run_folder: Path, tmp_path: Path, photo_folder: Path) -> None:
    photo, mask = photo_folder / "photo0.png", tmp_path / "mask.png"
    stencil = np.zeros((96, 96), np.uint8)
    stencil[:, 48:] = 255
    Image.fromarray(stencil).save(mask)
    how = {"init_image": str(photo), "mask": str(mask), "strength": 0.8, "count": 2}
    manifest = draw(run_folder, "a [V] dog", out=str(tmp_path / "a"), **how)
    picture = tmp_path / "a" / manifest["images"][1]["file"]
    start = np.asarray(Image.open(photo).resize((64, 64), Image.Resampling.LANCZOS))
    assert np.array_equal(pixels(picture)[:, :31], start[:, :31]) and not np.array_equal(
        pixels(picture)[:, 40:], start[:, 40:]
    )
    assert _again(picture, run=str(run_folder), out=str(tmp_path / "b"))["identical"]
    Image.fromarray(255 - stencil).save(mask)
    with pytest.raises(InputError, match=r"`mask=.*changed"):
        _again(picture, run=str(run_folder), out=str(tmp_path / "c"))
    photo.unlink()
    with pytest.raises(InputError, match=r"`init_image=.*gone"):
        _again(picture, run=str(run_folder), out=str(tmp_path / "c"))


def test_a_start_picture_is_cropped_not_squashed(run_folder: Path, tmp_path: Path) -> None:
    wide = np.zeros((64, 192, 3), np.uint8)
    wide[:, 64:128] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    settings = config.settle(
        GenerateSettings, {"run": str(run_folder), "init_image": str(tmp_path / "wide.png"), "size": 64}
    )
    start = fit(read_start(settings), settings).image
    assert start is not None and start.shape == (64, 64, 3) and start[:, 4:-4].min() > 250


SIZES = {  # (given, width and height, what is said of it, by a model of 64x64)
    "its own": (None, (64, 64), None),
    "one number": (72, (72, 72), None),
    "wide": ("96x64", (96, 64), None),
    "high": ("64X96", (64, 96), None),
    "large": ("128x96", (128, 96), "often comes twice, or stretched; of this shape, 72x56 is near"),
    "long": ("136x16", (136, 16), "stretched; of this shape, 128x16 is near"),
    "small": (32, (32, 32), "comes in pieces or unfinished; of this shape, 64x64 is near"),
}


@pytest.mark.usefixtures("terminal")
def test_the_size_of_pictures(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = load(str(run_folder))
    for name, (given, pixels, warning) in SIZES.items():
        settings = config.settle(GenerateSettings, {"run": str(run_folder), "size": given})
        settled = generate.load(settings, model)[1]
        said = " ".join(capsys.readouterr().err.split())
        assert settled.pixels(64) == pixels and settled.size == "{}x{}".format(*pixels), name
        assert (warning in said) if warning else (said == ""), name
    manifest = draw(run_folder, "a [V] dog", count=1, out=str(tmp_path / "o"), size="96x64")
    picture = tmp_path / "o" / manifest["images"][0]["file"]
    assert Image.open(picture).size == (96, 64) and manifest["settings"]["size"] == "96x64"
    record = records.read(picture)
    assert record is not None and (record["settings"]["width"], record["settings"]["height"]) == (96, 64)
    assert _again(picture, run=str(run_folder), out=str(tmp_path / "again"))["identical"]


@pytest.mark.parametrize(
    "size", ["", "x64", "64x", "60x64", "64x60", "0x64", "64x64x3", "-64", "64.0", 12, True, [64, 64], "9" * 6]
)
def test_no_size(size: object) -> None:
    with pytest.raises(SettingsError, match=r"^size: "):
        config.settle(GenerateSettings, {"run": "bundled", "size": size})


@pytest.mark.usefixtures("terminal")
def test_a_mask(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What each kind of mask redraws of a picture; and what is said of those that redraw nothing or all."""
    photo = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    half, strokes = np.zeros((64, 64), np.uint8), np.zeros((64, 64, 4), np.uint8)
    half[:, 32:] = strokes[:, 32:, 3] = 255
    white, black, grey = strokes.copy(), strokes.copy(), strokes.copy()
    white[..., :3], grey[:, 32:, :3] = 255, 200
    hole = np.dstack([photo, 255 - half])
    layer = np.dstack([np.repeat(half[..., None], 3, axis=2), np.full((64, 64), 255, np.uint8)])
    layer[:16, :, 3] = 0  # white and black on a layer, of which some is empty
    upper = half.copy()
    upper[:16] = 0
    kinds: dict[str, tuple[np.ndarray, np.ndarray | str]] = {
        "white": (half, half),
        "white strokes on nothing": (white, half),
        "grey strokes on nothing": (grey, half),
        "black strokes on nothing": (black, "nothing in it is white"),
        "the picture with a hole": (hole, half),
        "another picture with a hole": (np.dstack([photo // 3, 255 - half]), "nothing in it is white"),
        "white and black on a layer": (layer, upper),
        "opaque alpha": (np.dstack([half, half, half, np.full((64, 64), 255, np.uint8)]), half),
        "black": (half * 0, "nothing in it is white"),
        "one white pixel": (np.pad(np.full((1, 1), 255, np.uint8), (20, 43)), "nothing white is left of it at 32x32"),
        "all white": (half * 0 + 255, half * 0 + 255),
        "another size": (half[:, :60], "60x64 pixels"),
    }
    for name, (mask, wanted) in kinds.items():
        Image.fromarray(mask).save(tmp_path / "mask.png")
        size = 32 if name.startswith("one") else 64
        given = {
            "init_image": str(tmp_path / "photo.png"),
            "mask": str(tmp_path / "mask.png"),
            "size": size,
        }
        settings = config.settle(GenerateSettings, {"run": str(run_folder), **given})
        if isinstance(wanted, str):
            with pytest.raises(InputError, match=f"`mask.*{wanted}"):
                fit(read_start(settings), settings)
        else:
            found = fit(read_start(settings), settings).mask
            assert found is not None and np.array_equal(found >= 0.5, wanted == 255), name
            said = capsys.readouterr().err
            assert ("all of it is white" in said) == (name == "all white")


def test_finished_pictures_survive_an_interruption(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def interrupted(*arguments: object, **named: object) -> np.ndarray:
        calls.append(1)
        if len(calls) in (1, 4):
            raise KeyboardInterrupt
        return real(*arguments, **named)  # type: ignore[arg-type]

    real = generate.sample_batch
    monkeypatch.setattr(generate, "sample_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):  # before the first picture
        draw(run_folder, "a dog", out=str(tmp_path / "o"))
    assert not (tmp_path / "o").exists()
    with pytest.raises(KeyboardInterrupt):
        draw(run_folder, "a dog", "a cat", count=3, batch_size=2, out=str(tmp_path / "o"))
    stored = json.loads((tmp_path / "o" / "manifest.json").read_text())
    assert not stored["complete"] and len(stored["images"]) == 4 == len(list((tmp_path / "o").glob("0*.png")))
    with pytest.raises(ExistsError, match="`overwrite=true`"):
        draw(run_folder, "a dog", count=1, out=str(tmp_path / "o"))
    assert draw(run_folder, "a dog", count=1, out=str(tmp_path / "o"), overwrite=True)["complete"]


@pytest.mark.usefixtures("terminal")
def test_a_long_prompt_warns_of_what_is_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = "a glossy dog on the beach " * 4 + "with a telescope"
    draw("bundled", prompt, count=1, out=str(tmp_path / "o"), sampling={"steps": 1, "guidance": 1.0})
    said = " ".join(capsys.readouterr().err.split())
    assert "warning" in said and 'with a telescope"' in said.partition("not seen:")[2]


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ({"prompts": []}, "no prompt"),
        ({"prompts": ["a [V] dog"]}, r"\[V\]"),
        ({"prompts_file": "nowhere.txt"}, "prompts_file=nowhere.txt"),
        ({"device": "cuda:99"}, "device=cuda:99"),
        ({"device": "toaster"}, "device=toaster"),
        ({"init_image": "nowhere.png"}, "nowhere.png"),
        ({"mask": "mask.png"}, "mask=mask.png"),
        ({"sampling": {"sampler": "plms"}}, "sampling.sampler: plms"),
        ({"run": "nowhere"}, "nowhere"),
    ],
    ids=str,
)
def test_what_cannot_be_drawn_is_said_before_anything_is_written(how: dict, named: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=named):
        generate.run(
            config.settle(GenerateSettings, {"run": "bundled", "prompts": ["a dog"], "out": str(tmp_path / "o"), **how})
        )
    assert not (tmp_path / "o").exists()


PARAMETERS = """a dog, "sitting"
Negative prompt: a cat
Steps: 2, Sampler: DPM++ 2M, CFG scale: 4, Seed: 3, Size: 64x64, Model hash: {hash}, Model: "a, b", Version: femtobooth"""


def test_parameters_are_those_of_a1111(run_folder: Path, tmp_path: Path) -> None:
    """Its sampler names, its quoting (JSON where a value holds a comma), and a hash that sites know: of a single
    file.
    """
    single = tmp_path / "a, b.safetensors"
    convert.run(ConvertSettings(source=str(run_folder / "model"), target=str(single)))
    how = {
        "count": 1,
        "seed": 3,
        "sampling": {**FAST, "sampler": "dpmpp-2m", "negative": "a cat"},
        "out": str(tmp_path / "o"),
    }
    manifest = draw(single, 'a dog, "sitting"', **how)
    text = Image.open(tmp_path / "o" / manifest["images"][0]["file"]).text["parameters"]  # type: ignore[attr-defined]
    assert text.startswith(PARAMETERS.format(hash=sha256_of(single)[:10]))
    assert set(records.SAMPLERS) == set(SOLVERS)


FOREIGN = {
    "a hub": {"model.source": "stranger/model"},
    "a hub's tokenizer": {"settings.tokenizer": "stranger/tokenizer", "model.source": "bundled"},
    "a size of its own": {"settings.width": 8192, "settings.height": 8192},
    "an endless batch": {"batch": [0, 10**6]},
    "a place outside of its batch": {"batch": [7, 4]},
    "a text for a number": {"seed": "3"},
    "a seed too large": {"seed": 2**64},
    "steps without end": {"settings.sampling.steps": 10**9},
    "not a number": {"settings.sampling.guidance": float("nan")},
    "no such sampler": {"settings.sampling.sampler": "\x1b]0;owned\x07"},
    "a device": {"settings.precision": "\x1b[2J"},
    "another's file": {"init_image": {"path": "/etc/passwd\x1b[2J", "sha256": "0" * 64}},
    "a path of another kind": {"init_image": {"path": 3, "sha256": "0" * 64}},
    "escapes": {"model.source": "gone/\x1b[2Jmodel"},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_the_record_of_a_stranger_is_input(
    name: str, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No hub, no size beyond the picture's own, no type taken on trust, and no byte of it that a terminal would
    obey.
    """
    monkeypatch.setattr(locate, "hub_folder", lambda repo: pytest.fail(f"asked a hub for {repo}"))
    record: dict = {
        "femtobooth": "1", "prompt": "a dog", "seed": 3, "model": {"source": str(run_folder), "hash": "0" * 64}, "batch": [0, 1],
        "settings": {"width": 64, "height": 64, "sampling": {"steps": 1}},
    }  # fmt: skip
    for path, value in FOREIGN[name].items():
        *parents, key = path.split(".")
        place = record
        for parent in parents:
            place = place[parent]
        place[key] = value
    text = PngInfo()
    text.add_text("femtobooth", json.dumps(record))
    Image.new("RGB", (64, 64)).save(tmp_path / "x.png", pnginfo=text)
    with pytest.raises(InputError) as raised:
        _again(tmp_path / "x.png", out=str(tmp_path / "o"))
    assert str(tmp_path / "x.png") in str(raised.value) or re.search("`(tokenizer|init_image|mask)=", str(raised.value))
    assert "\x1b" not in str(raised.value) + "".join(capsys.readouterr())
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("content", [b"not a picture", None], ids=["text", "bare"])
def test_a_picture_without_a_record_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    if content is None:
        Image.new("RGB", (8, 8)).save(path)
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match="`image="):
        _again(path)


def _again(picture: Path, **how: str) -> dict[str, Any]:
    return regenerate.run(AgainSettings(image=str(picture), **how))
