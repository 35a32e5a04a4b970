"""What a personalized model is asked for when it is evaluated."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from ...core.errors import SettingsError
from ...generator.prompts import Called, Prompt, with_subject
from ..settings import EvaluateSettings

MOST_PAIRS = 6  # pairs of subjects that are asked for together


@dataclass(frozen=True)
class Asked:
    """The prompts of all pictures of subjects: those of each, then those of two together."""

    prompts: dict[str, list[str]]
    """By subject, as people read them: with [V] or [V:name]."""
    texts: list[str]
    """All, in order, as the model reads them."""
    pairs: list[tuple[str, str]]
    """The two subjects that the last of them ask for."""
    told: list[str]
    """All as people read them."""

    @classmethod
    def of(cls, prompts: Sequence[Prompt], called: Mapping[str, Called], settings: EvaluateSettings) -> Self:
        """Sort prompts by subjects, and add those of two. Raises SettingsError for what does not name both."""
        several = len(called) > 1
        read: dict[str, list[str]] = {name: [] for name in called}
        texts: dict[str, list[str]] = {name: [] for name in called}
        for one in prompts:
            assert one.of is not None  # noqa: S101
            form = f"[V:{one.of}]" if several else "[V]"
            read[one.of].append(with_subject(one.told, form))
            texts[one.of].append(one.text)
        template = settings.together
        pairs = list(itertools.combinations(called, 2))[:MOST_PAIRS]
        if pairs and not ("{first}" in template and "{second}" in template):
            raise SettingsError(
                f"`together={template}`: needs {{first}} and {{second}}", 'such as "a {first} next to a {second}"'
            )

        def both(forms: Mapping[str, str], pair: tuple[str, str]) -> str:
            return template.replace("{first}", forms[pair[0]]).replace("{second}", forms[pair[1]])

        phrases = {name: one.phrase for name, one in called.items()}
        forms = {name: f"[V:{name}] {one.noun}" for name, one in called.items()}
        return cls(
            read,
            [*(text for some in texts.values() for text in some), *(both(phrases, pair) for pair in pairs)],
            pairs,
            [*(text for some in read.values() for text in some), *(both(forms, pair) for pair in pairs)],
        )

    def rows(self, name: str) -> slice:
        """Say which prompts are of one subject."""
        first = 0
        for subject, own in self.prompts.items():
            if subject == name:
                return slice(first, first + len(own))
            first += len(own)
        raise KeyError(name)

    @property
    def rows_of_pairs(self) -> range:
        """Say which prompts are of two subjects."""
        return range(len(self.texts) - len(self.pairs), len(self.texts))
