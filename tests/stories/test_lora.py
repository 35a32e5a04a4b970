"""photos -> personalize --train lora -> a few MB that draw the subject, as a user types it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from femtobooth.generator.run import PersonalizedRun

FLAGS = (
    "--train", "lora,token", "--rank", "4", "--lora-unet-lr", "1e-2", "--lora-text-encoder-lr", "1e-2", "--background",
    "class", "--steps", "4", "--checkpoint-every", "2", "--validate-every", "2", "--select", "final",
    "--set", "training.keep_checkpoints=9",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(personalize: Callable[..., Path], tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("bases") / "base"
    shutil.copytree(tiny_base, base)
    return personalize(base, tmp_path_factory.mktemp("runs"), "rex", *FLAGS)


def test_its_model_is_what_changes_the_base(run: Path) -> None:
    model = run / "model"
    assert {path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()} == {
        "README.md", "femtobooth.json", "overview.png", "rex.safetensors", "pytorch_lora_weights.safetensors",
        "embeddings/sks.safetensors",
    }  # fmt: skip
    assert sum(path.stat().st_size for path in model.rglob("*.safetensors")) < 1e6
    card = (model / "README.md").read_text()
    assert "base_model: base\n" in card
    assert "- lora\n" in card
    assert "instance_prompt: a sks robot\n" in card
    state = load_file(model / "rex.safetensors")
    assert any(value.any() for name, value in state.items() if name.endswith("lora_up.weight"))
    told = PersonalizedRun.open(run)
    assert told.status == "done"
    assert told.selected["step"] == told.steps


def test_it_draws_what_the_run_showed(run: Path, femtobooth: Callable[..., int], tmp_path: Path) -> None:
    """`generate` merges the adapter and draws, to the bit, the last sample of the run."""
    steps = PersonalizedRun.open(run).steps
    shown = np.asarray(Image.open(run / "samples" / f"step-{steps:06d}" / "00-0.png"))
    flags = ("-n", 1, "--seed", 1000, "--steps", 1, "--guidance", 7.5, "--out", tmp_path / "drawn")
    assert femtobooth("generate", run, "a [V] robot", *flags) == 0
    drawn = next(path for path in (tmp_path / "drawn").glob("*.png") if path.name != "grid.png")
    assert np.array_equal(np.asarray(Image.open(drawn)), shown)
    before = np.asarray(Image.open(run / "samples" / "step-000000" / "00-0.png"))
    assert not np.array_equal(before, shown)


def test_resumed_it_ends_the_same_to_the_bit(run: Path, femtobooth: Callable[..., int], tmp_path: Path) -> None:
    """As after a kill -9 behind step 2: its checkpoint holds what trains and no weight of the base."""
    broken = shutil.copytree(
        run, tmp_path / "rex", ignore=shutil.ignore_patterns("model", "step-000003*", "step-000004*")
    )
    facts = json.loads((broken / "run.json").read_text())
    (broken / "run.json").write_text(json.dumps({**facts, "status": "running"}))
    assert (broken / "checkpoints" / "step-000002" / "state.ckpt").stat().st_size < 2e6
    assert femtobooth("personalize", "--resume", broken) == 0
    for name in ("rex.safetensors", "pytorch_lora_weights.safetensors", "embeddings/sks.safetensors"):
        assert (broken / "model" / name).read_bytes() == (run / "model" / name).read_bytes(), name


def test_without_its_base_it_says_which_and_what_to_do(
    run: Path, femtobooth: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    base = Path(PersonalizedRun.open(run).made_with().base)
    base.rename(base.with_name("elsewhere"))
    try:
        assert femtobooth("generate", run, "a [V] robot") == 2
    finally:
        base.with_name("elsewhere").rename(base)
    problem, way_out = capsys.readouterr().err.strip().splitlines()[-2:]
    assert "made for the base base (hash " in problem
    assert "which is not there" in problem
    assert "write where it is as" in way_out


def test_overwrite_takes_all_of_it(run: Path, personalize: Callable[..., Path], tmp_path: Path) -> None:
    copied = shutil.copytree(run, tmp_path / "rex")
    base = PersonalizedRun.open(run).made_with().base
    personalize(base, tmp_path, "rex", "--overwrite", "--steps", "1")
    assert (copied / "model" / "unet").is_dir()
    assert not (copied / "model" / "rex.safetensors").exists()
