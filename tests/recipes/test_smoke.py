"""The whole recipe of the bundled base, every stage at its smallest, on drawn sprites: no network."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from femtobooth.generator.load import load
from recipes.emoji_world import smoke, sprites


def test_the_recipe_runs_from_sprites_to_a_measured_model(
    world: sprites.World, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = sprites.folder() / "smoke"
    root.mkdir(parents=True)
    np.save(root / "sprites.npy", world.pixels)
    (root / "sprites.json").write_text(
        json.dumps({"styles": world.styles, "concepts": [asdict(one) for one in world.concepts]})
    )
    (root / "tokenizer").mkdir()  # what an earlier run left makes way
    monkeypatch.setattr("sys.argv", ["smoke"])
    smoke.main()
    model, facts = load(str(root / "model")), json.loads((root / "evaluation/evaluation.json").read_text())
    assert facts["model"]["hash"] == model.hash
    assert facts["prompts"]["generated"]["concept"]["prompts"] > 0
    assert model.card["personalize"]["training"]["steps"] > 1
    assert "| femto | robot |" in model.readme
    assert "SSIM" in model.readme
    assert (root / "evaluation/samples.png").is_file()
    assert (root / "evaluation/subjects.png").is_file()
    assert (root / "recognizer/model/recognizer.json").is_file()
