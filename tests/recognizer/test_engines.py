"""All engines say the same; what cannot be run is refused with the file's name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from femtobooth.core.errors import FemtoboothError, ModelError, SettingsError, UnsafeFileError
from femtobooth.recognizer.inference import cache
from femtobooth.recognizer.inference.engines import open_engine
from femtobooth.recognizer.model.formats import FORMATS
from femtobooth.recognizer.settings import ClassifySettings, EmbedSettings, ExportSettings
from femtobooth.workflows import classify, embed, export

pytestmark = pytest.mark.usefixtures("terminal")

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)


@pytest.mark.parametrize("name", ["ort", "openvino"])
def test_engines_agree(tiny: Path, tiny_onnx: Path, name: str) -> None:
    torch, other = open_engine(tiny, "torch"), open_engine(tiny_onnx, name)
    expected, found = torch.run(PIXELS), other.run(PIXELS)
    for key in ("logits", "embedding"):
        assert found[key].dtype == np.float32
        np.testing.assert_allclose(found[key], expected[key], rtol=1e-3, atol=1e-4)
    assert (other.hash, other.preprocess, other.labels, other.temperature) == (
        torch.hash,
        torch.preprocess,
        torch.labels,
        2.0,
    )


@pytest.fixture(scope="module")
def exports(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of artifacts by format, one of each that can be written here."""
    folder = tmp_path_factory.mktemp("exports")
    for format in ("onnx", "openvino", "torchscript", "tensorrt"):
        export.run(ExportSettings(model=str(tiny), format=format, parity=False, out=str(folder / format)))
    return folder


@pytest.mark.parametrize("format", ["onnx", "openvino", "torchscript", "tensorrt"])
def test_an_export_of_every_format_opens_by_its_folder_and_by_its_model(
    format: str, tiny: Path, exports: Path, photos: Path, tmp_path: Path
) -> None:
    expected = open_engine(tiny, "torch").run(PIXELS)
    for reference in (exports / format, exports / format / FORMATS[format].file):
        engine = open_engine(reference, trust=True)
        assert engine.name == {"onnx": "ort", "tensorrt": "ort"}.get(format, format)
        found = engine.run(PIXELS)
        for key in ("logits", "embedding"):
            np.testing.assert_allclose(found[key], expected[key], rtol=1e-3, atol=1e-4)
    labels = [
        [row["label"] for row in json.loads(out.read_text())]
        for model in (tiny, exports / format)
        if (out := tmp_path / f"{model.name}.json")
        and classify.run(ClassifySettings(paths=[str(photos)], model=str(model), trust=True, out=str(out)))
    ]
    assert labels[0] == labels[1]
    assert len(labels[0]) == 20


def test_a_signal_comes_through_after_engines_were_let_go(tiny_onnx: Path) -> None:
    code = (
        "import signal, sys; from femtobooth.recognizer.inference.engines import open_engine\n"
        "first, second = (open_engine(sys.argv[1], 'openvino') for _ in range(2))\n"
        "del first, second\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "signal.raise_signal(signal.SIGTERM)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, tiny_onnx], check=False).returncode == 7


def test_a_program_wants_trust(exports: Path, photos: Path, tmp_path: Path) -> None:
    program, out = str(exports / "torchscript"), str(tmp_path / "out.npz")
    for run in (
        lambda: open_engine(program),
        lambda: classify.run(ClassifySettings(paths=[str(photos)], model=program)),
        lambda: embed.run(EmbedSettings(paths=[str(photos)], model=program, out=out)),
    ):
        with pytest.raises(UnsafeFileError, match=r"torchscript: a TorchScript artifact[^\n]*\n  -> add `trust=true`"):
            run()
    assert embed.run(EmbedSettings(paths=[str(photos)], model=program, trust=True, out=out))["engine"] == "torchscript"
    assert np.load(out)["embedding"].shape[0] == 20


def test_another_runtime_than_its_own(exports: Path) -> None:
    for engine, format in (("ort", "openvino"), ("ort", "torchscript"), ("openvino", "torchscript")):
        with pytest.raises(SettingsError, match=f"`engine={engine}`: does not run {format}"):
            open_engine(exports / format, engine, trust=True)
    assert open_engine(exports / "tensorrt", "openvino").name == "openvino"


@pytest.mark.parametrize("format", ["torchscript", "litert", "executorch", "coreml"])
def test_what_cannot_run_here_says_so_in_two_lines(format: str, exports: Path, tmp_path: Path) -> None:
    shutil.copy(exports / "onnx" / "recognizer.json", tmp_path)
    description = tmp_path / "recognizer.json"
    description.write_text(description.read_text().replace('"format": "onnx"', f'"format": "{format}"'))
    (tmp_path / FORMATS[format].file).write_bytes(b"no model")
    with pytest.raises(FemtoboothError) as caught:
        open_engine(tmp_path, trust=True)
    first, second = caught.value.lines
    if format == "torchscript":
        assert isinstance(caught.value, ModelError)
        assert "model.pt: TorchScript cannot load it" in first
    elif format == "coreml" and sys.platform != "darwin":
        assert first.startswith("coreml: cannot run on this machine")
        assert "onnx" in second
    else:
        assert format in first
        assert "which is not installed" not in first or "pip install" in second


