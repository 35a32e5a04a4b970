"""Settings: layers, strictness, messages, round trip."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from femtobooth.core import config, fields
from femtobooth.core.errors import SettingsError
from femtobooth.generator.settings import GenerateSettings, PersonalizeSettings
from femtobooth.parsing import overrides
from femtobooth.workflows.settings import ProtocolSettings

NEEDED = {"photos": {"paths": ["a"], "class_noun": "dog"}}


def test_later_layers_win_and_lists_are_replaced() -> None:
    flags = overrides(PersonalizeSettings, ["training.steps=20", "train.parts=unet"], {"training.steps": "30"})
    settings = config.resolve(PersonalizeSettings, {"training": {"steps": 10, "seed": 4}}, NEEDED, flags)
    assert (settings.training.steps, settings.training.seed, settings.train.parts) == (30, 4, ["unet"])


def test_yaml_round_trip(tmp_path: Path) -> None:
    texts = [
        "train.unet_learning_rate=1e-4",
        "loss.snr_gamma=5",
        "photos.paths=a,b.jpg",
        "photos.paths=c",
        "identifier.token=123",
        "size=64",
    ]
    settings = config.resolve(PersonalizeSettings, NEEDED, overrides(PersonalizeSettings, texts, {}))
    assert settings.train.unet_learning_rate == 1e-4
    assert settings.identifier.token == "123"
    assert settings.photos.paths == ["a,b.jpg", "c"]
    path = tmp_path / "config.yaml"
    path.write_text(config.dump(settings))
    assert config.resolve(PersonalizeSettings, config.read_yaml(path)) == settings


AWKWARD = [
    "on", "no", "null", "~", "", "0123", "0o17", "0x1F", "1e5", "1_000", "12:30",
    "2026-13-45", "2026-01-02", "=", "<<", ".inf", ".5", "*bad*, ugly",
    "@home", "[V]", "a: b", "# a", "'", '"', "- a", "!x", "%a", "&a", "`", " a ", "a\nb", "\u2028",
    "\x1b[31m", "\udcff", "\ufeff", "🦊", "yes", "true",
]  # fmt: skip


@pytest.mark.parametrize("text", AWKWARD)
def test_texts_are_taken_as_typed(text: str, tmp_path: Path) -> None:
    """On the command line, and from a file that femtobooth wrote, also where another reader takes YAML 1.1."""
    given = overrides(
        PersonalizeSettings,
        [],
        {"identifier.token": text, "samples.sampling.negative": text, "samples.prompts": [text]},
    )
    assert given["samples"]["sampling"]["negative"] == text
    assert given["identifier"]["token"] == text
    assert given["samples"]["prompts"] == ([text] if text else [])
    settings = config.resolve(GenerateSettings, {"run": "r", "prompts": [text], "sampling": {"negative": text}})
    (tmp_path / "config.yaml").write_text(config.dump(settings), encoding="utf-8")
    assert config.resolve(GenerateSettings, config.read_yaml(tmp_path / "config.yaml")) == settings
    assert yaml.safe_load(config.dump(settings))["prompts"] == [text]


@pytest.mark.parametrize(
    ("texts", "path", "value"),
    [
        (["samples.prompts=a [V] dog, sitting"], "samples.prompts", ["a [V] dog, sitting"]),
        (["samples.prompts=a, b", "samples.prompts=[V] c"], "samples.prompts", ["a, b", "[V] c"]),
        (['samples.prompts=["a, b", "c"]'], "samples.prompts", ["a, b", "c"]),
        (["photos.paths=x, y.jpg"], "photos.paths", ["x, y.jpg"]),
        (["train.parts=unet,text_encoder"], "train.parts", ["unet", "text_encoder"]),
        (["train.parts=unet", "train.parts=token"], "train.parts", ["unet", "token"]),
        (["train.parts=[unet, token]"], "train.parts", ["unet", "token"]),
        (["prior.other_classes=cat, old car"], "prior.other_classes", ["cat", "old car"]),
        (['prior.other_classes=["cat, old"]'], "prior.other_classes", ["cat, old"]),
        (["prior.other_classes="], "prior.other_classes", []),
        (["name="], "name", None),
        (["loss.snr_gamma="], "loss.snr_gamma", None),
        (["training.steps=0100"], "training.steps", 100),
        (["photos.flip=True"], "photos.flip", True),
        (["train.unet_learning_rate=1e-4"], "train.unet_learning_rate", 1e-4),
    ],
)
def test_values_of_the_command_line(texts: list[str], path: str, value: object) -> None:
    found: object = overrides(PersonalizeSettings, texts, {})
    for key in path.split("."):
        found = found[key]  # type: ignore[index]
    assert found == value


def test_a_setting_in_a_mapping_of_settings_is_read_as_that_setting() -> None:
    texts = ["personalize.identifier.token=0123", "personalize.training.steps=20"]
    assert overrides(ProtocolSettings, texts, {}) == {
        "personalize": {"identifier": {"token": "0123"}, "training": {"steps": 20}}
    }


def test_a_fault_is_called_as_where_it_was_given(tmp_path: Path) -> None:
    """The flag, `--set`, the line of the file, or the setting's own name; for what is missing, as it would be given."""
    (tmp_path / "s.yaml").write_text("training:\n  seed: 1\n  clip: x\n  ema: 7\n")
    names = {"training.steps": "--steps", "photos.class_noun": "--class-noun", "training.ema": "--ema"}
    flags = overrides(PersonalizeSettings, ["size=9", "training.ema=8"], {"training.steps": "many"}, names)
    with pytest.raises(SettingsError) as caught:
        config.resolve(
            PersonalizeSettings,
            {"save_precision": "8"},
            {"photos": {"paths": ["a"]}},
            config.read_yaml(tmp_path / "s.yaml"),
            flags,
        )
    said = [line.strip() for line in caught.value.lines[1:]]
    assert sorted(line.partition(": input")[0].partition(": not")[0] for line in said) == sorted(
        [
            f"{tmp_path / 's.yaml'}, line 3: training.clip",
            "--set size",
            "--set training.ema",
            "--steps",
            "--class-noun",
            "save_precision",
        ]
    )


