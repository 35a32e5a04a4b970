"""What stands for subjects in prompts and captions, [V] or [V:name] in either case, and what takes their place.

Where a run teaches one subject, [V] stands for it. Where it teaches several, [V:name] does. A prompt of a setting is a
template there: with {class} in it, it is made once for each subject, whose identifier [V] is then, and of which {class}
is the noun; `a {class}` alone is made once for each noun. With one [V:name] in it, {class} is that subject's noun.

Importing it needs no torch, so that those who only fill in prompts can do without.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ..core.errors import SettingsError, shortened
from ..core.events import warn

SUBJECT = "[V]"
ONLY = "V"
"""The name of the one subject of a run that gives it none."""
_ONE = re.compile(re.escape(SUBJECT), re.IGNORECASE)
_NAMED = re.compile(r"\[V:\s*([^\[\]]*?)\s*\]", re.IGNORECASE)
_ANY = re.compile(rf"{_ONE.pattern}|{_NAMED.pattern}", re.IGNORECASE)


class Called(NamedTuple):
    """What a subject is called in prompts."""

    token: str
    """Its identifier."""
    noun: str

    @property
    def phrase(self) -> str:
        """Such as `sks dog`."""
        return f"{self.token} {self.noun}"


def called_in(subject: Mapping[str, Any]) -> dict[str, Called]:
    """Read what subjects are called from what is known of a personalized model: femtobooth.json of one or of several;
    none where it says of none. Raises ValueError where that is no text.
    """
    given = subject.get("subjects")
    if given is None:
        given = {ONLY: subject} if "token" in subject else {}
    if not isinstance(given, Mapping) or not all(isinstance(one, Mapping) for one in given.values()):
        raise ValueError("subjects must be a mapping")
    found = {str(name): Called(one.get("token", ""), one.get("class_noun", "")) for name, one in given.items()}
    if not all(isinstance(word, str) for one in found.values() for word in one):
        raise ValueError("token and class_noun must be text")
    return found


def known_of(subjects: Mapping[str, Called]) -> dict[str, Any]:
    """Say what femtobooth.json says of what subjects are called: what `called_in` reads."""
    each = {name: {"token": one.token, "class_noun": one.noun} for name, one in subjects.items()}
    first: dict[str, Any] = next(iter(each.values()))
    return {**(first if len(each) == 1 else {}), **({} if list(each) == [ONLY] else {"subjects": each})}


class Prompt(NamedTuple):
    """A prompt as the model reads it."""

    text: str
    of: str | None
    """The name of the subject that it shows; None for a class, and for several at once."""
    bare: str
    """The same without identifiers: in words that an encoder, or the untuned base, knows."""
    told: str = ""
    """The same with [V] or [V:name] as it was written, for people."""


def names_subject(text: str) -> bool:
    """Tell whether [V] or [V:name] stands in a prompt or caption."""
    return _ANY.search(text) is not None


def names_in(text: str) -> list[str]:
    """List the names of all [V:name] in a text, in order."""
    return _NAMED.findall(text)


def with_subject(text: str, word: str) -> str:
    """Put a word for [V] into a prompt or caption."""
    return _ONE.sub(lambda _: word, text)


def filled(text: str, token: str, noun: str) -> str:
    """Put the identifier for [V] or {token}, and the class noun for {class}, into a prompt or caption."""
    return with_subject(text, token).replace("{token}", token).replace("{class}", noun)


def bare(text: str) -> str:
    """Give a prompt without [V] and [V:name]: what it asks for in words that an encoder, or the untuned base, knows."""
    return " ".join(_ANY.sub("", text).split())


def named(text: str, subjects: Mapping[str, str]) -> str:
    """Put a word for each [V:name] into a prompt or caption: `subjects` has them by name. [V] stays.

    Raises SettingsError for a name that none has.
    """
    by_name = {name.casefold(): word for name, word in subjects.items()}

    def word(found: re.Match[str]) -> str:
        if found[1].casefold() not in by_name:
            raise SettingsError(f"{shortened(repr(text))}: there is no subject {found[1]!r} here", _forms(subjects))
        return by_name[found[1].casefold()]

    return _NAMED.sub(word, text)


def called(text: str, subjects: Mapping[str, str]) -> str:
    """Put identifiers for [V:name], and for [V] where there is one subject, into a prompt: `subjects` has them by name.

    Raises SettingsError for a name that none has, and for [V] where it could be any of several.
    """
    if len(subjects) > 1 and _ONE.search(text):
        raise SettingsError(f"{shortened(repr(text))}: [V] could be any of {len(subjects)} subjects", _forms(subjects))
    return with_subject(named(text, subjects), next(iter(subjects.values()))) if subjects else text


def _forms(subjects: Iterable[str]) -> str:
    forms = [SUBJECT if name == ONLY else f"[V:{name}]" for name in subjects]
    return f"write {', '.join(forms[:-1])} or {forms[-1]}" if len(forms) > 1 else f"write {SUBJECT}"


def of_templates(templates: Iterable[str], subjects: Mapping[str, Called]) -> list[Prompt]:
    """Make prompts of templates, as the top of this file says, in their order, no two of one text where there are
    several subjects.

    Raises SettingsError for a template of which nobody knows whom it means.
    """
    if len(subjects) == 1:
        ((name, one),) = subjects.items()
        return [_of(text, name, one, {name: one.token}) for text in templates]
    found: dict[str, Prompt] = {}
    for text in templates:
        for prompt in _of_several(text, subjects):
            found.setdefault(prompt.text, prompt)
    return list(found.values())


def _of(text: str, name: str, one: Called, tokens: Mapping[str, str]) -> Prompt:
    plain = filled(bare(text), "", one.noun)
    told = text.replace("{class}", one.noun)
    return Prompt(filled(named(text, tokens), *one), name if names_subject(text) else None, plain, told)


def _of_several(text: str, subjects: Mapping[str, Called]) -> list[Prompt]:
    tokens = {name: one.token for name, one in subjects.items()}
    known = {name.casefold(): name for name in subjects}
    meant = list(dict.fromkeys(known.get(name.casefold(), "") for name in names_in(text)))
    if "{class}" in text or "{token}" in text:
        if len(meant) > 1:
            raise SettingsError(
                f"{shortened(repr(text))}: {{class}} could be the noun of any of {len(meant)} subjects",
                "write the nouns out beside [V:name]",
            )
        if not meant or _ONE.search(text):
            if meant:
                called(text, tokens)  # which says what is wrong
            return [_of(text, name, one, tokens) for name, one in subjects.items()]
    read = called(text, tokens)
    one = subjects[meant[0]] if len(meant) == 1 and meant[0] else None
    noun = one.noun if one else ""
    of = meant[0] if one else None
    return [Prompt(read.replace("{class}", noun), of, filled(bare(text), "", noun), text.replace("{class}", noun))]


class Reader(NamedTuple):
    """What of a base reads prompts, and how much of one."""

    tokenizer: Any
    limit: int
    """How many word pieces are read, without marks of start and end."""

    def pieces(self, text: str) -> list[int]:
        """Cut a text into its word pieces, those that are not read among them."""
        return list(self.tokenizer(text, add_special_tokens=False, truncation=False).input_ids)


SMALL_VOCABULARY = (
    10_000  # entries: a tokenizer with fewer was made for the captions of one training, CLIP's has 49,408
)


def unseen_words(text: str, tokenizer: Any) -> list[str]:
    """List the words of a prompt that a base of a small vocabulary has never seen: its tokenizer has each word of its
    captions whole.
    """
    if len(tokenizer) > SMALL_VOCABULARY:
        return []
    words = dict.fromkeys(re.findall(r"[^\W\d_]+", text.lower()))
    return [word for word in words if len(tokenizer(word, add_special_tokens=False).input_ids) > 1]


def warn_of_unseen(texts: Iterable[str], tokenizer: Any) -> None:
    """Name the words of prompts that the base has never seen, and so cannot draw."""
    unseen = list(dict.fromkeys(word for text in texts for word in unseen_words(text, tokenizer)))
    if unseen:
        warn(f"this base has never seen {', '.join(unseen)}: a prompt draws what its other words say")
