"""What the model card of a stranger may set, and what not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from femtobooth.core import config
from femtobooth.core.fields import dotted_keys
from femtobooth.generator import cards, locate
from femtobooth.generator.settings import RECOMMENDABLE, GenerateSettings, PersonalizeSettings, of_card
from femtobooth.workflows.settings import EvaluateSettings, SynthesizeSettings

pytestmark = pytest.mark.usefixtures("terminal")

# Every setting of the two commands that a card must not touch: what is read and written, where, as what, and who is
# told.
NEVER = {
    "personalize": [
        "base", "tokenizer", "name", "runs", "overwrite", "save_precision", "plan", "memory", "photos.paths", "photos.class_noun", "photos.hold_out",
        "photos.shuffle_tags", "photos.keep_tags",
        "identifier.token", "prior.folder", "prior.other_classes", "prior.seed", "prior.sampling_batch", "samples.seed",
        "samples.batch_size", "validation.encoder", "validation.seed", "validation.loss_every", "training.precision", "training.optimizer",
        "training.gradient_checkpointing", "training.seed", "training.accelerator", "training.devices", "training.nodes",
        "training.strategy", "training.checkpoint_every", "training.keep_checkpoints", "training.log_every", "training.trackers",
    ],
    "generate": [
        "run", "tokenizer", "prompts", "prompts_file", "count", "seed", "batch_size", "init_image", "strength", "mask", "precision",
        "device", "out", "overwrite",
    ],
}  # fmt: skip


def _card(folder: Path, text: str | dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    matter = text if isinstance(text, str) else yaml.safe_dump({"femtobooth": text})
    (folder / "README.md").write_text(f"---\n{matter}\n---\n# A base\n")
    return folder


def test_the_list_is_about_settings_that_exist() -> None:
    for command, model, allowed in RECOMMENDABLE:
        known = dotted_keys(model)
        for one in allowed:
            assert one in known or any(key.startswith(one.removesuffix("*")) for key in known if one.endswith(".*")), (
                one
            )
        assert not {key for key in known if key in allowed} & set(NEVER[command])


@pytest.mark.parametrize(
    ("command", "setting"), [(command, setting) for command, names in NEVER.items() for setting in names]
)
def test_never_by_a_card(command: str, setting: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given: Any = {"wandb"}
    for key in reversed(setting.split(".")):
        given = {key: given if isinstance(given, dict) else "anything"}
    assert cards.read_card(_card(tmp_path, {command: given}), RECOMMENDABLE) == {}
    said = capsys.readouterr().err
    assert f"{tmp_path / 'README.md'}: this model card cannot set {command}.{setting}" in said.replace("\n", " ")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"training": {"steps": "many"}}, "training.steps (input should be a valid integer)"),
        ({"training": {"steps": -3}}, "training.steps (input should be greater than or equal to 1)"),
        ({"prior": {"sampling": {"sampler": "sideways"}}}, "prior.sampling.sampler"),
        (
            {"train": {"parts": ["unet", "attention"]}},
            "train.parts (value error, unet already trains the attention layers",
        ),
        ({"training": 3}, "personalize.training"),
        ({"loss": {"nonsense": 1}}, "loss.nonsense (no such setting)"),
        ({"photos": {"crop": {"deep": {"deeper": {"deepest": {"x": 1}}}}}}, "photos.crop.deep.deeper"),
    ],
)
def test_a_wrong_value_is_left_out_and_the_rest_stays(
    value: dict[str, Any], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = cards.read_card(
        _card(tmp_path, {"personalize": value | {"size": 32}, "generate": {"sampling": {"steps": 7}}}), RECOMMENDABLE
    )
    assert card == {"personalize": {"size": 32}, "generate": {"sampling": {"steps": 7}}}
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "femtobooth:\n  steps: 3: 4",
        "{",
        "femtobooth: *nowhere",
        "\x01",
        "- a\n- b",
        "femtobooth: [1]",
        "femtobooth: {3: 4}",
    ],
)
def test_a_broken_card_blocks_nothing(text: str, tmp_path: Path) -> None:
    assert cards.read_card(_card(tmp_path, text), RECOMMENDABLE) == {}


def test_broken_front_matter_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _card(tmp_path, "femtobooth:\n  steps: 3: 4")
    assert cards.read_card(tmp_path, RECOMMENDABLE) == {}
    assert "README.md, line 3: not valid YAML" in capsys.readouterr().err


def test_a_readme_that_is_no_file_blocks_nothing(tmp_path: Path) -> None:
    (tmp_path / "README.md").mkdir()
    assert cards.read_card(tmp_path, RECOMMENDABLE) == {}


def test_a_card_of_windows_and_of_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(
        b"\xef\xbb\xbf---\r\nfemtobooth:\r\n  generate: {size: 64}\r\n---\r\n# caf\xe9\r\n"
    )
    assert cards.read_card(tmp_path, RECOMMENDABLE) == {"generate": {"size": 64}}


def test_the_card_that_replaced_a_run(tiny_sd1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command that reads cards: none takes a place, a name or `overwrite` from one."""
    evil = {
        "personalize": {
            "runs": "elsewhere",
            "name": "mine",
            "overwrite": True,
            "training": {"steps": 5, "trackers": ["wandb"]},
        },
        "generate": {
            "out": "mine",
            "overwrite": True,
            "device": "cuda",
            "prompts_file": "/etc/passwd",
            "size": 32,
            "sampling": {"steps": 3},
        },
    }
    base = tmp_path / "runs" / "evil" / "model"
    shutil.copytree(tiny_sd1, base)
    (base.parent / "run.json").write_text(json.dumps({"status": "done"}))
    _card(base, evil)
    monkeypatch.chdir(tmp_path)
    asked = config.settle(PersonalizeSettings, {"base": str(base), "photos": {"paths": ["x"], "class_noun": "dog"}})
    assert (asked.runs, asked.name, asked.overwrite, asked.training.steps) == ("runs", None, False, 5)
    assert asked.training.trackers == ["tensorboard", "csv"]
    drawn = config.settle(GenerateSettings, {"run": "runs/evil"})
    assert (drawn.out, drawn.overwrite, drawn.device, drawn.prompts_file, drawn.size) == (
        None,
        False,
        "auto",
        None,
        "32x32",
    )
    assert config.settle(EvaluateSettings, {"run": "runs/evil"}).sampling.steps == 3
    assert config.settle(SynthesizeSettings, {"runs": ["runs/evil"], "out": "here"}).sampling.steps == 3


