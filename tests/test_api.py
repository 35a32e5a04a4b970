"""What programs call: light to import, typed, silent, and with the results of the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import femtobooth
from femtobooth.core.errors import ModelError, PhotoError, SettingsError
from femtobooth.recognizer.model.backbone import Recognizer
from femtobooth.workflows import generate

STEPS = {"steps": 2, "guidance": 4.0}
QUICK = {
    "training": {"steps": 2, "batch_size": 2, "trackers": ["csv"]},
    "prior": {"images": 2, "sampling_batch": 2, "sampling": {"steps": 2}},
    "samples": {"images": 1, "prompts": ["a [V] {class}"], "sampling": {"steps": 1}},
}


@pytest.fixture(scope="module")
def run(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> femtobooth.Generator:
    folder = tmp_path_factory.mktemp("api")
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (6, 6, 3), np.uint8)
        Image.fromarray(pixels.repeat(16, axis=0).repeat(16, axis=1)).save(folder / f"photo{index}.png")
    files = sorted(folder.iterdir())
    return femtobooth.personalize(files, "robot", base=tiny_base, runs=folder / "runs", name="rex", **QUICK)


def test_importing_is_light() -> None:
    code = (
        "import sys, time; began = time.process_time(); import femtobooth; spent = time.process_time() - began;"
        "heavy = {'torch', 'numpy', 'PIL', 'pydantic', 'rich'} & set(sys.modules); femtobooth.Recognizer;"
        "print(spent, sorted(heavy), 'torch' in sys.modules)"
    )
    told = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    assert {one.stdout.split(" ", 1)[1].strip() for one in told} == {"[] False"}
    assert min(float(one.stdout.split()[0]) for one in told) < 0.1


def test_what_is_public_is_there() -> None:
    assert all(getattr(femtobooth, name) is not None for name in femtobooth.__all__)
    assert set(femtobooth.__all__) <= set(dir(femtobooth))
    with pytest.raises(AttributeError, match="no attribute 'personalise'"):
        _ = femtobooth.personalise  # type: ignore[attr-defined]


def test_from_photos_to_pictures(run: femtobooth.Generator, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert (run.token, run.class_noun) == ("sks", "robot")
    assert run.run.status == "done" and run.run.settings["training"]["steps"] == 2
    again = femtobooth.open_run(run.run.folder)
    assert again.run.model_dump() == run.run.model_dump()
    capfd.readouterr()
    pictures = again.generate(["a [V] robot", "a robot"], count=2, seed=5, sampling=STEPS)
    assert [(one.mode, one.size) for one in pictures] == [("RGB", (64, 64))] * 4
    assert capfd.readouterr() == ("", "")
    written = again.generate(["a [V] robot", "a robot"], count=2, seed=5, sampling=STEPS, out=tmp_path / "o")
    assert [one.tobytes() for one in written] == [one.tobytes() for one in pictures]
    manifest = json.loads((tmp_path / "o" / "manifest.json").read_text())
    assert [one["prompt"] for one in manifest["images"]] == ["a sks robot"] * 2 + ["a robot"] * 2
    assert "femtobooth" in Image.open(tmp_path / "o" / manifest["images"][0]["file"]).info


def test_the_model_stays_loaded(run: femtobooth.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    load = generate.load
    monkeypatch.setattr(generate, "load", lambda *given: loaded.append(len(given) > 1 and given[1]) or load(*given))
    fresh = femtobooth.Generator(run.reference, run.run)
    for _ in range(2):
        fresh.generate("a robot", count=1, sampling=STEPS)
    assert [bool(one) for one in loaded] == [False, True, True]


def test_a_pipeline_of_diffusers(run: femtobooth.Generator) -> None:
    pipeline = run.pipeline()
    assert type(pipeline).__name__ == "StableDiffusionPipeline"
    drawn = pipeline(f"a {run.token} robot", num_inference_steps=1, output_type="np", width=64, height=64).images
    assert drawn.shape == (1, 64, 64, 3)


def test_a_base_generates_too(tiny_base: Path) -> None:
    base = femtobooth.Generator.load(tiny_base)
    assert base.folder == tiny_base
    assert len(base.generate("a robot", count=1, sampling=STEPS)) == 1
    with pytest.raises(ModelError, match="learned no subject"):
        _ = base.token


def test_a_mistake_names_the_setting(tiny_base: Path, photo_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"training\.step: no such setting; did you mean training\.steps\?"):
        femtobooth.personalize(photo_folder, "robot", training={"step": 3})
    with pytest.raises(SettingsError, match=r"photos\.class_noun: not given"):
        femtobooth.personalize(photo_folder)
    with pytest.raises(PhotoError, match="no such file"):
        femtobooth.personalize(tmp_path / "none", "robot", base=tiny_base, runs=tmp_path)
    with pytest.raises(ModelError, match="not a run"):
        femtobooth.open_run(tiny_base)
    with pytest.raises(SettingsError, match="out: of what is written"):
        femtobooth.classify(photo_folder, out="rows.csv")


def test_classify_and_embed(tiny: Path, tiny_onnx: Path, photos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = list(femtobooth.classify(photos, model=tiny, top_k=2))
    assert len(rows) == 20 and all(len(row.top) == 2 and not row.rejected and row.error is None for row in rows)
    files = [str(row.path) for row in rows]
    embeddings = femtobooth.embed(photos, model=tiny)
    assert list(embeddings.paths) == files and not embeddings.errors
    network = Recognizer.load(tiny)
    with Image.open(files[0]) as image:
        assert np.allclose(embeddings.vectors[0], network.embed(network.batch([image.convert("RGB")]))[0], atol=1e-5)
        for model in (tiny, tiny_onnx):
            recognizer = femtobooth.Recognizer.load(model)
            assert recognizer.labels == ("ant", "bee", "cat", "dog", "elk")
            of_file, of_image = recognizer.classify([files[0], image.convert("RGB")], top_k=2)
            assert of_file.path == files[0] and of_image.path is None
            assert of_file.top == of_image.top
            assert of_file.label == rows[0].label
            assert of_file.confidence == pytest.approx(rows[0].confidence, abs=1e-4)
            assert np.allclose(recognizer.embed(files[0])[0], embeddings.vectors[0], atol=1e-4)
    assert femtobooth.Recognizer.load(tiny).classify([]) == []
    assert capfd.readouterr() == ("", "")


def test_a_transparent_picture_lies_over_white(tiny: Path) -> None:
    recognizer = femtobooth.Recognizer.load(tiny)
    clear, white = Image.new("RGBA", (80, 80), (200, 0, 0, 0)), Image.new("RGB", (80, 80), "white")
    assert recognizer.classify(clear)[0].top == recognizer.classify(white)[0].top


def test_finetune_and_export(tiny: Path, photos: Path, tmp_path: Path) -> None:
    run = femtobooth.finetune(photos, model=tiny, probe_only=True, runs=tmp_path, name="mine", copies="keep")
    assert (run.status, run.classes, run.result) == ("done", ["a", "b"], "probe")
    recognizer = femtobooth.Recognizer.load(run.folder)
    assert recognizer.labels == ("a", "b")
    made = femtobooth.export(run.folder, format="torchscript", out=tmp_path / "ts", parity=False)
    assert (made.format, made.precision, made.status) == ("torchscript", "fp32", "converted only")
    assert (made.folder / "recognizer.json").is_file()


def test_progress_is_shown_where_it_is_asked_for(tiny: Path, photos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with femtobooth.showing_progress():
        list(femtobooth.classify(photos, model=tiny))
    out, err = capfd.readouterr()
    assert out == "" and f"opening {tiny}" in err.replace("\n", "")


def test_type_checkers_see_it(tmp_path: Path) -> None:
    snippet = tmp_path / "snippet.py"
    snippet.write_text(
        "import femtobooth\n"
        "run = femtobooth.open_run('runs/rex')\n"
        "reveal_type(run.generate('a [V] dog'))\n"
        "reveal_type(next(femtobooth.classify('a.jpg')).label)\n"
        "reveal_type(femtobooth.finetune('data').classes)\n"
        "femtobooth.personalise\n"
    )
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nfollow_imports = skip\nplugins = pydantic.mypy\n"
        "[mypy-femtobooth.*,PIL.*,pydantic.*]\nfollow_imports = silent\n"
    )
    told = subprocess.run(
        [sys.executable, "-m", "mypy", "snippet.py"], capture_output=True, text=True, check=False, cwd=tmp_path
    ).stdout
    assert 'Revealed type is "list[PIL.Image.Image]"' in told
    assert 'Revealed type is "str | None"' in told
    assert 'Revealed type is "list[str]"' in told
    assert 'Module has no attribute "personalise"' in told
