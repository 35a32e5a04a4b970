"""Settings: layers, strictness, messages, round trip."""

from __future__ import annotations

from pathlib import Path

import pytest

from femtobooth.core import config
from femtobooth.core.errors import SettingsError
from femtobooth.generator.settings import GenerateSettings, PersonalizeSettings

NEEDED = {"photos": {"paths": ["a"], "class_noun": "dog"}}


def test_later_layers_win_and_lists_are_replaced() -> None:
    flags = config.overrides(PersonalizeSettings, ["training.steps=20", "train.parts=unet"], {"training.steps": "30"})
    settings = config.resolve(PersonalizeSettings, {"training": {"steps": 10, "seed": 4}}, NEEDED, flags)
    assert (settings.training.steps, settings.training.seed, settings.train.parts) == (30, 4, ["unet"])


def test_yaml_round_trip(tmp_path: Path) -> None:
    texts = ["train.unet_learning_rate=1e-4", "loss.snr_gamma=5", "photos.paths=a,b.jpg", "identifier.token=123", "size=64"]
    settings = config.resolve(PersonalizeSettings, NEEDED, config.overrides(PersonalizeSettings, texts, {}))
    assert settings.train.unet_learning_rate == 1e-4
    assert settings.identifier.token == "123"
    path = tmp_path / "config.yaml"
    path.write_text(config.dump(settings))
    assert config.resolve(PersonalizeSettings, config.read_yaml(path)) == settings


def test_all_faults_at_once_with_the_nearest_key() -> None:
    with pytest.raises(SettingsError) as caught:
        config.resolve(
            PersonalizeSettings, {"photos": {"paths": [], "clas_noun": "d"}, "training": {"stepz": 3, "steps": 0, "clip": "x"}, "seed": 1}
        )
    text = str(caught.value)
    for part in (
        "7 settings are wrong",
        "photos.clas_noun: no such setting; did you mean photos.class_noun?",
        "photos.class_noun: not given; what the subject is",
        "photos.paths: ",
        "training.stepz: no such setting; did you mean training.steps?",
        "training.steps: input should be greater than or equal to 1 (got 0)",
        "training.clip: input should be a valid number (got 'x')",
        "seed: no such setting; did you mean",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["training.steps"], "expected KEY=VALUE"),
        (["training.steps=1.5"], "valid integer"),
        (["training.precision=8"], "'32', '16-mixed' or 'bf16-mixed'"),
        (["train.parts=unet,vae"], "'unet', 'attention', 'text_encoder' or 'token'"),
        (["train.parts=unet,attention"], "unet already trains the attention layers"),
        (["train.parts=token,text_encoder"], "text_encoder already trains the token"),
        (["training.flip=true"], "no such setting; did you mean photos.flip?"),
    ],
)
def test_wrong_values(texts: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=r".") as caught:
        config.resolve(PersonalizeSettings, NEEDED, config.overrides(PersonalizeSettings, texts, {}))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "line 1: not valid YAML"),
        (b"- 1\n", "must hold `key: value` lines"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_unusable_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        config.read_yaml(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_every_setting_has_a_help_text() -> None:
    for model in (PersonalizeSettings, GenerateSettings):
        for key in config.dotted_keys(model):
            assert len(config.describe(model, key)) > 20, key


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_example_configs_are_valid(path: Path) -> None:
    config.resolve(PersonalizeSettings, NEEDED, config.read_yaml(path))
