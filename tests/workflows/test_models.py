"""femtobooth models: which generators are here, what they are, and what of them trains in how much memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from femtobooth.core import cache as kept
from femtobooth.core.errors import ModelError
from femtobooth.generator import locate
from femtobooth.generator.available import Generator, available, key_of
from femtobooth.generator.families import known
from femtobooth.generator.formats.single_file import save_single_file
from femtobooth.generator.load import load
from femtobooth.workflows import models
from femtobooth.workflows.personalizing import needs
from femtobooth.workflows.settings import ModelsSettings

GIB = 1 << 30


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put(hub: Path, repo: str, folder: Path, **index: Any) -> Path:
    """Lay a folder into the hub's cache, with this in its index."""
    place = hub / f"models--{repo.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0123456789abcdef")
    there = Path(shutil.copytree(folder, place / "snapshots" / "0123456789abcdef"))
    said = json.loads((there / locate.INDEX).read_text())
    (there / locate.INDEX).write_text(json.dumps(said | index))
    return there


def parameters(folder: Path) -> int:
    model = load(str(folder), weights=False)
    return sum(one.numel() for name in model.NETWORKS for one in getattr(model, name).parameters())


def listed(*asked: str, runs: Path = Path("none")) -> dict[str, dict[str, Any]]:
    found = models.run(ModelsSettings(runs=str(runs), bases=list(asked)))["generators"]
    return {one["name"]: one for one in found}


def test_what_is_here_is_told_by_its_files(tiny_sd1: Path, tiny_xl: Path, hub: Path, tmp_path: Path) -> None:
    snapshot = put(hub, "someone/small", tiny_sd1)
    (snapshot / "README.md").write_text(
        "---\nlicense: other\nlicense_name: own-terms\nextra_gated_prompt: Agree\n---\n"
    )
    put(hub, "someone/flux", tiny_sd1, _class_name="FluxFillPipeline")
    shutil.copytree(tiny_xl, tmp_path / "runs" / "rex" / "model")
    (tmp_path / "runs" / "models").mkdir()
    save_single_file(load(str(tiny_xl)), tmp_path / "runs" / "models" / "xl.safetensors")
    found = {one.name: one for one in available(tmp_path / "runs", ["someone/small"])}
    small = found["someone/small"]
    assert small == Generator(
        name="someone/small",
        source="hub cache",
        family="Stable Diffusion 1.x or 2.x",
        parameters=parameters(tiny_sd1),
        bytes=sum(path.stat().st_size for path in tiny_sd1.rglob("*.safetensors")),
        size=64,
        licence="own-terms",
        gated=True,
        key=small.key,
        path=snapshot,
    )
    assert {name: one.source for name, one in found.items()} == {
        "bundled": "built in",
        "someone/small": "hub cache",
        str(tmp_path / "runs/rex"): "run",
        str(tmp_path / "runs/models/xl.safetensors"): "models/",
        "someone/flux": "hub cache",
    }
    for name in (tmp_path / "runs/rex", tmp_path / "runs/models/xl.safetensors"):
        one = found[str(name)]
        assert (one.family, one.parameters, one.size) == ("Stable Diffusion XL", parameters(tiny_xl), 64)
    assert not found["someone/flux"].ready
    assert found["someone/flux"].how == f"someone/flux: a FLUX of another kind\n  -> {known.WAY_OUT}"