def test_auto_takes_what_an_artifact_is_for(tiny: Path, tiny_onnx: Path) -> None:
    assert open_engine(tiny).name == "torch"
    assert open_engine(tiny_onnx).name == "ort"
    assert open_engine(tiny_onnx / "model.onnx").name == "ort"


def test_weights_are_exported_once_and_then_run_without_torch(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FEMTOBOOTH_CACHE", str(tmp_path))
    first = open_engine(tiny, many=True)
    assert first.name == "ort"
    made = (cache.cached(tiny) / "model.onnx").stat().st_mtime_ns
    program = f"""
import sys
from femtobooth.recognizer.inference.engines import open_engine
assert open_engine({str(tiny)!r}).name == "ort"
print([name for name in ("torch", "timm", "torchvision", "lightning", "diffusers", "transformers", "sklearn") if name in sys.modules])
"""
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
    assert (cache.cached(tiny) / "model.onnx").stat().st_mtime_ns == made
    np.testing.assert_allclose(
        first.run(PIXELS)["logits"], open_engine(tiny, "torch").run(PIXELS)["logits"], rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("damage", ["bit", "cut", "description"])
def test_a_cached_export_is_not_believed(
    damage: str, tiny: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FEMTOBOOTH_CACHE", str(tmp_path))
    expected = open_engine(tiny, many=True).run(PIXELS)["logits"]
    file = cache.cached(tiny) / ("recognizer.json" if damage == "description" else "model.onnx")
    data = bytearray(file.read_bytes())
    if damage == "bit":
        data[len(data) // 2] ^= 0x40  # in the weights: ONNX Runtime loads it and says something else
        file.write_bytes(data)
    elif damage == "cut":
        file.write_bytes(data[: len(data) // 2])
    else:
        file.unlink()
    capsys.readouterr()
    engine = open_engine(tiny, "ort")
    np.testing.assert_allclose(engine.run(PIXELS)["logits"], expected, rtol=1e-5)
    assert len([line for line in capsys.readouterr().err.splitlines() if "made again" in line]) == 1


def test_other_weights_have_another_export(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "copy")
    assert cache.cached(tmp_path / "copy") == cache.cached(tiny)
    description = tmp_path / "copy" / "recognizer.json"
    description.write_text(description.read_text().replace('"temperature": 2.0', '"temperature": 3.0'))
    assert cache.cached(tmp_path / "copy") != cache.cached(tiny)


def test_stages_and_prelogits_in_one_pass(tiny: Path) -> None:
    outputs = open_engine(tiny, extra=["prelogits", 0, 3]).run(PIXELS)
    assert set(outputs) == {"logits", "embedding", "prelogits", "0", "3"}
    assert outputs["0"].shape[2:] == (16, 16)
    assert outputs["3"].shape[2:] == (2, 2)


def test_what_only_torch_can(tiny_onnx: Path) -> None:
    with pytest.raises(SettingsError, match="`engine=ort`"):
        open_engine(tiny_onnx, "ort", extra=[0])
    with pytest.raises(SettingsError, match="not on `device=cuda`"):
        open_engine(tiny_onnx, "ort", device="cuda")


@pytest.mark.parametrize("name", ["ort", "openvino"])
@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_a_file_that_is_cut_off(tiny_onnx: Path, tmp_path: Path, name: str, kept: float) -> None:
    shutil.copytree(tiny_onnx, tmp_path / "cut")
    whole = (tiny_onnx / "model.onnx").read_bytes()
    (tmp_path / "cut" / "model.onnx").write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(ModelError, match=r"cut/model\.onnx"):
        open_engine(tmp_path / "cut", name)


def test_labels_of_another_model(tiny_onnx: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_onnx, tmp_path / "other")
    description = tmp_path / "other" / "recognizer.json"
    text = description.read_text()
    for old, new in (('"ant",', ""), ('"n01",', ""), ('"num_classes": 5', '"num_classes": 4')):
        assert old in text
        text = text.replace(old, new)
    start = text.index('"groups"')
    description.write_text(text[:start] + text[start:].replace("5", "4", 1))
    with pytest.raises(ModelError, match=r"logits of shape \(1, 5\) for a picture and the 4 labels"):
        open_engine(tmp_path / "other")


def test_an_export_without_its_description(tiny_onnx: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_onnx / "model.onnx", tmp_path)
    with pytest.raises(ModelError, match=r"recognizer\.json"):
        open_engine(tmp_path, "ort")
