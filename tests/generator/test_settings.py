"""Settings without effect: refused where they were typed, told where a file says them, silent where a card does."""

from __future__ import annotations

from pathlib import Path

import pytest

from femtobooth.core import config
from femtobooth.core.errors import SettingsError
from femtobooth.generator.families import known
from femtobooth.generator.settings import GenerateSettings, PersonalizeSettings
from femtobooth.parsing import overrides

pytestmark = pytest.mark.usefixtures("terminal")

PHOTOS = {"photos": {"paths": ["x"], "class_noun": "dog"}}
IDLE: dict[str, tuple[type[config.Settings], list[str], str | None]] = {
    "negative": (GenerateSettings, ["sampling.guidance=1", "sampling.negative=ugly"], "sampling.negative"),
    "rescaling": (GenerateSettings, ["sampling.guidance=0", "sampling.guidance_rescale=0.7"], "sampling.guidance_rescale"),
    "negative with guidance": (GenerateSettings, ["sampling.guidance=1.1", "sampling.negative=ugly"], None),
    "strength": (GenerateSettings, ["strength=0.7"], "strength"),
    "strength of a picture": (GenerateSettings, ["strength=0.7", "init_image=x.png"], None),
    "picture of which nothing is left": (GenerateSettings, ["strength=1", "init_image=x.png"], "init_image"),
    "masked": (GenerateSettings, ["strength=1", "init_image=x.png", "mask=y.png"], None),
    "samples negative": (PersonalizeSettings, ["samples.sampling.guidance=1", "samples.sampling.negative=a"], "samples.sampling.negative"),
    "class images": (PersonalizeSettings, ["prior.weight=0", "prior.images=3"], "prior.images"),
    "no class images": (PersonalizeSettings, ["prior.weight=0"], None),
    "learning rate": (PersonalizeSettings, ["train.parts=token", "train.unet_learning_rate=1e-4"], "train.unet_learning_rate"),
    "learning rate of attention": (PersonalizeSettings, ["train.parts=attention", "train.unet_learning_rate=1e-4"], None),
    "floor": (PersonalizeSettings, ["loss.snr_floor=0.1"], "loss.snr_floor"),
    "floor of a weighting": (PersonalizeSettings, ["loss.snr_floor=0.1", "loss.snr_gamma=5"], None),
    "average of Adafactor": (PersonalizeSettings, ["training.optimizer=adafactor", "training.beta1=0.5"], "training.beta1"),
    "average of Prodigy": (PersonalizeSettings, ["training.optimizer=prodigy", "training.beta1=0.5"], None),
    "patience": (PersonalizeSettings, ["validation.patience=2"], "validation.patience"),
}  # fmt: skip


@pytest.mark.parametrize("name", IDLE)
def test_what_has_no_effect(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    model, sets, idle = IDLE[name]
    needed = config.Layer({"run": "bundled"} if model is GenerateSettings else PHOTOS)
    typed = overrides(model, sets, {})
    if idle:
        with pytest.raises(SettingsError, match=f"^--set {idle}: has no effect"):
            config.settle(model, needed, typed)
    else:
        config.settle(model, needed, typed)
    assert capsys.readouterr().err == ""
    config.settle(model, needed, config.Layer(typed))  # as if a file said it
    assert (
        capsys.readouterr().err.startswith(f"warning: {idle}: has no effect") if idle else capsys.readouterr().err == ""
    )


@pytest.mark.parametrize(
    ("optimizer", "rates", "schedule"),
    [
        ("adamw", [3e-4, 1.5e-4], "cosine"),  # as the bundled base's card says
        ("adafactor", [3e-4, 1.5e-4], "cosine"),
        ("schedulefree", [3e-4, 1.5e-4], "constant"),
        ("prodigy", [1.0, 1.0], "cosine"),
    ],
)
def test_a_card_speaks_for_its_optimizer(optimizer: str, rates: list[float], schedule: str) -> None:
    """Whoever only names an optimizer gets what it does well with, and that is what config.yaml repeats."""
    found = config.settle(PersonalizeSettings, PHOTOS, {"training": {"optimizer": optimizer}})
    assert (list(found.rates.values()), found.training.schedule) == (rates, schedule)
    found.refuse_at_once()
    assert config.resolve(PersonalizeSettings, config.parse_yaml(config.dump(found), "config.yaml")) == found
    bare = config.resolve(PersonalizeSettings, PHOTOS, {"training": {"optimizer": optimizer}})
    assert set(bare.rates.values()) == {1.0 if optimizer == "prodigy" else 2e-6}
    given = {"training": {"optimizer": optimizer}, "train": {"parts": ["lora", "token"], "token_learning_rate": 0.5}}
    lora = config.settle(PersonalizeSettings, PHOTOS, given).rates
    one = optimizer == "prodigy"
    assert lora == {
        "lora.unet_learning_rate": 1.0 if one else 1e-4,
        "lora.text_encoder_learning_rate": 1.0 if one else 5e-5,
        "train.token_learning_rate": 0.5,
    }


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "configs").glob("*.yaml")), ids=lambda one: one.stem
)
def test_configs_are_settings(path: Path) -> None:
    given = config.read_yaml(path)
    settings = config.resolve(PersonalizeSettings, {} if "subjects" in given else PHOTOS, given)
    known_bases = {name for row in known.FAMILIES for name in row.published}
    assert settings.base in {*known_bases, "bundled"} or settings.base.startswith("runs/")
    assert (settings.base in known.FAMILIES[1].published) == (path.stem == "stable-diffusion-xl")
