"""`femtobooth embed` and `search`: three formats hold the same numbers, and an index knows what made it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from PIL import Image
from safetensors import safe_open

from femtobooth import cli
from femtobooth.core import config
from femtobooth.core.errors import InputError, ModelError, SettingsError
from femtobooth.recognizer.model.backbone import Recognizer
from femtobooth.recognizer.model.embedding_transformer import EmbeddingTransformer
from femtobooth.recognizer.model.preprocess import Preprocess
from femtobooth.recognizer.settings import EmbedSettings, SearchSettings
from femtobooth.workflows import embed, search


def run(model: Path, photos: Path, out: Path, **given: Any) -> dict[str, Any]:
    asked = {"paths": [str(photos)], "model": str(model), "out": str(out), "batch_size": 3} | given
    return embed.run(config.resolve(EmbedSettings, asked))


def find(query: Path, index: Path, **given: Any) -> list[dict[str, Any]]:
    return search.run(config.resolve(SearchSettings, {"query": [str(query)], "index": str(index)} | given))["results"]


def test_all_outputs_in_all_formats(tiny: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "a" / "4.jpg").write_bytes(b"")
    for format in ("parquet", "npz", "safetensors"):
        facts = run(tiny, photos, tmp_path / f"e.{format}", stages=["0", "3"], prelogits=True)
        assert (facts["read"], facts["failed"]) == (19, 1)
    table = pq.read_table(tmp_path / "e.parquet")
    assert pa.types.is_fixed_size_list(table.schema.field("embedding").type)
    recognizer = Recognizer.load(tiny)
    metadata = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    assert (metadata["model_hash"], metadata["preprocess_hash"]) == (recognizer.hash, recognizer.preprocess.hash)
    paths = [
        path for path, error in zip(table["path"].to_pylist(), table["error"].to_pylist(), strict=True) if error is None
    ]
    direct = recognizer.outputs([Image.open(path) for path in paths], stages=(0, 3))
    shapes = json.loads(metadata["shapes"])
    npz, tensors = np.load(tmp_path / "e.npz"), safetensors.numpy.load_file(tmp_path / "e.safetensors")
    assert list(npz["paths"]) == paths
    assert list(npz["failed"]) == [str(photos / "a" / "4.jpg")]
    with safe_open(tmp_path / "e.safetensors", "np") as file:
        assert json.loads(file.metadata()["paths"]) == paths
        assert file.metadata()["model_hash"] == recognizer.hash
    for column, key in {"embedding": "embedding", "prelogits": "prelogits", "stage_0": 0, "stage_3": 3}.items():
        expected = direct[key].numpy()
        assert tuple(shapes[column]) == expected.shape[1:]
        kept = [row for row in table[column].to_pylist() if row is not None]
        assert len(kept) == 19
        for found in (np.array(kept, np.float32).reshape(expected.shape), npz[column], tensors[column]):
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_the_same_from_python(tiny: Path, photos: Path, tmp_path: Path) -> None:
    run(tiny, photos, tmp_path / "e.npz", engine="torch")
    saved = np.load(tmp_path / "e.npz")
    np.testing.assert_allclose(
        EmbeddingTransformer(Recognizer.load(tiny)).fit_transform(list(saved["paths"])),
        saved["embedding"],
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("format", ["parquet", "npz", "safetensors"])
def test_search_finds_the_picture_itself_first(tiny_onnx: Path, photos: Path, tmp_path: Path, format: str) -> None:
    index = tmp_path / f"e.{format}"
    run(tiny_onnx, photos, index)
    query = photos / "b" / "7.jpg"
    (result,) = find(query, index, top_k=5)
    assert len(result["nearest"]) == 5
    assert result["nearest"][0] == {"path": str(query), "similarity": pytest.approx(1, abs=1e-5)}
    values = [hit["similarity"] for hit in result["nearest"]]
    assert values == sorted(values, reverse=True)
    table = np.load(tmp_path / "e.npz") if format == "npz" else None
    if table is not None:
        unit = table["embedding"] / np.linalg.norm(table["embedding"], axis=1, keepdims=True)
        scores = unit @ unit[list(table["paths"]).index(str(query))]
        assert [hit["path"] for hit in result["nearest"]] == [
            table["paths"][place] for place in np.argsort(-scores)[:5]
        ]


def test_an_index_of_another_model_or_preprocessing_is_refused(tiny: Path, photos: Path, tmp_path: Path) -> None:
    index = tmp_path / "e.parquet"
    run(tiny, photos, index, engine="torch")
    other = Recognizer.load(tiny)
    other.model.head.fc.bias.data += 1
    other.save(tmp_path / "other-model")
    other = Recognizer.load(tiny)
    other.preprocess = Preprocess((64, 64), crop_pct=1.0)
    other.save(tmp_path / "other-preprocessing")
    for name in ("model", "preprocessing"):
        with pytest.raises(ModelError, match=f"another {name}"):
            find(photos / "b" / "7.jpg", index, model=str(tmp_path / f"other-{name}"))


def test_what_is_no_index(photos: Path, tmp_path: Path) -> None:
    cases = {
        "text.parquet": b"hello",
        "cut.parquet": b"PAR1" + bytes(50),
        "cut.npz": b"PK\x03\x04" + bytes(50),
        "empty.npz": b"",
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            find(photos, tmp_path / name)
    pq.write_table(pa.table({"path": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(InputError, match=r"other\.parquet"):
        find(photos, tmp_path / "other.parquet")


def test_settings_that_cannot_be(tiny: Path, photos: Path, tmp_path: Path) -> None:
    asked = {"paths": [str(photos)], "model": str(tiny), "out": str(tmp_path / "e.parquet")}
    for given, problem in (
        ({"stages": ["4"]}, "`stages=4`"),
        ({"out": str(tmp_path / "e.csv")}, "ending"),
        ({"out": None}, "`out`"),
    ):
        with pytest.raises(SettingsError, match=problem):
            embed.run(config.resolve(EmbedSettings, asked | given))


def test_on_the_command_line(tiny_onnx: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index, query = str(tmp_path / "e.parquet"), str(photos / "a" / "2.jpg")
    cli.main(["embed", str(photos), "--model", str(tiny_onnx), "--out", index, "--json"])
    assert json.loads(capsys.readouterr().out)["read"] == 20
    cli.main(["search", query, index, "--top-k", "2", "--json"])
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert result["nearest"][0]["path"] == query
