"""What is refused before anything is drawn or trained, because settings, base and photos do not go together."""

from __future__ import annotations

from ...core.errors import PhotoError, SettingsError
from ...generator import sampling
from ...generator.captions import class_captions
from ...generator.families.family import Family
from ...generator.settings import PersonalizeSettings
from ...pictures.crops import Shape, shapes_of
from ...pictures.images import find_pictures
from ...training import trainer
from ...training.optimizers import KINDS
from . import scored


def check(settings: PersonalizeSettings, model: Family) -> None:
    """Raise what else would be found only when class images are drawn or training begins."""
    settings.refuse_at_once()
    trainer.check(settings.training)
    model.process.refuse(settings.loss)
    sampling.check(model, settings.samples.sampling, "samples.sampling")
    if settings.prior.uses_images and (settings.prior.folder is None or settings.prior.other_classes):
        sampling.check(model, settings.prior.sampling, "prior.sampling")
    if scored.interval(settings):
        sampling.check(model, scored.image_settings(settings).sampling, "validation")
    refuse_too_strong_a_pull(settings)
    second = [name for name in settings.rates if "text_encoder_2" in name]
    if second and "text_encoder_2" not in model.text_encoders:
        raise SettingsError(f"`{second[0]}`: {settings.base} has one text encoder", "leave it out")
    if settings.prior.uses_images and settings.prior.folder and len(settings.nouns) > 1:
        raise SettingsError(
            f"`prior.folder={settings.prior.folder}`: holds images of one class, not of {', '.join(settings.nouns)}",
            "leave it out to have class images drawn",
        )
    if settings.prior.uses_images and settings.prior.folder:
        pictures = find_pictures([settings.prior.folder])[0]
        if not pictures:
            raise PhotoError(
                f"`prior.folder={settings.prior.folder}`: no picture in it", "leave it out to have class images drawn"
            )
        class_captions(pictures)


def shapes(settings: PersonalizeSettings, model: Family, size: int) -> list[Shape]:
    """List the buckets that photos may be put in; none where all become squares. Raises SettingsError for the square
    alone.
    """
    if settings.photos.shapes == "square":
        return []
    found = shapes_of(size, model.step, settings.photos.max_aspect)
    if len(found) == 1:
        raise SettingsError(
            f"`photos.shapes=buckets`: at {size} px, in steps of this base's {model.step}, there is no shape but the "
            f"square up to {settings.photos.max_aspect:g}:1",
            "give a larger `size` or `photos.max_aspect`, or leave it out",
        )
    return found


def refuse_too_strong_a_pull(settings: PersonalizeSettings) -> None:
    """Raise SettingsError where every step would take all that was learned away again."""
    name, rate = max(settings.rates.items(), key=lambda item: item[1])
    if not KINDS[settings.training.optimizer].multiplies and settings.prior.weights * rate >= 1:
        raise SettingsError(
            f"`prior.weights={settings.prior.weights:g}`: with `{name}={rate:g}` every step takes back "
            "all that was learned",
            f"give far less than {1 / rate:g}, such as {0.01 / rate:.1g}",
        )
