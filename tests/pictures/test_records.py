"""One record in every generated PNG: what is written is read again, by femtobooth, by A1111's reader and as IPTC."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from femtobooth import __version__
from femtobooth.pictures import records
from femtobooth.pictures.provenance import Provenance

SAMPLING = {"sampler": "euler-a", "steps": 5, "guidance": 7.5, "guidance_rescale": 0.0, "negative": "blur, text"}
SETTINGS = {"width": 8, "height": 8, "sampling": SAMPLING}
PICTURE = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)


def made(kind: records.Kind = "cached", **more: Any) -> dict[str, Any]:
    return records.record(kind, "a dög, red", 7, {"hash": "a" * 64}, SETTINGS, "key 1", more)


def text_of(png: bytes) -> dict[str, str]:
    with Image.open(BytesIO(png)) as image:
        image.load()
        return dict(image.text)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["generated", "class image", "cached", "synthesized"])
def test_what_is_written_is_read_again(kind: records.Kind, tmp_path: Path) -> None:
    path = tmp_path / "1.png"
    records.save(PICTURE, path, made(kind))
    assert records.read(path) == {
        "femtobooth": __version__, "kind": kind, "key": "key 1", "prompt": "a dög, red", "seed": 7,
        "model": {"hash": "a" * 64}, "settings": SETTINGS,
    }  # fmt: skip
    assert np.array_equal(records.decode(path.read_bytes(), kind, "key 1", (8, 8)), PICTURE)  # type: ignore[arg-type]
    assert path.read_bytes() == records.encode(PICTURE, made(kind))
    assert Provenance().generated(path)


def test_no_other_picture_is_taken_for_it() -> None:
    png = records.encode(PICTURE, made())
    assert records.decode(png, "cached", "key 2", (8, 8)) is None
    assert records.decode(png, "class image", "key 1", (8, 8)) is None
    assert records.decode(png, "cached", "key 1", (16, 8)) is None
    assert records.decode(png[:60], "cached", "key 1", (8, 8)) is None
    assert records.decode(None, "cached", "key 1", (8, 8)) is None


def test_the_parameters_are_what_a1111_reads() -> None:
    text = text_of(
        records.encode(
            PICTURE,
            made(init_image={"path": "x"})
            | {"model": {"hash": "b" * 64, "source": "runs/rex"}, "settings": SETTINGS | {"strength": 0.5}},
        )
    )
    assert text["parameters"] == (
        "a dög, red\nNegative prompt: blur, text\nSteps: 5, Sampler: Euler a, CFG scale: 7.5, Seed: 7, Size: 8x8, "
        f"Model: rex, Denoising strength: 0.5, Version: femtobooth {__version__}"
    )


@pytest.mark.parametrize(
    ("more", "kind"),
    [({}, "trainedAlgorithmicMedia"), ({"mask": {"path": "m.png"}}, "compositeWithTrainedAlgorithmicMedia")],
)
def test_iptc_says_that_a_model_made_it(more: dict[str, Any], kind: str) -> None:
    xmp = text_of(records.encode(PICTURE, made(**more)))["XML:com.adobe.xmp"]
    description = ElementTree.fromstring(xmp.partition("?>")[2].rpartition("<?")[0]).find(".//{*}Description")  # noqa: S314
    assert description is not None
    name = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
    assert description.get(name) == f"http://cv.iptc.org/newscodes/digitalsourcetype/{kind}"


@pytest.mark.parametrize(("chunk", "kind"), records.OLDER_CHUNKS.items())
def test_pictures_of_older_caches_are_still_known(chunk: str, kind: records.Kind, tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text(chunk, "key 1")
    Image.fromarray(PICTURE).save(tmp_path / "1.png", pnginfo=info)
    assert records.read(tmp_path / "1.png") == {"kind": kind, "key": "key 1"}
    assert np.array_equal(records.decode((tmp_path / "1.png").read_bytes(), kind, "key 1", (8, 8)), PICTURE)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ({"femtobooth": '{"prompt": "x"}'}, {"kind": "generated", "prompt": "x"}),
        ({"femtobooth": '{"synthesized": {}}'}, {"kind": "synthesized", "synthesized": {}}),
        ({"femtobooth": "no JSON"}, {}),
        ({"femtobooth": "[" * 100_000}, {}),
        ({"femtobooth": "[1]"}, {}),
        ({"parameters": "a dog"}, None),
    ],
)
def test_any_text_is_read(text: dict[str, str], found: dict[str, Any] | None) -> None:
    assert records.of_text(text) == found


def test_a_record_is_json() -> None:
    assert json.loads(text_of(records.encode(PICTURE, made()))["femtobooth"]) == made()