def test_what_trains_is_what_a_plan_says_and_is_planned_once(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = [one for one in available(Path("none"), [str(tiny_base)]) if one.name == str(tiny_base)]
    found = needs.needed(one)
    assert set(found) == {"lora", "attention", "everything"}
    weights = 4 * one.parameters
    assert found["lora"]["accelerator"] < found["attention"]["accelerator"] < found["everything"]["accelerator"]
    assert found["everything"]["process"] >= 3 * weights  # with what AdamW keeps
    monkeypatch.setattr(needs, "plans", None)
    assert needs.needed(one) == found
    (file,) = (kept.cache_folder() / "plans").glob(f"{one.key}-*.json")
    assert json.loads(kept.read(file) or b"") == found


def test_the_bundled_base_is_known_by_its_shapes_and_planned_right(monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = available(Path("none"))
    base = load(locate.BUNDLED, weights=False)
    assert one.key == key_of(base)
    assert needs.plans(base, locate.bundled_folder()) == needs.needed(one)
    assert (one.size, one.licence, one.parameters) == (64, "apache-2.0", parameters(locate.bundled_folder()))


def test_a_run_with_an_adapter_names_its_base(tmp_path: Path) -> None:
    model = tmp_path / "runs" / "rex" / "model"
    model.mkdir(parents=True)
    (model.parent / "run.json").write_text('{"kind": "personalize"}')
    adapter = {"kind": "lora", "base": "bundled", "weights": "rex.safetensors"}
    (model / locate.SUBJECT_FILE).write_text(json.dumps({"token": "sks", "class_noun": "dog", "adapter": adapter}))
    found = listed(str(tmp_path / "runs" / "rex"))[str(tmp_path / "runs" / "rex")]
    assert (found["family"], found["source"]) == ("lora beside bundled", "run")


@pytest.mark.parametrize(
    ("asked", "family", "lines"),
    [
        (
            "black-forest-labs/FLUX.1-Fill-dev",
            "a FLUX of another kind",
            ("a FLUX of another kind", "give a text-to-image"),
        ),
        (
            "black-forest-labs/FLUX.1-dev",
            "FLUX.1",
            ("gated, and not in the local hub cache", "accept its terms on its page on the hub"),
        ),
        (
            "stabilityai/stable-diffusion-xl-base-1.0",
            "Stable Diffusion XL",
            ("not in the local hub cache", "run `hf download stabilityai/stable-diffusion-xl-base-1.0"),
        ),
        (
            "stabilityai/stable-diffusion-3.5-medium",
            "Stable Diffusion 3",
            (
                "gated, and not in the local hub cache",
                "accept its terms on its page on the hub, then run `hf auth login`",
            ),
        ),
        ("nobody/nothing", "-", ("not in the local hub cache", "hf download nobody/nothing")),
    ],
)
def test_what_is_not_here_says_what_to_do(
    asked: str, family: str, lines: tuple[str, str], terminal: None, capsys: pytest.CaptureFixture[str]
) -> None:
    found = listed(asked)[asked]
    assert (found["ready"], found["family"]) == (False, family)
    assert len(found["how"].splitlines()) == 2
    for line, part in zip(found["how"].splitlines(), lines, strict=True):
        assert part in line
    told = capsys.readouterr().err
    assert found["how"] in told
    assert ("licence: " in told) == bool(found["licence"])
    if asked == "black-forest-labs/FLUX.1-dev":
        assert "     licence: flux-1-dev-non-commercial-license\n" in told
        assert (found["licence"], found["gated"]) == ("flux-1-dev-non-commercial-license", True)


def test_a_path_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file or folder"):
        listed(str(tmp_path / "nothing"))


def test_it_answers_without_torch(tmp_path: Path) -> None:
    script = (
        "import sys; from femtobooth import cli; cli.main(['models', '--runs', 'none', '--json']); "
        "print({'torch', 'timm', 'diffusers', 'transformers'} & set(sys.modules))"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    *told, loaded = ended.stdout.splitlines()
    assert loaded == "set()"
    assert json.loads("\n".join(told))["generators"][0]["training_bytes"]["lora"]["accelerator"] < GIB


@pytest.mark.parametrize("base", ["tiny_sd3", "tiny_sd3_without_t5", "tiny_z_image", "tiny_flux"])
def test_transformers_are_told_too(base: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(base)
    (one,) = (one for one in available(Path("none"), [str(folder)]) if one.name == str(folder))
    model = load(str(folder), weights=False)
    assert (one.family, one.size, one.source, one.key) == (model.NAME, 64, "folder", key_of(model))
    assert 0 <= one.parameters - parameters(folder) < 10_000  # the places of patches are in files too
