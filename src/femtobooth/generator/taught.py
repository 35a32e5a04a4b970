"""The subjects of a run as they are trained on: each with its identifier, its photos and the settings it has alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..core.errors import PhotoError, SettingsError
from ..core.events import note, table, warn
from ..core.names import shown
from . import tokens
from .captions import fitted, of_class
from .families.family import Family
from .photos import Photo
from .prompts import Called, filled, named
from .settings import PersonalizeSettings
from .subject_settings import AUTO


@dataclass(frozen=True)
class Taught:
    """One subject of a run."""

    settings: PersonalizeSettings
    """Those that it would be trained with alone (`PersonalizeSettings.each`)."""
    token: str
    photos: list[Photo]
    held_out: list[Photo]
    """Photos of it that are kept out of training."""

    @property
    def called(self) -> Called:
        """What it is called in prompts."""
        return Called(self.token, self.settings.photos.class_noun)

    def fill(self, text: str) -> str:
        """Put identifier and class noun into a caption or prompt."""
        return filled(text, *self.called)

    @property
    def scored(self) -> list[Photo]:
        """What its pictures are compared with: photos kept out of training, else those of the training."""
        return self.held_out or self.photos


def called(subjects: Mapping[str, Taught]) -> dict[str, Called]:
    """Say what subjects are called in prompts, by name."""
    return {name: one.called for name, one in subjects.items()}


def identifiers(model: Family, settings: PersonalizeSettings) -> dict[str, str]:
    """Find the identifier of each subject, by name, and tell of it. Raises SettingsError."""
    each = settings.each
    how = tokens.Listening.to(model)
    if how.cells < model.cells:
        size = how.cells * model.vae_factor
        note(f"this base is large: what words mean to it is measured at {size} px, in about the time of a step")
    if len(each) == 1:
        ((name, one),) = each.items()
        return {name: _identifier(model, one)}
    wanted = {name: (one.identifier.token, one.photos.class_noun) for name, one in each.items()}
    found = tokens.choose_apart(model, wanted)
    table(
        "Identifiers (response: 1 = the effect of an everyday word; apart: 1 - cosine to the nearest other)",
        ["subject", "token", "class", ">response", ">apart"],
        [
            (name, known.token, wanted[name][1], f"{known.response:.2f}", f"{apart:.2f}")
            for name, (known, apart) in found.items()
        ],
    )
    for name, (known, _) in found.items():
        if wanted[name][0] != AUTO:
            _warn(known, settings)
    return {name: known.token for name, (known, _) in found.items()}


def _identifier(model: Family, settings: PersonalizeSettings) -> str:
    noun, wanted = settings.photos.class_noun, settings.identifier.token
    if wanted != AUTO:
        _warn(tokens.check(model, wanted, noun), settings)
        return wanted
    best = tokens.choose(model, noun)
    table(
        "Identifier: rare single tokens, least meaning first (1 = the effect of an everyday word)",
        ["token", ">response"],
        [(one.token, f"{one.response:.2f}") for one in best],
    )
    return best[0].token


def _warn(found: tokens.Identifier, settings: PersonalizeSettings) -> None:
    adds_it = "token" in settings.train.parts and len(found.pieces) > 1
    for text in [] if adds_it else found.warnings:
        warn(text)


def captioned(model: Family, subjects: Mapping[str, Taught]) -> dict[str, Taught]:
    """Put the identifiers of other subjects in place of [V:name] in captions, and fit them to what is read.

    Raises PhotoError for the name of none.
    """
    words = {name: one.token for name, one in subjects.items()}
    done = {}
    for name, one in subjects.items():
        photos = [replace(photo, captions=_named(photo, {**words, name: "{token}"})) for photo in one.photos]
        captions = fitted([(photo.path, photo.captions) for photo in photos], model.reader, *one.called)
        done[name] = replace(
            one, photos=[replace(photo, captions=own) for photo, own in zip(photos, captions, strict=True)]
        )
    return done


def _named(photo: Photo, words: Mapping[str, str]) -> tuple[str, ...]:
    try:
        return tuple(named(text, words) for text in photo.captions)
    except SettingsError as error:
        raise PhotoError(f"{shown(photo.path.name)}: its caption {error.problem}", error.way_out) from None


def tell_of_class(model: Family, subjects: Mapping[str, Taught]) -> None:
    """Tell the captions that photos have as pictures of their class, where that is asked for. Raises PhotoError."""
    for one in subjects.values():
        if not one.settings.prior.weight or one.settings.prior.target != "photos":
            continue
        noun = one.settings.photos.class_noun
        others = [other.token for other in subjects.values() if other is not one]
        refuse_others(one.photos, others)
        found = of_class([(photo.path, photo.captions) for photo in one.photos], model.reader, one.token, noun)
        texts = list(dict.fromkeys(text for own in found for text in own))
        more = f" and {len(texts) - 3} more" if len(texts) > 3 else ""
        note(f"the photos as any {noun}: {'; '.join(map(repr, texts[:3]))}{more}\n")


def refuse_others(photos: Sequence[Photo], tokens_of_others: Sequence[str]) -> None:
    """Raise PhotoError for a caption that names another subject, and so cannot be said of a class."""
    for photo in photos:
        for text in photo.captions:
            if other := next((word for word in tokens_of_others if word in text.split()), None):
                raise PhotoError(
                    f"{shown(photo.path.name)}: its caption names another subject ({other}), "
                    "which `prior.target=photos` cannot say of a class",
                    "leave that out of the caption, or use `prior.target=base`",
                )
