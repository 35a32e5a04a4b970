"""What older versions wrote into a run folder reads as today's, and a run of theirs that goes on is brought up to date."""

from __future__ import annotations

from pathlib import Path

from femtobooth.core import older_runs

CONFIG = "size: 64\npreview: {every: 5}\nwatch:\n  every: 4\nloss: {surroundings: class}\n"


def test_settings_and_fields_have_todays_names(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    given = older_runs.read_settings(tmp_path / "config.yaml")
    assert given == {
        "size": 64,
        "samples": {"every": 5},
        "validation": {"every": 4},
        "loss": {"background": "class"},
    }
    assert given.names["validation.every"].endswith("config.yaml, line 4: watch.every")
    found = older_runs.facts(tmp_path, {"status": "done", "watch": {"scored": 2}, "settings": {"watch": {"every": 4}}})
    assert found == {"status": "done", "validation": {"scored": 2}, "settings": {"validation": {"every": 4}}}


def test_places_are_found_where_they_were_and_brought_up_once(tmp_path: Path) -> None:
    (tmp_path / "previews").mkdir()
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "watch.json").write_text("{}")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "metrics.csv").write_text("step,loss/instance,watch/drift\n4,0.5,0.25\n")
    curve = "validation/validation.json"
    assert older_runs.place(tmp_path, "samples") == tmp_path / "previews"
    assert older_runs.place(tmp_path, curve) == tmp_path / "watch" / "watch.json"
    for _ in range(2):
        older_runs.bring_up(tmp_path)
        assert older_runs.place(tmp_path, "samples") == tmp_path / "samples"
        assert older_runs.place(tmp_path, curve) == tmp_path / curve
        assert (tmp_path / curve).read_text() == "{}"
        assert (tmp_path / "logs" / "metrics.csv").read_text().split() == [
            "step,loss/instance,validation/drift",
            "4,0.5,0.25",
        ]
    assert {path.name for path in tmp_path.iterdir()} == {"samples", "validation", "logs"}


def test_a_checkpoint_gives_the_validators_state() -> None:
    state = {"callbacks": {"Watch": {"points": [], "seconds": {"watching": 1.0, "training": 2.0}}, "Other": {}}}
    expected = {"Validator": {"points": [], "seconds": {"validation": 1.0, "training": 2.0}}, "Other": {}}
    assert older_runs.checkpoint(state)["callbacks"] == expected
    assert older_runs.checkpoint(state)["callbacks"] == expected


def test_settings_of_older_versions_keep_their_lines(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("save_precision: '16'\ntraining:\n  precision: bf16-mixed\n  steps: 4\n")
    found = older_runs.read_settings(tmp_path / "s.yaml")
    assert found == {"save_precision": "fp16", "training": {"precision": "bf16", "steps": 4}}
    assert found.names["training.precision"] == f"{tmp_path / 's.yaml'}, line 3: training.precision"