def test_a_dotted_key_in_a_file_is_told_how_to_stand_there() -> None:
    with pytest.raises(SettingsError) as caught:
        config.resolve(PersonalizeSettings, NEEDED, {"prior.sampling.steps": 3})
    assert caught.value.lines == (
        "prior.sampling.steps: stands inside its group in a file",
        "  -> prior: {sampling: {steps: 3}}",
    )


LONG = "x" * 10**6


@pytest.mark.parametrize(
    "given", [{"name": f"{LONG}/"}, {LONG: 1}, {f"k{i}": 1 for i in range(3000)}, {"size": [[LONG] * 9] * 9}]
)
def test_no_error_is_longer_than_a_screen(given: dict[str, object]) -> None:
    with pytest.raises(SettingsError) as caught:
        config.resolve(PersonalizeSettings, NEEDED, given)
    assert len(str(caught.value)) < 2000
    assert len(str(caught.value).splitlines()) <= 13


def test_all_faults_at_once_with_the_nearest_key() -> None:
    with pytest.raises(SettingsError) as caught:
        config.resolve(
            PersonalizeSettings,
            {"photos": {"paths": [], "clas_noun": "d"}, "training": {"stepz": 3, "steps": 0, "clip": "x"}, "seed": 1},
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
        (["training.precision=8"], "'fp32', 'fp16' or 'bf16'"),
        (["train.parts=unet,vae"], "'unet', 'attention', 'text_encoder', 'token' or 'lora'"),
        (["train.parts=unet,attention"], "unet already trains the attention layers"),
        (["train.parts=token,text_encoder"], "text_encoder already trains the token"),
        (["training.flip=true"], "no such setting; did you mean photos.flip?"),
        (["photos.crop=smrt"], "(got 'smrt'); did you mean smart?"),
        (["photos.flip=yes"], "valid boolean (got 'yes')"),
        (["training.clip=inf"], "finite number"),
        (["training.steps=1e3"], "valid integer (got '1e3')"),
        (["training=3"], "training: holds settings of its own (got '3')"),
    ],
)
def test_wrong_values(texts: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=r".") as caught:
        config.resolve(PersonalizeSettings, NEEDED, overrides(PersonalizeSettings, texts, {}))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "line 1: not valid YAML"),
        (b"- 1\n", "must hold `key: value` lines"),
        (b"\xff\xfe\x00", "not valid YAML"),
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
        for key in fields.dotted_keys(model):
            assert len(fields.help_text(model, key)) > 20, key


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "configs").glob("*.yaml")), ids=lambda path: path.stem
)
def test_example_configs_are_valid(path: Path) -> None:
    given = config.read_yaml(path)
    config.resolve(PersonalizeSettings, {} if "subjects" in given else NEEDED, given)