def test_the_card_inside_a_single_file(tiny_sd1: Path, tmp_path: Path) -> None:
    from femtobooth.generator.formats.single_file import save_single_file
    from femtobooth.generator.load import load

    model = load(str(tiny_sd1))
    model.readme = "---\nfemtobooth: {generate: {out: mine, size: 32}}\n---\n"
    save_single_file(model, tmp_path / "model.safetensors")
    assert of_card(str(tmp_path / "model.safetensors"), "generate") == {"size": 32}
    assert load(str(tmp_path / "model.safetensors")).card == {"generate": {"size": 32}}


# Cards that we write


def test_what_a_model_owes_its_base() -> None:
    readme = cards.read_readme(locate.bundled_folder())
    matter, owed = cards.inherited(readme, "bundled")
    assert matter == {"license": "apache-2.0", "base_model": "femtobooth-bundled"}
    assert "Twemoji (CC BY 4.0, © Twitter, Inc and other" in owed
    assert "## Measured" not in owed
    card = cards.card(matter, f"# sks dog\n\n# Of the base\n\n{owed}\n")
    assert cards.inherited(card, "/somewhere/runs/rex")[1] == owed  # and so does a model that is made from that
    assert cards.inherited(card, "/somewhere/runs/my dog")[0]["base_model"] == "my-dog"
    assert cards.inherited("", "owner/name")[0] == {"base_model": "owner/name"}


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("# tiny\n", "# tiny\n"),
        ("", ""),
        ("---\nlicense: mit  # ours\ntags: [mine]\n---\n# A\n", "license: mit  # ours\ntags: [mine]\n---\n# A\n"),
        ("---\na: b: c\n---\n# A\n", "---\na: b: c\n---\n# A\n"),
    ],
)
def test_a_card_is_completed_for_the_hub_once(text: str, kept: str, tmp_path: Path) -> None:
    done = cards.completed(text)
    assert done.endswith(kept)
    assert cards.completed(done) == done
    matter = cards.front_matter(done, tmp_path)
    if "b: c" not in text:
        assert matter["library_name"] == "diffusers"
        assert matter["tags"] == (["mine"] if "mine" in text else cards.ON_HUB["tags"])
